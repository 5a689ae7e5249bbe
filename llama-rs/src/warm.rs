//! Reads the dense tensors into the page cache, in pages as large as the kernel has, before llama.cpp maps them.
//!
//! The patched llama.cpp reads dense ranges with `MADV_WILLNEED`, which leaves 4 KiB pages; [`huge`](crate::huge) says
//! what that costs and how larger ones are had. Several threads keep the device busy.

use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::huge::{self, Mapping};

/// Threads that fault pages in: the depth of the device's queue.
const THREADS: usize = 4;

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
    let Some(huge_bytes) = huge::page_bytes() else {
        return warmed;
    };
    let parts: Vec<(Mapping, Vec<Range<u64>>)> = (0..files.parts.len())
        .filter_map(|part| {
            let ranges = dense_ranges(files, part);
            let has_inside = |range: &Range<u64>| !huge::inside(range, huge_bytes).is_empty();
            if !ranges.iter().any(has_inside) {
                return None;
            }
            Some((Mapping::new(files.parts[part].path(), huge_bytes)?, ranges))
        })
        .collect();
    let mut blocks: Vec<(usize, u64)> = Vec::new();
    for (index, (mapping, ranges)) in parts.iter().enumerate() {
        for range in ranges {
            mapping.prepare(range);
            blocks.extend(mapping.blocks(range).map(|offset| (index, offset)));
        }
    }
    if blocks.is_empty() {
        return warmed;
    }
    for (mapping, ranges) in &parts {
        ranges.iter().for_each(|range| mapping.read_ends(range));
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
                if !parts[part].0.read_block(offset) {
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

/// Where the dense tensors of one part are: offsets in the file, ascending, neighbours merged.
fn dense_ranges(files: &gguf::ModelFiles, part: usize) -> Vec<Range<u64>> {
    let ranges = files.parts[part]
        .tensors()
        .iter()
        .filter(|tensor| !files.is_sparse(&tensor.name))
        .map(|tensor| tensor.offset..tensor.offset + tensor.size_bytes)
        .collect();
    huge::merge(ranges)
}
