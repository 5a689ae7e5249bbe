//! Every command of docs/questions.md answers.

mod common;

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::{stderr, tiny_model};

/// Runs a line as a shell does, where `faultline` is the one under test.
fn run(line: &str, folder: &Path) -> Output {
    let program = assert_cmd::cargo::cargo_bin!("faultline");
    let mut path = OsString::from(program.parent().unwrap());
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    Command::new("sh")
        .args(["-c", line])
        .current_dir(folder)
        .env("PATH", path)
        .env("GGML_NO_BACKTRACE", "1")
        .output()
        .unwrap()
}

#[test]
fn every_documented_command_answers() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/questions.md");
    let document = fs::read_to_string(document).unwrap();
    let quoted = document.split('`').skip(1).step_by(2);
    let commands: Vec<&str> = quoted
        .filter(|text| text.starts_with("faultline "))
        .collect();
    assert!(commands.len() > 20, "{commands:?}");
    // The first one makes the log of the others.
    assert!(
        commands[0].starts_with("faultline record "),
        "{}",
        commands[0]
    );

    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-gpt-oss");
    fs::rename(model, folder.path().join("model.gguf")).unwrap();
    let has_extents = tracer::extents(folder.path().join("model.gguf")).is_ok();
    for command in commands {
        if command.contains("--extents") && !has_extents {
            eprintln!("skipped: {command}: the file system of the temporary folder has no FIEMAP");
            continue;
        }
        let output = run(command, folder.path());
        assert!(output.status.success(), "{command}: {}", stderr(&output));
        let says_something =
            !output.stdout.is_empty() || command.contains('>') || command.contains(" -o ");
        assert!(says_something, "{command} says nothing");
        for copy in ["before.ftrace", "after.ftrace"] {
            fs::copy(folder.path().join("run.ftrace"), folder.path().join(copy)).unwrap();
        }
    }
    for made in [
        "report.html",
        "figures/heat.svg",
        "run.parquet",
        "map.parquet",
        "run.json",
    ] {
        let size_bytes = fs::metadata(folder.path().join(made)).unwrap().len();
        assert!(size_bytes > 100, "{made}: {size_bytes} bytes");
    }
}
