//! Rows of the embedding in a buffer.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{PoisonError, RwLock};

use llama_rs::Begin;

use super::{Look, PAGE_BYTES, Provider, WAIT, lock};
use crate::engine::{Class, Completion, Read};
use crate::region::Region;
use crate::slices::Embedding;

/// Set in the keys of reads of rows.
pub(super) const ROW: u64 = 1 << 63;

const ROW_IN_FLIGHT: u8 = 0;
pub(super) const ROW_READY: u8 = 1;
const ROW_FAILED: u8 = 2;

/// Rows of the embedding that an operation reads.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) embedding: Embedding,
    pub(super) region: Region,
    pub(super) place_bytes: usize,
    pub(super) states: Vec<AtomicU8>,
    /// Row and place of each, ascending by row. Written by `begin` while no thread reads.
    pub(super) places: RwLock<Vec<(u32, usize)>>,
}

impl Rows {
    /// The pages that hold a row.
    fn pages(&self, row: u32) -> Range<u64> {
        let begin = self.embedding.offset + u64::from(row) * self.embedding.row_bytes;
        let end = begin + self.embedding.row_bytes;
        begin / PAGE_BYTES * PAGE_BYTES..end.next_multiple_of(PAGE_BYTES)
    }

    fn head_bytes(&self, row: u32) -> usize {
        let begin = self.embedding.offset + u64::from(row) * self.embedding.row_bytes;
        (begin % PAGE_BYTES) as usize
    }
}

impl Provider {
    pub(super) fn note_row(&self, completion: &Completion) {
        let Some(rows) = &self.rows else { return };
        let state = match completion.result {
            Ok(()) => ROW_READY,
            Err(_) => ROW_FAILED,
        };
        let place = (completion.key & !ROW) as usize;
        rows.states[place].store(state, Ordering::Release);
    }

    pub(super) fn begin_rows(&self, rows: &Rows, access: &Begin<'_>) {
        let mut state = lock(&self.state);
        // A step that failed may have left reads under way.
        while state.rows_in_flight > 0 {
            if lock(&self.reason).is_some() {
                // The engine is broken, and what it has begun may still write to the places.
                return;
            }
            self.note(&mut state, Some(WAIT));
        }
        if access.ids.len() > rows.states.len() {
            return self.fail(format!(
                "{} rows of the embedding are needed at once, and there is room for {}",
                access.ids.len(),
                rows.states.len()
            ));
        }
        let mut places = rows.places.write().unwrap_or_else(PoisonError::into_inner);
        places.clear();
        let row_and_place = access.ids.iter().map(|id| id.cast_unsigned()).zip(0..);
        places.extend(row_and_place);
        places.sort_unstable();
        let read = |&(row, place): &(u32, usize)| {
            rows.states[place].store(ROW_IN_FLIGHT, Ordering::Relaxed);
            let pages = rows.pages(row);
            Read {
                file: rows.embedding.part as u32,
                offset_bytes: pages.start,
                target: rows.region.at(place * rows.place_bytes),
                size_bytes: (pages.end - pages.start) as u32,
                key: ROW | place as u64,
                class: Class::Demand,
            }
        };
        let reads: Vec<Read> = places.iter().map(read).collect();
        state.rows_in_flight += reads.len();
        // SAFETY: no read is under way to any place of the buffer, and no operation reads it: its last one has ended. A row is
        // read only after its state says so. The engine is dropped before the buffer.
        if let Err(error) = unsafe { state.engine.submit(&reads) } {
            self.fail(error.to_string());
        }
    }

    pub(super) fn row(&self, rows: &Rows, row: u32) -> Option<NonNull<u8>> {
        let place = {
            let places = rows.places.read().unwrap_or_else(PoisonError::into_inner);
            let found = places.binary_search_by_key(&row, |&(row, _)| row).ok()?;
            places[found].1
        };
        let offset_bytes = place * rows.place_bytes + rows.head_bytes(row);
        let look = || match rows.states[place].load(Ordering::Acquire) {
            ROW_READY => Look::Found(rows.region.at(offset_bytes)),
            ROW_FAILED => Look::Failed,
            _ => Look::NotYet,
        };
        match look() {
            Look::Found(address) => Some(address),
            _ => self.wait_for(ROW | place as u64, None, look),
        }
    }
}
