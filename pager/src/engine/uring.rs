//! Reads with `io_uring(7)`.
//!
//! The ring has none of the modes that save interrupts. With `IORING_SETUP_DEFER_TASKRUN` only the thread that submitted can reap,
//! and with `IORING_SETUP_COOP_TASKRUN` a completion waits until that thread enters the kernel (`io_uring_setup(2)`). Here
//! the one that submits goes on to compute, and whichever needs the bytes first reaps. A thread of the kernel that polls
//! (`IORING_SETUP_SQPOLL`) would take a core from computing.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use io_uring::types::{Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::device::{Device, Outcome, Request};
use super::{EngineReport, ModelFiles, REQUEST_BYTES_MAX, Region};

/// The largest buffer that the kernel registers (`io_buffer_validate` in io_uring/rsrc.c).
const BUFFER_BYTES_MAX: usize = 1 << 30;
/// From one buffer to the next. They overlap by the largest request, so that each request lies within one of them.
const BUFFER_STEP_BYTES: usize = BUFFER_BYTES_MAX - REQUEST_BYTES_MAX as usize;

pub(super) struct Uring {
    ring: IoUring,
    files: Arc<ModelFiles>,
    files_registered: bool,
    /// Address and size of what is registered.
    registered: (usize, usize),
    /// Requests that were taken and not collected.
    n_taken: usize,
}

/// The buffer in which a request that begins at this offset of the region lies.
fn buffer_at(offset: usize) -> usize {
    offset / BUFFER_STEP_BYTES
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring")
            .field("n_taken", &self.n_taken)
            .finish_non_exhaustive()
    }
}

impl Uring {
    pub(super) fn open(
        files: &Arc<ModelFiles>,
        region: Option<Region>,
        depth: u16,
        report: &mut EngineReport,
    ) -> io::Result<Self> {
        let ring = IoUring::new(u32::from(depth).next_power_of_two())?;
        if !ring.params().is_feature_ext_arg() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "Linux 5.11 or newer is needed",
            ));
        }
        let fds: Vec<_> = files
            .files()
            .iter()
            .map(|file| file.fd().as_raw_fd())
            .collect();
        let files_registered = ring.submitter().register_files(&fds).is_ok();
        let mut registered = (0, 0);
        if let Some(region) = region {
            match register(&ring, region) {
                Ok(()) => registered = (region.start.addr().get(), region.size_bytes),
                Err(error) => report.register_refused = Some(explain_register(&error, region)),
            }
        }
        report.files_registered = files_registered;
        report.registered_bytes = registered.1;
        Ok(Uring {
            ring,
            files: Arc::clone(files),
            files_registered,
            registered,
            n_taken: 0,
        })
    }

    /// The registered buffer that a request lies in.
    fn buffer_of(&self, request: &Request) -> Option<u16> {
        let (start, size) = self.registered;
        let offset = request.target().addr().get().checked_sub(start)?;
        let end = offset.checked_add(request.size_bytes as usize)?;
        if end > size {
            return None;
        }
        u16::try_from(buffer_at(offset)).ok()
    }

    fn entry(&self, request: &Request) -> squeue::Entry {
        let (target, size) = (request.target().as_ptr(), request.size_bytes);
        let file = &self.files.files()[request.file as usize];
        let fd = Fd(file.fd().as_raw_fd());
        let entry = match (self.files_registered, self.buffer_of(request)) {
            (true, Some(buffer)) => {
                opcode::ReadFixed::new(Fixed(request.file), target, size, buffer)
                    .offset(request.offset_bytes)
                    .build()
            }
            (true, None) => opcode::Read::new(Fixed(request.file), target, size)
                .offset(request.offset_bytes)
                .build(),
            (false, Some(buffer)) => opcode::ReadFixed::new(fd, target, size, buffer)
                .offset(request.offset_bytes)
                .build(),
            (false, None) => opcode::Read::new(fd, target, size)
                .offset(request.offset_bytes)
                .build(),
        };
        // A read through the page cache would copy what is there before `io_uring_enter` returns.
        let flags = if file.is_direct() {
            squeue::Flags::empty()
        } else {
            squeue::Flags::ASYNC
        };
        entry.flags(flags).user_data(request.id as u64)
    }

    /// Requests that the kernel has.
    fn n_in_kernel(&mut self) -> usize {
        self.n_taken - self.ring.submission().len()
    }
}

impl Device for Uring {
    fn start(&mut self, request: Request) -> Result<(), Request> {
        // As many as completions have room.
        if self.n_taken >= self.ring.params().sq_entries() as usize {
            return Err(request);
        }
        let entry = self.entry(&request);
        // SAFETY: who made the request promised that its target is valid until its outcome is collected or `self` dropped, which
        // waits. The files are open as long, since `self` has them.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            return Err(request);
        }
        self.n_taken += 1;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::INTR) => {}
                    // No memory for requests, or completions to be collected first: the next call tries again.
                    Some(Errno::AGAIN | Errno::BUSY) => break,
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    fn collect(&mut self, outcomes: &mut Vec<Outcome>) -> io::Result<()> {
        for completion in self.ring.completion() {
            self.n_taken -= 1;
            outcomes.push(Outcome {
                id: completion.user_data() as usize,
                result: completion.result(),
            });
        }
        Ok(())
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let timeout = Timespec::from(timeout);
        let arguments = SubmitArgs::new().timespec(&timeout);
        match self.ring.submitter().submit_with_args(1, &arguments) {
            Ok(_) => Ok(()),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::TIME | Errno::INTR | Errno::AGAIN | Errno::BUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // Closing the ring does not wait for reads, and the kernel would write to targets that are no longer ours. They end: the
        // block layer has time limits.
        let mut outcomes = Vec::new();
        loop {
            let collected = self.collect(&mut outcomes);
            outcomes.clear();
            if self.n_in_kernel() == 0 {
                break;
            }
            if collected.is_err() || self.wait(Duration::from_secs(1)).is_err() {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn register(ring: &IoUring, region: Region) -> io::Result<()> {
    let start = region.start.as_ptr();
    let buffers: Vec<libc::iovec> = (0..region.size_bytes)
        .step_by(BUFFER_STEP_BYTES)
        .map(|offset| libc::iovec {
            iov_base: start.wrapping_add(offset).cast(),
            iov_len: BUFFER_BYTES_MAX.min(region.size_bytes - offset),
        })
        .collect();
    // SAFETY: the kernel takes hold of the pages, or fails where none can be written to. It writes to them for requests only, and
    // `Engine::submit`'s caller promises that each one's target is memory of its own that still has these pages.
    unsafe { ring.submitter().register_buffers(&buffers) }
}

fn explain_register(error: &io::Error, region: Region) -> String {
    let limit = getrlimit(Resource::Memlock).current;
    match (Errno::from_io_error(error), limit) {
        (Some(Errno::NOMEM), Some(limit)) if limit < region.size_bytes as u64 => format!(
            "{error}: {} bytes are to be locked and RLIMIT_MEMLOCK is {limit}; `ulimit -l unlimited` lifts it",
            region.size_bytes
        ),
        _ => error.to_string(),
    }
}

/// Why there is no ring, with what would help.
pub(super) fn explain_refusal(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::PERM) => format!(
            "{error}: a seccomp filter, as containers have, or `sysctl kernel.io_uring_disabled` forbids it"
        ),
        Some(Errno::NOSYS) => format!("{error}: the kernel or a seccomp filter has no io_uring"),
        Some(Errno::NOMEM) => format!(
            "{error}: a ring is locked memory, which `ulimit -l` limits for all of a user's programs together"
        ),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_lies_in_one_registered_buffer() {
        let request = REQUEST_BYTES_MAX as usize;
        for border in [
            0,
            BUFFER_STEP_BYTES,
            BUFFER_BYTES_MAX,
            3 * BUFFER_STEP_BYTES,
        ] {
            for offset in [
                border.saturating_sub(request),
                border.saturating_sub(4096),
                border,
            ] {
                let start = buffer_at(offset) * BUFFER_STEP_BYTES;
                assert!(
                    (start..=start + BUFFER_BYTES_MAX - request).contains(&offset),
                    "{offset}"
                );
            }
        }
    }
}
