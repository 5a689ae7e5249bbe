//! Reads a log from the first record to the last.

use std::ops::ControlFlow;

use tracer::Record;

use super::tokens::Tracker;
use super::weights::Bytes;
use super::{Log, Token, Weight, Weights};
use crate::Result;

/// A record of a log, with what the records before it say about it.
#[derive(Debug)]
pub enum Entry<'a> {
    /// An operation read a slice.
    Access(Access<'a>),
    /// A step or ubatch begins or ends, a step has a token, or a mark of a newer version.
    Mark {
        /// Number of the record since the beginning of the recording.
        sequence: u64,
        /// The record.
        record: Record,
        /// The first token of the step that the mark belongs to.
        token: Option<Token>,
    },
}

/// One operation reading one slice of one weight.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    /// Number of the record since the beginning of the recording.
    pub sequence: u64,
    /// The record.
    pub record: Record,
    /// The tensor; none if the log is damaged there.
    pub weight: Option<&'a Weight>,
    /// The first token of its ubatch; none if the marks before it are lost.
    pub token: Option<Token>,
}

impl Access<'_> {
    /// The bytes that were read.
    pub fn bytes(&self) -> Bytes {
        self.weight
            .map_or(Bytes::default(), |weight| weight.bytes(&self.record))
    }
}

impl Log {
    /// Calls `visit` with every record that is there, in the order of writing, until it breaks.
    ///
    /// # Errors
    ///
    /// [`Error::Log`](crate::Error::Log) from the file, and those of `visit`, which end the reading.
    pub fn for_each<'w>(
        &self,
        weights: &'w Weights,
        mut visit: impl FnMut(Entry<'w>) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut chunks = self.reader().chunks();
        let mut tracker = Tracker::new(true);
        let mut next_sequence = 0;
        while let Some((first, records)) = chunks.next_chunk()? {
            if first != next_sequence {
                tracker = Tracker::new(false);
            }
            next_sequence = first + records.len() as u64;
            for (sequence, &record) in (first..).zip(records) {
                let entry = if record.op.is_mark() {
                    tracker.mark(&record);
                    Entry::Mark {
                        sequence,
                        record,
                        token: tracker.step(record.step),
                    }
                } else {
                    Entry::Access(Access {
                        sequence,
                        record,
                        weight: weights.get(record.tensor),
                        token: tracker.access(&record),
                    })
                };
                if visit(entry)?.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
