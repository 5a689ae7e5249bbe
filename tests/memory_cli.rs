//! `faultline memory`: predictions against a process that really runs, and bad input.

mod common;

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Output;

use common::{assert_bad_input, faultline, rewrite, stderr, stdout, tiny_model};
use gguf::Value as Metadata;
use model_shapes::local::real_model;
use serde_json::Value;

fn memory(model: &Path, arguments: &[&str]) -> Output {
    faultline()
        .args(["memory", "-m"])
        .arg(model)
        .args(arguments)
        .output()
        .unwrap()
}

fn json(model: &Path, arguments: &[&str]) -> Value {
    let output = memory(model, &[&["-o", "json"], arguments].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn part<'a>(prediction: &'a Value, kind: &str) -> &'a Value {
    let mut parts = prediction["parts"].as_array().unwrap().iter();
    parts
        .find(|part| part["kind"] == kind)
        .unwrap_or(&Value::Null)
}

fn bytes(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

/// Brings the whole program into the page cache. Around a page of it that is used the kernel maps those that are there (fault-around), so
/// what two processes hold of a program that was read only in part differs by megabytes: as much as a tiny model has.
fn read_program() {
    let program = assert_cmd::cargo::cargo_bin!("faultline");
    io::copy(&mut File::open(program).unwrap(), &mut io::sink()).unwrap();
}

/// Within 3 %, or within what the program's own pages vary by, which for a tiny model is more.
fn is_close(predicted_bytes: f64, held_bytes: f64) -> bool {
    const PROGRAM_BYTES: f64 = (4 << 20) as f64;
    (predicted_bytes - held_bytes).abs() <= (0.03 * held_bytes).max(PROGRAM_BYTES)
}

/// What was predicted is close to what the process held. The context is as short as the prompt that is measured, so that
/// it is full. Pages of files that the kernel has taken back meanwhile count as held: no prediction knows of those.
#[track_caller]
fn assert_predicted(model: &Path, arguments: &[&str]) {
    read_program();
    let report = json(model, &[&["--measure", "-t", "2"], arguments].concat());
    let base = &report["base"];
    let measured = &report["measured"];
    let mapped = bytes(&part(base, "mapped_weights")["size_bytes"]);
    let resident = |held: &Value| {
        let model_bytes = bytes(&held["model_bytes"]);
        // The kernel may map some pages around those that are used.
        assert!(
            model_bytes <= mapped + (64 << 10),
            "{model_bytes} of {mapped}"
        );
        let taken_back = mapped.saturating_sub(model_bytes);
        (bytes(&held["anonymous_bytes"]) + bytes(&held["file_bytes"]) + taken_back) as f64
    };
    let predicted = bytes(&report["totals"]["held_bytes"]) as f64;
    let held = resident(&measured["held"]);
    assert!(
        is_close(predicted, held),
        "{}: {predicted} for {held}: {report:#}",
        model.display()
    );
    let at_load: u64 = base["parts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| bytes(&part["at_load_bytes"]))
        .sum();
    let held = resident(&measured["at_load"]);
    assert!(
        is_close(at_load as f64, held),
        "{}: at load {at_load} for {held}: {report:#}",
        model.display()
    );
    // To the byte, where it is not a matter of touched pages.
    let allocated = &measured["allocated"];
    assert_eq!(part(base, "kv_cache")["size_bytes"], allocated["kv_bytes"]);
    assert_eq!(
        part(base, "compute")["size_bytes"],
        allocated["compute_bytes"]
    );
    assert_eq!(part(base, "work")["size_bytes"], allocated["work_bytes"]);
    assert_eq!(part(base, "kv_cache")["source"], "both", "{report:#}");
}

#[test]
fn tiny_models_take_what_was_predicted() {
    let folder = tempfile::tempdir().unwrap();
    for shape in [
        "tiny-llama-untied-q4_k",
        "tiny-gpt-oss",
        "tiny-qwen3moe",
        "tiny-deepseek2",
        "tiny-deepseek2-mha",
    ] {
        let model = tiny_model(folder.path(), shape);
        assert_predicted(&model, &["-c", "512"]);
    }
}

#[test]
fn real_models_take_what_was_predicted() {
    for name in ["smollm2-135m", "qwen2.5-coder-0.5b"] {
        let Some(model) = real_model(name) else {
            return;
        };
        assert_predicted(&model, &["-c", "512"]);
        assert_predicted(
            &model,
            &[
                "-c",
                "512",
                "--no-repack",
                "--type-k",
                "q8_0",
                "--type-v",
                "q8_0",
            ],
        );
    }
}

#[test]
fn each_change_is_shown_alone_and_with_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-gpt-oss");
    let what_if = [
        "-c",
        "4096",
        "--what-if",
        "n_ctx=1024,prefetch=selective,repack=off,type_k=q8_0",
    ];
    let report = json(&model, &what_if);
    let base = &report["base"];
    let scenarios = report["what_if"].as_array().unwrap();
    let names: Vec<_> = scenarios
        .iter()
        .map(|scenario| scenario["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "n_ctx=1024",
            "prefetch=selective",
            "repack=off",
            "type_k=q8_0",
            "all of these"
        ]
    );
    let size =
        |prediction: &Value, kind: &str| part(prediction, kind)["size_bytes"].as_u64().unwrap_or(0);
    let changed = |index: usize| &scenarios[index]["prediction"];
    // Two of three layers have a window of 16 tokens, which stays: a ubatch of 512 and the window, rounded to 768.
    let per_token = 2 * (64 + 64) * 2;
    assert_eq!(size(base, "kv_cache"), per_token * (4096 + 2 * 768));
    assert_eq!(size(changed(0), "kv_cache"), per_token * (1024 + 2 * 768));
    assert!(size(changed(3), "kv_cache") < size(base, "kv_cache"));
    let mapped = |prediction: &Value| bytes(&part(prediction, "mapped_weights")["at_load_bytes"]);
    assert!(mapped(changed(1)) < mapped(base) / 2);
    assert_eq!(size(changed(2), "repacked_weights"), 0);
    assert_eq!(size(changed(4), "repacked_weights"), 0);
    assert_eq!(mapped(changed(4)), mapped(changed(1)));

    let table = stdout(&memory(&model, &what_if));
    for name in names {
        assert!(table.contains(&format!("| {name} ")), "{table}");
    }
    let csv = memory(&model, &[&["-o", "csv"], &what_if[..]].concat());
    let rows = csv::Reader::from_reader(&csv.stdout[..])
        .into_records()
        .map(Result::unwrap)
        .count();
    assert!(rows > 5 * 6, "{}", stdout(&csv));
}

#[test]
fn words_name_what_takes_memory_and_what_removes_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("llama-2-7b.gguf");
    let shape = model_shapes::Shape::by_name("llama-2-7b").unwrap();
    model_shapes::generate_hollow(&shape, &path).unwrap();
    let report = json(&path, &["-c", "4096", "--explain"]);
    let text: Vec<_> = report["explanation"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line.as_str().unwrap())
        .collect();
    let text = text.join("\n");
    for words in [
        "The file has 3.80 GiB",
        "KV cache: 2.00 GiB",
        "32 layers x 4096 tokens at 512.00 KiB per token",
        "`--ctx-size 2048`: 1.00 GiB less of its own",
        "--cache-type-k q8_0 --cache-type-v q8_0",
        "`--ubatch-size 128`",
        "Every token reads every weight",
    ] {
        assert!(text.contains(words), "{words:?} is not in: {text}");
    }
    let held = bytes(&report["totals"]["held_bytes"]);
    let repacked = part(&report["base"], "repacked_weights")["size_bytes"]
        .as_u64()
        .unwrap_or(0);
    // 3.80 GiB of weights, 2 GiB of keys and values, 0.1 GiB of buffers: about 6, and more with copies.
    let plain = (held - repacked) as f64 / f64::from(1 << 30);
    assert!((5.9..6.1).contains(&plain), "{plain}");
    if repacked > 0 {
        assert!(
            text.contains("`--repack off`: 2.87 GiB less of its own"),
            "{text}"
        );
    }
}

#[test]
fn metadata_alone_do_for_an_architecture_that_nobody_knows() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-llama");
    let renamed = folder.path().join("renamed.gguf");
    rewrite(&model, &renamed, |key, value| match key {
        "general.architecture" => Some(Metadata::from("tomorrow")),
        _ => Some(value.clone()),
    });
    assert_bad_input(&memory(&renamed, &[]), &["tomorrow"]);
    let report = json(&renamed, &["--metadata-only"]);
    assert_eq!(report["architecture"], "tomorrow");
    let weights = bytes(&part(&report["base"], "mapped_weights")["size_bytes"]);
    assert!(weights > 1 << 20);
    assert!(part(&report["base"], "kv_cache").is_null());
    let known = json(&model, &["--metadata-only", "-c", "512"]);
    assert_eq!(part(&known["base"], "kv_cache")["source"], "metadata");
    assert_eq!(part(&known["base"], "compute")["source"], "estimate");
}

#[test]
fn bad_input_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.gguf");
    std::fs::write(
        &text,
        "this is no model, but it is long enough for a header",
    )
    .unwrap();
    for arguments in [&[][..], &["--metadata-only"], &["--measure"]] {
        assert_bad_input(&memory(&text, arguments), &["text.gguf", "GGUF"]);
    }
    assert_bad_input(
        &memory(&folder.path().join("none.gguf"), &[]),
        &["none.gguf"],
    );

    let model = tiny_model(folder.path(), "tiny-llama");
    assert_bad_input(
        &memory(&model, &["--explain", "-o", "csv"]),
        &["--explain", "json"],
    );
    assert_bad_input(
        &memory(&model, &["-c", "4294967295"]),
        &["n_ctx", "4294967295"],
    );
    for (change, words) in [
        (
            "n_gpu=1",
            "unknown key \"n_gpu\"; the keys are n_ctx, n_ubatch, type_k, type_v, repack, prefetch, flash_attn, threads",
        ),
        ("n_ctx", "KEY=VALUE"),
        ("n_ctx=many", "a number of tokens"),
        ("repack=maybe", "on or off"),
        ("type_k=q6_K", "f32, f16, bf16, q8_0"),
        ("prefetch=lazy", "eager, none or selective"),
    ] {
        let output = memory(&model, &["--what-if", change]);
        assert_bad_input(&output, &[words]);
    }
}
