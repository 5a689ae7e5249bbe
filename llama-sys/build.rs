//! Builds and binds the patched llama.cpp; everything happens in the crate `llama-build`.

use std::process::ExitCode;

fn main() -> ExitCode {
    llama_build::script::run()
}
