//! Bad input ends with an error on standard error and exit code 2: no panic, no signal, no partial file.

mod support;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use model_shapes::local::shared_data;
use support::{assert_refused, bench, folder, tiny, wait_for_a_run};

fn measure(folder: &Path, model: &Path) -> Output {
    bench(folder)
        .args(["-r", "1", "-p", "2", "-n", "2", "--model"])
        .arg(model)
        .output()
        .unwrap()
}

#[test]
fn things_that_are_no_model() {
    let folder = folder();
    let missing = folder.path().join("missing.gguf");
    assert_refused(&measure(folder.path(), &missing), &["missing.gguf"]);
    assert_refused(&measure(folder.path(), folder.path()), &["error:"]);
    let empty = folder.path().join("empty.gguf");
    std::fs::write(&empty, "").unwrap();
    assert_refused(&measure(folder.path(), &empty), &["empty.gguf"]);
}

#[test]
fn a_model_that_is_cut_short() {
    let folder = folder();
    let whole = std::fs::read(tiny(folder.path(), "tiny-gpt-oss")).unwrap();
    let cut = folder.path().join("cut.gguf");
    for len in [3, 20, 1000, 20_000, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&cut, &whole[..len]).unwrap();
        assert_refused(&measure(folder.path(), &cut), &["cut.gguf"]);
    }
}

#[test]
fn malformed_files_of_the_shared_data() {
    let Some(malformed) = shared_data("gguf/malformed") else {
        return;
    };
    let entries = std::fs::read_dir(malformed).unwrap();
    let folder = folder();
    for entry in entries {
        let path = entry.unwrap().path();
        let output = measure(folder.path(), &path);
        assert_refused(&output, &["error:"]);
    }
}

#[test]
fn impossible_options() {
    let folder = folder();
    let model = tiny(folder.path(), "tiny-llama");
    let with = |args: &[&str]| {
        bench(folder.path())
            .args(args)
            .arg("--model")
            .arg(&model)
            .output()
            .unwrap()
    };
    assert_refused(
        &with(&["--prefetch=lazy"]),
        &["lazy", "eager", "none", "selective", "all"],
    );
    assert_refused(&with(&["--budget", "1%"]), &["budget", "too small"]);
    assert_refused(&with(&["--budget", "1G", "--warm"]), &["--cold"]);
    assert_refused(&with(&["-t", "100000"]), &["100000"]);
    assert_refused(&with(&["-p", "0", "-n", "0"]), &["nothing to compute"]);
    assert_refused(
        &with(&["--out", model.to_str().unwrap()]),
        &["tiny-llama.gguf"],
    );
}

#[test]
fn a_model_that_changes_during_the_measurement() {
    let folder = folder();
    let model = tiny(folder.path(), "tiny-llama");
    let other = tiny(folder.path(), "tiny-llama-untied");
    let out = folder.path().join("run");
    let mut child = bench(folder.path())
        .args(["-r", "10000", "-p", "2", "-n", "2", "--out"])
        .arg(&out)
        .arg("--model")
        .arg(&model)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_a_run(&out, &mut child);
    std::fs::rename(other, &model).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_refused(&output, &["tiny-llama.gguf", "changed on disk"]);
}

/// Before anything is measured, in rows with larger budgets as well.
#[test]
fn a_budget_that_is_too_small_for_the_pager() {
    let folder = folder();
    let model = tiny(folder.path(), "tiny-gpt-oss");
    let out = folder.path().join("run");
    let output = bench(folder.path())
        .args(["--prefetch=eager,pager", "-r", "1", "-p", "2", "-n", "2"])
        .args(["--budget", "2GiB,17MiB", "--out"])
        .arg(&out)
        .arg("--model")
        .arg(&model)
        .output()
        .unwrap();
    let words = [
        "pager cold",
        "in 17 MiB",
        "too small",
        "the smallest that works here is",
        "--budget",
    ];
    assert_refused(&output, &words);
    assert!(!out.exists(), "nothing was measured");
}

#[test]
fn make_model_leaves_no_partial_file() {
    let folder = folder();
    let make = |shape: &str, path: &Path| {
        bench(folder.path())
            .args(["make-model", "--shape", shape, "-o"])
            .arg(path)
            .output()
            .unwrap()
    };
    let target = folder.path().join("out.gguf");
    assert_refused(&make("gpt-7", &target), &["gpt-7", "gpt-oss-20b", "demo"]);
    assert_refused(
        &make("tiny-llama", &folder.path().join("no/such/out.gguf")),
        &["no/such"],
    );
    assert_refused(&make("tiny-llama", folder.path()), &["error:"]);
    assert!(!target.exists());
}

#[test]
fn make_model_on_a_full_disk() {
    let folder = folder();
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    // A file system of 1 MiB in a mount namespace of its own; the model has 2.5 MB.
    let script = "mount -t tmpfs -o size=1m none \"$1\" || exit 77; \"$2\" make-model --shape tiny-llama -o \"$1/big.gguf\"; \
                  status=$?; ls -A \"$1\"; exit $status";
    let output = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", script, "sh"])
        .arg(&disk)
        .arg(env!("CARGO_BIN_EXE_bench"))
        .output();
    match output {
        Ok(output) if matches!(output.status.code(), Some(0 | 2)) => {
            // Nothing on standard output: `ls` found no file.
            assert_refused(&output, &["big.gguf", "free"]);
        }
        other => eprintln!("skipped: no mount namespace here: {other:?}"),
    }
}
