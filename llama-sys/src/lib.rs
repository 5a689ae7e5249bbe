//! Raw bindings to the patched llama.cpp.
