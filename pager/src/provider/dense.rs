//! Dense tensors that are in memory as a whole, or will soon be.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_rs::{WeightRef, Which};

use super::{Provider, lock};
use crate::arrivals::Arrivals;
use crate::slices::Slices;

const PAGE_BYTES: u64 = 4096;

/// The dense tensors, by their index among these, and what of them has arrived.
#[derive(Debug)]
pub(super) struct Dense {
    arrivals: Arc<Arrivals>,
    tensors: Vec<Tensor>,
}

#[derive(Debug)]
struct Tensor {
    /// Reads that bring it.
    pieces: Vec<usize>,
    is_there: AtomicBool,
    is_used: AtomicBool,
}

impl Dense {
    pub(super) fn new(slices: &Slices, arrivals: Arc<Arrivals>) -> Dense {
        let tensor = |tensor: &crate::slices::DenseTensor| Tensor {
            pieces: arrivals.of(tensor.part, &tensor.pages(PAGE_BYTES)),
            is_there: AtomicBool::new(false),
            is_used: AtomicBool::new(false),
        };
        Dense {
            tensors: slices.dense_tensors().iter().map(tensor).collect(),
            arrivals,
        }
    }
}

impl Provider {
    pub(super) fn begin_dense(&self, index: usize) {
        let is_used = &self.dense.tensors[index].is_used;
        if !is_used.load(Ordering::Relaxed) {
            is_used.store(true, Ordering::Relaxed);
            if let Some(recorder) = &mut lock(&self.state).recorder {
                recorder.use_dense(index);
            }
        }
    }

    pub(super) fn dense(
        &self,
        index: usize,
        weight: WeightRef<'_>,
        which: Which,
    ) -> Option<NonNull<u8>> {
        let tensor = &self.dense.tensors[index];
        if !tensor.is_there.load(Ordering::Acquire) {
            if let Err(reason) = self.dense.arrivals.wait_for(&tensor.pieces) {
                self.fail(reason);
                return None;
            }
            tensor.is_there.store(true, Ordering::Release);
        }
        weight.mapped(which)
    }
}
