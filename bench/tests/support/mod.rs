//! What the tests of the `bench` binary share.
#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

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

/// Waits until a measurement into `out` has kept a run. It may not end before.
pub(crate) fn wait_for_a_run(out: &Path, child: &mut Child) {
    let begin = Instant::now();
    let has_run =
        || fs::read_to_string(out.join("raw.jsonl")).is_ok_and(|text| text.contains('\n'));
    while !has_run() {
        let patience = Duration::from_secs(120);
        assert!(begin.elapsed() < patience, "no run was made");
        assert!(child.try_wait().unwrap().is_none(), "ended early");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Status 2, a message with all of `words`, nothing on standard output.
#[track_caller]
pub(crate) fn assert_refused(output: &Output, words: &[&str]) {
    let message = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(output.stdout.is_empty());
    assert!(!message.contains("panicked"), "{message}");
    for word in words {
        assert!(message.contains(word), "`{word}` is missing: {message}");
    }
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
