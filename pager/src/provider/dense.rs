//! Dense tensors that are in memory as a whole, or will soon be.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_rs::{Packing, WeightRef, Which};

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
    size_bytes: usize,
    packing: Option<Packing>,
    is_there: AtomicBool,
    is_used: AtomicBool,
}

impl Dense {
    pub(super) fn new(
        slices: &Slices,
        arrivals: Arc<Arrivals>,
        packing_of: impl Fn(usize) -> Option<Packing>,
    ) -> Dense {
        let tensor = |tensor: &crate::slices::DenseTensor| Tensor {
            pieces: arrivals.of(tensor.part, &tensor.pages(PAGE_BYTES)),
            size_bytes: tensor.size_bytes as usize,
            packing: packing_of(tensor.tensor),
            is_there: AtomicBool::new(false),
            is_used: AtomicBool::new(false),
        };
        Dense {
            tensors: slices.dense_tensors().iter().map(tensor).collect(),
            arrivals,
        }
    }

    /// Whether all dense weights that are not read on demand have arrived.
    pub(super) fn is_complete(&self) -> bool {
        self.arrivals.is_complete()
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
            let arrivals = &self.dense.arrivals;
            let arrived = arrivals.wait_for(&tensor.pieces);
            let there = arrived.and_then(|()| match tensor.packing {
                None => Ok(()),
                Some(packing) => arrivals.once(index, || {
                    let whole = weight.mapped(Which::Whole)?;
                    // SAFETY: the tensor's place in the model's memory, all of which has arrived. One thread gets here, once in the life of
                    // the model, and the others wait for it before they read.
                    let rows = unsafe {
                        std::slice::from_raw_parts_mut(whole.as_ptr(), tensor.size_bytes)
                    };
                    packing.repack(rows).then_some(())
                }),
            });
            if let Err(reason) = there {
                self.fail(reason);
                return None;
            }
            tensor.is_there.store(true, Ordering::Release);
        }
        weight.mapped(which)
    }
}
