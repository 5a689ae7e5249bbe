//! Pages of files in the page cache.
//!
//! Sources: cachestat(2), mincore(2); `mm/filemap.c`, `mm/mincore.c`, `include/uapi/linux/mman.h`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::param::page_size;

/// The libc crate lacks it for some targets; the same on every architecture of Linux.
const SYS_CACHESTAT: libc::c_long = 451;

/// Arguments of cachestat(2).
#[repr(C)]
struct CachestatRange {
    offset: u64,
    length: u64,
}

/// Results of cachestat(2), in pages.
#[repr(C)]
#[derive(Default)]
struct Cachestat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Pages of a range of a file, in bytes, that are in the page cache; a length of 0 is the rest of the file. By cachestat(2), which
/// takes about 1 us for 4 MB, however the pages are mapped.
///
/// # Errors
///
/// [`Unsupported`](io::ErrorKind::Unsupported) before Linux 6.5, and on file systems that do not tell; otherwise the kernel's, such as
/// [`PermissionDenied`](io::ErrorKind::PermissionDenied) for a file of another user ([`is_told`]).
pub fn cached_pages(file: &File, offset: u64, length: u64) -> io::Result<u64> {
    let range = CachestatRange { offset, length };
    let mut result = Cachestat::default();
    // SAFETY: the file is open; both structs have the kernel's layout and live during the call.
    let status = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            &raw const range,
            &raw mut result,
            0u32,
        )
    };
    if status == 0 {
        return Ok(result.cached);
    }
    Err(explained(io::Error::last_os_error()))
}

/// Why cachestat(2) failed, with what helps where the system call is not there.
fn explained(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => io::Error::new(
            io::ErrorKind::Unsupported,
            "this kernel has no cachestat(2), which came with Linux 6.5",
        ),
        _ => error,
    }
}

/// Whether the kernel tells this process the truth about a file: mincore(2) calls every page of another user's file resident, and
/// cachestat(2) refuses. `path` is the file's name.
///
/// # Errors
///
/// What fstat(2) gives.
pub fn is_told(file: &File, path: &Path) -> io::Result<bool> {
    let user = rustix::process::geteuid();
    Ok(user.is_root()
        || file.metadata()?.uid() == user.as_raw()
        || File::options().write(true).open(path).is_ok())
}

/// As [`cached_pages`] for every Linux, page by page: fills `flags` with a byte for each page of the range, whose lowest bit is 1 if the
/// page is in the page cache ([`count`]). `offset` is a multiple of the page size; a page that `length` bytes end in counts.
///
/// By mincore(2) of a mapping that is never touched: some 80 us for 4 MB. Of a file of which the kernel does not tell ([`is_told`])
/// every page is called resident.
///
/// # Errors
///
/// The kernel's: of mmap(2), for one an empty range, or of mincore(2).
pub fn mincore_file(file: &File, offset: u64, length: u64, flags: &mut Vec<u8>) -> io::Result<()> {
    let length = usize::try_from(length).map_err(io::Error::other)?;
    // SAFETY: a new mapping at an address of the kernel's choice replaces nothing. It is never read, only asked about.
    let address = unsafe {
        mmap(
            std::ptr::null_mut(),
            length,
            ProtFlags::READ,
            MapFlags::SHARED,
            file,
            offset,
        )?
    };
    let start = address.addr();
    let asked = mincore_mapped(start..start + length, flags);
    // SAFETY: the range was mapped above, and nobody else has heard of it.
    unsafe { munmap(address, length)? };
    asked
}

/// The same of an address range, whichever files are mapped there: about 1 us for 4 MB that this process has touched. `range` begins
/// at a multiple of the page size.
///
/// # Errors
///
/// The kernel's, for one [`OutOfMemory`](io::ErrorKind::OutOfMemory) where nothing is mapped.
pub fn mincore_mapped(range: Range<usize>, flags: &mut Vec<u8>) -> io::Result<()> {
    flags.clear();
    flags.resize(range.len().div_ceil(page_size()), 0);
    let address = std::ptr::with_exposed_provenance_mut(range.start);
    // SAFETY: mincore only looks at the page tables of the range, mapped or not; `flags` has a byte for each of its pages.
    let status = unsafe { libc::mincore(address, range.len(), flags.as_mut_ptr().cast()) };
    match status {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Pages that are in memory by what [`mincore_file`] or [`mincore_mapped`] gave. Of its bytes only the lowest bit is defined.
pub fn count(flags: &[u8]) -> u64 {
    flags.iter().map(|flag| u64::from(flag & 1)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn both_ways_of_asking_see_the_same_pages() {
        let page_bytes = page_size() as u64;
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(is_told(file.as_file(), file.path()).unwrap());
        let file = file.as_file();
        for page in [0, 1, 5] {
            let data = vec![1; page_bytes as usize];
            file.write_all_at(&data, page * page_bytes).unwrap();
        }
        let mut flags = Vec::new();
        for (first, n_pages, expected) in [(0, 6, 3), (1, 4, 1), (2, 3, 0)] {
            let (offset, length) = (first * page_bytes, n_pages * page_bytes);
            // To the end of a page, or to its first byte.
            for length in [length, length - page_bytes + 1] {
                mincore_file(file, offset, length, &mut flags).unwrap();
                assert_eq!(flags.len(), n_pages as usize);
                assert_eq!(count(&flags), expected, "{first} {n_pages}");
            }
            match cached_pages(file, offset, length) {
                Ok(cached) => assert_eq!(cached, expected, "{first} {n_pages}"),
                Err(error) => eprintln!("skipped: {error}"),
            }
        }
        if let Ok(cached) = cached_pages(file, page_bytes, 0) {
            assert_eq!(cached, 2, "to the end of the file");
        }
    }

    #[test]
    fn a_kernel_without_the_call_is_named_as_that() {
        let missing = explained(io::Error::from_raw_os_error(libc::ENOSYS));
        assert_eq!(missing.kind(), io::ErrorKind::Unsupported);
        assert!(missing.to_string().contains("Linux 6.5"), "{missing}");
        let other = explained(io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!(other.kind(), io::ErrorKind::PermissionDenied);
    }
}
