//! A file that is mapped for writing: the only unsafe code of the log.

use std::fs::File;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::ring::Slot;

/// A shared, writable mapping of a whole file, which stays at its size while the map lives.
#[derive(Debug)]
pub(crate) struct Map {
    base: NonNull<u8>,
    size_bytes: usize,
    ring_offset_bytes: usize,
    n_slots: usize,
}

// SAFETY: the mapping belongs to no thread, and all access to it goes through atomics.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// Maps `size_bytes` bytes of a file that has at least this many, all of them allocated.
    ///
    /// # Panics
    ///
    /// If the ring does not lie inside, or is not aligned.
    pub(crate) fn new(
        file: &File,
        size_bytes: usize,
        ring_offset_bytes: usize,
        n_slots: usize,
    ) -> Result<Map, Errno> {
        let ring_bytes = n_slots.checked_mul(size_of::<Slot>());
        let end_bytes = ring_bytes.and_then(|ring| ring.checked_add(ring_offset_bytes));
        assert!(end_bytes.is_some_and(|end| end <= size_bytes));
        assert!(ring_offset_bytes.is_multiple_of(align_of::<Slot>()));
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe { mmap(std::ptr::null_mut(), size_bytes, protection, flags, file, 0)? };
        Ok(Map {
            base: NonNull::new(base.cast()).ok_or(Errno::NOMEM)?,
            size_bytes,
            ring_offset_bytes,
            n_slots,
        })
    }

    /// The slots of the ring.
    #[inline]
    pub(crate) fn slots(&self) -> &[Slot] {
        // SAFETY: `new` checked that the slots lie in the mapping and are aligned; any bytes are
        // a valid `Slot`, and as it is made of atomics, other users of the file do no harm.
        unsafe {
            std::slice::from_raw_parts(
                self.base.as_ptr().add(self.ring_offset_bytes).cast(),
                self.n_slots,
            )
        }
    }

    /// The 8 bytes at an offset before the ring.
    ///
    /// # Panics
    ///
    /// If the offset is not a multiple of 8, or not before the ring.
    #[inline]
    pub(crate) fn word(&self, offset_bytes: usize) -> &AtomicU64 {
        assert!(offset_bytes.is_multiple_of(8));
        assert!(offset_bytes + 8 <= self.ring_offset_bytes);
        // SAFETY: in the mapping and aligned by the lines above, since the base is a page's; any
        // bytes are a valid atomic.
        unsafe { &*self.base.as_ptr().add(offset_bytes).cast() }
    }

    /// Copies bytes to an offset before the ring, in words.
    ///
    /// # Panics
    ///
    /// As [`Map::word`], and if the length is not a multiple of 8.
    pub(crate) fn write(&self, offset_bytes: usize, bytes: &[u8]) {
        let words = bytes.chunks_exact(8);
        assert!(words.remainder().is_empty());
        for (index, bytes) in words.enumerate() {
            let mut word = [0; 8];
            word.copy_from_slice(bytes);
            self.word(offset_bytes + index * 8).store(
                u64::from_ne_bytes(word),
                std::sync::atomic::Ordering::Relaxed,
            );
        }
    }

    /// Makes the pages of some slots present and writable, so that the next stores to them do not
    /// fault. The range is cut at the end of the ring.
    pub(crate) fn populate(&self, first_slot: usize, n_slots: usize) -> Result<(), Errno> {
        let page_bytes = rustix::param::page_size();
        let begin = self.ring_offset_bytes + first_slot * size_of::<Slot>();
        let end = begin
            .saturating_add(n_slots.saturating_mul(size_of::<Slot>()))
            .min(self.size_bytes);
        let begin = begin / page_bytes * page_bytes;
        if begin >= end {
            return Ok(());
        }
        // SAFETY: the range lies in the mapping, and MADV_POPULATE_WRITE changes no contents.
        unsafe {
            madvise(
                self.base.as_ptr().add(begin).cast(),
                end - begin,
                Advice::LinuxPopulateWrite,
            )
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and references into it borrow `self`.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.size_bytes) };
        debug_assert!(unmapped.is_ok());
    }
}
