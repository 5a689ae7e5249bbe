//! Reading ranges of a file into the page cache in pages as large as the kernel has.
//!
//! `MADV_WILLNEED` is exact but fills the page cache with 4 KiB pages, and computing from those is slower for as long as
//! they stay in memory, because address translation misses more often (`docs/measurements.md`: 17 % for a dense model). A page
//! fault in a range with both `MADV_HUGEPAGE` and `MADV_RANDOM` reads exactly the aligned huge page around it into one
//! folio (Linux 5.18, `do_sync_mmap_readahead`). So the inside of a range is faulted in that way, and only its ends,
//! whose huge pages reach into the neighbours, are asked for by `MADV_WILLNEED`.
//!
//! It happens in a mapping of its own, so that no advice stays on the one that llama.cpp computes from. All of it is
//! advice: whatever fails is left to page faults.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Bytes of one `MADV_WILLNEED`: the kernel reads no more than the device's largest request, or its readahead, for one.
const WILLNEED_BYTES: u64 = 1 << 20;
/// Ranges with less between them are one range.
const GAP_BYTES: u64 = 4096;

/// The size of a huge page, if the kernel can fill one from a file at a page fault.
pub(crate) fn page_bytes() -> Option<u64> {
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

/// Sorts ranges of a file and makes one of neighbours.
pub(crate) fn merge(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
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
pub(crate) fn inside(range: &Range<u64>, huge_bytes: u64) -> Range<u64> {
    let start = range.start.next_multiple_of(huge_bytes);
    let end = range.end & !(huge_bytes - 1);
    start..end.max(start)
}

/// A mapping of a file through which it is read, and never looked at.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: *mut u8,
    size: u64,
    huge_bytes: u64,
}

// SAFETY: the mapping is only named to madvise, never read or written through `address`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `path` to read it in pages of `huge_bytes`.
    pub(crate) fn new(path: &Path, huge_bytes: u64) -> Option<Mapping> {
        let file = File::open(path).ok()?;
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
        (address != libc::MAP_FAILED).then_some(Mapping {
            address: address.cast(),
            size,
            huge_bytes,
        })
    }

    /// Offsets of the huge pages that lie inside `range`, which has to be prepared before they are read.
    pub(crate) fn blocks(&self, range: &Range<u64>) -> impl Iterator<Item = u64> + use<> {
        inside(range, self.huge_bytes).step_by(self.huge_bytes as usize)
    }

    /// Makes page faults inside `range` read huge pages.
    pub(crate) fn prepare(&self, range: &Range<u64>) {
        let inside = inside(range, self.huge_bytes);
        if !inside.is_empty() {
            self.advise(&inside, libc::MADV_HUGEPAGE);
            self.advise(&inside, libc::MADV_RANDOM);
        }
    }

    /// Starts to read what of `range` is not inside.
    pub(crate) fn read_ends(&self, range: &Range<u64>) {
        let inside = inside(range, self.huge_bytes);
        let ends = if inside.is_empty() {
            [range.clone(), range.end..range.end]
        } else {
            [range.start..inside.start, inside.end..range.end]
        };
        for end in ends {
            for start in end.clone().step_by(WILLNEED_BYTES as usize) {
                let piece = start..end.end.min(start + WILLNEED_BYTES);
                self.advise(&piece, libc::MADV_WILLNEED);
            }
        }
    }

    /// Reads the huge page at `offset`; returns when it is in memory. Whether the kernel did it.
    pub(crate) fn read_block(&self, offset: u64) -> bool {
        self.advise(
            &(offset..offset + self.huge_bytes),
            libc::MADV_POPULATE_READ,
        )
    }

    /// Gives up this mapping's hold on the huge page at `offset`, which stays in the page cache.
    pub(crate) fn release_block(&self, offset: u64) {
        self.advise(&(offset..offset + self.huge_bytes), libc::MADV_DONTNEED);
    }

    /// madvise(2) on the pages of `range`; whether the kernel took it.
    fn advise(&self, range: &Range<u64>, advice: libc::c_int) -> bool {
        let start = range.start & !4095;
        let end = range.end.min(self.size);
        if start >= end {
            return true;
        }
        // SAFETY: the range lies in the mapping that `self` owns; the file's contents stay what they are under all of the
        // advices used here, and nothing refers to this mapping's pages.
        unsafe {
            libc::madvise(
                self.address.add(start as usize).cast(),
                (end - start) as usize,
                advice,
            ) == 0
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly the mapping made in `new`, which nothing else refers to.
        unsafe { libc::munmap(self.address.cast(), self.size as usize) };
    }
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
    fn neighbours_become_one_range() {
        assert_eq!(
            merge(vec![10_000..20_000, 0..8000, 30_000..31_000]),
            [0..20_000, 30_000..31_000]
        );
    }

    #[test]
    fn kernel_versions() {
        assert_eq!(parse_version("6.18.44-fc-v669\n"), Some((6, 18)));
        assert_eq!(parse_version("5.4-generic"), Some((5, 4)));
        assert_eq!(parse_version("unknown"), None);
    }
}
