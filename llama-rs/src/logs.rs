//! llama.cpp's and ggml's log: silenced by default, routed into `tracing` on request.
//!
//! Error and warning lines are kept per thread while an operation runs, so that an [`Error`](crate::Error) can carry
//! llama.cpp's own reason whether or not the log is routed.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use llama_sys as sys;

/// Set by [`route_logs`]; never cleared.
static ROUTED: AtomicBool = AtomicBool::new(false);

/// Lines of errors kept per thread. llama.cpp logs one to three lines for a failure.
const REASON_LINES_MAX: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

/// A line that has not seen its newline yet.
struct Line {
    level: Level,
    text: String,
}

struct ThreadLog {
    line: Line,
    reasons: VecDeque<String>,
}

thread_local! {
    static LOG: RefCell<ThreadLog> = const {
        RefCell::new(ThreadLog {
            line: Line { level: Level::Info, text: String::new() },
            reasons: VecDeque::new(),
        })
    };
}

/// Sends llama.cpp's and ggml's log to `tracing`, target `llama.cpp`, from now on, in every thread.
///
/// Until this is called, the log is dropped. Calling it again does nothing.
pub fn route_logs() {
    install();
    ROUTED.store(true, Ordering::Relaxed);
}

/// Makes [`on_log`] the receiver of the log.
pub(crate) fn install() {
    // SAFETY: `on_log` is a function that lives as long as the process and ignores its user data; llama_log_set
    // stores both pointers and forwards them to ggml_log_set.
    unsafe { sys::llama_log_set(Some(on_log), std::ptr::null_mut()) }
}

/// Forgets the reasons that earlier operations left in this thread.
pub(crate) fn clear_reasons() {
    LOG.with_borrow_mut(|log| log.reasons.clear());
}

/// The error and warning lines that llama.cpp logged in this thread since [`clear_reasons`], as one line.
/// `fallback` when there were none.
pub(crate) fn take_reason(fallback: &str) -> String {
    let lines: Vec<String> = LOG.with_borrow_mut(|log| log.reasons.drain(..).collect());
    if lines.is_empty() {
        fallback.to_owned()
    } else {
        lines.join("; ")
    }
}

/// The C side of the log. May be called from any thread, also from inside another callback.
unsafe extern "C" fn on_log(
    level: sys::ggml_log_level,
    text: *const c_char,
    _user_data: *mut c_void,
) {
    if text.is_null() {
        return;
    }
    // SAFETY: ggml passes a NUL-terminated string that is valid during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    // A subscriber may panic; that must not unwind into C. There is no caller to report it to.
    let _ = catch_unwind(AssertUnwindSafe(|| push(level_of(level), &text)));
}

/// `None` continues the previous line.
fn level_of(level: sys::ggml_log_level) -> Option<Level> {
    match level {
        sys::GGML_LOG_LEVEL_CONT => None,
        sys::GGML_LOG_LEVEL_ERROR => Some(Level::Error),
        sys::GGML_LOG_LEVEL_WARN => Some(Level::Warn),
        sys::GGML_LOG_LEVEL_DEBUG => Some(Level::Debug),
        _ => Some(Level::Info),
    }
}

fn push(level: Option<Level>, text: &str) {
    // Lines are collected first and emitted after the borrow ends: a subscriber may itself call llama.cpp.
    let mut done: Vec<Line> = Vec::new();
    let stored = LOG.try_with(|log| {
        let Ok(mut log) = log.try_borrow_mut() else {
            return;
        };
        if let Some(level) = level {
            let unfinished = std::mem::replace(
                &mut log.line,
                Line {
                    level,
                    text: String::new(),
                },
            );
            if !unfinished.text.is_empty() {
                done.push(unfinished);
            }
        }
        for piece in text.split_inclusive('\n') {
            match piece.strip_suffix('\n') {
                Some(end) => {
                    log.line.text.push_str(end);
                    let text = std::mem::take(&mut log.line.text);
                    let level = log.line.level;
                    if !text.is_empty() {
                        done.push(Line { level, text });
                    }
                }
                None => log.line.text.push_str(piece),
            }
        }
        for line in &done {
            if matches!(line.level, Level::Error | Level::Warn) {
                if log.reasons.len() == REASON_LINES_MAX {
                    log.reasons.pop_front();
                }
                log.reasons.push_back(reason_of(&line.text).to_owned());
            }
        }
    });
    if stored.is_err() || !ROUTED.load(Ordering::Relaxed) {
        return;
    }
    for line in done {
        let text = line.text.as_str();
        match line.level {
            Level::Error => tracing::error!(target: "llama.cpp", "{text}"),
            Level::Warn => tracing::warn!(target: "llama.cpp", "{text}"),
            Level::Info => tracing::info!(target: "llama.cpp", "{text}"),
            Level::Debug => tracing::debug!(target: "llama.cpp", "{text}"),
        }
    }
}

/// A log line without the C function's name in front of it.
fn reason_of(line: &str) -> &str {
    match line.split_once(": ") {
        Some((head, rest))
            if head
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':') =>
        {
            rest.trim()
        }
        _ => line.trim(),
    }
}
