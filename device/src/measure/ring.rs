//! Aligned memory on huge pages, and io_uring: the only file of this crate with unsafe code.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr::NonNull;
use std::time::Instant;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

use super::{Failure, Read};

const HUGE_BYTES: usize = 2 << 20;
/// Most that one registered buffer may have (`io_uring_register_buffers(2)`).
pub(super) const REGISTERED_MAX_BYTES: usize = 1 << 30;

/// Anonymous memory that begins at a multiple of 2 MiB, advised to be on huge pages, and all there.
#[derive(Debug)]
pub(super) struct Region {
    start: NonNull<u8>,
    len: usize,
    mapped: NonNull<u8>,
    mapped_len: usize,
}

impl Region {
    /// At least `len` bytes, rounded up to huge pages.
    pub(super) fn new(len: usize) -> io::Result<Region> {
        let len = len.max(1).next_multiple_of(HUGE_BYTES);
        // A huge page more, to begin where one begins.
        let mapped_len = len + HUGE_BYTES;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory in use.
        let mapped = unsafe {
            mm::mmap_anonymous(
                std::ptr::null_mut(),
                mapped_len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let mapped = NonNull::new(mapped.cast::<u8>()).expect("mmap returns no null");
        let skip = mapped.as_ptr().addr().next_multiple_of(HUGE_BYTES) - mapped.as_ptr().addr();
        // SAFETY: `skip` is less than a huge page, and the mapping has one more than `len`.
        let start = unsafe { mapped.add(skip) };
        let mut region = Region {
            start,
            len,
            mapped,
            mapped_len,
        };
        // SAFETY: the range is inside of the mapping; this advice does not change its contents.
        let _ = unsafe { mm::madvise(start.as_ptr().cast(), len, Advice::LinuxHugepage) };
        // Now, rather than during the first requests.
        region.bytes_mut().fill(0);
        Ok(region)
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `start..start + len` is mapped, initialized by the kernel with zeros, and borrowed mutably through
        // `self`. `Ring` calls this only while no request is under way.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is this region's alone, and nobody borrows it any more.
        let _ = unsafe { mm::munmap(self.mapped.as_ptr().cast(), self.mapped_len) };
    }
}

/// Reads through io_uring into a region.
pub(super) struct Ring {
    ring: IoUring,
    file: File,
    /// `None` only while it is dropped.
    region: Option<Region>,
    registered_buffer: bool,
    registered_file: bool,
    /// Requests that the kernel may still write for.
    under_way: u32,
}

struct Slot {
    offset: u64,
    begun: Instant,
}

impl Ring {
    /// A ring for `depth_max` requests. `Err` gives back what is needed for reading without one, and the reason.
    pub(super) fn new(
        file: File,
        region: Region,
        depth_max: u32,
    ) -> Result<Ring, (File, Region, io::Error)> {
        let ring = match IoUring::new(depth_max.next_power_of_two()) {
            Ok(ring) => ring,
            Err(error) => return Err((file, region, error)),
        };
        let registered_file = ring.submitter().register_files(&[file.as_raw_fd()]).is_ok();
        let whole = libc::iovec {
            iov_base: region.start.as_ptr().cast(),
            iov_len: region.len,
        };
        // SAFETY: the region stays mapped for as long as the ring has the buffer: `Drop` closes the ring first, or keeps
        // the region for ever.
        let registered_buffer = region.len <= REGISTERED_MAX_BYTES
            && unsafe { ring.submitter().register_buffers(&[whole]) }.is_ok();
        Ok(Ring {
            ring,
            file,
            region: Some(region),
            registered_buffer,
            registered_file,
            under_way: 0,
        })
    }

    pub(super) fn description(&self) -> String {
        format!(
            "io_uring, {} buffers, {} file",
            registered(self.registered_buffer),
            registered(self.registered_file)
        )
    }

    /// As `Engine::run`.
    pub(super) fn run(
        &mut self,
        request_bytes: usize,
        stride: usize,
        depth: u32,
        next: &mut dyn FnMut() -> Option<u64>,
        done: &mut dyn FnMut(&Read<'_>),
    ) -> Result<(), Failure> {
        let mut slots: Vec<Slot> = Vec::with_capacity(depth as usize);
        let mut failure = None;
        for slot in 0..depth as usize {
            let Some(offset) = next() else { break };
            slots.push(Slot {
                offset,
                begun: Instant::now(),
            });
            self.push(slot, slot * stride, request_bytes, offset);
        }
        let mut completed = Vec::with_capacity(slots.len());
        while self.under_way > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::new(slots[0].offset, error)),
            }
            completed.extend(
                self.ring
                    .completion()
                    .map(|entry| (entry.user_data() as usize, entry.result())),
            );
            let now = Instant::now();
            for (slot, result) in completed.drain(..) {
                self.under_way -= 1;
                let at = slot * stride;
                let offset = slots[slot].offset;
                match usize::try_from(result) {
                    Ok(len) if len == request_bytes => done(&Read {
                        offset,
                        latency_ns: (now - slots[slot].begun).as_nanos() as u64,
                        bytes: self.slot_bytes(at, request_bytes),
                    }),
                    Ok(len) => failure = Some(Failure::short(offset, len, request_bytes)),
                    Err(_) => {
                        let error = io::Error::from_raw_os_error(-result);
                        failure = Some(Failure::new(offset, error));
                    }
                }
                if failure.is_none()
                    && let Some(offset) = next()
                {
                    slots[slot] = Slot {
                        offset,
                        begun: Instant::now(),
                    };
                    self.push(slot, at, request_bytes, offset);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// What the finished request of a slot has read.
    fn slot_bytes(&self, at: usize, len: usize) -> &[u8] {
        let region = self.region.as_ref().expect("taken by drop only");
        assert!(at + len <= region.len);
        // SAFETY: inside of the region, as asserted. The slot's request has completed and no other one has its range, so
        // nobody writes while this borrow of `self` keeps `push` from being called.
        unsafe { std::slice::from_raw_parts(region.start.as_ptr().add(at), len) }
    }

    fn push(&mut self, slot: usize, at: usize, len: usize, offset: u64) {
        let region = self.region.as_ref().expect("taken by drop only");
        assert!(at + len <= region.len);
        // SAFETY: inside of the region, as asserted.
        let buffer = unsafe { region.start.as_ptr().add(at) };
        let len = u32::try_from(len).expect("regions are smaller than 4 GiB");
        let fixed = types::Fixed(0);
        let fd = types::Fd(self.file.as_raw_fd());
        let entry: squeue::Entry = match (self.registered_buffer, self.registered_file) {
            (true, true) => opcode::ReadFixed::new(fixed, buffer, len, 0)
                .offset(offset)
                .build(),
            (true, false) => opcode::ReadFixed::new(fd, buffer, len, 0)
                .offset(offset)
                .build(),
            (false, true) => opcode::Read::new(fixed, buffer, len).offset(offset).build(),
            (false, false) => opcode::Read::new(fd, buffer, len).offset(offset).build(),
        };
        let entry = entry.user_data(slot as u64);
        // SAFETY: the buffer is inside of the region, which outlives the request (`Drop`), and belongs to this slot
        // alone, which has no other request under way.
        unsafe { self.ring.submission().push(&entry) }
            .expect("the queue has an entry for each slot");
        self.under_way += 1;
    }
}

fn registered(is: bool) -> &'static str {
    if is { "registered" } else { "plain" }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.under_way > 0 {
            // The kernel may still write: the memory is given up rather than back.
            std::mem::forget(self.region.take());
        }
    }
}
