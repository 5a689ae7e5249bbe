//! What is in memory after loading is what the prefetch mode says.

mod support;

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;

use gguf::ModelFiles;
use llama_rs::Prefetch;
use model_shapes::{ExpertType, Shape};
use support::{folder, load, model_file};

const PAGE_BYTES: u64 = 4096;

/// Reading a header makes the kernel read this much around it, at most, with the sizes of these models.
const HEADER_BYTES: u64 = 1 << 20;

/// Takes the file's pages out of the page cache.
fn drop_pages(path: &Path) {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    // SAFETY: the descriptor is open; the call touches no memory of this process.
    let status = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(status, 0);
}

/// Which pages of the file are in the page cache.
fn resident_pages(path: &Path) -> Vec<bool> {
    let file = File::open(path).unwrap();
    let length = file.metadata().unwrap().len() as usize;
    let mut pages = vec![0u8; length.div_ceil(PAGE_BYTES as usize)];
    // SAFETY: a new mapping of the whole file, unmapped below; mincore writes one byte a page into `pages`.
    unsafe {
        let address = libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        assert_ne!(address, libc::MAP_FAILED);
        assert_eq!(libc::mincore(address, length, pages.as_mut_ptr()), 0);
        libc::munmap(address, length);
    }
    pages.into_iter().map(|page| page & 1 != 0).collect()
}

/// Pages that hold nothing but bytes of `range`.
fn whole_pages(range: Range<u64>) -> Range<usize> {
    let first = range.start.div_ceil(PAGE_BYTES) as usize;
    let last = (range.end / PAGE_BYTES) as usize;
    first..last.max(first)
}

/// Loads the cold model and checks the pages of every tensor, by whether it is sparse.
fn check(
    path: &Path,
    prefetch: Prefetch,
    dense_resident: Option<bool>,
    sparse_resident: Option<bool>,
) {
    let files = ModelFiles::open(path).unwrap();
    for part in &files.parts {
        drop_pages(part.path());
        if resident_pages(part.path()).contains(&true) {
            eprintln!(
                "skipped: the file system keeps the pages of {}",
                part.path().display()
            );
            return;
        }
    }
    let model = load(path, prefetch);
    let pages: Vec<Vec<bool>> = files
        .parts
        .iter()
        .map(|part| resident_pages(part.path()))
        .collect();
    for (part, tensor) in files.tensors() {
        let expected = if files.is_sparse(&tensor.name) {
            sparse_resident
        } else {
            dense_resident
        };
        let Some(expected) = expected else { continue };
        // What must not be there may have come with the header, or with the page that a neighbour shares.
        let start = if expected {
            tensor.offset
        } else {
            tensor.offset.max(HEADER_BYTES)
        };
        let wrong = whole_pages(start..tensor.offset + tensor.size_bytes)
            .filter(|&page| pages[part][page] != expected)
            .count();
        assert_eq!(
            wrong,
            0,
            "{}, {prefetch}: {} pages of {}",
            path.display(),
            wrong,
            tensor.name
        );
    }
    drop(model);
}

/// Large enough that most of it is beyond the header.
fn moe() -> Shape {
    Shape::tiny("tiny-gpt-oss", ExpertType::F16).unwrap()
}

#[test]
fn eager_reads_everything() {
    let folder = folder();
    check(
        &model_file(folder.path(), &moe()),
        Prefetch::Eager,
        Some(true),
        Some(true),
    );
}

#[test]
fn selective_reads_the_dense_tensors() {
    let folder = folder();
    check(
        &model_file(folder.path(), &moe()),
        Prefetch::Selective,
        Some(true),
        Some(false),
    );
}

#[test]
fn none_reads_no_tensor() {
    let folder = folder();
    check(
        &model_file(folder.path(), &moe()),
        Prefetch::None,
        None,
        Some(false),
    );
}

#[test]
fn selective_reads_all_of_a_dense_model() {
    let folder = folder();
    let path = model_file(folder.path(), &Shape::by_name("tiny-llama").unwrap());
    check(&path, Prefetch::Selective, Some(true), None);
}

#[test]
fn split_files() {
    let folder = folder();
    let path = model_file(folder.path(), &moe());
    let parts = gguf::split_model(
        &ModelFiles::open(&path).unwrap(),
        &folder.path().join("split"),
        3,
    )
    .unwrap();
    check(&parts[0], Prefetch::Selective, Some(true), Some(false));
}
