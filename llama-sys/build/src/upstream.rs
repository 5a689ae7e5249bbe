//! What is pinned: the upstream build, and the registry crate that carries its source.
//!
//! Moving the pin changes this file, `vendor/llama.cpp/Cargo.{toml,lock}`, the series in `patches/` and nothing else.

/// The registry crate whose package holds the unmodified upstream tree.
pub const CRATE: &str = "llama-cpp-sys-4";

/// The exact version of [`CRATE`].
pub const CRATE_VERSION: &str = "0.11.0";

/// The folder of the upstream tree inside the package of [`CRATE`].
pub const CRATE_FOLDER: &str = "llama.cpp";

/// Upstream's build number.
pub const BUILD_NUMBER: u32 = 12032;

/// Upstream's commit, abbreviated as upstream prints it.
pub const COMMIT: &str = "785322d17f";

/// The ggml version that the tree must declare in `ggml/CMakeLists.txt`.
pub const GGML_VERSION: &str = "0.28.0";

/// Files without which a folder is not this tree.
pub const MARKER_FILES: [&str; 7] = [
    "CMakeLists.txt",
    "include/llama.h",
    "src/llama-ext.h",
    "ggml/CMakeLists.txt",
    "ggml/include/ggml.h",
    "ggml/include/ggml-cpu.h",
    "ggml/include/gguf.h",
];

/// The function that the patched `include/llama.h` declares and that exists only in a patched library.
pub const ABI_MARKER: &str = "llama_lazy_abi_v3";

/// Folders of the tree that a CPU build never reads: backends for other devices. They are left out of the copy.
pub const UNUSED_FOLDERS: [&str; 17] = [
    "ggml/src/ggml-blas",
    "ggml/src/ggml-cann",
    "ggml/src/ggml-cuda",
    "ggml/src/ggml-et",
    "ggml/src/ggml-hexagon",
    "ggml/src/ggml-hip",
    "ggml/src/ggml-metal",
    "ggml/src/ggml-musa",
    "ggml/src/ggml-opencl",
    "ggml/src/ggml-openvino",
    "ggml/src/ggml-rpc",
    "ggml/src/ggml-sycl",
    "ggml/src/ggml-virtgpu",
    "ggml/src/ggml-vulkan",
    "ggml/src/ggml-webgpu",
    "ggml/src/ggml-zdnn",
    "ggml/src/ggml-zendnn",
];

/// `b12032`: the name under which upstream publishes the pinned build.
pub fn build_name() -> String {
    format!("b{BUILD_NUMBER}")
}
