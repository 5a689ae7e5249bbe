//! Builds the pinned and patched llama.cpp.
