//! How much of each tensor is in the page cache.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::{MARK_PAGE_BYTES, Resident, Tables};

use super::KernelError;

const WHAT: &str = "the residency of tensors";

/// The same on every architecture of Linux.
const SYS_CACHESTAT: libc::c_long = 451;

/// Asks the kernel, tensor by tensor.
///
/// `cachestat(2)` (Linux 6.5) takes about 1 us for 4 MB. Before, `mincore(2)` of a mapping that is never touched takes some 80 us.
#[derive(Debug)]
pub(super) struct Residency {
    files: Vec<File>,
    has_cachestat: bool,
    tensors: Vec<Place>,
    /// A byte for each page of a tensor, for `mincore(2)`.
    vector: Vec<u8>,
}

/// The pages of a tensor.
#[derive(Debug, Clone, Copy)]
struct Place {
    tensor: u32,
    file: usize,
    begin_bytes: u64,
    size_bytes: u64,
}

impl Residency {
    pub(super) fn open(tables: &Tables, paths: &[PathBuf]) -> Result<Residency, KernelError> {
        let page_bytes = rustix::param::page_size() as u64;
        let files = paths.iter().map(|path| {
            let error = |error| KernelError::system(WHAT, "open a model file", &error);
            let opened = File::open(path).map_err(error)?;
            if !may_ask(&opened, path).map_err(error)? {
                let path = path.display();
                let reason = format!(
                    "{path}: the kernel tells it only to those who may write to the file; run as its owner or as root"
                );
                return Err(KernelError::new(WHAT, reason));
            }
            Ok(opened)
        });
        let files: Vec<File> = files.collect::<Result<_, _>>()?;
        let tensors = (0..).zip(&tables.tensors).filter_map(|(id, tensor)| {
            let begin_bytes = tensor.offset_bytes / page_bytes * page_bytes;
            let end_bytes = tensor.offset_bytes.checked_add(tensor.size_bytes)?;
            let end_bytes = end_bytes.checked_next_multiple_of(page_bytes)?;
            let is_there = (tensor.file as usize) < files.len() && tensor.size_bytes > 0;
            is_there.then_some(Place {
                tensor: id,
                file: tensor.file as usize,
                begin_bytes,
                size_bytes: end_bytes - begin_bytes,
            })
        });
        Ok(Residency {
            has_cachestat: files
                .first()
                .is_some_and(|file| cachestat(file, 0, 1).is_ok()),
            tensors: tensors.collect(),
            files,
            vector: Vec::new(),
        })
    }

    /// One mark for each tensor. Those about which the kernel gives no answer are left out.
    pub(super) fn snapshot(&mut self, time_ns: u64, mut each: impl FnMut(Resident)) {
        let page_bytes = rustix::param::page_size() as u64;
        let pages = |n: u64| u32::try_from(n * page_bytes / MARK_PAGE_BYTES).unwrap_or(u32::MAX);
        for place in &self.tensors {
            let file = &self.files[place.file];
            let n_resident = if self.has_cachestat {
                cachestat(file, place.begin_bytes, place.size_bytes)
            } else {
                mincore(file, place.begin_bytes, place.size_bytes, &mut self.vector)
            };
            let n_pages = place.size_bytes / page_bytes;
            if let Ok(n_resident) = n_resident {
                each(Resident {
                    time_ns,
                    tensor: place.tensor,
                    n_resident: pages(n_resident.min(n_pages)),
                    n_pages: pages(n_pages),
                });
            }
        }
    }
}

/// Bytes of a file that are in the page cache.
///
/// # Errors
///
/// [`KernelError`] if the file cannot be opened, or the kernel does not tell: only to who may write to the file.
pub fn page_cache_bytes(path: &Path) -> Result<u64, KernelError> {
    let system = |doing| move |error: io::Error| KernelError::system(WHAT, doing, &error);
    let file = File::open(path).map_err(system("open a model file"))?;
    if !may_ask(&file, path).map_err(system("examine a model file"))? {
        let path = path.display();
        let reason = format!("{path}: the kernel tells it only to those who may write to the file");
        return Err(KernelError::new(WHAT, reason));
    }
    let size = file
        .metadata()
        .map_err(system("examine a model file"))?
        .len();
    if size == 0 {
        return Ok(0);
    }
    let page_bytes = rustix::param::page_size() as u64;
    let n_pages = cachestat(&file, 0, size)
        .or_else(|_| mincore(&file, 0, size.next_multiple_of(page_bytes), &mut Vec::new()))
        .map_err(system("ask for resident pages"))?;
    Ok((n_pages * page_bytes).min(size))
}

/// Whether the kernel tells the truth to this process: `mincore(2)` calls every page of another user's file resident, and
/// `cachestat(2)` refuses (EPERM).
fn may_ask(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let user = rustix::process::geteuid();
    Ok(user.is_root()
        || file.metadata()?.uid() == user.as_raw()
        || File::options().write(true).open(path).is_ok())
}

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

/// Pages of the range that are in the page cache.
fn cachestat(file: &File, offset: u64, length: u64) -> io::Result<u64> {
    let range = CachestatRange { offset, length };
    let mut result = Cachestat::default();
    // SAFETY: the file is open; both structs have the kernel's layout (include/uapi/linux/mman.h) and live during the call.
    let status = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            &raw const range,
            &raw mut result,
            0u32,
        )
    };
    match status {
        0 => Ok(result.cached),
        _ => Err(io::Error::last_os_error()),
    }
}

/// As [`cachestat`]; offset and length are multiples of the page size.
fn mincore(file: &File, offset: u64, length: u64, vector: &mut Vec<u8>) -> io::Result<u64> {
    let size = usize::try_from(length).map_err(io::Error::other)?;
    vector.clear();
    vector.resize(size / rustix::param::page_size(), 0);
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours. It is never read, only asked
    // about: `vector` has a byte for each of its pages. It is unmapped before anybody else hears of it.
    unsafe {
        let address = mmap(
            std::ptr::null_mut(),
            size,
            ProtFlags::READ,
            MapFlags::SHARED,
            file,
            offset,
        )?;
        let status = libc::mincore(address, size, vector.as_mut_ptr().cast());
        let error = io::Error::last_os_error();
        munmap(address, size)?;
        if status != 0 {
            return Err(error);
        }
    }
    Ok(vector.iter().map(|page| u64::from(page & 1)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn both_ways_of_asking_see_the_same_pages() {
        let page_bytes = rustix::param::page_size() as u64;
        let file = tempfile::NamedTempFile::new().unwrap();
        let file = file.as_file();
        for page in [0, 1, 5] {
            let data = vec![1; page_bytes as usize];
            file.write_all_at(&data, page * page_bytes).unwrap();
        }
        let mut vector = Vec::new();
        for (first, count, expected) in [(0, 6, 3), (1, 4, 1), (2, 3, 0)] {
            let (offset, length) = (first * page_bytes, count * page_bytes);
            let by_mincore = mincore(file, offset, length, &mut vector).unwrap();
            assert_eq!(by_mincore, expected, "{first} {count}");
            match cachestat(file, offset, length) {
                Ok(cached) => assert_eq!(cached, expected, "{first} {count}"),
                Err(error) => eprintln!("skipped: no cachestat here: {error}"),
            }
        }
    }
}
