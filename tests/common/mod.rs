//! What several integration tests share.
#![allow(
    dead_code,
    reason = "every test binary compiles this module and uses a part of it"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The command line under test, with an environment that does not depend on the caller's.
pub(crate) fn faultline() -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("faultline"));
    // Without the second one, an abort inside ggml starts a debugger to print where it was.
    command
        .env("NO_COLOR", "1")
        // What it keeps of its runs; not what tests read there.
        .env("FAULTLINE_CACHE", env!("CARGO_TARGET_TMPDIR"))
        .env("GGML_NO_BACKTRACE", "1")
        .env_remove("RUST_LOG");
    command
}

/// Standard error as text.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Standard output as text.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The process ended by itself, with code 2, nothing on standard output and one error on standard error that contains
/// every one of `parts`.
#[track_caller]
pub(crate) fn assert_bad_input(output: &Output, parts: &[&str]) {
    let message = stderr(output);
    assert_eq!(
        output.status.code(),
        Some(2),
        "{}: {message}",
        output.status
    );
    assert!(
        output.stdout.is_empty(),
        "text on standard output: {}",
        stdout(output)
    );
    assert!(message.starts_with("error: "), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

/// A tiny model with random weights, which llama.cpp loads like any other; see `model_shapes::Shape::names`.
pub(crate) fn tiny_model(folder: &Path, shape: &str) -> PathBuf {
    let path = folder.join(format!("{shape}.gguf"));
    let shape = model_shapes::Shape::by_name(shape).unwrap();
    model_shapes::generate(&shape, &path, 1, &mut |_, _| {}).unwrap();
    path
}

/// Writes `model` as `path`, each metadata value replaced by what `change` makes of it; `None` leaves the key out.
pub(crate) fn rewrite(
    model: &Path,
    path: &Path,
    change: impl Fn(&str, &gguf::Value) -> Option<gguf::Value>,
) {
    let source = gguf::Gguf::open(model).unwrap();
    let mut layout = gguf::Layout::new();
    for (key, value) in source.kv() {
        if let Some(value) = change(key, value) {
            layout.kv(key, value).unwrap();
        }
    }
    for tensor in source.tensors() {
        layout
            .tensor(&tensor.name, tensor.ggml_type, &tensor.dims)
            .unwrap();
    }
    let bytes = std::fs::read(model).unwrap();
    let mut writer = gguf::GgufWriter::create(path, layout).unwrap();
    for tensor in source.tensors() {
        let start = usize::try_from(tensor.offset).unwrap();
        let end = start + usize::try_from(tensor.size_bytes).unwrap();
        writer.write_tensor(&mut &bytes[start..end]).unwrap();
    }
    writer.finish().unwrap();
}
