//! A safe wrapper around the patched llama.cpp.
