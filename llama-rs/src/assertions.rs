//! Failed assertions of ggml as errors, where that is possible.
//!
//! ggml's `GGML_ASSERT` and `GGML_ABORT` end the process. Inside a call that [`as_errors`] wraps they throw a C++ exception
//! instead, which llama.cpp or the shim catches. That holds for calls that work on the calling thread alone: loading,
//! making a context, tokenizing, sampling. It does not hold for decoding: a thread that left a running graph would leave
//! the others waiting. What can be asserted there is refused before (see `preflight`).
//!
//! The exception crosses C frames of ggml, which hold nothing that needs a destructor, by means of the unwind tables
//! that the platform's ABI requires of C code, too. Memory that such a frame had allocated is lost.

use std::marker::PhantomData;

unsafe extern "C" {
    // native/assertions.cpp
    fn llama_rs_assertions_install();
    fn llama_rs_assertions_throw(value: bool) -> bool;
}

/// Makes this process's assertions look at the mark that [`as_errors`] sets. Called once, before anything else.
pub(crate) fn install() {
    // SAFETY: stores a pointer to a function that lives as long as the process.
    unsafe { llama_rs_assertions_install() }
}

/// The thread's mark, which is set back when this is dropped, also when a panic passes.
struct Mark {
    before: bool,
    /// Not Send: the mark belongs to the thread.
    _thread: PhantomData<*const ()>,
}

impl Mark {
    fn set(throws: bool) -> Mark {
        // SAFETY: writes a thread-local flag.
        let before = unsafe { llama_rs_assertions_throw(throws) };
        Mark {
            before,
            _thread: PhantomData,
        }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: writes a thread-local flag of the thread that `set` ran on.
        unsafe { llama_rs_assertions_throw(self.before) };
    }
}

/// Runs `call`, a call of the shim that computes no graph, with assertions as exceptions.
pub(crate) fn as_errors<T>(call: impl FnOnce() -> T) -> T {
    let _mark = Mark::set(true);
    call()
}

/// Runs `call`, a call of the shim that computes graphs. It may run inside of [`as_errors`], when a progress callback
/// uses another model.
pub(crate) fn as_aborts<T>(call: impl FnOnce() -> T) -> T {
    let _mark = Mark::set(false);
    call()
}
