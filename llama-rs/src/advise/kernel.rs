//! What is asked of the kernel: which pages are in the page cache, and to read those that are not.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use resident::{cached_pages, count, is_told, mincore_mapped};

/// Bytes of a page.
pub(super) fn page_bytes() -> usize {
    // SAFETY: reads a constant of the system.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size)
        .ok()
        .filter(|size| size.is_power_of_two())
        .unwrap_or(4096)
}

/// The process's page faults so far that had to read from a device.
pub(super) fn major_faults() -> i64 {
    // SAFETY: `rusage` is plain data for which zeros are valid, and getrusage fills it.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage.ru_majflt
    }
}

/// How to learn which pages of a file are in the page cache.
#[derive(Debug)]
pub(super) enum Probe {
    /// `cachestat(2)`, Linux 6.5: about 1 us for 4 MB, however the pages are mapped.
    Cachestat(File),
    /// `mincore(2)`: about 1 us for 4 MB that are mapped, 80 us for as much that is only in the page cache.
    Mincore,
    /// Neither is permitted. mincore is no help then: it calls every page of another user's file resident.
    None,
}

/// Pages of a range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pages {
    /// All are in the page cache.
    Resident,
    /// This many bytes are not.
    Missing { bytes: u64 },
    /// It cannot be known.
    Unknown,
}

/// The libc crate lacks it for some targets; the same on every architecture of Linux.
const SYS_PROCESS_MADVISE: libc::c_long = 440;

impl Probe {
    /// The best one that is permitted for the file.
    pub(super) fn open(path: &Path) -> io::Result<Probe> {
        let file = File::open(path)?;
        if cached_pages(&file, 0, 1).is_ok() {
            return Ok(Probe::Cachestat(file));
        }
        Ok(match is_told(&file, path)? {
            true => Probe::Mincore,
            false => Probe::None,
        })
    }

    /// The pages of `length` bytes at `offset` of the file, which are mapped at `address`. All three are multiples of
    /// the page size. `vector` is scratch memory.
    pub(super) fn pages(
        &self,
        offset: u64,
        length: usize,
        address: usize,
        vector: &mut Vec<u8>,
    ) -> Pages {
        match self {
            Probe::Cachestat(file) => match cached_pages(file, offset, length as u64) {
                Ok(cached) => missing((length / page_bytes()) as u64, cached),
                Err(_) => Pages::Unknown,
            },
            Probe::Mincore => mapped_pages(&(address..address + length), vector),
            Probe::None => Pages::Unknown,
        }
    }
}

/// The pages of an address range, whichever file is mapped there. For a few pages this is as good as `cachestat(2)`, and
/// for a file of another user it calls all of them resident.
pub(super) fn mapped_pages(range: &Range<usize>, vector: &mut Vec<u8>) -> Pages {
    match mincore_mapped(range.clone(), vector) {
        Ok(()) => missing((range.len() / page_bytes()) as u64, count(vector)),
        Err(_) => Pages::Unknown,
    }
}

fn missing(pages: u64, cached: u64) -> Pages {
    match pages.saturating_sub(cached) {
        0 => Pages::Resident,
        missing => Pages::Missing {
            bytes: missing * page_bytes() as u64,
        },
    }
}

/// Bytes of one request. For one call the kernel reads no more than the device's readahead or its largest request,
/// whichever is larger; this is the default readahead.
const PIECE_BYTES: usize = 128 << 10;
/// Entries of one process_madvise (`UIO_MAXIOV`).
const VECTOR_MAX: usize = 1024;

/// Asks the kernel to read ranges of mapped files.
#[derive(Debug)]
pub(super) struct Reader {
    /// This process, where the kernel takes several ranges at once (Linux 5.10).
    process: Option<OwnedFd>,
    pieces: Vec<libc::iovec>,
}

// SAFETY: `pieces` holds addresses only during a call of `will_need`, which has `&mut self`, and they are never
// dereferenced here.
unsafe impl Send for Reader {}

impl Reader {
    pub(super) fn new() -> Reader {
        // SAFETY: asks for a descriptor of the process itself; a valid result is owned by nobody else.
        let process = unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0);
            i32::try_from(fd)
                .ok()
                .filter(|&fd| fd >= 0)
                .map(|fd| OwnedFd::from_raw_fd(fd))
        };
        Reader {
            process,
            pieces: Vec::new(),
        }
    }

    /// Starts to read the pages of the address ranges; returns when the requests are queued. Gives the number of
    /// system calls. Errors are ignored: advice that is not taken leaves the pages to page faults.
    pub(super) fn will_need(&mut self, ranges: &[Range<usize>]) -> u64 {
        self.pieces.clear();
        for range in ranges {
            let starts = range.clone().step_by(PIECE_BYTES);
            self.pieces.extend(starts.map(|start| libc::iovec {
                iov_base: start as *mut libc::c_void,
                iov_len: PIECE_BYTES.min(range.end - start),
            }));
        }
        let mut calls = 0;
        let mut done = 0;
        while done < self.pieces.len() {
            let end = self.pieces.len().min(done + VECTOR_MAX);
            let Some(advised) = self.advise_vector(done..end) else {
                break;
            };
            calls += 1;
            done = if advised == 0 { end } else { done + advised };
        }
        for piece in &self.pieces[done..] {
            // SAFETY: WILLNEED changes no content, whatever is mapped there.
            unsafe { libc::madvise(piece.iov_base, piece.iov_len, libc::MADV_WILLNEED) };
            calls += 1;
        }
        calls
    }

    /// One process_madvise; gives the number of pieces that it got through. After a refusal it is not tried again.
    fn advise_vector(&mut self, pieces: Range<usize>) -> Option<usize> {
        let process = self.process.as_ref()?;
        let pieces = &self.pieces[pieces];
        // SAFETY: the kernel reads `pieces.len()` entries; WILLNEED changes no content, whatever is mapped there.
        let bytes = unsafe {
            libc::syscall(
                SYS_PROCESS_MADVISE,
                process.as_raw_fd(),
                pieces.as_ptr(),
                pieces.len(),
                libc::MADV_WILLNEED,
                0u32,
            )
        };
        let Ok(mut bytes) = usize::try_from(bytes) else {
            self.process = None;
            return None;
        };
        let mut advised = 0;
        for piece in pieces {
            if bytes < piece.iov_len {
                break;
            }
            bytes -= piece.iov_len;
            advised += 1;
        }
        Some(advised)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A file of 64 pages on the disk, mapped.
    struct Mapped {
        file: tempfile::NamedTempFile,
        address: usize,
        length: usize,
    }

    impl Mapped {
        fn new() -> Mapped {
            let length = 64 * page_bytes();
            let folder = std::env::var_os("CARGO_TARGET_TMPDIR").unwrap_or_else(|| ".".into());
            let mut file = tempfile::NamedTempFile::new_in(folder).unwrap();
            file.write_all(&vec![7; length]).unwrap();
            file.as_file().sync_all().unwrap();
            // SAFETY: a new shared mapping of an open file, unmapped in Drop.
            let address = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    length,
                    libc::PROT_READ,
                    libc::MAP_SHARED,
                    file.as_file().as_raw_fd(),
                    0,
                )
            };
            assert_ne!(address, libc::MAP_FAILED);
            Mapped {
                file,
                address: address as usize,
                length,
            }
        }

        fn drop_pages(&self) {
            // SAFETY: advice about an open file.
            unsafe {
                libc::posix_fadvise(
                    self.file.as_file().as_raw_fd(),
                    0,
                    0,
                    libc::POSIX_FADV_DONTNEED,
                )
            };
        }
    }

    impl Drop for Mapped {
        fn drop(&mut self) {
            // SAFETY: unmaps what `new` mapped; nothing refers to it.
            unsafe { libc::munmap(self.address as *mut libc::c_void, self.length) };
        }
    }

    #[test]
    fn advice_brings_missing_pages_in() {
        let mapped = Mapped::new();
        let probes = [Probe::open(mapped.file.path()).unwrap(), Probe::Mincore];
        for probe in &probes {
            for mut reader in [
                Reader::new(),
                Reader {
                    process: None,
                    pieces: Vec::new(),
                },
            ] {
                let mut vector = Vec::new();
                mapped.drop_pages();
                let before = probe.pages(0, mapped.length, mapped.address, &mut vector);
                if before
                    != (Pages::Missing {
                        bytes: mapped.length as u64,
                    })
                {
                    println!("skipped: this file system keeps the pages ({before:?})");
                    return;
                }
                let half = mapped.address..mapped.address + mapped.length / 2;
                let rest = half.end..mapped.address + mapped.length;
                assert!(reader.will_need(&[half, rest]) > 0);
                let start = std::time::Instant::now();
                while probe.pages(0, mapped.length, mapped.address, &mut vector) != Pages::Resident
                {
                    assert!(start.elapsed().as_secs() < 30, "the pages never came");
                    std::thread::yield_now();
                }
            }
        }
    }

    #[test]
    fn advice_about_unmapped_addresses_is_harmless() {
        let address = {
            let mapped = Mapped::new();
            mapped.address
        };
        Reader::new().will_need(std::slice::from_ref(&(address..address + PIECE_BYTES * 3)));
        let pages = Probe::Mincore.pages(0, page_bytes(), address, &mut Vec::new());
        assert!(matches!(
            pages,
            Pages::Unknown | Pages::Resident | Pages::Missing { .. }
        ));
    }

    #[test]
    fn nothing_is_known_without_permission() {
        assert_eq!(
            Probe::None.pages(0, page_bytes(), 0, &mut Vec::new()),
            Pages::Unknown
        );
    }
}
