//! A writer that is killed at any moment leaves every record that it had published.

mod common;

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{numbered, size_for, tables};
use rand::RngExt;
use tracer::{LogReader, LogWriter, OnFull, State};

const LOG: &str = "TRACER_TEST_KILL_LOG";
const CAPACITY: &str = "TRACER_TEST_KILL_CAPACITY";

/// The child process of the other test; by itself it does nothing.
#[test]
fn child_writes_until_it_is_killed() {
    let (Ok(path), Ok(capacity)) = (std::env::var(LOG), std::env::var(CAPACITY)) else {
        return;
    };
    let size_bytes = size_for(capacity.parse().unwrap());
    let mut log = LogWriter::create(path, &tables(), size_bytes, OnFull::Wrap).unwrap();
    // The parent waits for a byte on this pipe, past what the test harness prints.
    eprint!(".");
    for sequence in 0.. {
        if sequence % 4096 == 0 {
            log.prepare(4096);
        }
        log.push(numbered(sequence));
    }
}

fn kill_one(path: &Path, capacity: u64, after: Duration) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_writes_until_it_is_killed", "--nocapture"])
        .env(LOG, path)
        .env(CAPACITY, capacity.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0];
    child
        .stderr
        .as_mut()
        .unwrap()
        .read_exact(&mut ready)
        .unwrap();
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();

    let reader = LogReader::open(path).unwrap();
    let header = reader.header();
    assert_eq!(header.state, State::Open);
    assert_eq!(header.n_lost, header.n_written.saturating_sub(capacity));
    let mut sequence = header.n_lost;
    for record in reader.records() {
        assert_eq!(record.unwrap(), numbered(sequence));
        sequence += 1;
    }
    assert_eq!(sequence, header.n_written);
    header.n_written
}

#[test]
fn every_record_before_the_head_is_there_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    let mut random = rand::rng();
    let (mut n_empty, mut n_wrapped) = (0, 0);
    for round in 0..60 {
        // One record, a page, and more than a millisecond's worth.
        let capacity = [1, 126, 2_000_000][round % 3];
        let after = Duration::from_nanos(random.random_range(0..3_000_000));
        let n_written = kill_one(&path, capacity, after);
        n_empty += u32::from(n_written == 0);
        n_wrapped += u32::from(n_written > capacity);
    }
    println!("60 kills: {n_wrapped} logs had wrapped, {n_empty} were empty");
}
