//! `faultline simulate`: what it prints, and what it refuses.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::{assert_bad_input, faultline, stderr, stdout, tiny_model};
use model_shapes::local::shared_data;

fn simulate(trace: &Path, arguments: &[&str]) -> Output {
    faultline()
        .arg("simulate")
        .arg(trace)
        .args(arguments)
        .output()
        .unwrap()
}

/// 4 tokens, 2 layers, 4 experts, top-2. Layer 0 always uses experts 0 and 1, layer 1 takes turns.
fn small_trace(folder: &Path) -> PathBuf {
    let description = r#"{ "n_layer": 2, "n_expert": 4, "n_expert_used": 2, "tokens": 4, "sequence_lengths": [4] }"#;
    fs::write(folder.join("t.json"), description).unwrap();
    let path = folder.join("t.u8");
    fs::write(&path, [0, 1, 0, 1, 1, 0, 2, 3, 0, 1, 0, 1, 1, 0, 2, 3]).unwrap();
    path
}

#[test]
fn hits_and_missed_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let trace = small_trace(folder.path());
    let csv = |arguments: &[&str]| {
        let output = simulate(&trace, &[&["-o", "csv"], arguments].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
            .lines()
            .skip(1)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    // Two slots in each layer: layer 0 misses twice, layer 1 always.
    assert_eq!(
        csv(&[
            "--slots",
            "2",
            "--policy",
            "lru",
            "--by-layer",
            "--slot-bytes",
            "1kB"
        ]),
        [
            "lru,layer,50,2,,,16,6,10,6,37.5,10000,1",
            "lru,layer,50,2,,0,8,6,2,2,75,2000,1",
            "lru,layer,50,2,,1,8,0,8,4,0,8000,1",
        ]
    );
    // A shared cache of the same size gives layer 1 no more than it needs; without known sizes there are no bytes.
    assert_eq!(
        csv(&[
            "--slots",
            "75%",
            "--pool",
            "global",
            "--policy",
            "lru,belady"
        ]),
        [
            "lru,global,75,,,,16,10,6,6,62.5,,1",
            "belady,global,75,,,,16,10,6,6,62.5,,1",
        ]
    );
    // All that is counted after a warm-up that met every expert hits.
    assert_eq!(
        csv(&[
            "--budget",
            "6kB,0.008MB",
            "--pool",
            "global",
            "--slot-bytes",
            "1000",
            "--warmup",
            "2",
            "--tokens",
            "1",
            "--policy",
            "lfu"
        ]),
        [
            "lfu,global,75,,6000,,4,4,0,0,100,0,",
            "lfu,global,100,,8000,,4,4,0,0,100,0,",
        ]
    );
}

#[test]
fn forms_of_the_result() {
    let folder = tempfile::tempdir().unwrap();
    let trace = small_trace(folder.path());
    let table = stdout(&simulate(
        &trace,
        &["--slot-bytes", "1MiB", "--slots", "2,100%"],
    ));
    assert!(
        table.contains("4 tokens, 2 layers, 8 slices, 8.0 MiB"),
        "{table}"
    );
    // Two sizes, four policies.
    assert_eq!(table.matches("\n| ").count(), 1 + 2 * 4, "{table}");
    assert!(table.contains("| missed MiB/token |"), "{table}");
    let json = stdout(&simulate(&trace, &["-o", "json", "--slots", "50%"]));
    assert!(json.contains("\"hit_percent\": 37.5"), "{json}");
}

#[test]
fn the_published_hit_rates() {
    let Some(trace) = shared_data("routing/gpt-oss-20b.gpqa_main.routes.json") else {
        return;
    };
    let table = stdout(&simulate(&trace, &["--slots", "8"]));
    for rate in ["67.11", "65.12", "69.66", "78.34"] {
        assert!(table.contains(&format!(" {rate} |")), "{table}");
    }
    assert!(
        table.contains("Gini 0.4769, the top quarter has 56.76 %"),
        "{table}"
    );
    assert!(table.contains("1: 0.4581"), "{table}");
}

/// A model of 2 layers or more whose experts have three tensors each.
#[test]
fn an_access_log() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-gpt-oss");
    let log = folder.path().join("run.ftrace");
    let recorded = faultline()
        .args([
            "record", "-p", "hello", "--raw", "-t", "1", "-n", "8", "-c", "64", "--temp", "0", "-m",
        ])
        .arg(&model)
        .arg("-o")
        .arg(&log)
        .output()
        .unwrap();
    assert!(recorded.status.success(), "{}", stderr(&recorded));
    let output = simulate(&log, &["--slots", "100%", "-o", "json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    // With room for all, only what is used for the first time is missed.
    let field = |name: &str| -> u64 {
        let rest = text.split(&format!("\"{name}\": ")).nth(1).unwrap();
        rest.split([',', '\n']).next().unwrap().parse().unwrap()
    };
    assert!(field("n_accesses") > 0);
    assert_eq!(field("n_misses"), field("n_cold_misses"));
    assert!(
        field("miss_bytes") > 0 && field("size_bytes") >= field("miss_bytes"),
        "{text}"
    );

    let sizes = simulate(&log, &["--slot-bytes", "1"]);
    assert_bad_input(&sizes, &["run.ftrace", "--slot-bytes"]);
    assert_bad_input(
        &simulate(&log, &["--skip", "100"]),
        &["run.ftrace", "no tokens are left"],
    );
}

#[test]
fn bad_input() {
    let folder = tempfile::tempdir().unwrap();
    let trace = small_trace(folder.path());
    for (arguments, parts) in [
        (&["--policy", "mru"][..], &["mru", "belady"][..]),
        (&["--policy", "lfu-decay:2"], &["lfu-decay:2", "0.001 to 1"]),
        (&["--slots", "0"], &["at least 1 slot"]),
        (&["--slots", "101%"], &["at most 100%"]),
        (
            &["--slots", "1"],
            &[
                "t.u8",
                "a cache of 1 slots is too small",
                "uses 2 slots of layer 0",
            ],
        ),
        (
            &["--skip", "4"],
            &["t.u8", "there are 4, and 4 are skipped"],
        ),
        (&["--tokens", "0"], &["no tokens are left"]),
        (&["--budget", "3GiB"], &["--pool global"]),
        (&["--budget", "3GiB", "--pool", "global"], &["--slot-bytes"]),
        (
            &["--budget", "1", "--pool", "global", "--slot-bytes", "5"],
            &["1 bytes is too small", "uses 10 bytes"],
        ),
        (&["--budget", "3 elephants"], &["unknown unit"]),
        (
            &["--budget", "1kB", "--slots", "2"],
            &["cannot be used with"],
        ),
    ] {
        assert_bad_input(&simulate(&trace, arguments), parts);
    }
    fs::write(&trace, [0; 3]).unwrap();
    assert_bad_input(&simulate(&trace, &[]), &["t.u8", "3 bytes", "need 16"]);
    fs::remove_file(folder.path().join("t.json")).unwrap();
    assert_bad_input(&simulate(&trace, &[]), &["t.json", "No such file"]);
    assert_bad_input(&simulate(&folder.path().join("t.bin"), &[]), &["t.bin"]);
    let log = folder.path().join("t.ftrace");
    fs::write(&log, "not a log").unwrap();
    assert_bad_input(&simulate(&log, &[]), &["t.ftrace", "not an access log"]);
}
