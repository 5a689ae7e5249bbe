//! The memory in which a model's files are read: dense tensors that are not read for every token, filled while the model is loaded and,
//! if that is wanted, still while its first token is computed.

use std::collections::HashSet;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use llama_rs::ModelMemory;

use crate::arrivals::{Arrivals, Arriving, IN_FLIGHT_BYTES, pieces, scattered};
use crate::engine::{Class, ModelFiles, Preference, Read, open_engine};
use crate::plan::Pages;
use crate::region::Region;
use crate::replay::Pattern;
use crate::slices::{DenseTensor, Slices, merged_ranges};

const PAGE_BYTES: u64 = 4096;
/// Longest time that nothing arrives before loading is given up.
const SILENCE: Duration = Duration::from_secs(120);
/// Bytes of matrices that are read for one tensor that llama.cpp waits for: these are small, and in huge pages of their own that
/// have to be cleared, so that the device would wait for their reads if nothing else was under way.
const WOVEN_BYTES: u64 = 1 << 20;

/// When dense weights are read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reading<'a> {
    /// When llama.cpp asks for the memory, in the order of the files. It waits for all of them.
    WhenMapped,
    /// From now on, in the order of use. Operations wait for the matrices.
    AtOnce(Option<&'a Pattern>),
}

/// The memory of a model whose experts are elsewhere. Dense tensors are in huge pages where they fill them; everything else is
/// inaccessible.
#[derive(Debug)]
pub(crate) struct WeightMemory {
    // Before the regions: dropping it waits for reads that go there.
    arriving: Option<Arriving>,
    arrivals: Arc<Arrivals>,
    files: Arc<ModelFiles>,
    preference: Preference,
    /// Part and begin of the dense tensors that are read on demand.
    lazy: HashSet<(usize, u64)>,
    /// Memory of all parts, until none of them is used any more.
    regions: Option<Arc<[Region]>>,
    n_mapped: usize,
}

impl WeightMemory {
    /// Memory for the model's files; begins to read if that is wanted now.
    ///
    /// # Errors
    ///
    /// A sentence: there is no address space, or no engine.
    pub(crate) fn new(
        files: Arc<ModelFiles>,
        slices: &Slices,
        preference: Preference,
        reading: Reading<'_>,
    ) -> Result<Self, String> {
        let region = |file: &crate::engine::ModelFile| {
            let size_bytes = file.size_bytes() as usize;
            Region::reserve(size_bytes)
                .map_err(|error| format!("no address space for {size_bytes} bytes: {error}"))
        };
        let regions: Result<Arc<[Region]>, String> = files.files().iter().map(region).collect();
        let regions = regions?;
        let tensors = slices.dense_tensors();
        // Matrices that are read on demand are elsewhere.
        let is_here =
            |tensor: &&DenseTensor| !(slices.is_dense_on_demand() && tensor.is_streamable);
        let mut huge = Vec::new();
        for range in merged_ranges(tensors.iter().filter(is_here), PAGE_BYTES) {
            huge.push((
                range.part,
                range.huge_range(Pages::default().huge_page_bytes),
            ));
            let bytes = range.offset as usize..(range.offset + range.size_bytes) as usize;
            let region = &regions[range.part];
            region
                .open(bytes.clone())
                .map_err(|error| format!("no memory for dense tensors: {error}"))?;
            region.advise_huge(bytes);
        }
        let order = match reading {
            Reading::WhenMapped => (0..tensors.len()).collect(),
            Reading::AtOnce(pattern) => order_of_use(slices, pattern),
        };
        let here = order.into_iter().filter(|&index| is_here(&&tensors[index]));
        let in_file = |index: usize| {
            let tensor = &tensors[index];
            let end = files.files()[tensor.part].size_bytes();
            let pages = tensor.pages(PAGE_BYTES);
            let end = pages.end.min(end.next_multiple_of(PAGE_BYTES));
            (tensor.part, pages.start..end)
        };
        let is_lazy = |tensor: &&DenseTensor| {
            let at_once = matches!(reading, Reading::AtOnce(_));
            tensor.is_streamable && (at_once || slices.is_dense_on_demand())
        };
        let lazy = tensors.iter().filter(is_lazy);
        let mut memory = WeightMemory {
            arriving: None,
            arrivals: Arc::new(Arrivals::new(
                scattered(pieces(here.map(in_file)), &huge),
                tensors.len(),
            )),
            lazy: lazy.map(|tensor| (tensor.part, tensor.offset)).collect(),
            preference: Preference {
                in_flight_bytes: IN_FLIGHT_BYTES,
                ..preference
            },
            regions: Some(regions),
            n_mapped: 0,
            files,
        };
        if let Reading::AtOnce(_) = reading {
            memory.start()?;
        }
        Ok(memory)
    }

    /// What has arrived of the dense weights.
    pub(crate) fn arrivals(&self) -> &Arc<Arrivals> {
        &self.arrivals
    }

    fn regions(&self) -> Result<&Arc<[Region]>, String> {
        let regions = self.regions.as_ref();
        regions.ok_or_else(|| "the model's memory was given back".to_owned())
    }

    /// Begins to read, unless that was done.
    fn start(&mut self) -> Result<(), String> {
        if self.arriving.is_none() {
            let regions = Arc::clone(self.regions()?);
            let (engine, _) = open_engine(Arc::clone(&self.files), None, self.preference)
                .map_err(|error| error.to_string())?;
            let arriving = Arriving::start(Arc::clone(&self.arrivals), regions, engine);
            self.arriving = Some(arriving.map_err(|error| {
                format!("the thread that reads the model cannot be started: {error}")
            })?);
        }
        Ok(())
    }

    /// Reads bytes of a part, and waits for them. Neighbours that are there already may be on the first and last page, repacked: they
    /// stay as they are.
    fn read(&self, part: usize, range: Range<u64>) -> Result<(), String> {
        let region = &self.regions()?[part];
        let pages = range.start / PAGE_BYTES * PAGE_BYTES..range.end.next_multiple_of(PAGE_BYTES);
        region
            .open(pages.start as usize..pages.end as usize)
            .map_err(|error| error.to_string())?;
        self.arrivals.wait_for(&self.arrivals.of(part, &pages))?;
        let size_bytes = (pages.end - pages.start) as usize;
        let apart = Region::opened(size_bytes).map_err(|error| error.to_string())?;
        let (mut engine, _) = open_engine(Arc::clone(&self.files), None, self.preference)
            .map_err(|error| error.to_string())?;
        let read = Read {
            file: part as u32,
            offset_bytes: pages.start,
            target: apart.start(),
            size_bytes: size_bytes as u32,
            key: 0,
            class: Class::Demand,
        };
        // SAFETY: the pages were opened above, and nobody else knows of them. The engine is dropped before them.
        unsafe { engine.submit(&[read]) }.map_err(|error| error.to_string())?;
        let mut result = Ok(());
        let mut note = |done: crate::engine::Completion| result = done.result;
        let n_ended = engine
            .wait(&mut note, SILENCE)
            .map_err(|error| error.to_string())?;
        if n_ended == 0 {
            return Err(format!(
                "{}: nothing was read for {} s",
                self.files.files()[part].path().display(),
                SILENCE.as_secs()
            ));
        }
        result.map_err(|error| error.to_string())?;
        let from = apart.at((range.start - pages.start) as usize);
        let to = region.at(range.start as usize);
        // SAFETY: the range is inside of the pages, which were read; its place in the region was opened, everything else that is read to
        // these pages has arrived, and nobody computes while the model is loaded.
        unsafe { to.copy_from_nonoverlapping(from, (range.end - range.start) as usize) };
        Ok(())
    }
}

/// Dense tensors in the order in which they are to be read. The matrices come as the last run used them, or as their names tell; what
/// llama.cpp waits for, an embedding last, is among the first of them.
fn order_of_use(slices: &Slices, pattern: Option<&Pattern>) -> Vec<usize> {
    let tensors = slices.dense_tensors();
    let mut places = vec![usize::MAX; tensors.len()];
    let used = pattern.map_or(&[][..], |pattern| &pattern.dense);
    for (place, &index) in used.iter().enumerate() {
        places[index as usize] = place;
    }
    let embedding = slices.tensor("token_embd.weight");
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&index| {
        let tensor = &tensors[index];
        let is_embedding = Some(tensor.tensor) == embedding;
        let layer = tensor.layer.unwrap_or(u32::MAX);
        match tensor.is_streamable {
            true => (2, places[index], layer, tensor.order),
            false => (u8::from(is_embedding), 0, 0, 0),
        }
    });
    let n_waited_for = order.partition_point(|&index| !tensors[index].is_streamable);
    let matrices = order.split_off(n_waited_for);
    let sizes = |index: usize| tensors[index].size_bytes;
    woven(order, &matrices, sizes)
}

/// One of `few` behind each [`WOVEN_BYTES`] of `many`.
fn woven(few: Vec<usize>, many: &[usize], size_bytes: impl Fn(usize) -> u64) -> Vec<usize> {
    let mut order = Vec::with_capacity(few.len() + many.len());
    let mut few = few.into_iter();
    let mut room_bytes = 0;
    for &index in many {
        order.push(index);
        room_bytes += size_bytes(index);
        while room_bytes >= WOVEN_BYTES {
            room_bytes -= WOVEN_BYTES;
            order.extend(few.next());
        }
    }
    order.extend(few);
    order
}

// SAFETY: the memory is private and anonymous, and stays until `unmap` was called for all parts. `load` returns when the reads that
// cover the range have ended well; nothing here reads or writes it afterwards, but for matrices on demand, which operations read only
// after they were repacked.
unsafe impl ModelMemory for WeightMemory {
    fn map(&mut self, file: usize, size_bytes: usize) -> Result<NonNull<u8>, String> {
        let known_bytes = self.files.files().get(file).map(|file| file.size_bytes());
        if known_bytes != Some(size_bytes as u64) {
            return Err(format!(
                "part {file} has {size_bytes} bytes instead of {}",
                known_bytes.unwrap_or(0)
            ));
        }
        self.start()?;
        self.n_mapped += 1;
        Ok(self.regions()?[file].start())
    }

    fn load(&mut self, file: usize, range: Range<usize>) -> Result<(), String> {
        let range = range.start as u64..range.end as u64;
        let pieces = self.arrivals.of(file, &range);
        if self.arrivals.cover(&pieces, &range) {
            return self.arrivals.wait_for(&pieces);
        }
        // Experts so small that llama.cpp does not read them on demand.
        self.read(file, range)
    }

    fn is_lazy(&mut self, file: usize, range: Range<usize>) -> bool {
        self.lazy.contains(&(file, range.start as u64))
    }

    fn repacks(&self) -> bool {
        true
    }

    fn unmap(&mut self, _: usize) {
        self.arriving = None;
        self.n_mapped = self.n_mapped.saturating_sub(1);
        if self.n_mapped == 0 {
            self.regions = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_come_between_many_and_the_rest_behind_them() {
        let size_bytes = |index: usize| [2, 1, 1, 1, 1, 1][index] * WOVEN_BYTES / 2;
        let order = |few: &[usize], many: &[usize]| woven(few.to_vec(), many, size_bytes);
        assert_eq!(order(&[10, 11], &[0, 1, 2, 3]), [0, 10, 1, 2, 11, 3]);
        assert_eq!(order(&[10, 11, 12], &[0, 1]), [0, 10, 1, 11, 12]);
        assert_eq!(order(&[10, 11], &[]), [10, 11]);
        assert_eq!(order(&[], &[3, 2]), [3, 2]);
    }
}
