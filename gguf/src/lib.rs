//! GGUF files: a reader and a writer in plain Rust.
