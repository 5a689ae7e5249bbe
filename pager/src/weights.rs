//! The memory in which a model's files are read: dense tensors that are not read on demand, filled while the model is loaded.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use llama_rs::ModelMemory;

use crate::engine::{Class, Engine, ModelFiles, Preference, Read, open_engine};
use crate::region::Region;
use crate::slices::{DenseRange, Slices};

const PAGE_BYTES: u64 = 4096;
/// Bytes of one read. Reads go side by side, so that a tensor that is needed first does not wait for a large one.
const READ_BYTES: u64 = 8 << 20;
/// Longest time that nothing arrives before loading is given up.
const SILENCE: Duration = Duration::from_secs(120);

/// The memory of a model whose experts are elsewhere. Dense tensors are in huge pages where they fill them; everything else is
/// inaccessible.
#[derive(Debug)]
pub(crate) struct WeightMemory {
    // Before the regions: dropping it waits for reads that go there.
    engine: Option<Box<dyn Engine>>,
    files: Arc<ModelFiles>,
    preference: Preference,
    ranges: Vec<DenseRange>,
    /// Part and begin of the dense tensors that are read on demand.
    lazy: HashSet<(usize, u64)>,
    /// Part and bytes of an embedding that is in memory as a whole. llama.cpp reads it on demand and so never asks to load it.
    embedding: Option<(usize, Range<u64>)>,
    regions: Vec<Option<Region>>,
    /// Reads that have not ended, in the order of the files.
    pending: VecDeque<Pending>,
    /// Of the reads that were submitted; also the next key.
    n_submitted: u64,
}

#[derive(Debug)]
struct Pending {
    key: u64,
    part: usize,
    range: Range<u64>,
}

impl WeightMemory {
    pub(crate) fn new(files: Arc<ModelFiles>, slices: &Slices, preference: Preference) -> Self {
        WeightMemory {
            engine: None,
            regions: files.files().iter().map(|_| None).collect(),
            files,
            preference,
            ranges: match slices.is_dense_on_demand() {
                true => slices.fixed_ranges(PAGE_BYTES),
                false => slices.dense_ranges(PAGE_BYTES),
            },
            lazy: slices
                .on_demand()
                .map(|(_, tensor)| (tensor.part, tensor.offset))
                .collect(),
            embedding: slices.tensor("token_embd.weight").and_then(|index| {
                let mut dense = slices.dense_tensors().iter();
                let tensor = dense.find(|tensor| tensor.tensor == index)?;
                Some((
                    tensor.part,
                    tensor.offset..tensor.offset + tensor.size_bytes,
                ))
            }),
            pending: VecDeque::new(),
            n_submitted: 0,
        }
    }

    fn region(&self, part: usize) -> Result<&Region, String> {
        let region = self.regions.get(part).and_then(Option::as_ref);
        region.ok_or_else(|| format!("part {part} of the model has no memory"))
    }

    fn engine(&mut self) -> Result<&mut Box<dyn Engine>, String> {
        if self.engine.is_none() {
            let (engine, _) = open_engine(Arc::clone(&self.files), None, self.preference)
                .map_err(|error| error.to_string())?;
            self.engine = Some(engine);
        }
        Ok(self.engine.as_mut().expect("opened above"))
    }

    /// Reads whole pages to memory of their own, and copies the bytes of a range.
    fn read_apart(
        &mut self,
        part: usize,
        pages: &Range<u64>,
        range: &Range<u64>,
    ) -> Result<(), String> {
        let size_bytes = (pages.end - pages.start) as usize;
        let apart = Region::opened(size_bytes).map_err(|error| error.to_string())?;
        let started = self.start(part, pages.clone(), apart.start());
        if let Err(error) = started.and_then(|()| self.finish(part, pages)) {
            // Waits for what is still on its way there.
            self.engine = None;
            return Err(error);
        }
        let from = apart.at((range.start - pages.start) as usize);
        let to = self.region(part)?.at(range.start as usize);
        // SAFETY: the range is inside of the pages, which were read; its place in the region was opened, and nothing uses it before
        // this returns.
        unsafe { to.copy_from_nonoverlapping(from, (range.end - range.start) as usize) };
        Ok(())
    }

    /// Starts the reads of a range of whole pages to `target`, which nothing else reads or writes and which stays until they
    /// have ended.
    fn start(&mut self, part: usize, range: Range<u64>, target: NonNull<u8>) -> Result<(), String> {
        let end = range.end.min(self.files.files()[part].size_bytes());
        let end = end.next_multiple_of(PAGE_BYTES);
        let mut reads = Vec::new();
        let mut offset = range.start;
        while offset < end {
            let size = READ_BYTES.min(end - offset);
            let key = self.n_submitted;
            self.n_submitted += 1;
            reads.push(Read {
                file: part as u32,
                offset_bytes: offset,
                // SAFETY: inside of the target's memory, which is as large as the range.
                target: unsafe { target.add((offset - range.start) as usize) },
                size_bytes: size as u32,
                key,
                class: Class::Demand,
            });
            self.pending.push_back(Pending {
                key,
                part,
                range: offset..offset + size,
            });
            offset += size;
        }
        // SAFETY: the targets are pages that were opened for this; nobody looks at them before the completion was seen, and the
        // engine is dropped before them.
        unsafe { self.engine()?.submit(&reads) }.map_err(|error| error.to_string())
    }

    /// Waits until nothing of a range is on its way.
    fn finish(&mut self, part: usize, range: &Range<u64>) -> Result<(), String> {
        let overlaps = |read: &Pending| {
            read.part == part && read.range.start < range.end && range.start < read.range.end
        };
        while self.pending.iter().any(overlaps) {
            let Some(engine) = &mut self.engine else {
                return Err("reads are on their way without an engine".to_owned());
            };
            let pending = &mut self.pending;
            let mut failure = None;
            let mut note = |done: crate::engine::Completion| {
                pending.retain(|read| read.key != done.key);
                if let Err(error) = done.result {
                    failure.get_or_insert(error.to_string());
                }
            };
            let n_ended = engine
                .wait(&mut note, SILENCE)
                .map_err(|error| error.to_string())?;
            if let Some(failure) = failure {
                return Err(failure);
            }
            if n_ended == 0 {
                return Err(format!(
                    "{}: nothing was read for {} s",
                    self.files.files()[part].path().display(),
                    SILENCE.as_secs()
                ));
            }
        }
        if self.pending.is_empty() {
            // Loading begins with all dense ranges under way: this was the last.
            self.engine = None;
        }
        Ok(())
    }

    fn is_dense(&self, part: usize, range: &Range<u64>) -> bool {
        self.ranges.iter().any(|dense| {
            dense.part == part
                && dense.offset <= range.start
                && range.end <= dense.offset + dense.size_bytes
        })
    }
}

// SAFETY: the memory is private and anonymous, and stays until `unmap`. `load` returns when the reads that cover the range
// have ended well; nothing here reads or writes it afterwards.
unsafe impl ModelMemory for WeightMemory {
    fn map(&mut self, file: usize, size_bytes: usize) -> Result<NonNull<u8>, String> {
        let known_bytes = self.files.files().get(file).map(|file| file.size_bytes());
        if known_bytes != Some(size_bytes as u64) {
            return Err(format!(
                "part {file} has {size_bytes} bytes instead of {}",
                known_bytes.unwrap_or(0)
            ));
        }
        let region = Region::reserve(size_bytes)
            .map_err(|error| format!("no address space for {size_bytes} bytes: {error}"))?;
        let start = region.start();
        let ranges: Vec<Range<u64>> = self
            .ranges
            .iter()
            .filter(|range| range.part == file)
            .map(|range| range.offset..range.offset + range.size_bytes)
            .collect();
        for range in &ranges {
            let bytes = range.start as usize..range.end as usize;
            region
                .open(bytes.clone())
                .map_err(|error| format!("no memory for dense tensors: {error}"))?;
            region.advise_huge(bytes);
        }
        self.regions[file] = Some(region);
        for range in ranges {
            let target = self.region(file)?.at(range.start as usize);
            self.start(file, range, target)?;
        }
        if let Some((_, bytes)) = self.embedding.clone().filter(|(part, _)| *part == file) {
            self.finish(file, &bytes)?;
        }
        Ok(start)
    }

    fn load(&mut self, file: usize, range: Range<usize>) -> Result<(), String> {
        let range = range.start as u64..range.end as u64;
        if !self.is_dense(file, &range) {
            // Experts so small that llama.cpp does not read them on demand.
            let pages =
                range.start / PAGE_BYTES * PAGE_BYTES..range.end.next_multiple_of(PAGE_BYTES);
            self.region(file)?
                .open(pages.start as usize..pages.end as usize)
                .map_err(|error| error.to_string())?;
            // Neighbours that are there already may be on its first and last page, repacked: they stay as they are.
            self.finish(file, &pages)?;
            self.read_apart(file, &pages, &range)?;
        }
        self.finish(file, &range)
    }

    fn is_lazy(&mut self, file: usize, range: Range<usize>) -> bool {
        self.lazy.contains(&(file, range.start as u64))
    }

    fn repacks(&self) -> bool {
        true
    }

    fn unmap(&mut self, file: usize) {
        if let Some(region) = self.regions.get_mut(file) {
            self.engine = None;
            *region = None;
        }
    }
}
