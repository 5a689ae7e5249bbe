//! Anonymous memory of which parts can be used.

use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};

/// Huge pages are aligned to this, so regions are, too.
const ALIGNMENT_BYTES: usize = 2 << 20;
const PAGE_BYTES: usize = 4096;

/// Addresses of all regions that there are.
static MAPPED: Mutex<Vec<Range<usize>>> = Mutex::new(Vec::new());

fn lock_mapped() -> MutexGuard<'static, Vec<Range<usize>>> {
    MAPPED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Addresses of all regions that there are: memory that a plan counts by itself.
pub(crate) fn mapped() -> Vec<Range<usize>> {
    lock_mapped().clone()
}

/// Memory that is inaccessible until a part of it is [opened](Region::open). It begins on a huge page.
#[derive(Debug)]
pub(crate) struct Region {
    start: NonNull<u8>,
    size_bytes: usize,
    /// What was mapped, `start` included.
    mapping: (NonNull<u8>, usize),
}

// SAFETY: the value is an address and sizes; who reads and writes the memory says why that is sound.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Address space for `size_bytes`, rounded up to whole huge pages.
    ///
    /// # Errors
    ///
    /// From `mmap(2)`.
    pub(crate) fn reserve(size_bytes: usize) -> io::Result<Region> {
        let size_bytes = size_bytes.max(1).next_multiple_of(ALIGNMENT_BYTES);
        let mapped_bytes = size_bytes + ALIGNMENT_BYTES;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let mapped = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                mapped_bytes,
                ProtFlags::empty(),
                flags,
            )
        }?;
        let mapped: *mut u8 = mapped.cast();
        let skip = mapped.addr().next_multiple_of(ALIGNMENT_BYTES) - mapped.addr();
        let start = NonNull::new(mapped.wrapping_add(skip)).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapped = NonNull::new(mapped).ok_or(io::ErrorKind::OutOfMemory)?;
        let begin = mapped.addr().get();
        lock_mapped().push(begin..begin + mapped_bytes);
        Ok(Region {
            start,
            size_bytes,
            mapping: (mapped, mapped_bytes),
        })
    }

    /// Memory for `size_bytes`, readable and writable, on huge pages where the kernel has some.
    ///
    /// # Errors
    ///
    /// From `mmap(2)` and `mprotect(2)`.
    pub(crate) fn opened(size_bytes: usize) -> io::Result<Region> {
        let region = Region::reserve(size_bytes)?;
        region.open(0..size_bytes)?;
        region.advise_huge(0..size_bytes);
        Ok(region)
    }

    /// The first byte.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The byte at an offset.
    ///
    /// # Panics
    ///
    /// If it lies outside.
    pub(crate) fn at(&self, offset_bytes: usize) -> NonNull<u8> {
        assert!(offset_bytes < self.size_bytes);
        // SAFETY: inside of the mapping by the line above.
        unsafe { self.start.add(offset_bytes) }
    }

    /// Makes the pages of a range readable and writable.
    ///
    /// # Errors
    ///
    /// From `mprotect(2)`.
    pub(crate) fn open(&self, range: Range<usize>) -> io::Result<()> {
        let begin = range.start / PAGE_BYTES * PAGE_BYTES;
        let end = range.end.next_multiple_of(PAGE_BYTES).min(self.size_bytes);
        if begin >= end {
            return Ok(());
        }
        let flags = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: whole pages of this mapping; access is only added.
        unsafe { rustix::mm::mprotect(self.at(begin).as_ptr().cast(), end - begin, flags) }?;
        Ok(())
    }

    /// Asks for huge pages in those blocks that lie in the range as a whole. Advice: where the kernel has none, nothing
    /// happens.
    pub(crate) fn advise_huge(&self, range: Range<usize>) {
        let begin = range.start.next_multiple_of(ALIGNMENT_BYTES);
        let end = range.end / ALIGNMENT_BYTES * ALIGNMENT_BYTES;
        if begin < end.min(self.size_bytes) {
            let address = self.at(begin).as_ptr().cast();
            // SAFETY: whole pages of this mapping; the advice does not change their contents.
            let _ = unsafe { rustix::mm::madvise(address, end - begin, Advice::LinuxHugepage) };
        }
    }

    /// Has the kernel provide the pages of a range that was opened. Advice: where it cannot, whoever writes there first waits for it.
    pub(crate) fn populate(&self, range: Range<usize>) {
        let begin = range.start / PAGE_BYTES * PAGE_BYTES;
        let end = range.end.next_multiple_of(PAGE_BYTES).min(self.size_bytes);
        if begin < end {
            let address = self.at(begin).as_ptr().cast();
            // SAFETY: whole pages of this mapping; what is there stays as it is.
            let _ =
                unsafe { rustix::mm::madvise(address, end - begin, Advice::LinuxPopulateWrite) };
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let (start, size_bytes) = self.mapping;
        // Before the kernel can give the addresses to somebody else.
        lock_mapped().retain(|range| range.start != start.addr().get());
        // SAFETY: mapped by `reserve`; whoever used the memory is done with it when it drops the region.
        let _ = unsafe { rustix::mm::munmap(start.as_ptr().cast(), size_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_opened_can_be_written() {
        let region = Region::reserve(3 * ALIGNMENT_BYTES + 5).unwrap();
        assert!(region.start().addr().get().is_multiple_of(ALIGNMENT_BYTES));
        region.advise_huge(0..3 * ALIGNMENT_BYTES);
        region.open(10_000..20_000).unwrap();
        let byte = region.at(15_000);
        // SAFETY: in the range that was opened, and nobody else uses it.
        unsafe {
            assert_eq!(byte.read(), 0);
            byte.write(7);
            assert_eq!(byte.read(), 7);
        }
    }
}
