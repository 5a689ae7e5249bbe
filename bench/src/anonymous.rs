//! Memory that holds nothing, to be locked or touched.

use std::ffi::c_void;
use std::io;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// An anonymous mapping. Dropping it gives the memory back.
#[derive(Debug)]
pub(crate) struct Anonymous {
    address: *mut c_void,
    size_bytes: usize,
}

impl Anonymous {
    /// Address space; it takes no memory before it is locked or populated.
    pub(crate) fn map(size_bytes: u64) -> io::Result<Anonymous> {
        let size_bytes = usize::try_from(size_bytes).map_err(io::Error::other)?;
        // SAFETY: a null hint lets the kernel choose the address, so no existing mapping is replaced.
        let address = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                size_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        Ok(Anonymous {
            address,
            size_bytes,
        })
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes as u64
    }

    /// Makes all pages resident for good (`mlock(2)`).
    pub(crate) fn lock(&self) -> io::Result<()> {
        // SAFETY: the range is the mapping made by `map`; locking it makes its pages resident and changes nothing else.
        match unsafe { rustix::mm::mlock(self.address, self.size_bytes) } {
            Ok(()) => Ok(()),
            Err(Errno::NOMEM | Errno::AGAIN | Errno::PERM) => {
                Err(io::Error::other("the limit of locked memory is reached"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Writes to all pages, on huge pages where the kernel has some (`MADV_HUGEPAGE`, `MADV_POPULATE_WRITE`, `madvise(2)`).
    pub(crate) fn populate(&self) -> io::Result<()> {
        let advise = |advice| {
            // SAFETY: the range is the mapping made by `map`, and nothing refers into it; the advice does not change its contents.
            unsafe { rustix::mm::madvise(self.address, self.size_bytes, advice) }
        };
        // A kernel without huge pages takes ordinary ones.
        let _ = advise(Advice::LinuxHugepage);
        Ok(advise(Advice::LinuxPopulateWrite)?)
    }
}

impl Drop for Anonymous {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map`, is unmapped only here, and nothing refers into it.
        let _ = unsafe { rustix::mm::munmap(self.address, self.size_bytes) };
    }
}
