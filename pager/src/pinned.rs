//! Dense matrices that stay in memory.

use std::collections::HashMap;
use std::ptr::NonNull;
use std::time::Duration;

use llama_rs::Packing;

use crate::engine::{Class, Completion, Engine, ModelFiles, Read};
use crate::paged::PagerError;
use crate::region::Region;
use crate::slices::{DenseTensor, merged_ranges};

const PAGE_BYTES: u64 = 4096;
/// Bytes of one read.
const READ_BYTES: u64 = 8 << 20;
/// Longest time that nothing arrives before loading is given up.
const SILENCE: Duration = Duration::from_secs(120);

/// Matrices side by side on huge pages, as in their files.
#[derive(Debug)]
pub(crate) struct Pinned {
    region: Region,
    /// By index among the dense tensors: offset in the region.
    offsets: HashMap<usize, usize>,
}

impl Pinned {
    /// Reads some of the dense tensors, and repacks those that `packing_of` says so of.
    ///
    /// # Errors
    ///
    /// [`PagerError::System`] if there is no memory, [`PagerError::Engine`] and [`PagerError::Read`] if they cannot be read.
    pub(crate) fn read(
        files: &ModelFiles,
        tensors: &[(usize, &DenseTensor)],
        engine: Box<dyn Engine>,
        packing_of: impl Fn(&DenseTensor) -> Option<Packing>,
    ) -> Result<Pinned, PagerError> {
        let ranges = merged_ranges(tensors.iter().map(|(_, tensor)| *tensor), PAGE_BYTES);
        let mut size_bytes = 0;
        // Part, offset in the file, offset in the region, in ascending order.
        let mut places = Vec::with_capacity(ranges.len());
        for range in &ranges {
            places.push((range.part, range.offset, size_bytes));
            size_bytes += range.size_bytes;
        }
        let region = Region::opened(size_bytes as usize).map_err(|source| PagerError::System {
            what: "no memory for dense weights",
            source,
        })?;
        // Before the region when either is dropped: that waits for reads that go there.
        let mut engine = engine;
        let mut reads = Vec::new();
        for (range, (_, _, base)) in ranges.iter().zip(&places) {
            let file_bytes = files.files()[range.part].size_bytes();
            let in_file = range
                .size_bytes
                .min(file_bytes.saturating_sub(range.offset));
            for offset in (0..in_file).step_by(READ_BYTES as usize) {
                reads.push(Read {
                    file: range.part as u32,
                    offset_bytes: range.offset + offset,
                    target: region.at((base + offset) as usize),
                    size_bytes: READ_BYTES.min(range.size_bytes - offset) as u32,
                    key: reads.len() as u64,
                    class: Class::Demand,
                });
            }
        }
        let mut failure = None;
        let mut note = |done: Completion| {
            if let Err(error) = done.result {
                failure.get_or_insert(error);
            }
        };
        // SAFETY: the ranges do not overlap, so each read has pages of the region to itself, and nobody looks at them before
        // all reads have ended. The engine is dropped before the region.
        unsafe { engine.submit(&reads) }?;
        while engine.in_flight() > 0 {
            if engine.wait(&mut note, SILENCE)? == 0 {
                return Err(PagerError::System {
                    what: "nothing was read for two minutes",
                    source: std::io::ErrorKind::TimedOut.into(),
                });
            }
        }
        if let Some(error) = failure {
            return Err(PagerError::Read(error));
        }
        let offset_of = |tensor: &DenseTensor| {
            let key = (tensor.part, tensor.offset);
            let next = places.partition_point(|(part, offset, _)| (*part, *offset) <= key);
            let (_, offset, base) = places[next - 1];
            (base + tensor.offset - offset) as usize
        };
        for (_, tensor) in tensors {
            let Some(packing) = packing_of(tensor) else {
                continue;
            };
            let address = region.at(offset_of(tensor));
            // SAFETY: the bytes of this tensor, which were read; nobody else knows of the region yet.
            let rows = unsafe {
                std::slice::from_raw_parts_mut(address.as_ptr(), tensor.size_bytes as usize)
            };
            if !packing.repack(rows) {
                return Err(PagerError::System {
                    what: "no memory to repack dense weights",
                    source: std::io::ErrorKind::OutOfMemory.into(),
                });
            }
        }
        let offsets = tensors
            .iter()
            .map(|(index, tensor)| (*index, offset_of(tensor)))
            .collect();
        Ok(Pinned { region, offsets })
    }

    /// Whether these are the tensors that it holds.
    pub(crate) fn holds(&self, tensors: &[(usize, &DenseTensor)]) -> bool {
        let known = |(index, _): &(usize, &DenseTensor)| self.offsets.contains_key(index);
        tensors.len() == self.offsets.len() && tensors.iter().all(known)
    }

    /// Whether it holds this one.
    pub(crate) fn has(&self, index: usize) -> bool {
        self.offsets.contains_key(&index)
    }

    /// Where a dense tensor is.
    pub(crate) fn address(&self, index: usize) -> Option<NonNull<u8>> {
        Some(self.region.at(*self.offsets.get(&index)?))
    }
}
