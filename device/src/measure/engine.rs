//! Reading at a queue depth: io_uring, or a thread for each request where that is refused.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use super::ring::{Region, Ring};
use super::{Failure, Read};

/// Buffers begin at multiples of this.
const BUFFER_ALIGN_BYTES: usize = 4096;

pub(super) enum Engine {
    Ring(Box<Ring>),
    Threads { file: File, region: Region },
}

impl Engine {
    /// An engine with memory for every product of size and depth in `region`, and why it is not io_uring, if it is not.
    pub(super) fn new(
        file: File,
        region: Region,
        depth_max: u32,
        allow_ring: bool,
    ) -> (Engine, Option<String>) {
        if !allow_ring {
            return (Engine::Threads { file, region }, None);
        }
        match Ring::new(file, region, depth_max) {
            Ok(ring) => (Engine::Ring(Box::new(ring)), None),
            Err((file, region, error)) => {
                let note = format!(
                    "io_uring is refused ({error}), so each request is a thread's pread, which costs more at large depths; \
                     `sysctl kernel.io_uring_disabled` must be 0, and containers need a profile that permits io_uring"
                );
                (Engine::Threads { file, region }, Some(note))
            }
        }
    }

    pub(super) fn description(&self) -> String {
        match self {
            Engine::Ring(ring) => ring.description(),
            Engine::Threads { .. } => "pread, a thread for each request".to_owned(),
        }
    }

    /// Reads where `next` says, with up to `depth` requests under way, until it says nothing, and hands what was read to
    /// `done`. All requests have ended when this returns.
    pub(super) fn run(
        &mut self,
        request_bytes: u64,
        depth: u32,
        next: &mut (dyn FnMut() -> Option<u64> + Send),
        done: &mut (dyn FnMut(&Read<'_>) + Send),
    ) -> Result<(), Failure> {
        let request_bytes = request_bytes as usize;
        let stride = stride(request_bytes);
        match self {
            Engine::Ring(ring) => ring.run(request_bytes, stride, depth, next, done),
            Engine::Threads { file, region } => {
                let buffers = region.bytes_mut().chunks_exact_mut(stride);
                threads(
                    file,
                    buffers.take(depth as usize),
                    request_bytes,
                    next,
                    done,
                )
            }
        }
    }
}

/// Bytes from buffer to buffer.
pub(super) fn stride(request_bytes: usize) -> usize {
    request_bytes.next_multiple_of(BUFFER_ALIGN_BYTES)
}

fn threads<'a>(
    file: &File,
    buffers: impl Iterator<Item = &'a mut [u8]>,
    request_bytes: usize,
    next: &mut (dyn FnMut() -> Option<u64> + Send),
    done: &mut (dyn FnMut(&Read<'_>) + Send),
) -> Result<(), Failure> {
    let shared = Mutex::new((next, done, None));
    let read_all = |buffer: &mut [u8]| {
        loop {
            let offset = {
                let mut shared = shared.lock().expect("no thread panics");
                if shared.2.is_some() {
                    return;
                }
                match (shared.0)() {
                    Some(offset) => offset,
                    None => return,
                }
            };
            let begun = Instant::now();
            let result = read_at(file, buffer, offset);
            let latency_ns = begun.elapsed().as_nanos() as u64;
            let mut shared = shared.lock().expect("no thread panics");
            match result {
                Ok(len) if len == request_bytes => (shared.1)(&Read {
                    offset,
                    latency_ns,
                    bytes: buffer,
                }),
                Ok(len) => shared.2 = Some(Failure::short(offset, len, request_bytes)),
                Err(error) => shared.2 = Some(Failure::new(offset, error)),
            }
        }
    };
    thread::scope(|scope| {
        for buffer in buffers {
            scope.spawn(|| read_all(&mut buffer[..request_bytes]));
        }
    });
    let (_, _, failure) = shared.into_inner().expect("no thread panics");
    failure.map_or(Ok(()), Err)
}

fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match file.read_at(buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
