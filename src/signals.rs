//! Ctrl-C, and the two ways in which native code ends a process that reads a model.

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGABRT, SIGBUS, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

use crate::exit::{BAD_INPUT, FAILURE};

/// Sets `stop` at the first Ctrl-C or SIGTERM. The second one ends the process at once.
pub(crate) fn on_interrupt(stop: &Arc<AtomicBool>) -> io::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag unset, sets it and returns.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(stop))?;
        flag::register(signal, Arc::clone(stop))?;
    }
    Ok(())
}

/// Ends the process with a sentence that names the model, rather than with a core dump, where native code fails:
///
/// - when a page of the mapped file cannot be read. That happens when the file is cut while it is in use, which no
///   check beforehand can exclude;
/// - when llama.cpp aborts, after it has printed which of its own checks failed. What llama-rs knows to end so is refused
///   before.
pub(crate) fn on_native_failure(model: &Path) -> io::Result<()> {
    static UNREADABLE: OnceLock<String> = OnceLock::new();
    static ABORTED: OnceLock<String> = OnceLock::new();
    let model = model.display();
    let unreadable = format!(
        "error: {model}: a page of the model file cannot be read: the file was cut while it was in use, or the device \
         failed; load the model again\n"
    );
    let aborted = format!("error: {model}: llama.cpp gave up on this model; its reason is above\n");
    end_with(SIGBUS, &UNREADABLE, unreadable, BAD_INPUT)?;
    end_with(SIGABRT, &ABORTED, aborted, FAILURE)
}

/// On `signal`, writes `message` to standard error and exits with `code`. `place` keeps the message.
fn end_with(
    signal: i32,
    place: &'static OnceLock<String>,
    message: String,
    code: u8,
) -> io::Result<()> {
    place.get_or_init(|| message);
    let report = move || {
        let text = place.get().map_or("", String::as_str);
        // Through the system call: std's stderr takes a lock, which the interrupted thread may hold.
        let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
        low_level::exit(i32::from(code));
    };
    // SAFETY: the handler only reads a static that is set, and makes the system calls write and _exit: it does not
    // allocate, lock or panic, and it does not return.
    unsafe { low_level::register(signal, report) }.map(drop)
}
