//! From a page fault to the access during which it happened.

use std::collections::VecDeque;

use crate::{Access, Fault, MARK_PAGE_BYTES, Op, Places, Record, Tables, bytes_of};

/// Joins the page faults of a log with its accesses. All records go through it, in the order of the log.
///
/// ```no_run
/// # fn main() -> tracer::Result<()> {
/// use tracer::{Join, KernelMark, LogReader};
///
/// let log = LogReader::open("run.ftrace")?;
/// let mut join = Join::new(log.tables());
/// for record in log.records() {
///     let record = record?;
///     join.push(&record);
///     if let Some(KernelMark::Fault(fault)) = KernelMark::of(&record) {
///         println!("{:?}", join.cause(&fault));
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// It keeps the accesses of the current step and of the one before, 32 bytes each: the recorder writes what the kernel did
/// soon after it happened, and never before the node during which it happened.
#[derive(Debug)]
pub struct Join<'t> {
    tables: &'t Tables,
    places: Places,
    accesses: VecDeque<Record>,
}

/// What a page fault was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cause {
    /// The tensor that has the byte; `None` for the file's metadata and the gaps between tensors.
    pub tensor: Option<u32>,
    /// The slice of it, or [`WHOLE`](crate::WHOLE) where it is not read by slices. 0 without a tensor.
    pub slice: u32,
    /// The access of a node that was being computed then and reads from the page that faulted. `None` while the model is
    /// loaded, for what is read ahead, and where the access is not in the log any more.
    pub access: Option<Record>,
}

impl<'t> Join<'t> {
    /// For logs with these tables.
    pub fn new(tables: &'t Tables) -> Join<'t> {
        Join {
            tables,
            places: Places::new(tables),
            accesses: VecDeque::new(),
        }
    }

    /// The places of the tensors.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// Takes the next record of the log.
    pub fn push(&mut self, record: &Record) {
        if !record.op.is_mark() {
            self.accesses.push_back(*record);
        } else if record.op == Op::STEP_BEGIN {
            let step = record.step;
            while self
                .accesses
                .front()
                .is_some_and(|access| access.step.wrapping_add(1) < step)
            {
                self.accesses.pop_front();
            }
        }
    }

    /// What a fault that was just pushed was about.
    pub fn cause(&self, fault: &Fault) -> Cause {
        let place = self.places.find(fault.file, fault.offset_bytes);
        Cause {
            tensor: place.map(|(tensor, _)| tensor),
            slice: place.map_or(0, |(_, slice)| slice),
            access: self.access(fault),
        }
    }

    fn access(&self, fault: &Fault) -> Option<Record> {
        let after = self
            .accesses
            .partition_point(|access| access.time_ns <= fault.time_ns);
        let begin_ns = self.accesses.get(after.checked_sub(1)?).map(|a| a.time_ns);
        let first = self
            .accesses
            .partition_point(|access| Some(access.time_ns) < begin_ns);
        let during = self.accesses.range(first..after).find(|access| {
            let end_ns = match access.duration_ns {
                u32::MAX => u64::MAX,
                duration_ns => access.time_ns.saturating_add(u64::from(duration_ns)),
            };
            fault.time_ns <= end_ns && self.reads(access, fault)
        });
        // Other threads may begin a node a moment before the one that takes its time.
        let next_ns = self.accesses.get(after).map(|access| access.time_ns);
        let next = || {
            self.accesses
                .range(after..)
                .take_while(|access| Some(access.time_ns) == next_ns)
                .find(|access| self.reads(access, fault))
        };
        during.or_else(next).copied()
    }

    /// Whether an access reads from the page that faulted.
    fn reads(&self, access: &Record, fault: &Fault) -> bool {
        let Some(tensor) = self.tables.tensors.get(access.tensor as usize) else {
            return false;
        };
        let bytes = bytes_of(
            tensor,
            Access {
                tensor: access.tensor,
                slice: access.slice,
                n_used: 1,
            },
        );
        let page = fault.offset_bytes / MARK_PAGE_BYTES * MARK_PAGE_BYTES;
        tensor.file == fault.file
            && bytes.start < page.saturating_add(MARK_PAGE_BYTES)
            && page < bytes.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Flags, ModelFile, NO_STEP, Tensor, WHOLE};

    fn tables() -> Tables {
        let tensor = |offset_bytes, n_slices: u32| Tensor {
            offset_bytes,
            size_bytes: u64::from(n_slices) * 8192,
            slice_stride_bytes: 8192,
            n_slices,
            ..Tensor::default()
        };
        Tables {
            files: vec![ModelFile::default()],
            tensors: vec![tensor(4096, 1), tensor(16_384, 4)],
            ..Tables::default()
        }
    }

    fn access(time_ns: u64, duration_ns: u32, step: u32, tensor: u32, slice: u32) -> Record {
        Record {
            time_ns,
            duration_ns,
            step,
            tensor,
            slice,
            op: Op::MUL_MAT,
            ..Record::default()
        }
    }

    fn fault(time_ns: u64, offset_bytes: u64) -> Fault {
        Fault {
            time_ns,
            file: 0,
            offset_bytes,
            is_major: false,
        }
    }

    #[test]
    fn a_fault_belongs_to_the_access_that_reads_its_page_at_that_time() {
        let tables = tables();
        let mut join = Join::new(&tables);
        let whole = access(100, 50, 0, 0, WHOLE);
        let experts = [1, 3].map(|slice| access(200, 50, 0, 1, slice));
        join.push(&whole);
        experts.iter().for_each(|access| join.push(access));

        let cause = |time_ns, offset_bytes| join.cause(&fault(time_ns, offset_bytes));
        assert_eq!(
            cause(120, 5000),
            Cause {
                tensor: Some(0),
                slice: WHOLE,
                access: Some(whole)
            }
        );
        let third = 16_384 + 3 * 8192;
        assert_eq!(cause(250, third).slice, 3);
        assert_eq!(cause(250, third).access, Some(experts[1]));
        // Begun by another thread before the node's time was taken.
        assert_eq!(cause(190, third).access, Some(experts[1]));
        // Nobody reads slice 2, and nothing runs any more at 251.
        assert_eq!(cause(220, 16_384 + 2 * 8192).access, None);
        assert_eq!(cause(251, third).access, None);
        assert_eq!(cause(50, third).access, None);
        assert_eq!(cause(220, 100).tensor, None);
    }

    #[test]
    fn accesses_of_old_steps_are_forgotten() {
        let tables = tables();
        let mut join = Join::new(&tables);
        for step in 0..100 {
            let time_ns = u64::from(step) * 1000;
            join.push(&Record::step_begin(time_ns, step, 1, 1, Flags::default()));
            for _ in 0..3 {
                join.push(&access(time_ns, 10, step, 0, WHOLE));
            }
        }
        assert_eq!(join.accesses.len(), 6);
        assert!(join.cause(&fault(98_005, 5000)).access.is_some());
        assert!(join.cause(&fault(97_005, 5000)).access.is_none());
        join.push(&access(0, 0, NO_STEP, u32::MAX, u32::MAX));
    }
}
