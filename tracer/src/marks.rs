//! What the kernel did, as marks between the accesses.

use crate::record::{saturate_u16, saturate_u32};
use crate::{Flags, Op, Record};

/// Unit of offsets and sizes in marks of the kernel, whatever the machine's page size: 4 KiB.
pub const MARK_PAGE_BYTES: u64 = 4096;

/// Something that the kernel did while the model ran. `docs/format.md` says which field of a record holds what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelMark {
    /// A page fault in the mapping of a model file.
    Fault(Fault),
    /// A read of a model file from its device.
    BlockRead(BlockRead),
    /// How much of a tensor was in the page cache.
    Resident(Resident),
    /// Faults since the last such mark that were in no mapping of a model file.
    FaultsElsewhere(FaultsElsewhere),
}

/// A page fault in the mapping of a model file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// When, in nanoseconds since the log's epoch.
    pub time_ns: u64,
    /// Index of the file.
    pub file: u32,
    /// The byte of the file whose access faulted.
    pub offset_bytes: u64,
    /// The page was not in the page cache and had to be read.
    pub is_major: bool,
}

/// A read of a model file from its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRead {
    /// When the request was issued to the device, in nanoseconds since the log's epoch.
    pub time_ns: u64,
    /// From there until the device had completed it; `u32::MAX` stands for 4.29 s or more, or for a completion that was
    /// not seen.
    pub latency_ns: u32,
    /// Index of the file.
    pub file: u32,
    /// First byte, a multiple of [`MARK_PAGE_BYTES`].
    pub offset_bytes: u64,
    /// How many bytes, a multiple of [`MARK_PAGE_BYTES`]; the last page may lie past the end of the file.
    pub size_bytes: u64,
}

/// How much of a tensor was in the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// When, in nanoseconds since the log's epoch.
    pub time_ns: u64,
    /// Index of the tensor.
    pub tensor: u32,
    /// Pages of [`MARK_PAGE_BYTES`] that were there.
    pub n_resident: u32,
    /// Pages that hold a byte of the tensor.
    pub n_pages: u32,
}

/// Faults that were in no mapping of a model file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FaultsElsewhere {
    /// When they were counted, in nanoseconds since the log's epoch.
    pub time_ns: u64,
    /// Minor ones.
    pub n_minor: u32,
    /// Major ones.
    pub n_major: u32,
    /// Events of any kind that were lost because a buffer was full.
    pub n_lost: u32,
}

impl KernelMark {
    /// The mark in a record, or `None` for an access or another mark.
    pub fn of(record: &Record) -> Option<KernelMark> {
        let pages = |n: u32| u64::from(n) * MARK_PAGE_BYTES;
        let time_ns = record.time_ns;
        Some(match record.op {
            Op::FAULT_MINOR | Op::FAULT_MAJOR => KernelMark::Fault(Fault {
                time_ns,
                file: record.tensor,
                offset_bytes: pages(record.slice) + u64::from(record.n_used) % MARK_PAGE_BYTES,
                is_major: record.op == Op::FAULT_MAJOR,
            }),
            Op::BLOCK_READ => KernelMark::BlockRead(BlockRead {
                time_ns,
                latency_ns: record.duration_ns,
                file: record.tensor,
                offset_bytes: pages(record.slice),
                size_bytes: pages(u32::from(record.n_used)),
            }),
            Op::RESIDENT => KernelMark::Resident(Resident {
                time_ns,
                tensor: record.tensor,
                n_resident: record.slice,
                n_pages: record.duration_ns,
            }),
            Op::FAULTS_ELSEWHERE => KernelMark::FaultsElsewhere(FaultsElsewhere {
                time_ns,
                n_minor: record.tensor,
                n_major: record.slice,
                n_lost: record.duration_ns,
            }),
            _ => return None,
        })
    }

    /// The record of this mark. Offsets beyond 16 TiB do not fit and become the last page; a read of more than 256 MiB
    /// needs several marks.
    pub fn record(&self, step: u32, flags: Flags) -> Record {
        let page = |offset_bytes: u64| saturate_u32(offset_bytes / MARK_PAGE_BYTES);
        let common = Record {
            step,
            flags,
            ..Record::default()
        };
        match *self {
            KernelMark::Fault(fault) => Record {
                time_ns: fault.time_ns,
                tensor: fault.file,
                slice: page(fault.offset_bytes),
                n_used: (fault.offset_bytes % MARK_PAGE_BYTES) as u16,
                op: if fault.is_major {
                    Op::FAULT_MAJOR
                } else {
                    Op::FAULT_MINOR
                },
                ..common
            },
            KernelMark::BlockRead(read) => Record {
                time_ns: read.time_ns,
                duration_ns: read.latency_ns,
                tensor: read.file,
                slice: page(read.offset_bytes),
                n_used: saturate_u16(saturate_u32(read.size_bytes.div_ceil(MARK_PAGE_BYTES))),
                op: Op::BLOCK_READ,
                ..common
            },
            KernelMark::Resident(resident) => Record {
                time_ns: resident.time_ns,
                duration_ns: resident.n_pages,
                tensor: resident.tensor,
                slice: resident.n_resident,
                op: Op::RESIDENT,
                ..common
            },
            KernelMark::FaultsElsewhere(faults) => Record {
                time_ns: faults.time_ns,
                duration_ns: faults.n_lost,
                tensor: faults.n_minor,
                slice: faults.n_major,
                op: Op::FAULTS_ELSEWHERE,
                ..common
            },
        }
    }

    /// When it happened, in nanoseconds since the log's epoch.
    pub fn time_ns(&self) -> u64 {
        match self {
            KernelMark::Fault(mark) => mark.time_ns,
            KernelMark::BlockRead(mark) => mark.time_ns,
            KernelMark::Resident(mark) => mark.time_ns,
            KernelMark::FaultsElsewhere(mark) => mark.time_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_come_back_from_records() {
        let marks = [
            KernelMark::Fault(Fault {
                time_ns: 1,
                file: 2,
                offset_bytes: (7 << 32) + 4095,
                is_major: true,
            }),
            KernelMark::BlockRead(BlockRead {
                time_ns: 1 << 40,
                latency_ns: 5,
                file: 1,
                offset_bytes: 3 * MARK_PAGE_BYTES,
                size_bytes: 65_535 * MARK_PAGE_BYTES,
            }),
            KernelMark::Resident(Resident {
                time_ns: 9,
                tensor: 8,
                n_resident: 7,
                n_pages: 70,
            }),
            KernelMark::FaultsElsewhere(FaultsElsewhere {
                time_ns: 4,
                n_minor: 3,
                n_major: 2,
                n_lost: 1,
            }),
        ];
        for mark in marks {
            let record = mark.record(6, Flags::PROMPT);
            assert!(record.op.is_mark());
            assert_eq!((record.step, record.flags), (6, Flags::PROMPT));
            let read = Record::from_bytes(&record.to_bytes());
            assert_eq!(KernelMark::of(&read), Some(mark));
        }
        assert_eq!(KernelMark::of(&Record::default()), None);
        let record = Record::step_end(0, 0, 0, Flags::default());
        assert_eq!(KernelMark::of(&record), None);
    }
}
