//! `faultline record` as a person or a script meets it.

mod common;

use std::path::Path;
use std::process::Command;

use common::{assert_bad_input, faultline, stderr, stdout, tiny_model};
use tracer::{ExtraKind, KernelOptions, LogReader, NO_STEP, Op, Record};

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
        // Before the model is loaded, which shows its progress in llama.cpp's log.
        let verbose = verb("record", &model, &["-n", "2", "-v", "-o"])
            .arg(path)
            .output()
            .unwrap();
        assert_eq!(stderr(&verbose).lines().count(), 1, "{}", stderr(&verbose));
    }
}

/// Whether the machine permits it; otherwise the reason is printed.
fn is_permitted(options: KernelOptions, model: &Path) -> bool {
    let refusal = options.check(&gguf::ModelFiles::open(model).unwrap()).err();
    if let Some(refusal) = &refusal {
        eprintln!("skipped: {refusal}");
    }
    refusal.is_none()
}

#[test]
fn what_the_kernel_did_is_in_the_log_and_summed_up() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-gpt-oss");
    let options = KernelOptions {
        faults: true,
        residency_steps: Some(3),
        ..KernelOptions::default()
    };
    if !is_permitted(options, &model) {
        return;
    }
    let log = folder.path().join("run.ftrace");
    let output = verb("record", &model, &["-n", "6", "-v", "--prefetch", "none"])
        .args(["--faults", "--residency", "3", "-o"])
        .arg(&log)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let said = stderr(&output);
    for expected in [
        "prompt: consumed ",
        "decode: minor faults ",
        " major faults in the model's files, ",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert!(!said.contains("events of the kernel were lost"), "{said}");

    let log = LogReader::open(&log).unwrap();
    assert!(log.address(0).is_some());
    let records: Vec<Record> = log.records().map(Result::unwrap).collect();
    let faults = [Op::FAULT_MINOR, Op::FAULT_MAJOR];
    assert!(records.iter().any(|record| faults.contains(&record.op)));
    let mut snapshots: Vec<u32> = records
        .iter()
        .filter(|record| record.op == Op::RESIDENT && record.tensor == 0)
        .map(|record| record.step)
        .collect();
    // One before and one after loading.
    assert_eq!(snapshots.split_off(2), [2, 5]);
    assert_eq!(snapshots, [NO_STEP, NO_STEP]);
}

/// As the user nobody, with this program and model.
#[test]
fn what_is_not_permitted_names_the_command_that_grants_it() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-llama");
    let log = folder.path().join("run.ftrace");
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(folder.path(), everybody).unwrap();
    let as_nobody = |arguments: &[&str]| {
        let command = verb("record", &model, arguments);
        let mut nobody = Command::new("setpriv");
        nobody.args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "--",
        ]);
        nobody.arg(command.get_program()).args(command.get_args());
        nobody.arg("-o").arg(&log);
        nobody.output()
    };
    match as_nobody(&["-n", "1"]) {
        Ok(output) if output.status.success() => {}
        other => {
            eprintln!("skipped: this user cannot run the program as another: {other:?}");
            return;
        }
    }
    std::fs::remove_file(&log).unwrap();
    let output = as_nobody(&["-n", "1", "--block"]).unwrap();
    assert_bad_input(&output, &["block reads cannot be watched"]);
    let said = stderr(&output);
    assert!(
        ["setcap ", "mount -t tracefs", "copy the model"]
            .iter()
            .any(|help| said.contains(help)),
        "{said}"
    );
    let output = as_nobody(&["-n", "1", "--residency"]).unwrap();
    assert_bad_input(&output, &["run as its owner or as root"]);
    assert!(!log.exists(), "nothing is created before all is permitted");
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
