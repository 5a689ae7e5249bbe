//! Dense weights that do not fit: some matrices stay in memory, the others pass through a ring.
//!
//! Decoding reads the layers in the same order for every token: a cyclic scan, of which no policy that replaces
//! recent data by old data keeps anything. Best is to keep a fixed part and to read the rest for every token, early enough:
//! streamed matrices are spread evenly, so that the device reads one while the pinned ones before it are computed.

use std::fmt;

use serde::Serialize;

use super::Pages;
use crate::slices::{DenseTensor, Slices};

/// Room in the ring, in matrices of the largest size: one in use and the others on their way, so that the device has
/// something to do when the one in use ends.
const RING_MATRICES: u64 = 3;
/// The least: one in use, one on its way.
const RING_MATRICES_MIN: u64 = 2;
/// The streamed share is tried in steps of 1 / this.
const STEPS: i64 = 1024;

/// How dense weights are streamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DenseStream {
    /// Matrices that are read for every token, in the order in which they will be used as far as names tell: indices into
    /// [`Slices::dense_tensors`].
    pub streamed: Vec<usize>,
    /// Bytes that stay in memory.
    pub pinned_bytes: u64,
    /// Bytes that are read for every token.
    pub streamed_bytes: u64,
    /// Bytes of the ring.
    pub ring_bytes: u64,
}

impl fmt::Display for DenseStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "dense weights: {:.1} MiB pinned, {} matrices ({:.1} MiB) streamed for every token through a ring of {:.1} MiB",
            self.pinned_bytes as f64 / (1 << 20) as f64,
            self.streamed.len(),
            self.streamed_bytes as f64 / (1 << 20) as f64,
            self.ring_bytes as f64 / (1 << 20) as f64,
        )
    }
}

/// Bytes of the dense weights in memory, whole pages.
pub(super) fn all_bytes(slices: &Slices, pages: Pages) -> u64 {
    let ranges = slices.dense_ranges(pages.page_bytes);
    ranges.iter().map(|range| range.size_bytes).sum()
}

/// A matrix that may be streamed.
#[derive(Clone, Copy)]
struct Matrix {
    /// Index into [`Slices::dense_tensors`].
    index: usize,
    /// Bytes of its pages.
    span_bytes: u64,
    is_in_layer: bool,
}

/// What may be streamed of a model, and what stays whatever the budget is.
struct Weights {
    /// In the order of use.
    matrices: Vec<Matrix>,
    fixed_bytes: u64,
}

impl Weights {
    fn new(slices: &Slices, pages: Pages) -> Weights {
        let tensors = slices.dense_tensors();
        let streamable = |(_, tensor): &(usize, &DenseTensor)| tensor.is_streamable;
        let mut order: Vec<(usize, &DenseTensor)> =
            tensors.iter().enumerate().filter(streamable).collect();
        // What belongs to no layer is the output.
        order.sort_by_key(|(index, tensor)| {
            (tensor.layer.unwrap_or(u32::MAX), tensor.order, *index)
        });
        let matrix = |(index, tensor): (usize, &DenseTensor)| {
            let range = tensor.pages(pages.page_bytes);
            Matrix {
                index,
                span_bytes: range.end - range.start,
                is_in_layer: tensor.layer.is_some(),
            }
        };
        let fixed = slices.fixed_ranges(pages.page_bytes);
        Weights {
            matrices: order.into_iter().map(matrix).collect(),
            fixed_bytes: fixed.iter().map(|range| range.size_bytes).sum(),
        }
    }

    fn all_bytes(&self) -> u64 {
        let spans = self.matrices.iter().map(|matrix| matrix.span_bytes);
        self.fixed_bytes + spans.sum::<u64>()
    }

    /// Which matrices may be streamed, the best choice first: large ones, which make large reads, of the layers, since a
    /// ring that has room for the output of a large vocabulary is large.
    fn choices(&self) -> Vec<Vec<Matrix>> {
        let in_layers = self.matrices.iter().filter(|matrix| matrix.is_in_layer);
        let largest = in_layers.map(|matrix| matrix.span_bytes).max().unwrap_or(0);
        let mut choices: Vec<Vec<Matrix>> = Vec::new();
        let mut choose = |choice: &dyn Fn(&Matrix) -> bool| {
            let chosen = self.matrices.iter().filter(|matrix| choice(matrix));
            choices.push(chosen.copied().collect());
        };
        for share in [2, 4, 16] {
            choose(&|matrix| matrix.is_in_layer && matrix.span_bytes * share >= largest);
        }
        choose(&|matrix| matrix.is_in_layer);
        choose(&|_| true);
        choices.retain(|choice| !choice.is_empty());
        choices
    }

    /// Streams these matrices.
    fn stream(&self, streamed: &[Matrix], ring_matrices: u64) -> DenseStream {
        let spans = || streamed.iter().map(|matrix| matrix.span_bytes);
        DenseStream {
            streamed: streamed.iter().map(|matrix| matrix.index).collect(),
            pinned_bytes: self.all_bytes() - spans().sum::<u64>(),
            streamed_bytes: spans().sum(),
            ring_bytes: ring_matrices * spans().max().unwrap_or(0),
        }
    }
}

/// Bytes of the dense weights in memory if all matrices stay there, each on pages of its own.
pub(super) fn pinned_bytes(slices: &Slices, pages: Pages) -> u64 {
    Weights::new(slices, pages).all_bytes()
}

/// The least memory in which the dense weights can be used at all.
pub(super) fn smallest(slices: &Slices, pages: Pages) -> u64 {
    let weights = Weights::new(slices, pages);
    let choices = weights.choices();
    let sizes = choices
        .iter()
        .map(|choice| weights.stream(choice, RING_MATRICES_MIN).size_bytes());
    sizes.min().unwrap_or(u64::MAX).min(weights.all_bytes())
}

impl DenseStream {
    /// Streams as few matrices as a room of `room_bytes` demands; `None` if all weights fit in it, or if none of it does.
    pub(super) fn new(slices: &Slices, room_bytes: u64, pages: Pages) -> Option<DenseStream> {
        let weights = Weights::new(slices, pages);
        if weights.all_bytes() <= room_bytes {
            return None;
        }
        let choices = weights.choices();
        let with_ring = |ring_matrices| {
            choices
                .iter()
                .find_map(|choice| weights.evenly(choice, ring_matrices, room_bytes))
        };
        (RING_MATRICES_MIN..=RING_MATRICES)
            .rev()
            .find_map(with_ring)
    }

    /// Memory that it takes: pinned weights and the ring.
    pub fn size_bytes(&self) -> u64 {
        self.pinned_bytes + self.ring_bytes
    }
}

impl Weights {
    /// Streams as few of the chosen matrices as the room demands, evenly spread over them.
    fn evenly(
        &self,
        choice: &[Matrix],
        ring_matrices: u64,
        room_bytes: u64,
    ) -> Option<DenseStream> {
        (1..=STEPS).find_map(|share| {
            // The Bresenham line: a matrix is streamed where the sum of shares steps over the middle of it.
            let mut due = 0;
            let mut streamed = Vec::new();
            for matrix in choice {
                let span = matrix.span_bytes as i64;
                due += span * share;
                if due * 2 >= span * STEPS {
                    due -= span * STEPS;
                    streamed.push(*matrix);
                }
            }
            let stream = self.stream(&streamed, ring_matrices);
            (!streamed.is_empty() && stream.size_bytes() <= room_bytes).then_some(stream)
        })
    }
}
