//! Calls that may throw go through C++ functions that catch; this turns their status into a `Result`.

use std::ffi::CStr;

use llama_sys as sys;

use crate::error::{Error, Result};
use crate::logs;

/// Whether the call ended normally.
pub(crate) fn is_ok(status: i32) -> bool {
    status == sys::FAULTLINE_OK as i32
}

/// `Ok` for a call that ended normally.
///
/// # Errors
///
/// [`Error::Native`] with the exception's message.
pub(crate) fn check(call: &'static str, status: i32) -> Result<()> {
    if is_ok(status) {
        Ok(())
    } else {
        Err(Error::Native {
            call,
            message: last_error(),
        })
    }
}

/// Why a call gave no object: what llama.cpp logged, or else the shim's message.
pub(crate) fn reason(status: i32) -> String {
    let fallback = if is_ok(status) {
        "llama.cpp gave no reason".to_owned()
    } else {
        last_error()
    };
    logs::take_reason(&fallback)
}

/// The message of the last failure that was caught in this thread.
fn last_error() -> String {
    // SAFETY: returns a NUL-terminated thread-local string, valid until the next failing call in this thread.
    let text = unsafe { CStr::from_ptr(sys::faultline_last_error()) };
    text.to_string_lossy().into_owned()
}
