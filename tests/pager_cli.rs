//! `--prefetch pager` as a person or a script meets it.

mod common;

use std::path::Path;
use std::process::Command;

use common::{assert_bad_input, faultline, stderr, stdout, tiny_model};
use tracer::LogReader;

const SHAPE: &str = "tiny-qwen3moe-f16";

fn verb(verb: &str, model: &Path, arguments: &[&str]) -> Command {
    let mut command = faultline();
    command
        .args([verb, "-t", "1", "--repack", "off", "--raw", "--temp", "0"])
        .args(["-p", "Hello there", "-n", "12", "--ids", "-m"])
        .arg(model)
        .args(arguments);
    command
}

fn paged(model: &Path, budget: &str, arguments: &[&str]) -> Command {
    let mut command = verb("run", model, &["--prefetch", "pager", "--budget", budget]);
    command.args(arguments);
    command
}

#[test]
fn the_tokens_are_those_of_a_mapped_model_and_the_plan_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), SHAPE);
    let mapped = verb("run", &model, &[]).output().unwrap();
    assert!(mapped.status.success(), "{}", stderr(&mapped));
    for budget in ["1GiB", "auto"] {
        let paged = paged(&model, budget, &["--policy", "lru"]);
        let output = { paged }.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(stdout(&output), stdout(&mapped));
        let notes = stderr(&output);
        for part in [
            "prefetch pager, repack off",
            "memory plan for a budget of",
            "slots for experts",
            "reads: ",
            "slices were in memory",
        ] {
            assert!(notes.contains(part), "{part} is not in: {notes}");
        }
        assert_eq!(budget == "1GiB", notes.contains("a budget of 1024.0 MiB"));
    }
    let quiet = paged(&model, "1GiB", &["-q"]).output().unwrap();
    assert_eq!(stdout(&quiet), stdout(&mapped));
    assert_eq!(stderr(&quiet), "");
}

#[test]
fn a_budget_that_is_too_small_names_one_that_works() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), SHAPE);
    // Below the process, below the dense weights, below the slots.
    assert_bad_input(&paged(&model, "1MiB", &[]).output().unwrap(), &["--budget"]);
    let output = paged(&model, "40MiB", &[]).output().unwrap();
    assert_bad_input(&output, &["40.0 MiB is too small", "slots for experts"]);
    let message = stderr(&output);
    let (_, rest) = message.split_once("(--budget ").unwrap();
    let (named, _) = rest.split_once(')').unwrap();
    let output = paged(&model, named, &[]).output().unwrap();
    assert!(output.status.success(), "{named}: {}", stderr(&output));
}

#[test]
fn options_of_the_pager_need_the_pager() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), SHAPE);
    for option in [["--budget", "7GiB"], ["--policy", "lru"]] {
        let output = verb("run", &model, &option).output().unwrap();
        assert_bad_input(&output, &[option[0], "add --prefetch pager"]);
    }
}

#[test]
fn a_paged_run_can_be_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), SHAPE);
    let logs = ["mapped", "paged"].map(|name| folder.path().join(format!("{name}.ftrace")));
    let mapped = verb("record", &model, &["-o"])
        .arg(&logs[0])
        .output()
        .unwrap();
    let paged = verb(
        "record",
        &model,
        &["--prefetch", "pager", "--budget", "1GiB", "-o"],
    )
    .arg(&logs[1])
    .output()
    .unwrap();
    assert!(paged.status.success(), "{}", stderr(&paged));
    assert_eq!(stdout(&paged), stdout(&mapped));
    // The same slices are read, by whatever way they came.
    let accesses = logs.map(|log| {
        let log = LogReader::open(&log).unwrap();
        let records = log.records().map(Result::unwrap);
        let mut slices: Vec<_> = records
            .filter(|record| !record.op.is_mark())
            .map(|record| (record.step, record.tensor, record.slice))
            .collect();
        slices.sort_unstable();
        slices
    });
    assert!(!accesses[0].is_empty() && accesses[0] == accesses[1]);
}

#[test]
fn an_adapter_changes_a_paged_model_as_it_does_a_mapped_one() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-qwen3moe");
    let adapter = folder.path().join("adapter.gguf");
    let weights = ["blk.0.attn_q.weight", "blk.1.ffn_up_exps.weight"];
    model_shapes::generate_adapter(&model, &adapter, &weights, 1).unwrap();
    let text = |arguments: &[&str]| {
        let mut command = verb("run", &model, arguments);
        let output = command.arg("--lora").arg(&adapter).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    let plain = verb("run", &model, &[]).output().unwrap();
    let mapped = text(&[]);
    assert_ne!(mapped, stdout(&plain), "the adapter changes nothing");
    assert_eq!(text(&["--prefetch", "pager", "--budget", "1GiB"]), mapped);
}
