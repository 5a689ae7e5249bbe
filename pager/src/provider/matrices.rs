//! Dense matrices that pass through a ring.

use std::collections::HashMap;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use llama_rs::Packing;

use super::{Inner, Look, PAGE_BYTES, Provider, lock};
use crate::engine::{Class, Completion, Read};
use crate::plan::DenseStream;
use crate::region::Region;
use crate::ring::{Arrival, Found, Ring};
use crate::slices::Slices;

/// Set in the keys of reads of matrices.
pub(super) const MATRIX: u64 = 1 << 62;

/// Place of a matrix that is not in the ring.
const NOWHERE: usize = 0;
/// Place of a matrix that could not be read.
const FAILED: usize = usize::MAX;

/// A matrix that is read for every token.
#[derive(Debug)]
struct Matrix {
    /// Index among the dense tensors.
    index: usize,
    part: u32,
    /// Its pages in the file.
    pages: Range<u64>,
    /// Bytes of the first page that belong to others.
    head_bytes: usize,
    size_bytes: u64,
    packing: Option<Packing>,
    /// One more than where its first byte is in the ring, or [`NOWHERE`], or [`FAILED`].
    place: AtomicUsize,
}

impl Matrix {
    fn span_bytes(&self) -> usize {
        (self.pages.end - self.pages.start) as usize
    }
}

/// The ring's memory, and the matrices that use it.
#[derive(Debug)]
pub(super) struct Matrices {
    region: Region,
    matrices: Vec<Matrix>,
    ring_bytes: usize,
}

/// What one thread at a time changes.
#[derive(Debug)]
pub(super) struct Streaming {
    ring: Ring,
    reads: Vec<Read>,
}

impl Matrices {
    /// Memory as the plan says.
    pub(super) fn new(
        slices: &Slices,
        plan: Option<&DenseStream>,
        packing_of: impl Fn(usize) -> Option<Packing>,
    ) -> std::io::Result<Matrices> {
        let ring_bytes = plan.map_or(0, |plan| plan.ring_bytes as usize);
        let streamed = plan.map_or(&[][..], |plan| &plan.streamed);
        let matrix = |&index: &usize| {
            let tensor = &slices.dense_tensors()[index];
            Matrix {
                index,
                part: tensor.part as u32,
                pages: tensor.pages(PAGE_BYTES),
                head_bytes: (tensor.offset % PAGE_BYTES) as usize,
                size_bytes: tensor.size_bytes,
                packing: packing_of(tensor.tensor),
                place: AtomicUsize::new(NOWHERE),
            }
        };
        Ok(Matrices {
            region: Region::opened(ring_bytes)?,
            matrices: streamed.iter().map(matrix).collect(),
            ring_bytes,
        })
    }

    /// The number here of a dense tensor.
    pub(super) fn index_of(&self, dense: usize) -> Option<usize> {
        self.matrices
            .iter()
            .position(|matrix| matrix.index == dense)
    }

    /// An empty ring.
    pub(super) fn streaming(&self) -> Streaming {
        let spans = self.matrices.iter().map(Matrix::span_bytes).collect();
        Streaming {
            ring: Ring::new(self.ring_bytes, spans),
            reads: Vec::new(),
        }
    }

    fn look(&self, index: usize) -> Look<NonNull<u8>> {
        match self.matrices[index].place.load(Ordering::Acquire) {
            NOWHERE => Look::NotYet,
            FAILED => Look::Failed,
            place => Look::Found(self.region.at(place - 1)),
        }
    }
}

impl Provider {
    /// Starts the reads that the ring has room for.
    pub(super) fn stream(&self, state: &mut Inner) {
        let Streaming { ring, reads } = &mut state.streaming;
        loop {
            match ring.next_load() {
                Ok(Some(load)) => {
                    let matrix = &self.matrices.matrices[load.matrix];
                    reads.push(Read {
                        file: matrix.part,
                        offset_bytes: matrix.pages.start,
                        target: self.matrices.region.at(load.offset),
                        size_bytes: matrix.span_bytes() as u32,
                        key: MATRIX | load.serial,
                        class: Class::Prefetch,
                    });
                }
                Ok(None) => break,
                Err(full) => {
                    self.fail(full.to_string());
                    break;
                }
            }
        }
        for index in ring.take_evicted() {
            let matrix = &self.matrices.matrices[index];
            matrix.place.store(NOWHERE, Ordering::Relaxed);
            self.counters.stream_dropped(matrix.size_bytes);
        }
        for serial in ring.take_cancelled() {
            state.engine.cancel(MATRIX | serial);
        }
        if reads.is_empty() {
            return;
        }
        // SAFETY: the ring gives a place to one matrix at a time, from here until the read has ended and nobody uses it any
        // more; its address is published only when the read has ended well. The engine is dropped before the region.
        if let Err(error) = unsafe { state.engine.submit(reads) } {
            self.fail(error.to_string());
        }
        reads.clear();
    }

    /// Brings a matrix that has arrived in the ring into the layout of the repacked kernels, if it has one.
    fn repack_matrix(&self, matrix: &Matrix, offset: usize) -> bool {
        let Some(packing) = matrix.packing else {
            return true;
        };
        let address = self.matrices.region.at(offset + matrix.head_bytes);
        // SAFETY: the matrix's place in the ring, whose read has ended; nobody reads it before its address is published.
        let rows =
            unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), matrix.size_bytes as usize) };
        packing.repack(rows)
    }

    pub(super) fn note_matrix(
        &self,
        streaming: &mut Streaming,
        failures: &mut HashMap<u64, String>,
        completion: Completion,
    ) {
        let arrival = streaming
            .ring
            .arrived(completion.key & !MATRIX, completion.result.is_ok());
        match (arrival, completion.result) {
            (
                Arrival::Ready {
                    matrix: index,
                    offset,
                },
                _,
            ) => {
                let matrix = &self.matrices.matrices[index];
                if !self.repack_matrix(matrix, offset) {
                    let reason = "it could not be repacked: no memory".to_owned();
                    failures.insert(MATRIX | index as u64, reason);
                    matrix.place.store(FAILED, Ordering::Release);
                    return;
                }
                self.counters.stream_delivered(matrix.span_bytes() as u64);
                let place = offset + matrix.head_bytes + 1;
                matrix.place.store(place, Ordering::Release);
            }
            (Arrival::Failed { matrix }, Err(error)) => {
                failures.insert(MATRIX | matrix as u64, error.to_string());
                let place = &self.matrices.matrices[matrix].place;
                place.store(FAILED, Ordering::Release);
            }
            _ => {}
        }
    }

    pub(super) fn begin_matrix(&self, index: usize) {
        let mut state = lock(&self.state);
        let found = state.streaming.ring.begin(index);
        if found == Found::Nowhere {
            // It is read now, and a read ahead that failed is forgotten.
            let place = &self.matrices.matrices[index].place;
            place.store(NOWHERE, Ordering::Relaxed);
        }
        // Also starts the reads.
        self.note(&mut state, None);
        let found = match self.matrices.look(index) {
            Look::Found(_) => Found::Ready,
            _ => found,
        };
        self.counters
            .stream_used(found, self.matrices.matrices[index].size_bytes);
    }

    pub(super) fn matrix(&self, index: usize) -> Option<NonNull<u8>> {
        let look = || self.matrices.look(index);
        if let Look::Found(address) = look() {
            return Some(address);
        }
        let begin = Instant::now();
        let address = self.wait_for(MATRIX | index as u64, None, look);
        self.counters
            .add_stream_stall(begin.elapsed().as_nanos() as u64);
        address
    }

    pub(super) fn end_matrix(&self, index: usize) {
        let mut state = lock(&self.state);
        if state.streaming.ring.end(index) {
            let place = &self.matrices.matrices[index].place;
            place.store(NOWHERE, Ordering::Relaxed);
        }
        self.note(&mut state, None);
    }

    /// Begins to read ahead, and what the last run needed.
    pub(crate) fn start_reading(&self) {
        let mut state = lock(&self.state);
        self.stream(&mut state);
        self.go_on(&mut state);
    }
}
