//! Writing a log.

mod create;
mod pending;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::header::{
    ADDRESSES_MAX, ADDRESSES_OFFSET, CLOSED_NS_OFFSET, Fixed, HEAD_OFFSET, N_EXTRAS_OFFSET, OnFull,
    REFUSED_OFFSET, STATE_OFFSET,
};
use crate::map::Map;
use crate::ring::{oldest, publish};
use crate::tables::{EXTRA_BYTES, Extra, MAX_TABLE_BYTES, Tables};
use crate::{Access, Clock, Error, Flags, Node, RECORD_BYTES, Record, Result};

/// Size of a log unless another is asked for: 2 GiB, 67 million records.
pub const CAPACITY_BYTES_DEFAULT: u64 = 2 << 30;

const _: () = assert!(
    (CAPACITY_BYTES_DEFAULT - 3 * MAX_TABLE_BYTES) / RECORD_BYTES as u64 >= 60_000_000,
    "a log of the default size holds 60 million records, even with the largest tables"
);

/// [`LogWriter::prepare`] asks the kernel for no less than this at a time: 4 MiB.
const PREPARE_RECORDS_MIN: u64 = (4 << 20) / RECORD_BYTES as u64;

/// A log being written, by one thread at a time.
///
/// Adding a record is wait-free: a handful of stores into mapped memory, with no allocation, lock
/// or system call. The first store to a page of the file takes a page fault, unless
/// [`LogWriter::prepare`] has asked for the page before.
///
/// Dropped or finished, the log is marked as closed and loses the part that was never used. If the
/// process is killed instead, every record that was added before stays readable, since the file and
/// not the process owns the memory. Nothing is said about a machine that loses power.
#[derive(Debug)]
pub struct LogWriter {
    map: Arc<Map>,
    /// Number of records written; also the number of the next one.
    head: u64,
    /// Where the next record goes: `head % n_slots`.
    slot: usize,
    /// Records are refused when the head gets here.
    limit: u64,
    refused: u64,
    /// Records that are marks; shared with [`Progress`].
    n_marks: Arc<AtomicU64>,
    /// The slots of the records up to this number have been asked for.
    prepared: u64,
    n_extras: u32,
    n_tensors: u32,
    fixed: Fixed,
    clock: Clock,
    file: File,
    path: PathBuf,
    closed: bool,
}

impl LogWriter {
    /// Creates a log of at most `capacity_bytes` bytes, tables included, and reserves all of it on
    /// the disk. The file gets its name when it is ready, and replaces a file of that name; after an
    /// error nothing is left behind.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`], [`Error::FileSizeLimit`], [`Error::Capacity`], [`Error::TableSize`],
    /// [`Error::NotAFile`], or [`Error::Io`] from the system.
    pub fn create(
        path: impl AsRef<Path>,
        tables: &Tables,
        capacity_bytes: u64,
        on_full: OnFull,
    ) -> Result<LogWriter> {
        let path = path.as_ref();
        let clock = Clock::start();
        let created = create::create(path, tables, capacity_bytes, on_full, clock)?;
        let fixed = created.fixed;
        let mut log = LogWriter {
            map: Arc::new(created.map),
            head: 0,
            slot: 0,
            limit: match on_full {
                OnFull::Wrap => u64::MAX,
                OnFull::Stop => fixed.capacity,
            },
            refused: 0,
            n_marks: Arc::default(),
            prepared: 0,
            n_extras: 0,
            n_tensors: fixed.tensors.count,
            fixed,
            clock,
            file: created.file,
            path: path.to_owned(),
            closed: false,
        };
        log.prepare(PREPARE_RECORDS_MIN);
        Ok(log)
    }

    /// Adds a record.
    #[inline]
    pub fn push(&mut self, record: Record) {
        if self.head == self.limit {
            return self.refuse();
        }
        let slots = self.map.slots();
        publish(
            &slots[self.slot],
            self.map.word(HEAD_OFFSET),
            self.head,
            record.to_words(),
        );
        self.head += 1;
        self.slot += 1;
        if self.slot == slots.len() {
            self.slot = 0;
        }
    }

    /// Adds the accesses of one node, in their order; the last one gets [`Flags::LAST`].
    #[inline]
    pub fn push_node(&mut self, node: &Node, accesses: impl IntoIterator<Item = Access>) {
        let mut accesses = accesses.into_iter();
        let Some(mut access) = accesses.next() else {
            return;
        };
        for next in accesses {
            self.push(node.record(access));
            access = next;
        }
        let mut last = node.record(access);
        last.flags = last.flags | Flags::LAST;
        self.push(last);
    }

    /// Adds a record that is a mark, which [`Progress::n_accesses`] leaves out.
    pub fn push_mark(&mut self, record: Record) {
        if !self.is_full() {
            self.n_marks.fetch_add(1, Ordering::Relaxed);
        }
        self.push(record);
    }

    #[cold]
    fn refuse(&mut self) {
        self.refused += 1;
        self.map
            .word(REFUSED_OFFSET)
            .store(self.refused.to_le(), Ordering::Relaxed);
    }

    /// Makes room in memory for the next `n_records` records, so that adding them takes no page
    /// faults. To be called where time does not matter, such as between two steps; most calls
    /// return at once, others take about as long as the page faults that they spare, longer where the
    /// kernel makes a process wait that has many pages to be written to the disk.
    ///
    /// It is an offer: where the kernel cannot do it (before Linux 5.14), nothing happens.
    pub fn prepare(&mut self, n_records: u64) {
        let n_records = n_records.min(self.fixed.capacity);
        if self.prepared.saturating_sub(self.head) >= n_records {
            return;
        }
        let begin = self.prepared.max(self.head);
        let end = self.head + n_records.max(PREPARE_RECORDS_MIN);
        let n_slots = self.fixed.n_slots();
        let (first, count) = (begin % n_slots, (end - begin).min(n_slots));
        let before_wrap = count.min(n_slots - first);
        // The only effect of a failure is that the faults come later.
        let _ = self.map.populate(first as usize, before_wrap as usize);
        let _ = self.map.populate(0, (count - before_wrap) as usize);
        self.prepared = end;
    }

    /// Makes a tensor known that is not in the model's files, and returns the number by which
    /// records name it.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyExtras`] when [`Tables::extra_capacity`] of them are known.
    pub fn add_extra(&mut self, extra: &Extra) -> Result<u32> {
        if self.n_extras == self.fixed.extra_capacity {
            return Err(Error::TooManyExtras {
                path: self.path.clone(),
                name: extra.name.clone(),
                capacity: self.fixed.extra_capacity,
            });
        }
        let offset_bytes = self.fixed.extras_offset_bytes as usize;
        self.map.write(
            offset_bytes + self.n_extras as usize * EXTRA_BYTES,
            &extra.encode(),
        );
        let id = self.n_tensors + self.n_extras;
        self.n_extras += 1;
        self.map
            .word(N_EXTRAS_OFFSET)
            .store(u64::from(self.n_extras).to_le(), Ordering::Release);
        Ok(id)
    }

    /// Notes where byte 0 of a model file is mapped. There is room for the first 256 files of the table; others are
    /// left out.
    pub fn set_address(&mut self, file: u32, address: u64) {
        let file = file as usize;
        if file < (self.fixed.files.count as usize).min(ADDRESSES_MAX) {
            self.map
                .word(ADDRESSES_OFFSET + file * 8)
                .store(address.to_le(), Ordering::Relaxed);
        }
    }

    /// The clock of this log's times.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Now, in nanoseconds since the log's epoch.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// Whether the log refuses records: never with [`OnFull::Wrap`].
    #[inline]
    pub fn is_full(&self) -> bool {
        self.head == self.limit
    }

    /// How many records the log can hold.
    pub fn capacity(&self) -> u64 {
        self.fixed.capacity
    }

    /// A handle by which other threads follow the log.
    pub fn progress(&self) -> Progress {
        Progress {
            map: Arc::clone(&self.map),
            n_marks: Arc::clone(&self.n_marks),
            capacity: self.fixed.capacity,
        }
    }

    /// Closes the log and cuts off what was never used.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be cut. The log is complete even then.
    pub fn finish(mut self) -> Result<Summary> {
        self.close()
    }

    fn close(&mut self) -> Result<Summary> {
        self.closed = true;
        let now_ns = self.now_ns();
        self.map
            .word(CLOSED_NS_OFFSET)
            .store(now_ns.to_le(), Ordering::Relaxed);
        self.map
            .word(STATE_OFFSET)
            .store(1u64.to_le(), Ordering::Release);
        let used_slots = self.head.min(self.fixed.n_slots());
        let size_bytes = self.fixed.ring_offset_bytes + used_slots * RECORD_BYTES as u64;
        if used_slots < self.fixed.n_slots() {
            // Whoever still has the map reads the header alone, which stays.
            self.file
                .set_len(size_bytes)
                .map_err(|source| Error::io(&self.path, "cut off its unused part", source))?;
        }
        Ok(Summary {
            n_written: self.head,
            n_lost: oldest(self.head, self.fixed.capacity) + self.refused,
            size_bytes,
        })
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        if !self.closed {
            // There is nobody to tell, and the log is readable without this.
            let _ = self.close();
        }
    }
}

/// What a finished log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Records that were written, those included that were overwritten.
    pub n_written: u64,
    /// Records that are not in the log: overwritten, or refused.
    pub n_lost: u64,
    /// Size of the file.
    pub size_bytes: u64,
}

/// How far a log is; usable from any thread, also after the log was closed.
#[derive(Debug, Clone)]
pub struct Progress {
    map: Arc<Map>,
    n_marks: Arc<AtomicU64>,
    capacity: u64,
}

impl Progress {
    /// Records written so far, those included that were overwritten.
    pub fn n_written(&self) -> u64 {
        u64::from_le(self.map.word(HEAD_OFFSET).load(Ordering::Relaxed))
    }

    /// Records so far that are accesses and not marks ([`LogWriter::push_mark`]).
    pub fn n_accesses(&self) -> u64 {
        // Marks first: one that comes in between makes the result too large by one, never negative.
        let n_marks = self.n_marks.load(Ordering::Relaxed);
        self.n_written().saturating_sub(n_marks)
    }

    /// Records lost so far: overwritten, or refused.
    pub fn n_lost(&self) -> u64 {
        let refused = u64::from_le(self.map.word(REFUSED_OFFSET).load(Ordering::Relaxed));
        oldest(self.n_written(), self.capacity) + refused
    }

    /// How many records the log can hold.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }
}
