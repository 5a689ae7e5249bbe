//! Routing traces, baselines and steps, with tiny models and made-up traces. No time is asserted.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use support::{bench, folder, rows, stderr, tiny};

/// How many of what a model has.
struct Shape {
    layers: usize,
    experts: usize,
    used: usize,
}

fn shape_of(model: &Path) -> Shape {
    let file = gguf::Gguf::open(model).unwrap();
    let architecture = file.architecture().unwrap();
    let count = |key: &str| file.u32(&format!("{architecture}.{key}")).unwrap() as usize;
    Shape {
        layers: count("block_count"),
        experts: count("expert_count"),
        used: count("expert_used_count"),
    }
}

/// A trace of two sequences with `tokens` tokens.
fn trace(folder: &Path, shape: &Shape, tokens: usize) -> PathBuf {
    let mut experts = Vec::new();
    for token in 0..tokens {
        for layer in 0..shape.layers {
            let start = token * token + 3 * layer;
            experts.extend((0..shape.used).map(|rank| ((start + rank) % shape.experts) as u8));
        }
    }
    let path = folder.join("made-up.routes.u8");
    std::fs::write(&path, experts).unwrap();
    let description = json!({
        "model": "tiny", "n_layer": shape.layers, "n_expert": shape.experts, "n_expert_used": shape.used,
        "layout": "u8 [tokens][layer][rank], C order", "tokens": tokens, "sequence_lengths": [5, tokens - 5],
    });
    std::fs::write(folder.join("made-up.routes.json"), description.to_string()).unwrap();
    path
}

fn run(folder: &Path, model: &Path, args: &[&str]) -> Output {
    bench(folder)
        .args(["--warm", "-r", "1", "-o", "json", "--out"])
        .arg(folder.join("run"))
        .arg("--model")
        .arg(model)
        .args(args)
        .output()
        .unwrap()
}

fn measured(folder: &Path, model: &Path, args: &[&str]) -> Vec<Value> {
    let output = run(folder, model, args);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    rows(&output)
}

#[test]
fn a_trace_decides_what_is_read() {
    for name in ["tiny-gpt-oss", "tiny-deepseek2"] {
        let folder = folder();
        let model = tiny(folder.path(), name);
        let mut shape = shape_of(&model);
        if name == "tiny-deepseek2" {
            // Its first layer has no experts.
            shape.layers -= 1;
        }
        let trace = trace(folder.path(), &shape, 20);
        let steps = folder.path().join("steps.csv");
        let replay = |skip: &str| {
            let args = [
                "--prefetch=none,selective",
                "-p",
                "4",
                "--tokens",
                "12",
                "--routing-skip",
                skip,
                "--routing",
                trace.to_str().unwrap(),
                "--steps",
                steps.to_str().unwrap(),
            ];
            measured(folder.path(), &model, &args)
        };
        let first = replay("3");
        assert_eq!(first.len(), 4, "two modes, prompt and decode");
        assert_eq!(first[0]["routing"], "made-up.routes.u8");
        assert_eq!(
            first[0]["fingerprint_logits"],
            first[2]["fingerprint_logits"]
        );
        assert_eq!(first[1]["n_decoded"], json!([8]));
        for pair in [
            "step_ms_min",
            "step_ms_median",
            "step_ms_p99",
            "step_ms_max",
        ]
        .windows(2)
        {
            let ms = |name: &str| first[1][name].as_f64().unwrap();
            assert!(ms(pair[0]) > 0.0 && ms(pair[0]) <= ms(pair[1]));
        }
        let lines = std::fs::read_to_string(&steps).unwrap();
        assert_eq!(lines.lines().count(), 1 + 2 * 8);
        assert!(
            lines
                .lines()
                .skip(1)
                .all(|line| line.split(',').count() == 10)
        );

        let setup: Value =
            serde_json::from_slice(&std::fs::read(folder.path().join("run/setup.json")).unwrap())
                .unwrap();
        // Two tokens, and three tensors of experts in each layer.
        let reads = 2 * 3 * shape.layers * shape.used;
        assert_eq!(setup["routing"]["checked"], reads, "{name}");

        // Another part of the trace, and no trace, compute something else.
        let logits = |rows: &[Value]| rows[0]["fingerprint_logits"].clone();
        let plain = ["--prefetch=none", "-p", "4", "-n", "8"];
        let own = measured(folder.path(), &model, &plain);
        assert_ne!(logits(&first), logits(&replay("4")));
        assert_ne!(logits(&first), logits(&own));
        // The interruptions alone change nothing.
        let interrupted = [&plain[..], &["--routing", "own"]].concat();
        assert_eq!(
            logits(&measured(folder.path(), &model, &interrupted)),
            logits(&own)
        );
    }
}

#[test]
fn traces_that_do_not_fit_are_refused() {
    let folder = folder();
    let model = tiny(folder.path(), "tiny-gpt-oss");
    let shape = shape_of(&model);
    let other = Shape {
        layers: shape.layers + 1,
        experts: shape.experts,
        used: shape.used - 1,
    };
    let refused = |model: &Path, args: &[&str], words: &[&str]| {
        let output = run(folder.path(), model, args);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(output.stdout.is_empty());
        for word in words {
            assert!(message.contains(word), "`{word}` is missing: {message}");
        }
    };
    let path = trace(folder.path(), &other, 20);
    let routing = ["--routing", path.to_str().unwrap()];
    let both = [other, shape].map(|s| {
        format!(
            "{} layers with {} experts each, of which a token uses {}",
            s.layers, s.experts, s.used
        )
    });
    refused(
        &model,
        &routing,
        &[&both[0], &both[1], "made-up.routes.u8", "tiny-gpt-oss.gguf"],
    );
    let shape = shape_of(&model);
    trace(folder.path(), &shape, 20);
    refused(
        &model,
        &[&routing[..], &["-p", "4", "-n", "17"]].concat(),
        &["20 tokens", "--routing-skip"],
    );
    let dense = tiny(folder.path(), "tiny-llama");
    refused(&dense, &routing, &["has no experts"]);
    refused(
        &model,
        &["--routing", "missing.routes.u8"],
        &["missing.routes"],
    );
}

#[test]
fn a_time_limit_ends_a_run_early_and_is_stated() {
    let folder = folder();
    let model = tiny(folder.path(), "tiny-gpt-oss");
    let args = [
        "--prefetch=none,selective",
        "-p",
        "4",
        "-n",
        "64",
        "--decode-seconds",
        "1e-9",
    ];
    let found = measured(folder.path(), &model, &args);
    for row in found {
        assert_eq!(row["n_decoded"], json!([1]), "the first token takes longer");
        assert!(row["avg_ts"].as_f64().unwrap() > 0.0);
    }
    let summary = std::fs::read_to_string(folder.path().join("run/summary.md")).unwrap();
    assert!(summary.contains("tokens |"), "{summary}");
}

/// A stand-in for another program: prints its arguments as a speed.
#[test]
fn other_programs_run_under_the_same_conditions() {
    let folder = folder();
    let model = tiny(folder.path(), "tiny-llama");
    let args = [
        "--prefetch=eager",
        "-p",
        "2",
        "-n",
        "4",
        "--baseline-cmd",
        "peer=test -f {model} && echo speed {tokens}0 t/s",
        "--baseline-cmd",
        "broken=test -f {model}; echo no figure; exit 3",
        "--baseline-regex",
        "speed ([0-9.]+) t/s",
    ];
    let output = run(folder.path(), &model, &args);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let found = rows(&output);
    let decode = |engine: &str| {
        let of_engine = |row: &&Value| row["engine"] == engine && row["n_gen"] == 4;
        found.iter().find(of_engine).unwrap()
    };
    let peer = decode("peer");
    assert_eq!(peer["median_ts"].as_f64().unwrap().round(), 40.0);
    assert_eq!(peer["status"], "ok");
    assert_eq!(
        (&peer["load_ms"], &peer["fingerprint_logits"]),
        (&Value::Null, &Value::Null)
    );
    let broken = decode("broken");
    assert_eq!(broken["status"], "failed");
    let reason = broken["reason"].as_str().unwrap();
    assert!(reason.contains("exit status: 3"), "{reason}");
    assert_eq!(decode("faultline")["status"], "ok");
}

#[test]
fn stock_computes_the_same() {
    if std::env::var_os("FAULTLINE_STOCK_WORKER").is_none() {
        return eprintln!(
            "skipped: FAULTLINE_STOCK_WORKER is not set; `make test STEPS=test` builds the program and sets it"
        );
    }
    for name in ["tiny-gpt-oss", "tiny-qwen3moe", "tiny-llama"] {
        let folder = folder();
        let model = tiny(folder.path(), name);
        let file_bytes = std::fs::metadata(&model).unwrap().len();
        let common = [
            "--prefetch=eager,selective",
            "--baseline",
            "stock:all",
            "--repack",
            "both",
            "-p",
            "20",
            "--prompts",
            "2",
            "-n",
            "20",
        ];
        let mut runs = vec![common.to_vec()];
        let trace_path;
        if name != "tiny-llama" {
            trace_path = trace(folder.path(), &shape_of(&model), 60);
            let routing = [
                "--ubatch-size",
                "16",
                "--routing",
                trace_path.to_str().unwrap(),
            ];
            runs.push([&common[..], &routing].concat());
        }
        for args in runs {
            // Rows of equal arithmetic are compared by the program itself, which fails when logits differ.
            let found = measured(folder.path(), &model, &args);
            let decode: Vec<_> = found.iter().filter(|row| row["n_gen"] == 20).collect();
            assert_eq!(decode.len(), 9);
            let of = |engine: &str, repack: bool| {
                decode
                    .iter()
                    .filter(|row| row["engine"] == engine && row["repack"] == repack)
                    .map(|row| row["fingerprint_logits"].as_str().unwrap())
                    .collect::<Vec<_>>()
            };
            assert_eq!((of("stock", false).len(), of("stock", true).len()), (3, 3));
            assert!(
                of("stock", false)
                    .iter()
                    .all(|logits| *logits == of("faultline", false)[0])
            );
            for row in decode.iter().filter(|row| row["engine"] == "stock") {
                assert_eq!(row["build_commit"], "b12032");
                assert!(row["token16_ms"].as_f64() > row["first_token_ms"].as_f64());
                assert!(row["faults_minor"].as_u64().unwrap() > 0);
                assert_eq!(row["resident_after_load_bytes"], Value::Null);
                // A warm run; the kernel may have taken a few pages back.
                let resident_bytes = row["resident_end_bytes"].as_u64().unwrap();
                assert!(
                    10 * resident_bytes >= 9 * file_bytes && resident_bytes <= file_bytes,
                    "{resident_bytes} of {file_bytes}"
                );
            }
            let modes: Vec<_> = decode
                .iter()
                .map(|row| row["load_mode"].as_str().unwrap())
                .collect();
            assert_eq!(modes[..6], ["mmap", "mmap", "none", "none", "dio", "dio"]);
        }
        let missing = folder.path().join("missing");
        let output = bench(folder.path())
            .env("FAULTLINE_STOCK_WORKER", &missing)
            .args(["--baseline", "stock", "-m"])
            .arg(&model)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        let program = std::env::var_os("FAULTLINE_STOCK_WORKER").unwrap();
        let refused = Command::new(program)
            .arg(format!("model={}", missing.display()))
            .output()
            .unwrap();
        assert_eq!(refused.status.code(), Some(2));
    }
}
