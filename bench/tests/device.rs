//! `bench device` and `bench roofline` from the command line. No test looks at a rate's size.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{assert_refused, bench, folder, stderr, stdout, tiny};

const QUICK: [&str; 7] = [
    "device",
    "--sizes",
    "4KiB,64KiB",
    "--depths",
    "1,2",
    "--seconds",
    "0.02",
];

fn device(folder: &Path, args: &[&str]) -> Output {
    bench(folder).args(QUICK).args(args).output().unwrap()
}

#[test]
fn a_curve_and_the_bounds_from_it() {
    let folder = folder();
    let model = tiny(folder.path(), "tiny-gpt-oss");
    let (name, out) = (model.to_str().unwrap(), folder.path().join("out"));
    let output = device(
        folder.path(),
        &["-m", name, "-o", "json", "--out", out.to_str().unwrap()],
    );
    assert!(output.status.success(), "{}", stderr(&output));
    let curve: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(curve["points"].as_array().unwrap().len(), 4);
    assert_eq!(curve["target"]["file"], "tiny-gpt-oss.gguf");
    assert_eq!(
        fs::read_to_string(out.join("device.json")).unwrap(),
        stdout(&output)
    );
    let csv = fs::read_to_string(out.join("device.csv")).unwrap();
    assert_eq!(csv.lines().count(), 6);
    assert!(
        fs::read_to_string(out.join("device.md"))
            .unwrap()
            .contains("| 64 KiB |")
    );

    let parts = gguf::ModelFiles::open(&model).unwrap();
    let experts: Vec<_> = parts
        .tensors()
        .map(|(_, tensor)| tensor)
        .filter(|tensor| gguf::is_expert_name(&tensor.name))
        .collect();
    let n_layers = experts
        .iter()
        .filter(|tensor| tensor.name.contains("gate"))
        .count();
    let n_experts = *experts[0].dims.last().unwrap();
    let top_k = parts.metadata().u64("gpt-oss.expert_used_count").unwrap();
    let trace = folder.path().join("made.u8");
    let describe = |n_layers: usize| {
        let choices = (0..4 * n_layers as u64 * top_k).map(|index| (index % top_k) as u8);
        fs::write(&trace, choices.collect::<Vec<_>>()).unwrap();
        let text = json!({
            "n_layer": n_layers, "n_expert": n_experts, "n_expert_used": top_k, "tokens": 4, "sequence_lengths": [4],
            "layout": "u8 [tokens][layer][rank], C order",
        });
        fs::write(trace.with_extension("json"), text.to_string()).unwrap();
    };
    let roofline = |args: &[&str]| {
        bench(folder.path())
            .args(["roofline", "-m", name, "--routing"])
            .arg(&trace)
            .arg("--device-curve")
            .arg(out.join("device.json"))
            .args(args)
            .output()
            .unwrap()
    };
    describe(n_layers);
    let output = roofline(&[
        "--step-ms",
        "1000",
        "--budget",
        "none,1G",
        "--measured",
        "0.5,2",
        "-o",
        "json",
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let rows: Value = serde_json::from_str(&stdout(&output)).unwrap();
    // A second of computing for a token of a few kilobytes.
    for (row, share) in [(0, 0.5), (1, 2.0)] {
        assert_eq!(rows[row]["tokens_per_s"], 1.0);
        assert_eq!(rows[row]["limit"], "compute");
        assert_eq!(rows[row]["share_of_bound"], share);
    }
    // The same experts for each of four tokens: read once.
    let used: u64 = experts
        .iter()
        .map(|tensor| tensor.slice_bytes() * top_k)
        .sum();
    assert_eq!(rows[1]["miss_bytes_per_token"], used as f64 / 4.0);

    assert_refused(&roofline(&["--step-ms", "0"]), &["0 ms"]);
    assert_refused(
        &roofline(&["--step-ms", "1", "--budget", "1"]),
        &["too small"],
    );
    assert_refused(
        &roofline(&["--step-ms", "1", "--measured", "1"]),
        &["--measured"],
    );
    describe(n_layers + 1);
    assert_refused(&roofline(&["--step-ms", "1"]), &["layers", "made.u8"]);
    fs::write(out.join("device.json"), "{}").unwrap();
    assert_refused(
        &roofline(&["--step-ms", "1"]),
        &["device.json", "bench device"],
    );
}

#[test]
fn bad_input() {
    let folder = folder();
    let path = folder.path();
    let model = tiny(path, "tiny-llama");
    let name = model.to_str().unwrap();
    let with = |args: &[&str]| {
        bench(path)
            .args(["device", "-m", name])
            .args(args)
            .output()
            .unwrap()
    };
    assert_refused(
        &device(path, &["-m", "/missing/m.gguf"]),
        &["/missing/m.gguf"],
    );
    assert_refused(
        &device(path, &["-m", path.to_str().unwrap()]),
        &["not a regular file"],
    );
    assert_refused(&device(path, &["--dir", "/missing"]), &["/missing"]);
    assert_refused(&device(path, &["--dir", name]), &["not a folder"]);
    assert_refused(
        &device(path, &["--dir", path.to_str().unwrap(), "--file-size", "0"]),
        &["0 bytes"],
    );
    assert_refused(&with(&["--sizes", "0"]), &["0 bytes"]);
    assert_refused(&with(&["--sizes", "1000"]), &["1000", "512"]);
    assert_refused(&with(&["--sizes", "1T"]), &["too large"]);
    assert_refused(&with(&["--sizes", "1G"]), &["too large"]);
    assert_refused(&with(&["--depths", "0"]), &["depth of 0"]);
    assert_refused(&with(&["--depths", "x"]), &["x"]);
    assert_refused(&with(&["--seconds", "-1"]), &["-1"]);
    assert_refused(&with(&["-r", "2"]), &["2 repetitions"]);
    assert_refused(&with(&["--sizes", "1M"]), &["too few"]);
    assert_refused(&with(&["--out", name]), &["tiny-llama.gguf"]);
}

#[test]
fn an_interrupt_leaves_no_file() {
    let folder = folder();
    let dir = folder.path().join("disk");
    fs::create_dir(&dir).unwrap();
    let child = bench(folder.path())
        .args([
            "device",
            "--sizes",
            "4KiB",
            "--depths",
            "1",
            "--seconds",
            "600",
            "--file-size",
            "16MiB",
            "--dir",
        ])
        .arg(&dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_child(&child);
    let io = format!("/proc/{}/io", child.id());
    let begin = Instant::now();
    // The file has been written when 16 MiB have.
    let written = || {
        let text = fs::read_to_string(&io).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("wchar: "));
        line.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0)
    };
    while written() < 16 << 20 {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "nothing was written"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    kill_process(pid, Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
}
