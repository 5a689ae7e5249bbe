//! How much of each tensor is in the page cache.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use resident::{cached_pages, count, is_told, mincore_file};

use crate::{MARK_PAGE_BYTES, Resident, Tables};

use super::KernelError;

const WHAT: &str = "the residency of tensors";

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
            if !is_told(&opened, path).map_err(error)? {
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
                .is_some_and(|file| cached_pages(file, 0, 1).is_ok()),
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
                cached_pages(file, place.begin_bytes, place.size_bytes)
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
    if !is_told(&file, path).map_err(system("examine a model file"))? {
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
    let n_pages = cached_pages(&file, 0, size)
        .or_else(|_| mincore(&file, 0, size.next_multiple_of(page_bytes), &mut Vec::new()))
        .map_err(system("ask for resident pages"))?;
    Ok((n_pages * page_bytes).min(size))
}

/// As [`cached_pages`]; offset and length are multiples of the page size.
fn mincore(file: &File, offset: u64, length: u64, flags: &mut Vec<u8>) -> io::Result<u64> {
    mincore_file(file, offset, length, flags)?;
    Ok(count(flags))
}
