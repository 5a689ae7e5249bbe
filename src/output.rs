//! Standard output: text or ids, as they come. Standard error: everything else.

use std::fmt;
use std::io::{self, IsTerminal, StdoutLock, Write};
use std::ops::ControlFlow;

use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Writes a line to standard error. Unlike `eprintln!` it does not panic when nobody reads it.
pub(crate) fn note(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Shows llama.cpp's log on standard error: nothing, from 1 on its messages, from 2 on those for debugging too.
pub(crate) fn show_logs(verbose: u8) {
    let level = match verbose {
        0 => return,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(has_colors())
        .with_writer(io::stderr)
        .without_time()
        .init();
    llama_rs::route_logs();
}

/// Shows what a server does on standard error, and llama.cpp's log as [`show_logs`] does.
pub(crate) fn show_server_logs(verbose: u8) {
    let llama = match verbose {
        0 => LevelFilter::OFF,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    let levels = Targets::new()
        .with_default(LevelFilter::INFO)
        .with_target("llama.cpp", llama);
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(has_colors())
        .with_writer(io::stderr)
        // Otherwise it panics where nobody reads standard error.
        .log_internal_errors(false)
        .with_target(false);
    tracing_subscriber::registry()
        .with(lines.with_filter(levels))
        .init();
    llama_rs::route_logs();
}

fn has_colors() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Standard output of a verb that streams. A reader that went away ends the stream and is no error.
pub(crate) struct Output {
    stream: StdoutLock<'static>,
    closed: bool,
    at_line_start: bool,
}

impl Output {
    pub(crate) fn new() -> Output {
        Output {
            stream: io::stdout().lock(),
            closed: false,
            at_line_start: true,
        }
    }

    /// Writes and flushes: a person is reading along. `Break` when there is no reader any more.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<ControlFlow<()>> {
        if self.closed {
            return Ok(ControlFlow::Break(()));
        }
        match self
            .stream
            .write_all(bytes)
            .and_then(|()| self.stream.flush())
        {
            Ok(()) => {
                if let Some(last) = bytes.last() {
                    self.at_line_start = *last == b'\n';
                }
                Ok(ControlFlow::Continue(()))
            }
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(ControlFlow::Break(()))
            }
            Err(error) => Err(error),
        }
    }

    /// Ends the last line, if it has not ended.
    pub(crate) fn end_line(&mut self) -> io::Result<()> {
        if !self.at_line_start {
            let _ = self.write(b"\n")?;
        }
        Ok(())
    }
}
