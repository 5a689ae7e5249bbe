//! `faultline run` and `--version` as a person or a script meets them. What needs trained weights uses the real models
//! of scripts/fetch-models.sh.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{faultline, stderr, stdout};
use model_shapes::local::real_model;

const REAL_MODELS: [&str; 2] = ["smollm2-135m", "qwen2.5-coder-0.5b"];
const PROMPT: &str = "The capital of Germany is";

fn run(model: &Path, arguments: &[&str]) -> Command {
    let mut command = faultline();
    // One thread: tests run side by side, and threads of one graph wait for each other by spinning.
    command
        .args(["run", "-t", "1", "-m"])
        .arg(model)
        .args(arguments);
    command
}

/// Standard output of a run that must succeed.
#[track_caller]
fn text_of(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        stderr(&output)
    );
    stdout(&output)
}

#[test]
fn the_version_names_everything_that_was_linked() {
    let mut command = faultline();
    command.arg("--version");
    let text = text_of(command);
    let mut lines = text.lines();
    assert_eq!(
        lines.next(),
        Some(concat!("faultline ", env!("CARGO_PKG_VERSION")))
    );
    let facts: Vec<(&str, &str)> = lines
        .map(|line| line.split_at_checked(10).unwrap_or((line, "")))
        .map(|(k, v)| (k.trim(), v.trim()))
        .collect();
    let fact = |name: &str| {
        facts
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| *value)
            .unwrap_or_default()
    };
    assert_eq!(fact("llama.cpp"), "b12032");
    assert_eq!(fact("ggml"), "0.28.0");
    assert!(
        fact("commit") == "unknown" || is_hex(fact("commit"), 12),
        "{text}"
    );
    assert!(is_hex(fact("patch set"), 12), "{text}");
    assert!(!fact("CPU").is_empty(), "{text}");

    let mut short = faultline();
    short.arg("-V");
    assert_eq!(
        text_of(short),
        concat!("faultline ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[test]
fn help_mentions_every_flag_and_the_exit_codes() {
    let mut command = faultline();
    command.args(["run", "--help"]);
    let help = text_of(command);
    for flag in [
        "-m, --model",
        "-p, --prompt",
        "-f, --file",
        "-n, --n-predict",
        "--raw",
        "--chat",
        "--system",
        "--temp",
        "--top-k",
        "--top-p",
        "--min-p",
        "-s, --seed",
        "--prefetch",
        "--repack",
        "-c, --ctx-size",
        "--cache-type-k",
        "--cache-type-v",
        "--lora",
        "--lora-scaled",
        "-t, --threads",
        "--ids",
        "-v, --verbose",
        "-q, --quiet",
    ] {
        assert!(help.contains(flag), "{flag} is not in:\n{help}");
    }
    for text in [
        "eager",
        "none",
        "selective",
        "EXAMPLES:",
        "EXIT CODES:",
        "130",
    ] {
        assert!(help.contains(text), "{text} is not in:\n{help}");
    }
    assert!(!help.contains('\u{1b}'), "colours without a terminal");
}

#[test]
fn without_arguments_it_shows_help_and_fails() {
    let output = faultline().output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("Usage:"));
}

#[test]
fn real_models_know_the_capital_of_germany() {
    for model in REAL_MODELS.into_iter().filter_map(real_model) {
        for mode in [&["--raw"][..], &["--chat"]] {
            let output = run(&model, mode)
                .args(["-p", PROMPT, "--temp", "0", "-n", "24"])
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", stderr(&output));
            assert!(
                stdout(&output).contains("Berlin"),
                "{}, {mode:?}: {}",
                model.display(),
                stdout(&output)
            );
            let notes = stderr(&output);
            for part in [
                "prefetch eager",
                "loaded after",
                "first token after",
                "prompt",
                "decode",
                "tokens/s",
            ] {
                assert!(notes.contains(part), "{part} is not in: {notes}");
            }
        }
    }
}

#[test]
fn every_prefetch_mode_gives_the_same_tokens() {
    for model in REAL_MODELS.into_iter().filter_map(real_model) {
        let ids = |mode: &str| {
            let mut command = run(
                &model,
                &[
                    "--raw", "--temp", "0", "-n", "24", "--ids", "-q", "--repack", "off",
                ],
            );
            command.args(["-p", PROMPT, "--prefetch", mode]);
            text_of(command)
        };
        let eager = ids("eager");
        assert!(
            eager.starts_with("prompt ") && eager.contains("\ngenerated "),
            "{eager}"
        );
        assert_eq!(ids("none"), eager);
        assert_eq!(ids("selective"), eager);
    }
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let Some(model) = real_model("smollm2-135m") else {
        return;
    };
    let text = |seed: &str| {
        let mut command = run(
            &model,
            &[
                "--raw",
                "-p",
                "Once upon a time",
                "-n",
                "16",
                "-q",
                "--ids",
                "--seed",
                seed,
            ],
        );
        command.args(["--temp", "1.5"]);
        text_of(command)
    };
    assert_eq!(text("7"), text("7"));
    assert_ne!(text("7"), text("8"));
}

#[test]
fn quiet_prints_the_text_only() {
    let Some(model) = real_model("smollm2-135m") else {
        return;
    };
    let output = run(
        &model,
        &["--raw", "-p", PROMPT, "--temp", "0", "-n", "4", "-q"],
    )
    .output()
    .unwrap();
    assert!(output.status.success());
    assert_eq!(stderr(&output), "");
    assert!(stdout(&output).ends_with('\n'));
}

#[test]
fn verbose_shows_the_log_of_llama_cpp() {
    let Some(model) = real_model("smollm2-135m") else {
        return;
    };
    let output = run(
        &model,
        &["--raw", "-p", PROMPT, "--temp", "0", "-n", "1", "-v"],
    )
    .output()
    .unwrap();
    assert!(output.status.success());
    assert!(stderr(&output).contains("llama.cpp"), "{}", stderr(&output));
    assert!(
        !stderr(&output).contains('\u{1b}'),
        "colours in spite of NO_COLOR"
    );
}

#[test]
fn the_prompt_may_come_from_a_file_or_from_standard_input() {
    let Some(model) = real_model("smollm2-135m") else {
        return;
    };
    let options = ["--raw", "--temp", "0", "-n", "8", "--ids", "-q"];
    let mut direct = run(&model, &options);
    direct.args(["-p", PROMPT]);
    let expected = text_of(direct);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, format!("{PROMPT}\n")).unwrap();
    let mut from_file = run(&model, &options);
    from_file.arg("-f").arg(&file);
    assert_eq!(text_of(from_file), expected);

    let mut child = run(&model, &options)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(PROMPT.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(stdout(&output), expected);
}

#[test]
fn no_new_token_is_a_valid_wish() {
    let Some(model) = real_model("smollm2-135m") else {
        return;
    };
    let mut command = run(&model, &["--raw", "-p", PROMPT, "-n", "0", "-q"]);
    command.arg("--ids");
    let text = text_of(command);
    assert!(text.ends_with("\ngenerated\n"), "{text}");
}

/// A run that goes on until it is stopped, with its first byte of text already read.
fn endless_run(model: &Path) -> (Child, BufReader<std::process::ChildStdout>) {
    let options = ["--raw", "-p", "1, 2, 3,", "--temp", "0", "--ids"];
    let mut child = run(model, &options)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut prompt = String::new();
    reader.read_line(&mut prompt).unwrap();
    let mut first = [0; "generated 1".len()];
    reader.read_exact(&mut first).unwrap();
    (child, reader)
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let Some(model) = real_model("smollm2-135m") else {
        return;
    };
    let (child, reader) = endless_run(&model);
    drop(reader);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!stderr(&output).contains("error"), "{}", stderr(&output));
}

#[test]
fn control_c_ends_cleanly() {
    let Some(model) = real_model("smollm2-135m") else {
        return;
    };
    let (child, mut reader) = endless_run(&model);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(130),
        "{}: {}",
        output.status,
        stderr(&output)
    );
    assert!(
        rest.ends_with('\n'),
        "the text does not end with a whole line: {rest:?}"
    );
    assert!(stderr(&output).contains("stopped"), "{}", stderr(&output));
}
