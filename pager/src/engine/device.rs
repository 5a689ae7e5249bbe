//! What the scheduler needs of a device: one attempt at one request, and how it ended.

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::time::Duration;

use super::Read;

/// One attempt at a range of a file. It stands for the right to write to its target until its outcome is collected, so it is
/// neither copied nor cloned: a device either starts it or gives it back.
#[derive(Debug)]
pub(super) struct Request {
    /// Returned with the outcome.
    pub(super) id: usize,
    pub(super) file: u32,
    pub(super) offset_bytes: u64,
    pub(super) size_bytes: u32,
    target: NonNull<u8>,
}

impl Request {
    /// # Safety
    ///
    /// Until the outcome of the request was collected, or the device has been dropped, the target is valid for writes of
    /// `size_bytes`, and nobody else reads or writes it.
    pub(super) unsafe fn new(
        id: usize,
        file: u32,
        offset_bytes: u64,
        target: NonNull<u8>,
        size_bytes: u32,
    ) -> Self {
        Request {
            id,
            file,
            offset_bytes,
            size_bytes,
            target,
        }
    }

    pub(super) fn target(&self) -> NonNull<u8> {
        self.target
    }

    /// The first `size_bytes` of it. They are within what the request covers.
    pub(super) fn shortened(self, size_bytes: u32) -> Self {
        assert!(size_bytes <= self.size_bytes);
        Request { size_bytes, ..self }
    }
}

// SAFETY: the target is memory that only the request may touch until its outcome is collected, from whichever thread.
unsafe impl Send for Request {}

// SAFETY: a description of a read. Only `Engine::submit`, whose caller promises more, makes use of its target.
unsafe impl Send for Read {}

/// How an attempt ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    pub(super) id: usize,
    /// Bytes read, or a negated error number: what `io_uring` calls `res`.
    pub(super) result: i32,
}

/// Something that reads. Dropping it waits for what is under way, since the kernel writes to the targets until then.
pub(super) trait Device: Send + fmt::Debug {
    /// Takes a request, or gives it back if there is no room now. It is started by [`flush`](Self::flush) at the latest.
    fn start(&mut self, request: Request) -> Result<(), Request>;

    /// Hands to the kernel what was taken. Never waits for I/O. What the kernel has no room for stays for the next call.
    fn flush(&mut self) -> io::Result<()>;

    /// Appends what has ended. Never waits.
    fn collect(&mut self, outcomes: &mut Vec<Outcome>) -> io::Result<()>;

    /// Waits until something can be collected or the time is over. May return early.
    fn wait(&mut self, timeout: Duration) -> io::Result<()>;
}
