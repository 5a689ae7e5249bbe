//! The order in which bytes of files were asked for.

use serde::{Deserialize, Serialize};
use tracer::{Extent, KernelMark, MARK_PAGE_BYTES, Record};

use super::grid::Grid;
use super::stream::{Collector, Phase, Step};
use super::weights::{BYTES_MAX, Model};

/// A gap below this is sequential: the padding between two tensors, or the rest of a page. 4 KiB.
pub const SEQUENTIAL_BYTES: u64 = 4 << 10;
/// A gap below this is small: the kernel's usual readahead covers it. 128 KiB.
pub const SMALL_BYTES: u64 = 128 << 10;
/// A gap below this is medium, from it on large. 8 MiB.
pub const MEDIUM_BYTES: u64 = 8 << 20;

/// Rows of the pictures of offsets over time, at most.
const OFFSET_ROWS_MAX: u64 = 256;
/// Their columns.
const TIME_COLUMNS: usize = 512;

/// How many reads (or bytes of them) begin how far behind the end of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Gaps {
    /// Less than [`SEQUENTIAL_BYTES`] behind.
    pub sequential: u64,
    /// Less than [`SMALL_BYTES`].
    pub small: u64,
    /// Less than [`MEDIUM_BYTES`].
    pub medium: u64,
    /// Farther.
    pub large: u64,
    /// Before the end of the one before, also where it reads the same bytes again.
    pub backward: u64,
    /// In another file (on the device: where the place is not known).
    pub elsewhere: u64,
}

impl Gaps {
    /// The sum.
    pub fn total(&self) -> u64 {
        [
            self.sequential,
            self.small,
            self.medium,
            self.large,
            self.backward,
            self.elsewhere,
        ]
        .iter()
        .fold(0, |sum, n| sum.saturating_add(*n))
    }
}

/// One sequence of reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Order {
    /// Reads.
    pub n: u64,
    /// Their bytes.
    pub size_bytes: u64,
    /// All reads but the first, by the gap before them.
    pub gaps: Gaps,
    /// The same, bytes of the reads.
    pub gap_bytes: Gaps,
    /// Groups of reads that follow each other without a gap.
    pub n_runs: u64,
}

/// Follows one sequence.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Follow {
    pub(crate) order: Order,
    /// File and end of the read before.
    last: Option<(u32, u64)>,
}

impl Follow {
    #[inline]
    pub(crate) fn add(&mut self, place: u32, begin: u64, size_bytes: u64) {
        let order = &mut self.order;
        order.n += 1;
        order.size_bytes = order.size_bytes.saturating_add(size_bytes);
        let end = begin + size_bytes;
        let Some((last_place, last_end)) = self.last.replace((place, end)) else {
            order.n_runs = 1;
            return;
        };
        let (gaps, bytes) = (&mut order.gaps, &mut order.gap_bytes);
        let (n, sum) = if last_place != place {
            (&mut gaps.elsewhere, &mut bytes.elsewhere)
        } else if begin < last_end {
            (&mut gaps.backward, &mut bytes.backward)
        } else {
            match begin - last_end {
                0..SEQUENTIAL_BYTES => (&mut gaps.sequential, &mut bytes.sequential),
                SEQUENTIAL_BYTES..SMALL_BYTES => (&mut gaps.small, &mut bytes.small),
                SMALL_BYTES..MEDIUM_BYTES => (&mut gaps.medium, &mut bytes.medium),
                MEDIUM_BYTES.. => (&mut gaps.large, &mut bytes.large),
            }
        };
        *n += 1;
        *sum = sum.saturating_add(size_bytes);
        order.n_runs = 1 + order.n - 1 - order.gaps.sequential;
    }
}

/// Where the bytes of the model's files are on their devices.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// Of each file, in the order of the file.
    pub(crate) files: Vec<Vec<Extent>>,
}

impl Layout {
    /// The extents of each file of the model, in the order of the file, as [`tracer::extents`] gives them.
    pub fn new(files: Vec<Vec<Extent>>) -> Layout {
        Layout { files }
    }

    /// Pieces of the files that do not follow each other on the device.
    pub fn n_pieces(&self) -> u64 {
        let pieces = |extents: &Vec<Extent>| {
            let joins = extents.windows(2).filter(|pair| {
                pair[0]
                    .device_offset_bytes
                    .saturating_add(pair[0].size_bytes)
                    == pair[1].device_offset_bytes
            });
            (extents.len() - joins.count()) as u64
        };
        self.files.iter().map(pieces).sum()
    }

    /// Calls `each` with the pieces of a range as they lie on the device: which device, where, and how many bytes.
    fn pieces(&self, file: u32, begin: u64, size_bytes: u64, mut each: impl FnMut(u32, u64, u64)) {
        const NOWHERE: u32 = u32::MAX;
        let Some(extents) = self.files.get(file as usize) else {
            return;
        };
        let end = begin + size_bytes;
        let first = extents.partition_point(|e| e.file_offset_bytes + e.size_bytes <= begin);
        for extent in &extents[first..] {
            let from = extent.file_offset_bytes.max(begin);
            let to = (extent.file_offset_bytes + extent.size_bytes).min(end);
            if from >= to {
                return;
            }
            let skipped = from - extent.file_offset_bytes;
            if extent.flags.has_place() {
                each(
                    file,
                    (extent.device_offset_bytes & (u64::MAX >> 1)).saturating_add(skipped),
                    to - from,
                );
            } else {
                each(NOWHERE, from, to - from);
            }
        }
    }
}

/// Bytes by time and place in the files.
#[derive(Debug)]
pub(crate) struct OffsetGrid {
    pub(crate) grid: Grid,
    pub(crate) shift: u32,
}

impl OffsetGrid {
    fn new(file_bytes: u64) -> OffsetGrid {
        let mut shift = 12;
        while file_bytes >> shift >= OFFSET_ROWS_MAX {
            shift += 1;
        }
        OffsetGrid {
            grid: Grid::new((file_bytes >> shift) as usize + 1, TIME_COLUMNS, 10),
            shift,
        }
    }

    #[inline]
    fn add(&mut self, time_ns: u64, begin: u64, size_bytes: u64) {
        let last = self.grid.n_rows() as u64 - 1;
        let end = begin.saturating_add(size_bytes);
        let mut at = begin;
        while at < end {
            let row = (at >> self.shift).min(last);
            let to = if row == last {
                end
            } else {
                ((row + 1) << self.shift).min(end)
            };
            self.grid.add(row as usize, time_ns, to - at);
            at = to;
        }
    }
}

/// Collects all sequences of a log.
#[derive(Debug)]
pub(crate) struct Sequences<'m> {
    model: &'m Model,
    layout: Option<&'m Layout>,
    /// Where each file begins if they stood behind each other.
    file_begins: Vec<u64>,
    pub(crate) accesses: Follow,
    pub(crate) accesses_on_device: Follow,
    pub(crate) faults: Follow,
    pub(crate) major_faults: Follow,
    pub(crate) block_reads: Follow,
    pub(crate) block_reads_on_device: Follow,
    pub(crate) access_grid: OffsetGrid,
    pub(crate) fault_grid: Option<OffsetGrid>,
    pub(crate) block_grid: Option<OffsetGrid>,
}

impl<'m> Sequences<'m> {
    pub(crate) fn new(model: &'m Model, layout: Option<&'m Layout>) -> Sequences<'m> {
        let mut next = 0u64;
        let begins = model.files.iter().map(|file| {
            let begin = next;
            next = next.saturating_add(file.size_bytes.min(BYTES_MAX));
            begin
        });
        Sequences {
            model,
            layout,
            file_begins: begins.collect(),
            accesses: Follow::default(),
            accesses_on_device: Follow::default(),
            faults: Follow::default(),
            major_faults: Follow::default(),
            block_reads: Follow::default(),
            block_reads_on_device: Follow::default(),
            access_grid: OffsetGrid::new(model.file_bytes()),
            fault_grid: None,
            block_grid: None,
        }
    }
}

impl Collector for Sequences<'_> {
    fn reads(&mut self, _: Option<&Step>, records: &[Record]) {
        for record in records {
            let Some(weight) = self.model.get(record.tensor) else {
                continue;
            };
            let (Some(file), Some((begin, size_bytes))) = (weight.file, weight.read(record.slice))
            else {
                continue;
            };
            self.accesses.add(file, begin, size_bytes);
            if let Some(layout) = self.layout {
                let follow = &mut self.accesses_on_device;
                layout.pieces(file, begin, size_bytes, |place, begin, size_bytes| {
                    follow.add(place, begin, size_bytes);
                });
            }
            if let Some(file_begin) = self.file_begins.get(file as usize) {
                self.access_grid
                    .add(record.time_ns, file_begin.saturating_add(begin), size_bytes);
            }
        }
    }

    fn kernel(&mut self, _: Phase, mark: &KernelMark) {
        let file_bytes = || self.model.file_bytes();
        match mark {
            KernelMark::Fault(fault) => {
                let Some(file_begin) = self.file_begins.get(fault.file as usize) else {
                    return;
                };
                let page = fault.offset_bytes / MARK_PAGE_BYTES * MARK_PAGE_BYTES;
                self.faults.add(fault.file, page, MARK_PAGE_BYTES);
                if fault.is_major {
                    self.major_faults.add(fault.file, page, MARK_PAGE_BYTES);
                }
                self.fault_grid
                    .get_or_insert_with(|| OffsetGrid::new(file_bytes()))
                    .add(
                        fault.time_ns,
                        file_begin.saturating_add(page),
                        MARK_PAGE_BYTES,
                    );
            }
            KernelMark::BlockRead(read) => {
                let Some(file_begin) = self.file_begins.get(read.file as usize) else {
                    return;
                };
                let (begin, size_bytes) = (read.offset_bytes, read.size_bytes);
                self.block_reads.add(read.file, begin, size_bytes);
                if let Some(layout) = self.layout {
                    let follow = &mut self.block_reads_on_device;
                    layout.pieces(read.file, begin, size_bytes, |place, begin, size_bytes| {
                        follow.add(place, begin, size_bytes);
                    });
                }
                self.block_grid
                    .get_or_insert_with(|| OffsetGrid::new(file_bytes()))
                    .add(read.time_ns, file_begin.saturating_add(begin), size_bytes);
            }
            KernelMark::Resident(_) | KernelMark::FaultsElsewhere(_) => {}
        }
    }
}
