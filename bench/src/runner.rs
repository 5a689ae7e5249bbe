//! One measured run: a worker process from start to exit, watched from outside.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal};

use crate::interrupt;
use crate::procfs::{self, Rss, Status};
use crate::protocol::{Event, Mark, Outcome, Point};
use crate::sample::{Sample, Sampler};
use crate::spec::WorkerSpec;

/// Between samples until the first token: fine enough for the picture of a load that takes a tenth of a second.
const FINE: Duration = Duration::from_millis(5);
/// Between samples afterwards: each one takes a CPU from the computation, which then waits in a barrier.
const COARSE: Duration = Duration::from_millis(250);
/// Bytes of the worker's standard error that are kept for messages.
const STDERR_KEPT_BYTES: usize = 16 * 1024;

/// What was seen of one run.
#[derive(Debug)]
pub(crate) struct Watched {
    /// CLOCK_MONOTONIC just before the process was started.
    pub(crate) started_ns: u64,
    pub(crate) marks: Vec<Mark>,
    pub(crate) samples: Vec<Sample>,
    /// The highest of the samples.
    pub(crate) peak: Rss,
    /// The kernel's own figures, read when the run was complete.
    pub(crate) status: Option<Status>,
    pub(crate) end: End,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) enum End {
    Complete(Box<Outcome>),
    /// Another program is complete; it computed this many tokens per second.
    Rate(f64),
    /// Killed by SIGKILL, not by us: the caller knows whether there was a limit to exceed.
    Killed,
    /// Took longer than allowed and was stopped.
    TimedOut,
    /// Anything else, with the reason.
    Failed(String),
}

impl Watched {
    /// The mark of `point`, if it was reached.
    pub(crate) fn mark(&self, point: Point) -> Option<&Mark> {
        self.marks.iter().find(|mark| mark.point == point)
    }

    /// Milliseconds from process start to `point`, without the time that the worker spent on looking at itself.
    pub(crate) fn since_start_ms(&self, point: Point) -> Option<f64> {
        let mark = self.mark(point)?;
        Some(
            mark.at_ns
                .saturating_sub(self.started_ns)
                .saturating_sub(mark.probe_ns) as f64
                / 1e6,
        )
    }
}

/// A child process that does not outlive this value.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        // All fail harmlessly when the child has been collected already. Its group: a shell has children of its own.
        if let (Ok(None), Some(group)) = (self.0.try_wait(), Pid::from_raw(self.0.id() as i32)) {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This program as the worker for `spec`.
pub(crate) fn worker(spec: &WorkerSpec) -> Result<Command> {
    let mut command =
        Command::new(std::env::current_exe().context("cannot find the own program file")?);
    command.arg("worker").arg(serde_json::to_string(spec)?);
    Ok(command)
}

/// When memory runs out, the kernel ends this process before any other. It may always be made more likely; where `/proc`
/// is not writable, the kernel chooses as it likes.
fn first_to_go(child: &Child) {
    let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), "1000");
}

/// Runs a worker to its end. Ends early, with the worker killed, when a signal arrives.
pub(crate) fn run(mut command: Command, timeout: Duration) -> Result<Watched> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C in a terminal reaches the parent only, which ends the worker itself.
        .process_group(0);
    let started_ns = procfs::monotonic_ns();
    let program = command.get_program().to_owned();
    let mut child = Guarded(
        command
            .spawn()
            .with_context(|| format!("{}: cannot be started", program.to_string_lossy()))?,
    );
    first_to_go(&child.0);
    let lines = read_lines(child.0.stdout.take().expect("stdout is piped"));
    let errors = read_tail(child.0.stderr.take().expect("stderr is piped"));

    let mut sampler = Sampler::new(child.0.id(), started_ns);
    let mut seen = Seen::default();
    watch(&mut child.0, &lines, &mut sampler, &mut seen, timeout)?;
    if seen.timed_out {
        let _ = child.0.kill();
    }
    let exit = child.0.wait().context("cannot wait for the worker")?;
    interrupt::check()?;
    let stderr = errors.join().unwrap_or_default();
    let (samples, peak) = sampler.finish();
    let (marks, status, end) = seen.into_end(exit, &stderr);
    Ok(Watched {
        started_ns,
        marks,
        samples,
        peak,
        status,
        end,
    })
}

/// Runs another program to its end, and takes its speed from its output.
pub(crate) fn run_peer(
    command: Command,
    timeout: Duration,
    tokens_per_s: impl Fn(&str) -> Result<f64>,
) -> Result<Watched> {
    let started_ns = procfs::monotonic_ns();
    let end = match capture_until(command, timeout)? {
        None => End::TimedOut,
        Some(output) if output.status.success() => {
            match tokens_per_s(&format!("{}{}", output.stdout, output.stderr)) {
                Ok(rate) => End::Rate(rate),
                Err(error) => End::Failed(format!("{error:#}{}", last_words(&output.stderr))),
            }
        }
        Some(output) if output.status.signal() == Some(libc::SIGKILL) => End::Killed,
        Some(output) => End::Failed(format!(
            "it ended with {}{}",
            output.status,
            last_words(&output.stderr)
        )),
    };
    Ok(Watched {
        started_ns,
        marks: Vec::new(),
        samples: Vec::new(),
        peak: Rss::default(),
        status: None,
        end,
    })
}

/// A finished program's status and output.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs another program to its end. Ends early, with the program killed, when a signal arrives.
pub(crate) fn capture(command: Command, timeout: Duration) -> Result<Captured> {
    match capture_until(command, timeout)? {
        Some(captured) => Ok(captured),
        None => bail!("took longer than {} s", timeout.as_secs()),
    }
}

/// As [`capture`]; `None` for a program that took too long and was killed.
fn capture_until(mut command: Command, timeout: Duration) -> Result<Option<Captured>> {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = Guarded(command.spawn()?);
    first_to_go(&child.0);
    let lines = read_lines(child.0.stdout.take().expect("stdout is piped"));
    let errors = read_tail(child.0.stderr.take().expect("stderr is piped"));
    let begin = Instant::now();
    let mut stdout = String::new();
    loop {
        interrupt::check()?;
        if begin.elapsed() > timeout {
            return Ok(None);
        }
        match lines.recv_timeout(COARSE) {
            Ok(line) => {
                stdout.push_str(&line);
                stdout.push('\n');
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.0.wait()?;
    Ok(Some(Captured {
        status,
        stdout,
        stderr: errors.join().unwrap_or_default(),
    }))
}

/// What the worker has said so far.
#[derive(Default)]
struct Seen {
    marks: Vec<Mark>,
    outcome: Option<Box<Outcome>>,
    error: Option<String>,
    status: Option<Status>,
    timed_out: bool,
}

impl Seen {
    fn into_end(self, exit: ExitStatus, stderr: &str) -> (Vec<Mark>, Option<Status>, End) {
        let end = match (self.outcome, self.error) {
            (Some(outcome), None) if exit.success() => End::Complete(outcome),
            _ if self.timed_out => End::TimedOut,
            (_, Some(error)) => End::Failed(error),
            _ if exit.signal() == Some(libc::SIGKILL) => End::Killed,
            _ => End::Failed(format!(
                "the worker ended with {exit}{}",
                last_words(stderr)
            )),
        };
        (self.marks, self.status, end)
    }
}

/// Handles events and takes samples until the worker closes its output.
fn watch(
    child: &mut Child,
    lines: &Receiver<String>,
    sampler: &mut Sampler,
    seen: &mut Seen,
    timeout: Duration,
) -> Result<()> {
    let begin = Instant::now();
    let mut interval = FINE;
    let mut next_sample = begin;
    loop {
        interrupt::check()?;
        if begin.elapsed() > timeout {
            seen.timed_out = true;
            return Ok(());
        }
        if Instant::now() >= next_sample {
            sampler.take();
            next_sample = Instant::now() + interval;
        }
        let patience = next_sample.saturating_duration_since(Instant::now());
        let line = match lines.recv_timeout(patience) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        match serde_json::from_str(&line) {
            Ok(Event::Mark(mark)) => {
                if mark.point == Point::FirstToken {
                    interval = COARSE;
                }
                seen.marks.push(mark);
            }
            Ok(Event::Done(outcome)) => {
                seen.status = procfs::status(child.id()).ok();
                sampler.take();
                seen.outcome = Some(outcome);
                if let Some(mut stdin) = child.stdin.take() {
                    // A worker that died in the meantime shows in its exit status.
                    let _ = stdin.write_all(b"exit\n");
                }
            }
            Ok(Event::Error { message }) => seen.error = Some(message),
            Err(error) => {
                seen.error = Some(format!("unexpected line from the worker: {error}: {line}"))
            }
        }
    }
}

fn read_lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Reads everything and keeps the end of it.
fn read_tail(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut kept = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            kept.extend_from_slice(&buffer[..n]);
            let excess = kept.len().saturating_sub(STDERR_KEPT_BYTES);
            kept.drain(..excess);
        }
        String::from_utf8_lossy(&kept).into_owned()
    })
}

/// The last lines of a dead worker, for the message.
pub(crate) fn last_words(stderr: &str) -> String {
    let lines: Vec<_> = stderr
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    if lines.is_empty() {
        return String::new();
    }
    format!(": {}", lines[lines.len().saturating_sub(5)..].join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_the_last_lines() {
        assert_eq!(last_words(""), "");
        assert_eq!(last_words("a\n\nb\n"), ": a | b");
        assert_eq!(last_words("1\n2\n3\n4\n5\n6\n7\n"), ": 3 | 4 | 5 | 6 | 7");
    }

    #[test]
    fn how_a_run_ended() {
        let killed = ExitStatus::from_raw(libc::SIGKILL);
        let (_, _, end) = Seen::default().into_end(killed, "");
        assert!(matches!(end, End::Killed));
        let late = Seen {
            timed_out: true,
            ..Seen::default()
        };
        assert!(matches!(late.into_end(killed, "").2, End::TimedOut));
        let crash = ExitStatus::from_raw(libc::SIGSEGV);
        match Seen::default().into_end(crash, "assertion failed\n").2 {
            End::Failed(reason) => assert!(
                reason.contains("signal: 11") && reason.contains("assertion"),
                "{reason}"
            ),
            other => panic!("{other:?}"),
        }
        let refused = Seen {
            error: Some("no such file".into()),
            ..Seen::default()
        };
        let exit_2 = ExitStatus::from_raw(2 << 8);
        assert!(
            matches!(refused.into_end(exit_2, "").2, End::Failed(reason) if reason == "no such file")
        );
    }

    #[test]
    fn the_tail_is_bounded() {
        let text = vec![b'x'; 3 * STDERR_KEPT_BYTES];
        let tail = read_tail(std::io::Cursor::new(text)).join().unwrap();
        assert_eq!(tail.len(), STDERR_KEPT_BYTES);
    }
}
