//! `faultline report` and `faultline diff` on logs of real runs, against the same numbers computed in the plainest way.

mod common;
#[path = "../analysis/tests/naive/mod.rs"]
mod naive;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{assert_bad_input, faultline, stderr, stdout, tiny_model};
use gguf::ModelFiles;
use model_shapes::local::real_model;
use naive::Naive;
use serde_json::Value;
use tracer::{KernelOptions, LogReader};

/// Records a run of `n` tokens.
fn record(model: &Path, folder: &Path, n: &str, options: &[&str]) -> PathBuf {
    let log = folder.join(format!("run-{n}.ftrace"));
    let output = faultline()
        .args([
            "record",
            "-q",
            "--raw",
            "--temp",
            "0",
            "-p",
            "Hello there, world",
            "-n",
            n,
            "-m",
        ])
        .arg(model)
        .arg("-o")
        .arg(&log)
        .args(options)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    log
}

/// What `report` prints, which must succeed.
fn report(log: &Path, arguments: &[&str]) -> String {
    let output = faultline()
        .arg("report")
        .args(arguments)
        .arg(log)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

fn json(log: &Path) -> Value {
    serde_json::from_str(&report(log, &["-o", "json"])).unwrap()
}

/// What the kernel did, as far as the machine permits to see it.
fn kernel_options(model: &Path) -> Vec<&'static str> {
    let files = ModelFiles::open(model).unwrap();
    let none = KernelOptions::default();
    let all = [
        (
            &["--faults"][..],
            KernelOptions {
                faults: true,
                ..none
            },
        ),
        (
            &["--block"],
            KernelOptions {
                block: true,
                ..none
            },
        ),
        (
            &["--residency", "4"],
            KernelOptions {
                residency_steps: Some(4),
                ..none
            },
        ),
    ];
    let is_permitted = |options: &KernelOptions| match options.check(&files) {
        Ok(()) => true,
        Err(refusal) => {
            eprintln!("without a part: {refusal}");
            false
        }
    };
    let permitted = all.iter().filter(|(_, options)| is_permitted(options));
    permitted
        .flat_map(|(flags, _)| flags.iter().copied())
        .collect()
}

/// The log of a real model: everything that is said of it is as computed by hand.
fn check_real(name: &str, n: &str) -> Option<Value> {
    let model = real_model(name)?;
    let folder = tempfile::tempdir().unwrap();
    // Without its pages in the page cache there is more to tell.
    let argument = format!("if={}", model.display());
    let dropped = Command::new("dd")
        .args([&argument, "iflag=nocache", "count=0", "status=none"])
        .status();
    assert!(dropped.unwrap().success());
    let options = kernel_options(&model);
    let log = record(
        &model,
        folder.path(),
        n,
        &[&["--prefetch", "none"], &options[..]].concat(),
    );
    let report = json(&log);
    Naive::of(&LogReader::open(&log).unwrap()).check(&report);
    assert_eq!(report["about"]["remarks"], serde_json::json!([]));
    assert_eq!(
        report["faults"]["has_faults"],
        options.contains(&"--faults")
    );
    Some(report)
}

#[test]
fn the_demo_model() {
    let Some(report) = check_real("faultline-demo-v1", "9") else {
        return;
    };
    // 4 of 32 experts.
    assert_eq!(report["waste"]["expert_share_per_token"], 0.125);
    assert_eq!(report["experts"]["layers"].as_array().unwrap().len(), 24);
    assert_eq!(
        report["determinism"]["n_equal"],
        report["determinism"]["n_compared"]
    );
}

#[test]
fn a_dense_model() {
    let Some(report) = check_real("qwen2.5-coder-0.5b", "5") else {
        return;
    };
    assert!(report["experts"].is_null());
    let dense = &report["waste"]["kinds"][0];
    assert_eq!(
        (&dense["name"], &dense["unread_bytes"]),
        (&"dense".into(), &0.into())
    );
}

#[test]
fn every_question_has_a_verb_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-gpt-oss");
    let log = record(&model, folder.path(), "6", &[]);
    let all = report(&log, &[]);
    assert!(all.contains("of the expert bytes ("), "{all}");
    let questions = [
        "waste",
        "reuse",
        "order",
        "determinism",
        "experts",
        "layers",
        "components",
        "timeline",
        "faults",
    ];
    for question in questions {
        let text = report(&log, &[question]);
        assert!(text.contains("\n## "), "{question}: {text}");
        assert!(
            !text.contains("NaN") && !text.contains("inf"),
            "{question}: {text}"
        );
        let csv = report(&log, &[question, "-o", "csv"]);
        let mut rows = csv::Reader::from_reader(csv.as_bytes());
        assert!(
            rows.records().map(Result::unwrap).count() > 0,
            "{question}: {csv}"
        );
        let json: Value = serde_json::from_str(&report(&log, &[question, "-o", "json"])).unwrap();
        let keys = json.as_object().unwrap();
        assert_eq!(keys.len(), 3, "only what was asked");
        assert!(keys.contains_key(question), "{question}");
    }
    let facts = report(&log, &["-o", "csv"]);
    assert!(facts.starts_with("question,name,value\nwaste,"), "{facts}");
    assert!(facts.contains("\nwaste,unread_bytes,"), "{facts}");
}

#[test]
fn the_page_is_whole_and_needs_nothing_from_outside() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-gpt-oss");
    let log = record(&model, folder.path(), "40", &[]);
    let (page, figures) = (
        folder.path().join("report.html"),
        folder.path().join("figures"),
    );
    let options = [
        "--html",
        page.to_str().unwrap(),
        "--figures",
        figures.to_str().unwrap(),
    ];
    report(&log, &options);
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.len() < 2 << 20, "{} bytes", html.len());
    assert_eq!(
        html.matches("<svg ").count(),
        html.matches("</svg>").count()
    );
    for id in [
        "heat",
        "offsets",
        "experts",
        "hits",
        "load",
        "throughput",
        "coverage",
        "steps",
        "components",
    ] {
        assert!(
            html.contains(&format!("<figure data-name=\"{id}\">")),
            "{id}"
        );
        for extension in ["svg", "csv"] {
            let file = figures.join(format!("{id}.{extension}"));
            assert!(file.metadata().unwrap().len() > 100, "{}", file.display());
        }
    }
    for outside in [
        "<script src",
        "@import",
        "url(http",
        "href=\"http",
        "fetch(",
        "XMLHttpRequest",
    ] {
        assert!(!html.contains(outside), "{outside}");
    }
}

#[test]
fn what_is_missing_is_said_and_the_rest_answered() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-gpt-oss");
    let log = record(&model, folder.path(), "6", &[]);
    let size_bytes = log.metadata().unwrap().len();
    let cut = folder.path().join("cut.ftrace");
    fs::copy(&log, &cut).unwrap();
    File::options()
        .write(true)
        .open(&cut)
        .unwrap()
        .set_len(size_bytes - 4000)
        .unwrap();
    let text = report(&cut, &[]);
    assert!(text.contains("the file was cut short"), "{text}");
    assert!(
        text.contains("1 step of which the beginning or the end is missing"),
        "{text}"
    );
    assert!(text.contains("of the expert bytes ("), "{text}");
    assert!(
        text.contains("bytes that are called unread here may have been read by them"),
        "{text}"
    );
    assert!(
        text.contains("record with --faults") && text.contains("record with --block"),
        "{text}"
    );

    // Another model is no reason to say nothing about the log.
    let other = tiny_model(folder.path(), "tiny-qwen3moe");
    let output = faultline()
        .args(["report", "order", "--model"])
        .arg(&other)
        .arg(&log)
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(
        stderr(&output).contains("of another model"),
        "{}",
        stderr(&output)
    );
    assert!(stdout(&output).contains("No answer: where reads are on the device"));

    let output = faultline()
        .args(["report", "waste"])
        .arg(&model)
        .output()
        .unwrap();
    assert_bad_input(&output, &["tiny-gpt-oss.gguf"]);
    // Numbers have no room for words, which then go to standard error.
    for form in ["csv", "json"] {
        let output = faultline()
            .args(["report", "faults", "-o", form])
            .arg(&cut)
            .output()
            .unwrap();
        assert!(output.status.success());
        let said = stderr(&output);
        assert!(said.contains("the file was cut short"), "{said}");
        assert!(said.contains("no answer: where page faults hit"), "{said}");
    }
    let output = faultline()
        .args(["report", "--html"])
        .args([&log, &log])
        .output()
        .unwrap();
    assert_bad_input(&output, &["is the input"]);
}

#[test]
fn a_log_that_has_wrapped_is_answered_without_its_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-gpt-oss");
    let log = record(
        &model,
        folder.path(),
        "900",
        &["--log-size", "1", "-c", "2048"],
    );
    let text = report(&log, &[]);
    for said in [
        "the oldest gave way",
        "bytes that are called unread here may have been read by them",
        "the log has lost its beginning",
        "A token reads 25 % of the expert bytes (",
        "Every token reads the same, up to the slice",
    ] {
        assert!(text.contains(said), "{said:?} is not in: {text}");
    }
    let page = folder.path().join("page.html");
    report(&log, &["--html", page.to_str().unwrap()]);
    let html = fs::read_to_string(&page).unwrap();
    assert!(
        !html.contains("<figure data-name=\"load\">")
            && html.contains("<figure data-name=\"heat\">")
    );
}

#[test]
fn questions_that_are_none_are_answered_with_those_that_are() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-llama");
    let log = record(&model, folder.path(), "3", &[]);
    let log = log.to_str().unwrap();
    let ask = |arguments: &[&str]| {
        let mut command = faultline();
        let command = command.current_dir(folder.path()).arg("report");
        command.args(arguments).output().unwrap()
    };
    assert_bad_input(&ask(&["wast", log]), &["wast: no question", "waste, reuse"]);
    assert_bad_input(&ask(&[log, "waste"]), &["before the log", "report waste "]);
    assert_bad_input(&ask(&["order"]), &["faultline report order LOG"]);
    assert_eq!(ask(&[]).status.code(), Some(2));
    assert_eq!(ask(&["waste", log, log]).status.code(), Some(2));
    let nowhere = ask(&[log, "--html", "no/folder/page.html"]);
    assert_bad_input(
        &nowhere,
        &["no/folder/page.html: cannot create: No such file"],
    );
    assert!(!stderr(&nowhere).contains(".partial"));

    let dense = ask(&["experts", log, "-o", "csv"]);
    assert!(dense.status.success());
    assert_eq!(stdout(&dense), "");
    assert!(stderr(&dense).contains("the model has no experts"));

    // A page about one question.
    let page = folder.path().join("page.html");
    let output = ask(&["order", log, "--html", page.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.contains("<h2 id=\"order\">") && !html.contains("<h2 id=\"waste\">"));
}

#[test]
fn two_logs_or_reports_stand_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-gpt-oss");
    let (short, long) = (
        record(&model, folder.path(), "4", &[]),
        record(&model, folder.path(), "12", &[]),
    );
    let kept = folder.path().join("kept.json");
    fs::write(&kept, report(&short, &["-o", "json"])).unwrap();
    let diff = |a: &Path, b: &Path, form: &str| {
        let output = faultline()
            .arg("diff")
            .args([a, b])
            .args(["-o", form])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    assert_eq!(
        diff(&short, &long, "csv"),
        diff(&kept, &long, "csv"),
        "a report is as good as its log"
    );
    let same: Value = serde_json::from_str(&diff(&short, &kept, "json")).unwrap();
    let rows = same["rows"].as_array().unwrap();
    assert!(rows.len() > 30);
    assert!(rows.iter().all(|row| row["a"] == row["b"]), "{same}");
    let (a, b) = (json(&short), json(&long));
    let rows: Value = serde_json::from_str(&diff(&short, &long, "json")).unwrap();
    let rows = rows["rows"].as_array().unwrap();
    let row = rows
        .iter()
        .find(|row| row["name"] == "touched_bytes")
        .unwrap();
    assert_eq!(
        row["a"].as_f64(),
        a["waste"]["total"]["touched_bytes"].as_f64()
    );
    assert_eq!(
        row["b"].as_f64(),
        b["waste"]["total"]["touched_bytes"].as_f64()
    );
    let text = diff(&short, &long, "md");
    assert!(text.contains("numbers of generated tokens"), "{text}");

    fs::write(&kept, "{\"report_format\": 99}").unwrap();
    let output = faultline()
        .arg("diff")
        .args([&kept, &long])
        .output()
        .unwrap();
    assert_bad_input(&output, &["kept.json", "no report"]);
}
