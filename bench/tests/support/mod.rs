//! What the tests of the `bench` binary share.
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A folder on the file system of the build's output. The system's temporary folder may be in memory, where nothing can
/// be cold.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder")
}

/// The program, with a cache folder of its own.
pub(crate) fn bench(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command
        .env("FAULTLINE_CACHE", folder.join("cache"))
        .env("OMP_WAIT_POLICY", "passive");
    command
}

/// A tiny model of `shape` in `folder`.
pub(crate) fn tiny(folder: &Path, shape: &str) -> PathBuf {
    let path = folder.join(format!("{shape}.gguf"));
    let output = bench(folder)
        .args(["make-model", "--quiet", "--shape", shape, "-o"])
        .arg(&path)
        .output()
        .expect("bench runs");
    assert!(output.status.success(), "{}", stderr(&output));
    path
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The rows of `-o json`.
pub(crate) fn rows(output: &Output) -> Vec<Value> {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", stderr(output)))
}

/// The rows with this prefetch mode.
pub(crate) fn of_mode<'a>(rows: &'a [Value], mode: &str) -> Vec<&'a Value> {
    rows.iter().filter(|row| row["prefetch"] == mode).collect()
}
