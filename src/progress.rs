//! Progress on standard error: while a model loads, and while a log is written.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracer::Progress;

/// Steps of a full bar; llama.cpp reports a fraction.
const STEPS: u64 = 1000;

/// A bar on standard error, without colours. Hidden when that is no terminal, or when `quiet`.
pub(crate) struct LoadBar(ProgressBar);

impl LoadBar {
    pub(crate) fn new(name: &str, quiet: bool) -> LoadBar {
        let target = if quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(Some(STEPS), target);
        let style =
            ProgressStyle::with_template("loading {msg} [{bar:40}] {percent:>3}% {elapsed}");
        bar.set_style(
            style
                .expect("the template is a constant with known keys")
                .progress_chars("=> "),
        );
        bar.set_message(name.to_owned());
        LoadBar(bar)
    }

    /// Shows a fraction from 0 to 1.
    pub(crate) fn set(&self, fraction: f32) {
        let steps = (fraction.clamp(0.0, 1.0) * STEPS as f32) as u64;
        self.0.set_position(steps);
    }
}

impl Drop for LoadBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// How often a [`LogLine`] changes.
const INTERVAL: Duration = Duration::from_millis(250);

/// A line on standard error that follows a log. A thread of its own looks at the log: writing it costs no more.
pub(crate) struct LogLine {
    is_stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl LogLine {
    /// `None` when standard error is no terminal, or no thread can be had.
    pub(crate) fn start(progress: Progress) -> Option<LogLine> {
        if !io::stderr().is_terminal() {
            return None;
        }
        let is_stopping = Arc::new(AtomicBool::new(false));
        let is_stopped = Arc::clone(&is_stopping);
        let thread = thread::Builder::new().name("progress".to_owned());
        let thread = thread.spawn(move || follow(&progress, &is_stopped)).ok()?;
        Some(LogLine {
            is_stopping,
            thread: Some(thread),
        })
    }
}

impl Drop for LogLine {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A line that could not be shown is no loss.
            let _ = thread.join();
        }
    }
}

fn follow(progress: &Progress, is_stopping: &AtomicBool) {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("recording {msg} {elapsed}");
    bar.set_style(style.expect("the template is a constant with known keys"));
    let mut before = (Instant::now(), progress.n_accesses());
    while !is_stopping.load(Ordering::Relaxed) {
        thread::park_timeout(INTERVAL);
        let now = (Instant::now(), progress.n_accesses());
        let seconds = now.0.duration_since(before.0).as_secs_f64().max(1e-3);
        let per_second = now.1.saturating_sub(before.1) as f64 / seconds;
        let fill = progress.n_written() as f64 / progress.capacity().max(1) as f64;
        bar.set_message(log_line(per_second, fill, progress.n_lost()));
        bar.tick();
        before = now;
    }
    bar.finish_and_clear();
}

/// Such as `1,234,567 accesses/s, log 4.2 % full,`.
fn log_line(per_second: f64, fill: f64, n_lost: u64) -> String {
    let per_second = indicatif::HumanCount(per_second as u64);
    let percent = 100.0 * fill.min(1.0);
    match n_lost {
        0 => format!("{per_second} accesses/s, log {percent:.1} % full,"),
        n => format!("{per_second} accesses/s, log full, {n} records lost,"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_rate_and_fill() {
        assert_eq!(
            log_line(1_234_567.8, 0.0416, 0),
            "1,234,567 accesses/s, log 4.2 % full,"
        );
        assert_eq!(
            log_line(0.0, 1.5, 7),
            "0 accesses/s, log full, 7 records lost,"
        );
    }
}
