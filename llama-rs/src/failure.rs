//! The first thing that went wrong inside a callback.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::Error;

/// What a callback can do wrong.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It panicked.
    Panicked {
        callback: &'static str,
        message: String,
    },
    /// A provider had no address for a slice.
    Unavailable { tensor: String, slice: String },
    /// A router's picks could not be used.
    Misrouted {
        layer: u32,
        token: usize,
        reason: String,
    },
}

impl Failure {
    /// `reason` is the provider's own account of an unavailable slice.
    pub(crate) fn into_error(self, reason: Option<String>) -> Error {
        match self {
            Failure::Panicked { callback, message } => {
                Error::CallbackPanicked { callback, message }
            }
            Failure::Unavailable { tensor, slice } => Error::SliceUnavailable {
                tensor,
                slice,
                reason,
            },
            Failure::Misrouted {
                layer,
                token,
                reason,
            } => Error::Misrouted {
                layer,
                token,
                reason,
            },
        }
    }
}

const CLEAR: u8 = 0;
/// A failure without a panic.
const FAILED: u8 = 1;
const PANICKED: u8 = 2;

/// Keeps the first failure of a set of callbacks that run on several threads, until the caller collects it.
///
/// The fast path of a callback is one relaxed load. The lock is taken only to record or to collect a failure.
#[derive(Debug)]
pub(crate) struct FailureSlot {
    /// Worst failure so far: `CLEAR`, `FAILED` or `PANICKED`. Relaxed suffices: a callback that misses a
    /// failure recorded at the same moment on another thread only does work that is then thrown away, and the
    /// thread that collects has joined the workers (a barrier in ggml) after the last callback.
    state: AtomicU8,
    first: Mutex<Option<Failure>>,
}

impl FailureSlot {
    pub(crate) const fn new() -> Self {
        FailureSlot {
            state: AtomicU8::new(CLEAR),
            first: Mutex::new(None),
        }
    }

    /// Whether anything failed since the last [`take`](FailureSlot::take).
    pub(crate) fn is_set(&self) -> bool {
        self.state.load(Ordering::Relaxed) != CLEAR
    }

    /// Whether a callback panicked since the last [`take`](FailureSlot::take): its state cannot be trusted.
    pub(crate) fn has_panicked(&self) -> bool {
        self.state.load(Ordering::Relaxed) == PANICKED
    }

    /// Records `failure` unless there is one already.
    pub(crate) fn record(&self, failure: Failure) {
        let state = match failure {
            Failure::Panicked { .. } => PANICKED,
            Failure::Unavailable { .. } | Failure::Misrouted { .. } => FAILED,
        };
        // No code panics while it holds this lock; a poisoned one still holds a valid value.
        let mut first = self
            .first
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        first.get_or_insert(failure);
        self.state.fetch_max(state, Ordering::Relaxed);
    }

    /// Collects the first failure and clears the slot.
    pub(crate) fn take(&self) -> Option<Failure> {
        if !self.is_set() {
            return None;
        }
        let mut first = self
            .first
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        self.state.store(CLEAR, Ordering::Relaxed);
        first.take()
    }

    /// Runs `body`; a panic in it is recorded under the name `callback` and gives `None`.
    pub(crate) fn catch<T>(&self, callback: &'static str, body: impl FnOnce() -> T) -> Option<T> {
        // After a panic no callback of the same state runs again until the failure was reported, and the error
        // tells the caller; that is what unwind safety asks for.
        match catch_unwind(AssertUnwindSafe(body)) {
            Ok(value) => Some(value),
            Err(payload) => {
                self.record(Failure::Panicked {
                    callback,
                    message: panic_message(payload),
                });
                None
            }
        }
    }
}

/// The text of a panic, where it has one.
fn panic_message(payload: Box<dyn Any + Send>) -> String {
    let message = match payload.downcast_ref::<&'static str>() {
        Some(text) => (*text).to_owned(),
        None => match payload.downcast_ref::<String>() {
            Some(text) => text.clone(),
            None => "a panic without a message".to_owned(),
        },
    };
    // A payload whose own drop panics must not unwind into C either.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_wins_and_is_collected_once() {
        let slot = FailureSlot::new();
        assert!(slot.take().is_none());
        assert_eq!(slot.catch("a", || 7), Some(7));
        assert_eq!(slot.catch("a", || -> i32 { panic!("one {}", 1) }), None);
        assert_eq!(slot.catch("b", || -> i32 { panic!("two") }), None);
        assert!(slot.is_set() && slot.has_panicked());
        match slot.take() {
            Some(Failure::Panicked {
                callback: "a",
                message,
            }) => assert_eq!(message, "one 1"),
            other => panic!("{other:?}"),
        }
        assert!(!slot.is_set());
        assert!(slot.take().is_none());
    }

    #[test]
    fn a_panic_after_a_missing_slice_is_remembered() {
        let slot = FailureSlot::new();
        slot.record(Failure::Unavailable {
            tensor: "t".into(),
            slice: "matrix 1".into(),
        });
        assert!(slot.is_set() && !slot.has_panicked());
        slot.catch("end", || panic!());
        assert!(slot.has_panicked());
        assert!(matches!(slot.take(), Some(Failure::Unavailable { .. })));
    }

    #[test]
    fn a_payload_that_panics_when_dropped_is_contained() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("again");
            }
        }
        let slot = FailureSlot::new();
        slot.catch("c", || std::panic::panic_any(Bomb));
        assert!(slot.has_panicked());
    }
}
