//! `faultline record` as a person or a script meets it.

mod common;

use std::path::Path;
use std::process::Command;

use common::{assert_bad_input, faultline, stderr, stdout, tiny_model};
use tracer::{ExtraKind, LogReader, Op};

fn verb(verb: &str, model: &Path, arguments: &[&str]) -> Command {
    let mut command = faultline();
    command
        .args([verb, "-t", "1", "--repack", "off", "--raw", "--temp", "0"])
        .args(["-p", "Hello there", "-m"])
        .arg(model)
        .args(arguments);
    command
}

#[test]
fn the_text_is_that_of_run_and_the_log_has_every_step() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-gpt-oss");
    let log = folder.path().join("run.ftrace");
    let arguments = ["-n", "8", "--ids"];
    let plain = verb("run", &model, &arguments).output().unwrap();
    let recorded = verb("record", &model, &arguments)
        .arg("-v")
        .arg("-o")
        .arg(&log)
        .output()
        .unwrap();
    assert!(recorded.status.success(), "{}", stderr(&recorded));
    assert_eq!(stdout(&recorded), stdout(&plain));

    let said = stderr(&recorded);
    assert!(said.contains(" 0 records lost"), "{said}");
    let line = said
        .lines()
        .find(|line| line.contains("MUL_MAT_ID: blk.0.ffn_down_exps.weight experts ["))
        .unwrap_or_else(|| panic!("no line for the experts:\n{said}"));
    assert!(line.contains("% not read)"), "{line}");

    let log = LogReader::open(&log).unwrap();
    let steps = log
        .records()
        .filter(|record| record.as_ref().unwrap().op == Op::STEP_END)
        .count();
    // The prompt, and every generated token but the last, which nothing follows.
    assert_eq!(steps, 8);
}

#[test]
fn a_full_log_ends_the_run_if_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-gpt-oss");
    let log = folder.path().join("run.ftrace");
    let output = verb("record", &model, &["-n", "3000", "--on-full", "stop"])
        .args(["--log-size", "1", "-o"])
        .arg(&log)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("--log-size makes it larger"),
        "{}",
        stderr(&output)
    );
    let log = LogReader::open(&log).unwrap();
    assert_eq!(
        log.n_records(),
        log.records().map(Result::unwrap).count() as u64
    );
}

#[test]
fn a_log_that_cannot_be_written_is_bad_input() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-llama");
    let missing = folder.path().join("no/such/folder/run.ftrace");
    for path in [missing.as_path(), folder.path()] {
        let output = verb("record", &model, &["-n", "2", "-q", "-o"])
            .arg(path)
            .output()
            .unwrap();
        assert_bad_input(&output, &[&path.display().to_string()]);
    }
}

#[test]
fn adapters_and_types_of_the_cache_reach_the_context() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-llama");
    let log = folder.path().join("run.ftrace");
    let adapter = folder.path().join("adapter.gguf");
    let weights = ["blk.0.attn_q.weight", "blk.1.ffn_up.weight"];
    model_shapes::generate_adapter(&model, &adapter, &weights, 1).unwrap();
    let adapter = adapter.display().to_string();
    let scaled = format!("{adapter}:0.5,{adapter}:0");
    let (lora, rotation) = (ExtraKind::LORA, ExtraKind::KV_ROTATION);
    for (flags, kinds) in [
        (&["--lora", &adapter][..], vec![lora; 4]),
        (
            &["--lora", &adapter, "--lora-scaled", &scaled],
            vec![lora; 8],
        ),
        (&["--cache-type-k", "q8_0"], vec![rotation; 2]),
        (&["--cache-type-v", "q4_0"], vec![rotation; 2]),
        (&[], vec![]),
    ] {
        let output = verb("record", &model, &["-n", "2", "--ids"])
            .args(flags)
            .arg("-o")
            .arg(&log)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let log = LogReader::open(&log).unwrap();
        let found: Vec<_> = log.extras().iter().map(|extra| extra.kind).collect();
        assert_eq!(found, kinds, "{flags:?}");
        let recorded = stdout(&output);
        let plain = verb("run", &model, &["-n", "2", "--ids"])
            .args(flags)
            .output();
        assert_eq!(recorded, stdout(&plain.unwrap()), "{flags:?}");
    }
}

#[test]
fn adapters_and_types_that_do_not_fit_are_bad_input() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-llama");
    let missing = folder.path().join("missing.gguf").display().to_string();
    let itself = model.display().to_string();
    for (flags, part) in [
        (["--lora", &missing], "missing.gguf"),
        (["--lora", &itself], "general.type"),
        (["--lora-scaled", &format!("{itself}:2")], "general.type"),
    ] {
        let output = verb("run", &model, &flags).output().unwrap();
        assert_bad_input(&output, &[part]);
    }
}
