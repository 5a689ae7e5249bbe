//! Small files for the tests.

use std::fs;
use std::path::Path;

use crate::upstream;

/// Writes `text` and the folders above it.
pub(crate) fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

pub(crate) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

/// A tree that passes for llama.cpp with ggml 0.`minor`.0.
pub(crate) fn make_tree(path: &Path, minor: u32) {
    for file in upstream::MARKER_FILES {
        write(&path.join(file), "");
    }
    let version = format!(
        "project(\"ggml\")\nset(GGML_VERSION_MAJOR 0)\n  set(GGML_VERSION_MINOR {minor})\nset(GGML_VERSION_PATCH 0)\n"
    );
    write(&path.join("ggml/CMakeLists.txt"), &version);
}
