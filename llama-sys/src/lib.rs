//! Raw bindings to the patched llama.cpp, and to a shim that keeps C++ exceptions out of Rust.
//!
//! Nothing here is safe; `llama-rs` is the safe interface. The items are those of `llama.h`, `ggml.h`, `ggml-backend.h`,
//! `ggml-cpu.h` and `gguf.h` under their C names, and the shim's `faultline_*`. Enumerations are integer types with plain
//! constants (`ggml_type` is `u32`, `GGML_TYPE_F32` a constant of it): upstream has functions with the names of
//! enumerations, and any number may come out of a file.
//!
//! Calls that may throw go through the shim: `faultline_decode` instead of `llama_decode`.

#![cfg(not(without_llama_cpp))]

#[allow(
    missing_debug_implementations,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    rustdoc::all,
    unreachable_pub,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

mod build_info {
    include!(concat!(env!("OUT_DIR"), "/build_info.rs"));
}

#[cfg(target_pointer_width = "64")]
mod layout;

pub use bindings::*;
pub use build_info::{GGML_VERSION, LLAMA_BUILD, PATCH_SET_DIGEST};

// If these are missing, the headers are not those of the patched tree: patches/series is not what this crate was written
// for, or LLAMA_SYS_SOURCE names a tree that was patched by another series.
pub use bindings::{
    GGML_TENSOR_FLAG_LAZY, LLAMA_LAZY_MODE_ALL, LLAMA_LAZY_MODE_SPARSE, ggml_backend_cpu_lazy_i,
    ggml_backend_cpu_set_lazy, ggml_backend_cpu_set_tensor_trace, ggml_backend_cpu_trace_i,
    llama_lazy_abi_v3, llama_model_load_from_splits_mapped, llama_model_mapping_i, llama_set_lazy,
    llama_set_tensor_trace,
};

/// The ABI marker of the patched library. `#[used]` keeps the reference in every program, so that an unpatched or stale
/// library fails at link time: "undefined symbol: llama_lazy_abi_v3".
#[used]
static ABI_MARKER: unsafe extern "C" fn() -> i32 = llama_lazy_abi_v3;
