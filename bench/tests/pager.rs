//! Warm-up, references and rows with the pager, with a tiny model and a made-up trace. No time is asserted.

mod support;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::{assert_refused, bench, folder, rows, stderr, tiny};

/// Layers, experts and used ones of tiny-gpt-oss.
const SHAPE: [usize; 3] = [3, 8, 2];

/// A trace in which later tokens use experts that earlier ones do not.
fn trace(folder: &Path, tokens: usize) -> PathBuf {
    let [layers, experts, used] = SHAPE;
    let mut picks = Vec::new();
    for token in 0..tokens {
        for layer in 0..layers {
            let start = token / 4 + layer;
            picks.extend((0..used).map(|rank| ((start + rank) % experts) as u8));
        }
    }
    let path = folder.join("made-up.routes.u8");
    std::fs::write(&path, picks).unwrap();
    let description = json!({
        "model": "tiny", "n_layer": layers, "n_expert": experts, "n_expert_used": used,
        "layout": "u8 [tokens][layer][rank], C order", "tokens": tokens, "sequence_lengths": [tokens],
    });
    std::fs::write(folder.join("made-up.routes.json"), description.to_string()).unwrap();
    path
}

fn measured(folder: &Path, model: &Path, args: &[&str]) -> Vec<Value> {
    let output = bench(folder)
        .args(["-r", "1", "-p", "1", "-o", "json", "--out"])
        .arg(folder.join("run"))
        .arg("--model")
        .arg(model)
        .args(args)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    rows(&output)
        .into_iter()
        .filter(|row| row["n_gen"] != 0)
        .collect()
}

fn number(row: &Value, name: &str) -> f64 {
    row[name]
        .as_f64()
        .unwrap_or_else(|| panic!("{name}: {}", row[name]))
}

#[test]
fn a_warm_up_computes_the_same_and_does_not_count() {
    let folder = folder();
    let model = tiny(folder.path(), "tiny-gpt-oss");
    let steps = folder.path().join("steps.csv");
    let run = |args: &[&str]| {
        let common = [
            "--warm",
            "--prefetch=selective",
            "--steps",
            steps.to_str().unwrap(),
        ];
        measured(folder.path(), &model, &[&common[..], args].concat()).remove(0)
    };
    let whole = run(&["-n", "10"]);
    let parted = run(&["--warm-up", "6", "-n", "4"]);
    assert_eq!(whole["fingerprint_logits"], parted["fingerprint_logits"]);
    assert_eq!(
        (&parted["n_decoded"], &parted["n_warmed_up"]),
        (&json!([4]), &json!([6]))
    );
    assert_eq!(
        (&parted["n_gen"], &parted["n_depth"]),
        (&json!(4), &json!(7))
    );
    assert_eq!(std::fs::read_to_string(&steps).unwrap().lines().count(), 5);

    let cut = run(&["--warm-up", "6", "-n", "4", "--decode-seconds", "1e-9"]);
    assert_eq!(
        (&cut["n_decoded"], &cut["n_warmed_up"]),
        (&json!([1]), &json!([1]))
    );
    let summary = std::fs::read_to_string(folder.path().join("run/summary.md")).unwrap();
    assert!(summary.contains("The warm-up was ended"), "{summary}");
}

#[test]
fn the_last_of_several_prompts_counts() {
    let folder = folder();
    let model = tiny(folder.path(), "tiny-gpt-oss");
    let run = |prompts: &str| {
        let args = [
            "--prefetch=selective,pager",
            "-n",
            "3",
            "--prompts",
            prompts,
        ];
        measured(folder.path(), &model, &args)
    };
    let (once, thrice) = (run("1"), run("3"));
    for row in &thrice {
        assert_eq!(row["fingerprint_logits"], once[0]["fingerprint_logits"]);
        assert_eq!(row["n_decoded"], json!([3]));
    }
    let summary = std::fs::read_to_string(folder.path().join("run/summary.md")).unwrap();
    assert!(summary.contains("prompts: 3 one after"), "{summary}");
}

#[test]
fn what_the_pager_reads_is_counted_and_predicted() {
    let folder = folder();
    let model = tiny(folder.path(), "tiny-gpt-oss");
    let trace = trace(folder.path(), 40);
    let args = [
        "--prefetch=pager",
        "--policy",
        "lru,lfu-decay",
        "--reads",
        "threads",
        "--read-depth",
        "2",
        "--warm-up",
        "9",
        "-n",
        "20",
        "--routing",
        trace.to_str().unwrap(),
    ];
    let found = measured(folder.path(), &model, &args);
    let policies: Vec<_> = found.iter().map(|row| &row["pager_policy"]).collect();
    assert_eq!(policies, ["lru", "lfu-decay:0.95"]);
    for row in &found {
        let reads = row["pager_reads"].as_str().unwrap();
        assert!(reads.contains("2 threads"), "{reads}");
        let [layers, experts, used] = SHAPE.map(|n| n as f64);
        assert_eq!(number(row, "pager_slices"), 3.0 * layers * experts);
        // All experts have slots: only first uses miss. The ten tokens before have used four of a layer's eight, these use the others.
        assert_eq!(number(row, "pager_slots"), number(row, "pager_slices"));
        let hit_percent = 100.0 * (1.0 - 4.0 / (20.0 * used));
        assert_eq!(number(row, "pager_hit_percent"), hit_percent);
        assert_eq!(number(row, "pager_prediction_error_percent"), 0.0);
        assert!(number(row, "pager_delivered_ratio") >= 1.0);
        assert!(number(row, "faults_major_per_token") >= 0.0);
    }
    let summary = std::fs::read_to_string(folder.path().join("run/summary.md")).unwrap();
    assert!(
        summary.contains("missed / token") && summary.contains("pager: reads: 2 threads"),
        "{summary}"
    );
}

/// The vocabulary takes more than a plan's margin has: it is there when the plan is made, and a memory group holds the budget.
#[test]
fn a_group_holds_the_smallest_budget_that_is_named() {
    let folder = folder();
    let model = folder.path().join("vast.gguf");
    let made = bench(folder.path())
        .args([
            "make-model",
            "-q",
            "--hollow",
            "--shape",
            "tiny-gpt-oss-vast",
            "-o",
        ])
        .arg(&model)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", stderr(&made));
    let run = |budget: &str| {
        bench(folder.path())
            .args([
                "--prefetch=pager",
                "-r",
                "1",
                "-p",
                "4",
                "-n",
                "2",
                "--ubatch-size",
                "4",
            ])
            .args([
                "--limit-by",
                "cgroup",
                "--repack",
                "pager",
                "-o",
                "json",
                "--budget",
                budget,
                "--model",
            ])
            .arg(&model)
            .output()
            .unwrap()
    };
    let named = |message: &str| {
        let (_, rest) = message
            .split_once("--budget ")
            .unwrap_or_else(|| panic!("{message}"));
        rest.split_once("MiB").unwrap().0.to_owned() + "MiB"
    };
    let refused = run("16MiB");
    // What loading takes, and then what the context takes as well.
    assert_refused(&refused, &["loading the model alone takes", "--budget"]);
    let refused = run(&named(&stderr(&refused)));
    assert_refused(
        &refused,
        &["the smallest that works here is", "slots for experts"],
    );
    let budget = named(&stderr(&refused));
    for _ in 0..2 {
        let output = run(&budget);
        let said = stderr(&output) + &String::from_utf8_lossy(&output.stdout);
        if said.contains("no memory group can be made") || said.contains("no memory controller") {
            return eprintln!("skipped: no memory group can be made here");
        }
        assert_eq!(
            output.status.code(),
            Some(0),
            "{budget}: {}",
            stderr(&output)
        );
        let rows = rows(&output);
        let row = rows.iter().find(|row| row["n_gen"] != 0).unwrap();
        assert_eq!(row["status"], "ok", "{budget}: {row}");
        assert!(
            number(row, "rss_anon_peak_bytes") <= number(row, "budget_bytes"),
            "{row}"
        );
    }
}

#[test]
fn references_are_measured_in_the_same_run() {
    if std::env::var_os("FAULTLINE_STOCK_WORKER").is_none() {
        return eprintln!(
            "skipped: FAULTLINE_STOCK_WORKER is not set; `make test STEPS=test` builds the program and sets it"
        );
    }
    let folder = folder();
    let model = tiny(folder.path(), "tiny-gpt-oss");
    let trace = trace(folder.path(), 40);
    let curve = folder.path().join("curve.json");
    let device = bench(folder.path())
        .args([
            "device",
            "--sizes",
            "64K",
            "--depths",
            "1",
            "--seconds",
            "0.01",
            "-o",
            "json",
            "-m",
        ])
        .arg(&model)
        .output()
        .unwrap();
    assert_eq!(device.status.code(), Some(0), "{}", stderr(&device));
    std::fs::write(&curve, &device.stdout).unwrap();
    let args = [
        "--prefetch=pager",
        "--reference",
        "stock:none,stock:none+repack",
        "--baseline-seconds",
        "1e-9",
        "--warm-up",
        "6",
        "-n",
        "20",
        "--routing",
        trace.to_str().unwrap(),
        "--device-curve",
        curve.to_str().unwrap(),
    ];
    let found = measured(folder.path(), &model, &args);
    let engines: Vec<_> = found.iter().map(|row| &row["engine"]).collect();
    assert_eq!(engines, ["stock", "stock", "faultline"]);
    for reference in &found[..2] {
        assert_eq!(reference["is_reference"], true);
        assert_eq!(
            (&reference["n_warmed_up"], &reference["n_decoded"]),
            (&json!([1]), &json!([1]))
        );
        assert_eq!(reference["against"], json!([]));
    }
    let pager = &found[2];
    assert_eq!(pager["n_decoded"], json!([20]));
    assert_eq!(
        pager["against"],
        json!(["stock none cold", "stock none cold repack"])
    );
    let ratios = pager["against_ratio"].as_array().unwrap();
    assert!(ratios.len() == 2 && ratios.iter().all(|ratio| ratio.as_f64().unwrap() > 0.0));
    assert!(number(pager, "share_of_bound") > 0.0);
    let summary = std::fs::read_to_string(folder.path().join("run/summary.md")).unwrap();
    for words in [
        "vs stock none in RAM [95 %]",
        "vs stock none repack in RAM [95 %]",
        "computing above in RAM",
        "slots of the bound",
    ] {
        assert!(summary.contains(words), "{words}: {summary}");
    }
}
