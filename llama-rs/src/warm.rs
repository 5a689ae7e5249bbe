//! Reads the dense tensors into the page cache, in pages as large as the kernel has, before llama.cpp maps them.
//!
//! The patched llama.cpp reads dense ranges with `MADV_WILLNEED`, which is exact but fills the page cache with 4 KiB
//! pages: on the machine of `docs/measurements.md` a dense model then decodes 17 % slower than after `MAP_POPULATE`, for
//! as long as it stays in memory, because address translation misses more often. A page fault in a range with both
//! `MADV_HUGEPAGE` and `MADV_RANDOM` reads exactly the aligned huge page around it into one folio (Linux 5.18,
//! `do_sync_mmap_readahead`), so the inside of every dense range is faulted in that way, by several threads to keep
//! the device busy, and only its ends by `MADV_WILLNEED`.
//!
//! All of this is advice: whatever fails is left to llama.cpp.

use std::fs::File;
use std::ops::{ControlFlow, Range};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Threads that fault pages in: the depth of the device's queue.
const THREADS: usize = 4;
/// Bytes of one `MADV_WILLNEED`: the kernel reads no more than the device's largest request, or its readahead, for one.
const WILLNEED_BYTES: u64 = 1 << 20;
/// Dense ranges with less between them are one range.
const GAP_BYTES: u64 = 4096;

/// What [`dense`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Warmed {
    /// Bytes of dense tensors that are in huge pages now.
    pub(crate) huge_bytes: u64,
    /// True if `progress` stopped it.
    pub(crate) cancelled: bool,
}

/// Reads the dense tensors of `files` into the page cache. `progress` gets the fraction that is done, in `0.0..=1.0`.
pub(crate) fn dense(
    files: &gguf::ModelFiles,
    mut progress: impl FnMut(f32) -> ControlFlow<()>,
) -> Warmed {
    let mut warmed = Warmed::default();
    let Some(huge_bytes) = huge_page_bytes() else {
        return warmed;
    };
    let parts: Vec<Part> = (0..files.parts.len())
        .filter_map(|part| Part::map(files, part, huge_bytes))
        .collect();
    let blocks: Vec<(usize, u64)> = parts
        .iter()
        .enumerate()
        .flat_map(|(index, part)| part.blocks(huge_bytes).map(move |offset| (index, offset)))
        .collect();
    if blocks.is_empty() {
        return warmed;
    }
    for part in &parts {
        part.read_ends(huge_bytes);
    }

    let next = AtomicUsize::new(0);
    let done_bytes = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let work = || {
            while !stop.load(Ordering::Relaxed) {
                let Some(&(part, offset)) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) else {
                    break;
                };
                if !parts[part].populate(offset, huge_bytes) {
                    stop.store(true, Ordering::Relaxed);
                }
                done_bytes.fetch_add(huge_bytes, Ordering::Relaxed);
            }
        };
        let workers: Vec<_> = (0..THREADS.min(blocks.len()))
            .map(|_| scope.spawn(work))
            .collect();
        let all = blocks.len() as u64 * huge_bytes;
        while workers.iter().any(|worker| !worker.is_finished()) {
            let fraction = done_bytes.load(Ordering::Relaxed) as f32 / all as f32;
            if progress(fraction).is_break() {
                warmed.cancelled = true;
                stop.store(true, Ordering::Relaxed);
                break;
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
    });
    warmed.huge_bytes = done_bytes.into_inner();
    warmed
}

/// The size of a huge page, if the kernel can fill one from a file at a page fault.
fn huge_page_bytes() -> Option<u64> {
    if kernel_version()? < (5, 18) {
        return None;
    }
    let size =
        std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").ok()?;
    let size: u64 = size.trim().parse().ok()?;
    (size.is_power_of_two() && (1 << 16..=1 << 26).contains(&size)).then_some(size)
}

/// Major and minor number of the running kernel.
fn kernel_version() -> Option<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    parse_version(&release)
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// A mapping of one file, and where its dense tensors are.
struct Part {
    address: *mut u8,
    size: u64,
    dense: Vec<Range<u64>>,
}

// SAFETY: the mapping is only named to madvise, never read or written through `address`.
unsafe impl Sync for Part {}

impl Part {
    fn map(files: &gguf::ModelFiles, part: usize, huge_bytes: u64) -> Option<Part> {
        let dense = dense_ranges(files, part);
        if dense
            .iter()
            .all(|range| inside(range, huge_bytes).is_empty())
        {
            return None;
        }
        let file = File::open(files.parts[part].path()).ok()?;
        let size = file.metadata().ok()?.len();
        let length = usize::try_from(size).ok()?;
        // SAFETY: asks for a new mapping of `length` bytes anywhere; nothing existing is replaced.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return None;
        }
        Some(Part {
            address: address.cast(),
            size,
            dense,
        })
    }

    /// Offsets of the huge pages that lie inside dense ranges.
    fn blocks(&self, huge_bytes: u64) -> impl Iterator<Item = u64> {
        self.dense
            .iter()
            .flat_map(move |range| inside(range, huge_bytes).step_by(huge_bytes as usize))
    }

    /// Prepares the inside of every dense range, and starts reading what is around it.
    fn read_ends(&self, huge_bytes: u64) {
        for range in &self.dense {
            let inside = inside(range, huge_bytes);
            if inside.is_empty() {
                continue;
            }
            self.advise(&inside, libc::MADV_HUGEPAGE);
            self.advise(&inside, libc::MADV_RANDOM);
            for end in [range.start..inside.start, inside.end..range.end] {
                for start in end.clone().step_by(WILLNEED_BYTES as usize) {
                    self.advise(
                        &(start..end.end.min(start + WILLNEED_BYTES)),
                        libc::MADV_WILLNEED,
                    );
                }
            }
        }
    }

    fn populate(&self, offset: u64, huge_bytes: u64) -> bool {
        self.advise(&(offset..offset + huge_bytes), libc::MADV_POPULATE_READ)
    }

    /// madvise(2) on the pages of `range`; whether the kernel took it.
    fn advise(&self, range: &Range<u64>, advice: libc::c_int) -> bool {
        let start = range.start & !4095;
        let end = range.end.min(self.size);
        if start >= end {
            return true;
        }
        // SAFETY: the range lies in the mapping that `self` owns; none of the advices used here changes its contents.
        unsafe {
            libc::madvise(
                self.address.add(start as usize).cast(),
                (end - start) as usize,
                advice,
            ) == 0
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly the mapping made in `map`, which nothing else refers to.
        unsafe { libc::munmap(self.address.cast(), self.size as usize) };
    }
}

/// Where the dense tensors of one part are: offsets in the file, ascending, neighbours merged.
fn dense_ranges(files: &gguf::ModelFiles, part: usize) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = files.parts[part]
        .tensors()
        .iter()
        .filter(|tensor| !files.is_sparse(&tensor.name))
        .map(|tensor| tensor.offset..tensor.offset + tensor.size_bytes)
        .collect();
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end + GAP_BYTES => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// The part of `range` that consists of whole huge pages.
fn inside(range: &Range<u64>, huge_bytes: u64) -> Range<u64> {
    let start = range.start.next_multiple_of(huge_bytes);
    let end = range.end & !(huge_bytes - 1);
    start..end.max(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_huge_pages_are_inside() {
        assert_eq!(inside(&(1..10), 4), 4..8);
        assert_eq!(inside(&(4..8), 4), 4..8);
        assert!(inside(&(5..11), 4).is_empty());
        assert!(inside(&(5..6), 4).is_empty());
    }

    #[test]
    fn kernel_versions() {
        assert_eq!(parse_version("6.18.44-fc-v669\n"), Some((6, 18)));
        assert_eq!(parse_version("5.4-generic"), Some((5, 4)));
        assert_eq!(parse_version("unknown"), None);
    }
}
