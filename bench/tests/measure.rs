//! The whole way, with a tiny mixture-of-experts model. No time is asserted.

mod support;

use serde_json::Value;
use support::{bench, folder, of_mode, rows, stderr, stdout, tiny};

#[test]
fn cold_and_warm_rows_of_all_modes() {
    let folder = folder();
    let model = tiny(folder.path(), "tiny-gpt-oss");
    let out = folder.path().join("run");
    let output = bench(folder.path())
        .args([
            "--prefetch=all",
            "--both",
            "--repack=both",
            "-r",
            "2",
            "-p",
            "4",
            "-n",
            "17",
            "-o",
            "json",
        ])
        .arg("--model")
        .arg(&model)
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    let rows = rows(&output);
    if rows.iter().any(|row| row["status"] == "not_cold") {
        return eprintln!("skipped: {}", rows[0]["reason"]);
    }
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    // Three modes and eager with repacking, cold and warm, prompt and decode.
    assert_eq!(rows.len(), 16);

    let file_bytes = std::fs::metadata(&model).unwrap().len();
    for row in &rows {
        assert_eq!(row["status"], "ok");
        assert_eq!(row["n_samples"], 2);
        assert_eq!(row["samples_ns"].as_array().unwrap().len(), 2);
        assert_eq!(row["samples_load_ms"].as_array().unwrap().len(), 2);
        assert!(row["avg_ts"].as_f64().unwrap() > 0.0);
        assert!(row["token16_ms"].as_f64().unwrap() >= row["first_token_ms"].as_f64().unwrap());
        assert!(row["rss_anon_peak_bytes"].as_u64().unwrap() > 0);
        assert!(row["resident_end_bytes"].as_u64().unwrap() <= file_bytes);
        let sizes = ["dense_bytes", "sparse_bytes"].map(|name| row[name].as_u64().unwrap());
        assert!(sizes[0] > 0 && sizes[1] > 0 && sizes[0] + sizes[1] <= file_bytes);
        if row["cold"] == false {
            // Nothing but a page of the program at times, which the kernel may have given up.
            let read_bytes = row["device_bytes"].as_u64().unwrap();
            assert!(
                read_bytes < file_bytes / 16,
                "a warm run reads {read_bytes} bytes"
            );
            assert_eq!(row["resident_after_load_bytes"], file_bytes);
        }
    }
    for row in of_mode(&rows, "eager")
        .into_iter()
        .filter(|row| row["cold"] == true)
    {
        assert_eq!(row["resident_after_load_bytes"], file_bytes);
        assert!(row["load_device_bytes"].as_u64().unwrap() >= file_bytes);
    }
    // Rows without repacking computed the same.
    let logits: Vec<&Value> = rows
        .iter()
        .filter(|row| row["repack"] == false)
        .map(|row| &row["fingerprint_logits"])
        .collect();
    assert_eq!(logits.len(), 12);
    assert!(
        logits
            .iter()
            .all(|found| *found == logits[0] && found.is_string())
    );

    let raw = std::fs::read_to_string(out.join("raw.jsonl")).unwrap();
    assert_eq!(raw.lines().count(), 16);
    for line in raw.lines() {
        let run: Value = serde_json::from_str(line).unwrap();
        assert_eq!(run["marks"].as_array().unwrap().len(), 6);
        assert!(!run["rss"].as_array().unwrap().is_empty());
        assert_eq!(run["outcome"]["step_ns"].as_array().unwrap().len(), 17);
        if run["row"]["cache"] == "cold" {
            assert_eq!(run["page_cache"]["resident_bytes"], 0);
        }
    }
    for name in [
        "setup.json",
        "summary.md",
        "summary.csv",
        "summary.json",
        "load-rss.svg",
    ] {
        assert!(
            std::fs::metadata(out.join(name)).unwrap().len() > 0,
            "{name}"
        );
    }
}

#[test]
fn every_output_format_has_its_rows() {
    let folder = folder();
    let model = tiny(folder.path(), "tiny-llama");
    let run = |format: &str| {
        let output = bench(folder.path())
            .args([
                "--prefetch=selective",
                "--warm",
                "-r",
                "1",
                "-p",
                "0",
                "-n",
                "2",
                "-o",
                format,
            ])
            .arg("--model")
            .arg(&model)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        output
    };
    let json = rows(&run("json"));
    assert_eq!(json.len(), 1);
    assert_eq!(
        (&json[0]["n_prompt"], &json[0]["n_gen"], &json[0]["n_depth"]),
        (&0.into(), &2.into(), &0.into())
    );
    assert_eq!(
        json[0]["sparse_bytes"], 0,
        "a dense model with tied output has no sparse tensors"
    );
    let lines = stdout(&run("jsonl"));
    assert_eq!(lines.lines().count(), 1);
    let line: Value = serde_json::from_str(&lines).unwrap();
    assert_eq!(
        line.as_object().unwrap().len(),
        json[0].as_object().unwrap().len()
    );
    assert_eq!(stdout(&run("csv")).lines().count(), 2);
    let md = stdout(&run("md"));
    assert!(md.contains("| tg2 |") || md.contains(" tg2 |"), "{md}");
    // The raw data are in the cache folder when no folder is named.
    let kept = std::fs::read_dir(folder.path().join("cache/runs"))
        .unwrap()
        .count();
    assert!(kept >= 1);
}

#[test]
fn overhead_pairs_our_decode_with_llama_bench() {
    let folder = folder();
    let model = tiny(folder.path(), "tiny-llama");
    // Stands in for llama-bench: answers as it does, 2 tokens in 1 ms.
    let fake = folder.path().join("llama-bench");
    std::fs::write(
        &fake,
        "#!/bin/sh\necho '[ { \"n_gen\": 2, \"samples_ns\": [ 1000000 ] } ]'\n",
    )
    .unwrap();
    std::fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = bench(folder.path())
        .args(["overhead", "--json", "--pairs", "2", "-n", "2", "-m"])
        .arg(&model)
        .arg("--llama-bench")
        .arg(&fake)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["llama_bench_ts"]["median"], 2000.0);
    assert_eq!(result["ratio"]["n"], 2);
    assert!(result["ratio"]["median"].as_f64().unwrap() > 0.0);
}
