//! Budgets and readahead: in force during a run, gone after it, whatever ends it.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::{bench, folder, rows, stderr, tiny};

/// The memory hierarchy where groups of this program may appear.
fn groups() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry
                    .file_name()
                    .to_string_lossy()
                    .starts_with("faultline-bench-")
                {
                    found.push(entry.path());
                }
                walk(&entry.path(), found);
            }
        }
    }
    let v1 = Path::new("/sys/fs/cgroup/memory");
    let mut found = Vec::new();
    walk(
        if v1.is_dir() {
            v1
        } else {
            Path::new("/sys/fs/cgroup")
        },
        &mut found,
    );
    found
}

fn groups_of(pid: u32) -> Vec<PathBuf> {
    let prefix = format!("faultline-bench-{pid}");
    let is_ours = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
    };
    groups().into_iter().filter(is_ours).collect()
}

fn wait_until(what: &str, mut reached: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !reached() {
        assert!(
            begin.elapsed() < Duration::from_secs(120),
            "{what} did not happen"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The processes whose parent is `pid`.
fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_interrupt_ends_the_worker_and_restores_the_machine() {
    for signal in [Signal::INT, Signal::TERM] {
        let folder = folder();
        let model = tiny(folder.path(), "tiny-llama");
        let out = folder.path().join("run");
        let mut child = Killed(
            bench(folder.path())
                .args([
                    "--prefetch=eager",
                    "-r",
                    "1000",
                    "-p",
                    "2",
                    "-n",
                    "2000",
                    "--budget",
                    "512MiB",
                    "--out",
                ])
                .arg(&out)
                .arg("--model")
                .arg(&model)
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let pid = child.0.id();
        let raw = out.join("raw.jsonl");
        let has_run = || fs::read_to_string(&raw).is_ok_and(|text| text.lines().count() >= 1);
        let ended = |child: &mut Killed| child.0.try_wait().unwrap().is_some();
        wait_until("the first run", || has_run() || ended(&mut child));
        if ended(&mut child) {
            return eprintln!("skipped: no memory group can be made here");
        }
        wait_until("a second worker", || !children(pid).is_empty());
        let workers = children(pid);
        kill_process(Pid::from_child(&child.0), signal).unwrap();
        let status = child.0.wait().unwrap();
        assert_eq!(status.code(), Some(130));
        assert_eq!(groups_of(pid), Vec::<PathBuf>::new());
        for worker in workers {
            wait_until("the worker's end", || {
                !Path::new(&format!("/proc/{worker}")).exists()
            });
        }
        // What was measured is kept.
        assert!(has_run());
        assert!(out.join("summary.json").exists());
    }
}

#[test]
fn readahead_is_in_force_and_restored() {
    let folder = folder();
    let model = tiny(folder.path(), "tiny-llama");
    let output = bench(folder.path())
        .args([
            "--prefetch=eager",
            "-r",
            "1",
            "-p",
            "2",
            "-n",
            "2",
            "--readahead",
            "64KiB,128KiB",
            "-o",
            "json",
        ])
        .arg("--model")
        .arg(&model)
        .output()
        .unwrap();
    if output.status.code() == Some(2) {
        assert!(stderr(&output).contains("readahead"), "{}", stderr(&output));
        return eprintln!("skipped: {}", stderr(&output));
    }
    let rows = rows(&output);
    let found: Vec<_> = rows
        .iter()
        .map(|row| row["readahead_bytes"].as_u64().unwrap())
        .collect();
    assert_eq!(found, [65536, 65536, 131_072, 131_072]);
    let device = rows[0]["device"].as_str().unwrap();
    let now = fs::read_to_string(format!("/sys/block/{device}/queue/read_ahead_kb")).unwrap();
    assert_ne!(now.trim(), "64");
}

/// What a measurement within a budget gives; `None` after saying why there can be none here.
fn within_budget(folder: &Path, model: &Path, args: &[&str]) -> Option<Output> {
    let output = bench(folder)
        .args(args)
        .args(["-o", "json", "--model"])
        .arg(model)
        .output()
        .unwrap();
    let message = stderr(&output);
    if message.contains("no memory group can be made") {
        eprintln!("skipped: {message}");
        return None;
    }
    Some(output)
}

#[test]
fn a_run_over_its_budget_is_reported_as_that() {
    let folder = folder();
    let model = tiny(folder.path(), "tiny-llama");
    // A KV cache of this many tokens does not fit; the budget is enough for everything else.
    let args = "--prefetch=eager,selective -r 2 -p 1 -n 1000000 --budget 24MiB --timeout 100";
    let args: Vec<&str> = args.split(' ').collect();
    let Some(output) = within_budget(folder.path(), &model, &args) else {
        return;
    };
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(
        message.contains("exceeded the budget of 25165824 bytes"),
        "{message}"
    );
    assert!(!message.contains("panicked"), "{message}");
    let rows = rows(&output);
    assert!(
        rows.iter()
            .all(|row| row["status"] == "exceeded_budget" && row["load_ms"].is_null())
    );
}

#[test]
fn another_program_lives_in_the_budget_too() {
    let folder = folder();
    let model = tiny(folder.path(), "tiny-llama");
    // `tail` keeps what it may have to print.
    let hog = "hog=head -c 400000000 /dev/zero | tail -c 400000000 > /dev/null; test -f {model} && exit 9";
    let args = "--prefetch=eager -r 2 -p 2 -n 2 --budget 128MiB --limit-by cgroup --baseline-cmd";
    let args: Vec<&str> = args.split(' ').chain([hog]).collect();
    let Some(output) = within_budget(folder.path(), &model, &args) else {
        return;
    };
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let rows = rows(&output);
    assert_eq!(
        (&rows[0]["engine"], &rows[0]["status"]),
        (&"hog".into(), &"exceeded_budget".into())
    );
    let ours = rows.last().unwrap();
    assert_eq!(
        (&ours["engine"], &ours["status"]),
        (&"faultline".into(), &"ok".into())
    );
}

#[test]
fn the_groups_peak_is_the_memory_of_the_run() {
    let folder = folder();
    let model = tiny(folder.path(), "tiny-gpt-oss");
    // Half a gigabyte of KV cache: what no figure counts, such as page tables, is well under 1 % of it.
    let args = "--prefetch=eager -r 1 -p 2 -n 1000000 -b 16 --ubatch-size 16 --decode-seconds 0.5 --budget 2GiB --limit-by cgroup";
    let args: Vec<&str> = args.split(' ').collect();
    let Some(output) = within_budget(folder.path(), &model, &args) else {
        return;
    };
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let rows = rows(&output);
    let bytes = |name: &str| rows[0][name].as_f64().unwrap();
    let Some(peak) = rows[0]["cgroup_peak_bytes"].as_f64() else {
        return eprintln!("skipped: this kernel keeps no peak");
    };
    let ours = bytes("rss_anon_peak_bytes") + bytes("resident_end_bytes");
    assert!(ours > 500e6, "{ours}");
    assert!((peak / ours - 1.0).abs() < 0.01, "{peak} against {ours}");
}

#[test]
fn a_balloon_is_gone_after_an_interrupt() {
    let available = |text: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with("MemAvailable:"))?;
        line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let budget_kib = available(&text).unwrap() - 512 * 1024;
    let folder = folder();
    let model = tiny(folder.path(), "tiny-llama");
    let mut child = Killed(
        bench(folder.path())
            .args(["--prefetch=eager", "-r", "1000", "-p", "2", "-n", "2000"])
            .args([
                "--limit-by",
                "balloon",
                "--budget",
                &format!("{budget_kib}KiB"),
            ])
            .arg("--model")
            .arg(&model)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let pid = child.0.id();
    let locked = || {
        let bytes = resident::Status::of(pid).and_then(|status| status.bytes("VmLck"));
        bytes.is_ok_and(|bytes| bytes > 0)
    };
    let ended = |child: &mut Killed| child.0.try_wait().unwrap().is_some();
    wait_until("locking", || locked() || ended(&mut child));
    if ended(&mut child) {
        return eprintln!("skipped: no memory can be locked here, or others have taken it");
    }
    kill_process(Pid::from_child(&child.0), Signal::INT).unwrap();
    let status = child.0.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(!locked());
    assert_eq!(children(pid), Vec::<u32>::new());
}
