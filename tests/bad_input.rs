//! Bad input ends with exit code 2 and a sentence on standard error that names the file: never with a signal, a panic or
//! text on standard output.

mod common;

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use common::{assert_bad_input, faultline, rewrite, stderr, tiny_model};
use gguf::Value;
use model_shapes::local::shared_data;

fn run(model: &Path, arguments: &[&str]) -> Output {
    let defaults = ["--raw", "-t", "1", "-n", "2", "-c", "64", "--temp", "0"];
    faultline()
        .args(["run", "-p", "hello", "-m"])
        .arg(model)
        .args(defaults)
        .args(arguments)
        .output()
        .unwrap()
}

/// The file's name as it must appear in the message.
fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

#[test]
fn the_tiny_models_of_these_tests_work() {
    let folder = tempfile::tempdir().unwrap();
    for shape in ["tiny-llama", "tiny-gpt-oss"] {
        let output = run(&tiny_model(folder.path(), shape), &[]);
        assert!(output.status.success(), "{shape}: {}", stderr(&output));
        assert!(!output.stdout.is_empty());
    }
}

#[test]
fn a_file_that_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("absent.gguf");
    assert_bad_input(&run(&path, &[]), &["absent.gguf", "No such file"]);
}

#[test]
fn a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("folder.gguf");
    fs::create_dir(&path).unwrap();
    assert_bad_input(&run(&path, &[]), &["folder.gguf", "folder"]);
}

#[test]
fn an_empty_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nothing.gguf");
    fs::write(&path, "").unwrap();
    assert_bad_input(&run(&path, &[]), &["nothing.gguf", "empty"]);
}

#[test]
fn something_else_than_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.gguf");
    fs::write(&path, "This is not a model.\n".repeat(100)).unwrap();
    assert_bad_input(&run(&path, &[]), &["text.gguf", "not a GGUF file"]);
}

#[test]
fn every_malformed_file_of_the_shared_data() {
    let Some(folder) = shared_data("gguf/malformed") else {
        return;
    };
    let mut checked = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        assert_bad_input(&run(&path, &[]), &[name(&path)]);
        checked += 1;
    }
    assert!(checked >= 11, "only {checked} files");
}

#[test]
fn valid_files_that_hold_no_model() {
    let Some(data) = shared_data("gguf") else {
        return;
    };
    let tiny = fs::read_dir(data.join("tiny"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    for path in tiny.chain([data.join("truth/slice.gguf")]) {
        assert_bad_input(&run(&path, &[]), &[name(&path)]);
    }
}

#[test]
fn a_model_that_is_cut_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-llama");
    let whole = fs::read(&model).unwrap();
    let file = gguf::Gguf::open(&model).unwrap();
    let data_end = file
        .tensors()
        .iter()
        .map(|tensor| (tensor.offset + tensor.size_bytes) as usize)
        .max()
        .unwrap();
    let header_end = file.data_offset() as usize;
    let tensor_starts = file.tensors().iter().map(|tensor| tensor.offset as usize);

    let mut lengths: Vec<usize> = (1..32).collect();
    lengths.extend((1..60).map(|part| header_end * part / 60));
    lengths.extend((1..60).map(|part| header_end + (data_end - header_end) * part / 60));
    lengths.extend(tensor_starts);
    lengths.extend([header_end - 1, header_end + 1, data_end - 1]);
    let path = folder.path().join("cut.gguf");
    for length in lengths {
        fs::write(&path, &whole[..length]).unwrap();
        let output = run(&path, &[]);
        assert_eq!(
            output.status.code(),
            Some(2),
            "cut to {length} of {} bytes: {}",
            whole.len(),
            stderr(&output)
        );
        assert_bad_input(&output, &["cut.gguf"]);
    }
}

#[test]
fn a_text_model_without_a_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    for shape in ["tiny-llama-no-vocab", "tiny-llama-no-tokenizer"] {
        let path = tiny_model(folder.path(), shape);
        assert_bad_input(&run(&path, &[]), &[name(&path), "tokenizer"]);
    }
}

#[test]
fn an_architecture_that_llama_cpp_does_not_know() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new.gguf");
    rewrite(
        &tiny_model(folder.path(), "tiny-llama"),
        &path,
        |key, value| {
            Some(if key == "general.architecture" {
                Value::from("zebra9")
            } else {
                value.clone()
            })
        },
    );
    assert_bad_input(&run(&path, &[]), &["new.gguf", "zebra9", "architecture"]);
}

/// One metadata key at a time is left out, or set to values at the edges of its type. Some of these files are valid
/// models; none may end the process by a signal. llama-rs has the same test with more models and values.
#[test]
fn no_metadata_value_kills_the_process() {
    let mut failures = Vec::new();
    for shape in ["tiny-llama", "tiny-gpt-oss"] {
        let folder = tempfile::tempdir().unwrap();
        let model = tiny_model(folder.path(), shape);
        let file = gguf::Gguf::open(&model).unwrap();
        let path = folder.path().join("changed.gguf");
        for (key, value) in file.kv() {
            for (what, replacement) in edges(value) {
                rewrite(&model, &path, |other, value| {
                    if other == key {
                        replacement.clone()
                    } else {
                        Some(value.clone())
                    }
                });
                let output = run(&path, &[]);
                let message = stderr(&output);
                let good = match output.status.code() {
                    Some(0) => true,
                    Some(1 | 2) => message.starts_with("error: ") || message.contains("\nerror: "),
                    _ => false,
                };
                // The first is how the command line survives an abort, the second is a panic: both could be refused.
                let died = message.contains("llama.cpp gave up") || message.contains("panicked");
                if !good || died {
                    failures.push(format!(
                        "{shape}, {key} {what}: {}: {}",
                        output.status,
                        message.trim_end()
                    ));
                }
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{} files:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// Values to try in place of `value`, each with what it is called in a failure.
fn edges(value: &Value) -> Vec<(String, Option<Value>)> {
    let mut edges = vec![
        ("left out".to_owned(), None),
        ("a text".to_owned(), Some(Value::from("text"))),
    ];
    let mut numbers: Vec<Value> = Vec::new();
    match value {
        Value::U32(n) => numbers.extend([0, n + 1, u32::MAX].map(Value::U32)),
        Value::F32(_) => numbers.extend([0.0, -1.0, f32::NAN].map(Value::F32)),
        _ => {}
    }
    edges.extend(
        numbers
            .into_iter()
            .map(|number| (format!("{number:?}"), Some(number))),
    );
    edges
}

#[test]
fn an_impossible_prefetch_mode() {
    let output = run(Path::new("any.gguf"), &["--prefetch", "sometimes"]);
    assert_bad_input(&output, &["sometimes", "eager", "none", "selective"]);
}

#[test]
fn a_prompt_that_cannot_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-llama");
    let prompt = folder.path().join("prompt.txt");
    let from_file = || {
        let command = &mut faultline();
        command
            .args(["run", "-q", "-t", "1", "-n", "1", "-c", "64", "-m"])
            .arg(&model)
            .arg("-f")
            .arg(&prompt);
        command.output().unwrap()
    };
    assert_bad_input(&from_file(), &["prompt.txt", "No such file"]);
    fs::write(&prompt, b"caf\xe9").unwrap();
    assert_bad_input(&from_file(), &["prompt.txt", "UTF-8"]);
    fs::write(&prompt, "too long ".repeat(500)).unwrap();
    assert_bad_input(&from_file(), &["--ctx-size"]);

    let output = run(&model, &["--raw", "-c", "4000000000"]);
    assert_bad_input(&output, &["n_ctx", "4000000000"]);
}

#[test]
fn a_chat_without_a_chat_template() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-llama");
    let output = faultline()
        .args(["run", "-p", "hello", "--chat", "-m"])
        .arg(&model)
        .output()
        .unwrap();
    assert_bad_input(&output, &["chat template", "--raw"]);
}

/// Starts a long generation, waits for its first token, changes the file with `change`, and returns how it ended.
fn change_while_running(mode: &str, change: impl FnOnce(&Path)) -> (PathBuf, Output) {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-gpt-oss");
    let options = [
        "--raw",
        "-t",
        "1",
        "-c",
        "65536",
        "--temp",
        "0",
        "--ids",
        "--prefetch",
        mode,
    ];
    let mut child = faultline()
        .args(["run", "-p", "hello", "-m"])
        .arg(&model)
        .args(options)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    reader.read_line(&mut String::new()).unwrap();
    reader.read_exact(&mut [0; "generated 1".len()]).unwrap();
    change(&model);
    // To the end: a full pipe would keep the process from noticing anything.
    reader.read_to_end(&mut Vec::new()).unwrap();
    (model, child.wait_with_output().unwrap())
}

/// In every mode the run ends with exit code 2 and an error that names the model and has all of `parts`.
fn assert_noticed(change: fn(&Path), parts: &[&str]) {
    for mode in ["eager", "none", "selective"] {
        let (model, output) = change_while_running(mode, change);
        let message = stderr(&output);
        let status = output.status;
        assert_eq!(status.code(), Some(2), "{mode}: {status}: {message}");
        for part in parts.iter().chain([&name(&model)]) {
            assert!(message.contains(part), "{mode}: {message}");
        }
    }
}

#[test]
fn a_model_that_changes_while_it_is_used() {
    let append = |path: &Path| {
        let mut file = OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(b"more").unwrap();
    };
    assert_noticed(append, &[]);
}

#[test]
fn a_model_that_is_cut_while_it_is_used() {
    let cut = |path: &Path| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(4096).unwrap();
    };
    assert_noticed(cut, &["load the model again"]);
}
