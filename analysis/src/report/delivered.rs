//! What the kernel did: page faults, reads of the device, and what was in memory.

use serde::{Deserialize, Serialize};
use tracer::{KernelMark, MARK_PAGE_BYTES, ModelFile, WeightClass};

use super::stream::{Collector, Phase};
use super::tally::Classes;
use super::weights::Model;

/// Pages of a file that are told apart: a file of 1 TiB.
const PAGES_MAX: u64 = 1 << 28;
/// Snapshots of residency that are kept.
const SNAPSHOTS_MAX: usize = 512;

/// Which pages of files something happened to.
#[derive(Debug)]
pub(crate) struct Pages {
    files: Vec<Vec<u64>>,
    limits: Vec<u64>,
    pub(crate) n_set: u64,
}

impl Pages {
    pub(crate) fn new(files: &[ModelFile]) -> Pages {
        let limit = |file: &ModelFile| file.size_bytes.div_ceil(MARK_PAGE_BYTES).min(PAGES_MAX);
        Pages {
            files: vec![Vec::new(); files.len()],
            limits: files.iter().map(limit).collect(),
            n_set: 0,
        }
    }

    /// Whether the page was there before; pages that the file does not have never are.
    pub(crate) fn insert(&mut self, file: u32, page: u64) -> bool {
        let Some(limit) = self
            .limits
            .get(file as usize)
            .filter(|limit| page < **limit)
        else {
            return false;
        };
        let words = &mut self.files[file as usize];
        if words.is_empty() {
            words.resize(limit.div_ceil(64) as usize, 0);
        }
        let (word, bit) = (&mut words[(page / 64) as usize], 1 << (page % 64));
        let was_set = *word & bit != 0;
        *word |= bit;
        self.n_set += u64::from(!was_set);
        was_set
    }
}

/// Of one tensor; arrays are by phase.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TensorDelivered {
    pub(crate) minor: [u64; 3],
    pub(crate) major: [u64; 3],
    /// Major faults on pages that had such a fault before.
    pub(crate) major_again: u64,
    pub(crate) bytes: [u64; 3],
    /// Bytes of pages that had been read from the device before.
    pub(crate) again_bytes: [u64; 3],
}

/// Of one phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PhaseDelivered {
    /// Minor faults in mappings of the model's files.
    pub minor_faults: Classes,
    /// Major faults in mappings of the model's files.
    pub major_faults: Classes,
    /// Minor faults in other memory.
    pub minor_elsewhere: u64,
    /// Major faults in other memory.
    pub major_elsewhere: u64,
    /// Bytes read from the device.
    pub delivered_bytes: Classes,
    /// Of these, bytes of pages that had been read from the device before.
    pub again_bytes: Classes,
    /// Requests that read them.
    pub n_block_reads: u64,
    /// Events of the kernel that were lost.
    pub n_lost: u64,
}

/// What was in the page cache at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Since the log's beginning.
    pub time_ns: u64,
    /// Whether it is from before the first decode call.
    pub is_load: bool,
    /// In the page cache.
    pub resident_bytes: Classes,
}

/// Collects them.
#[derive(Debug)]
pub(crate) struct Delivered<'m> {
    model: &'m Model,
    pub(crate) tensors: Vec<TensorDelivered>,
    /// By slice: bytes from the device, and those that were there before.
    pub(crate) slot_bytes: Vec<u64>,
    pub(crate) slot_again_bytes: Vec<u64>,
    pub(crate) phases: [PhaseDelivered; 3],
    pub(crate) snapshots: Vec<Snapshot>,
    /// Every how many snapshots one is kept, and how many came.
    keep_every: usize,
    n_snapshots: usize,
    pub(crate) has_faults: bool,
    pub(crate) has_block: bool,
    pub(crate) delivered_pages: Pages,
    pub(crate) fault_pages: Pages,
    major_pages: Pages,
}

impl<'m> Delivered<'m> {
    pub(crate) fn new(model: &'m Model) -> Delivered<'m> {
        Delivered {
            model,
            tensors: vec![TensorDelivered::default(); model.weights.len()],
            slot_bytes: Vec::new(),
            slot_again_bytes: Vec::new(),
            phases: [PhaseDelivered::default(); 3],
            snapshots: Vec::new(),
            keep_every: 1,
            n_snapshots: 0,
            has_faults: false,
            has_block: false,
            delivered_pages: Pages::new(&model.files),
            fault_pages: Pages::new(&model.files),
            major_pages: Pages::new(&model.files),
        }
    }

    fn class(&self, tensor: u32) -> WeightClass {
        self.model
            .get(tensor)
            .map_or(WeightClass::Outside, |weight| weight.class)
    }

    fn fault(&mut self, phase: Phase, fault: &tracer::Fault) {
        self.has_faults = true;
        let place = self.model.places.find(fault.file, fault.offset_bytes);
        let class = place.map_or(WeightClass::Outside, |(tensor, _)| self.class(tensor));
        let page = fault.offset_bytes / MARK_PAGE_BYTES;
        self.fault_pages.insert(fault.file, page);
        let totals = &mut self.phases[phase as usize];
        if fault.is_major {
            totals.major_faults.add(class, 1);
        } else {
            totals.minor_faults.add(class, 1);
        }
        let again = fault.is_major && self.major_pages.insert(fault.file, page);
        if let Some(tensor) = place.and_then(|(tensor, _)| self.tensors.get_mut(tensor as usize)) {
            let counts = if fault.is_major {
                &mut tensor.major
            } else {
                &mut tensor.minor
            };
            counts[phase as usize] += 1;
            tensor.major_again += u64::from(again);
        }
    }

    fn block_read(&mut self, phase: Phase, read: &tracer::BlockRead) {
        self.has_block = true;
        if self.slot_bytes.is_empty() {
            self.slot_bytes = vec![0; self.model.n_slots];
            self.slot_again_bytes = vec![0; self.model.n_slots];
        }
        self.phases[phase as usize].n_block_reads += 1;
        let first = read.offset_bytes / MARK_PAGE_BYTES;
        let pages = first..first + read.size_bytes / MARK_PAGE_BYTES;
        // Neighbouring pages with the same past are taken together.
        let mut begin = pages.start;
        let mut was_read = None;
        for page in pages.clone() {
            let again = self.delivered_pages.insert(read.file, page);
            if was_read.is_some_and(|was_read| was_read != again) {
                self.deliver(phase, read.file, begin..page, !again);
                begin = page;
            }
            was_read = Some(again);
        }
        if let Some(again) = was_read {
            self.deliver(phase, read.file, begin..pages.end, again);
        }
    }

    fn deliver(&mut self, phase: Phase, file: u32, pages: std::ops::Range<u64>, again: bool) {
        let Delivered {
            model,
            tensors,
            slot_bytes,
            slot_again_bytes,
            phases,
            ..
        } = self;
        let totals = &mut phases[phase as usize];
        let range = pages.start * MARK_PAGE_BYTES..pages.end * MARK_PAGE_BYTES;
        let mut add = |class, size_bytes| {
            totals.delivered_bytes.add(class, size_bytes);
            if again {
                totals.again_bytes.add(class, size_bytes);
            }
        };
        let outside = model.places.split(file, range, |tensor, part| {
            let size_bytes = part.end - part.start;
            let class = model.get(tensor).map(|weight| weight.class);
            add(class.unwrap_or(WeightClass::Outside), size_bytes);
            if let Some(sums) = tensors.get_mut(tensor as usize) {
                sums.bytes[phase as usize] += size_bytes;
                sums.again_bytes[phase as usize] += if again { size_bytes } else { 0 };
            }
            model.slots_in(tensor, part, |slot, size_bytes| {
                slot_bytes[slot] += size_bytes;
                slot_again_bytes[slot] += if again { size_bytes } else { 0 };
            });
        });
        add(WeightClass::Outside, outside);
    }

    fn resident(&mut self, phase: Phase, mark: &tracer::Resident) {
        let size_bytes = u64::from(mark.n_resident) * MARK_PAGE_BYTES;
        let class = self.class(mark.tensor);
        let is_new = self
            .snapshots
            .last()
            .is_none_or(|snapshot| snapshot.time_ns != mark.time_ns);
        if is_new {
            // A snapshot that is not kept stays the last one until the next.
            if self.n_snapshots > 0 && !(self.n_snapshots - 1).is_multiple_of(self.keep_every) {
                self.snapshots.pop();
            }
            if self.snapshots.len() == SNAPSHOTS_MAX {
                let mut index = 0;
                self.snapshots.retain(|_| {
                    index += 1;
                    index % 2 == 1
                });
                self.keep_every *= 2;
            }
            self.n_snapshots += 1;
            self.snapshots.push(Snapshot {
                time_ns: mark.time_ns,
                is_load: phase == Phase::Load,
                resident_bytes: Classes::default(),
            });
        }
        if let Some(snapshot) = self.snapshots.last_mut() {
            snapshot.resident_bytes.add(class, size_bytes);
        }
    }
}

impl Collector for Delivered<'_> {
    fn kernel(&mut self, phase: Phase, mark: &KernelMark) {
        match mark {
            KernelMark::Fault(fault) => self.fault(phase, fault),
            KernelMark::BlockRead(read) => self.block_read(phase, read),
            KernelMark::Resident(mark) => self.resident(phase, mark),
            KernelMark::FaultsElsewhere(mark) => {
                self.has_faults |= mark.n_minor > 0 || mark.n_major > 0;
                let totals = &mut self.phases[phase as usize];
                totals.minor_elsewhere += u64::from(mark.n_minor);
                totals.major_elsewhere += u64::from(mark.n_major);
                totals.n_lost += u64::from(mark.n_lost);
            }
        }
    }
}
