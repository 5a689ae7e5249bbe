//! Ctrl-C, and reads of a mapped file that fail.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGBUS, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

const BAD_INPUT: i32 = 2;

/// Sets `stop` at the first Ctrl-C or SIGTERM. The second one ends the process at once.
pub(crate) fn on_interrupt(stop: &Arc<AtomicBool>) -> io::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag unset, sets it and returns.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(stop))?;
        flag::register(signal, Arc::clone(stop))?;
    }
    Ok(())
}

/// Ends the process with a sentence, rather than with a core dump, when a page of a mapped file cannot be read. That
/// happens when the file is cut while it is in use, which no check beforehand can exclude.
pub(crate) fn on_unreadable_page(model: &Path) -> io::Result<()> {
    static MESSAGE: OnceLock<String> = OnceLock::new();
    MESSAGE.get_or_init(|| {
        format!(
            "error: {}: a page of the model file cannot be read: the file was cut while it was in use, or the device \
             failed; load the model again\n",
            model.display()
        )
    });
    let report = || {
        let text = MESSAGE.get().map_or("", String::as_str);
        // Through the system call: std's stderr takes a lock, which the interrupted thread may hold.
        let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
        low_level::exit(BAD_INPUT);
    };
    // SAFETY: the handler only reads a static that is set, and makes the system calls write and _exit: it does not allocate, lock or
    // panic, and it does not return.
    unsafe { low_level::register(SIGBUS, report) }.map(drop)
}
