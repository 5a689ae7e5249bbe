//! `bench report` on the runs that the documents quote, and on what is no run.

mod support;

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use support::{assert_refused, bench, folder, rows, stderr, stdout, tiny, wait_for_a_run};

/// Folders of committed runs.
fn committed() -> Vec<PathBuf> {
    let runs = Path::new(env!("CARGO_MANIFEST_DIR")).join("runs");
    let mut folders: Vec<PathBuf> = fs::read_dir(runs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.sort();
    folders
}

#[test]
fn committed_runs_can_be_read() {
    let folder = folder();
    let output = bench(folder.path())
        .arg("report")
        .args(committed())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    for part in [
        "## 2026-11-21-epyc2/big",
        "## 2026-11-21-epyc2/demo",
        "faultline-demo-v1.gguf",
        "6.52 GiB",
        "of an older bench",
        "the machine was too noisy to tell these apart",
    ] {
        assert!(text.contains(part), "`{part}` is missing: {text}");
    }
}

#[test]
fn a_page_of_committed_runs() {
    let folder = folder();
    let page = folder.path().join("report.html");
    let output = bench(folder.path())
        .arg("report")
        .args(committed())
        .arg("--output")
        .arg(&page)
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stdout.is_empty(),
        "{}",
        stderr(&output)
    );
    let text = fs::read_to_string(page).unwrap();
    assert!(text.starts_with("<!DOCTYPE html>") && text.ends_with("</html>\n"));
    assert!(text.matches("<svg ").count() >= 8);
    assert!(!text.contains("NaN"));
}

#[test]
fn a_row_that_is_measured_twice_is_compared_with_itself() {
    let folder = folder();
    let model = tiny(folder.path(), "tiny-gpt-oss");
    let kept = folder.path().join("kept");
    let output = bench(folder.path())
        .args(["--twice", "--warm", "--prefetch=selective", "-r", "3"])
        .args(["-p", "2", "-n", "3", "-o", "json", "--quiet", "--model"])
        .arg(&model)
        .arg("--out")
        .arg(&kept)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    // Two rows with two tests each.
    assert_eq!(rows(&output).len(), 4);
    let report = bench(folder.path())
        .arg("report")
        .arg(&kept)
        .output()
        .unwrap();
    assert!(report.status.success(), "{}", stderr(&report));
    let text = stdout(&report);
    for figure in ["speed of decoding", "speed of the prompt", "time to load"] {
        let line = format!("A/A, {figure}: ");
        assert!(text.contains(&line), "{line} is missing: {text}");
    }
    assert!(text.contains("of 1 pairs"), "{text}");
}

#[test]
fn what_is_no_run_is_refused() {
    let folder = folder();
    let raw = folder.path().join("raw.jsonl");
    let setup = fs::read(committed()[0].join("demo-setup.json")).unwrap();
    let refused = |words: &[&str]| {
        let output = bench(folder.path())
            .arg("report")
            .arg(&raw)
            .output()
            .unwrap();
        assert_refused(&output, words);
    };
    refused(&["setup.json"]);
    fs::write(folder.path().join("setup.json"), setup).unwrap();
    refused(&["raw.jsonl", "No such file"]);
    fs::write(&raw, "").unwrap();
    refused(&["raw.jsonl", "holds no run"]);
    fs::write(&raw, "\u{0}\u{1}GGUF\n").unwrap();
    refused(&["raw.jsonl:1"]);
    let line = fs::read_to_string(committed()[0].join("demo-raw.jsonl")).unwrap();
    fs::write(
        &raw,
        line.replacen("{\"row_index\"", "{\"schema\":9,\"row_index\"", 2),
    )
    .unwrap();
    refused(&["raw.jsonl:1", "schema 9"]);
}

#[test]
fn a_measurement_that_was_killed_can_be_read() {
    let folder = folder();
    let model = tiny(folder.path(), "tiny-llama");
    let out = folder.path().join("run");
    let mut child = bench(folder.path())
        .args(["--prefetch=eager,none", "-r", "9999", "-p", "2", "-n", "2"])
        .arg("--out")
        .arg(&out)
        .arg("--model")
        .arg(&model)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_a_run(&out, &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!out.join("summary.md").exists());
    // As if it had been killed while it wrote.
    let mut raw = OpenOptions::new()
        .append(true)
        .open(out.join("raw.jsonl"))
        .unwrap();
    raw.write_all(b"{\"schema\":2,").unwrap();
    let output = bench(folder.path())
        .arg("report")
        .arg(&out)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    for part in [
        "tiny-llama.gguf",
        "| eager",
        "the run was stopped",
        "was left out",
    ] {
        assert!(text.contains(part), "`{part}` is missing: {text}");
    }
}
