//! Dense weights that do not fit: some layers stay in memory, the others pass through a ring.
//!
//! Decoding reads the layers in the same order for every token: a cyclic scan, of which no policy that replaces
//! recent data by old data keeps anything. Best is to keep a fixed part and to read the rest for every token, early enough:
//! streamed layers are spread evenly, so that the device reads one while the pinned ones before it are computed.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::Pages;
use crate::slices::Slices;

/// Layers that are computed and read at the same time: one in use, one on its way.
const RING_SLOTS: u32 = 2;

/// How dense weights are streamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DenseStream {
    /// Layers that stay in memory, as do tensors that belong to no layer.
    pub pinned_layers: Vec<u32>,
    /// Layers that are read for every token, in the order of use.
    pub streamed_layers: Vec<u32>,
    /// Bytes that stay in memory.
    pub pinned_bytes: u64,
    /// Bytes that are read for every token.
    pub streamed_bytes: u64,
    /// Slots of the ring.
    pub ring_slots: u32,
    /// Bytes of each: room for the largest streamed layer.
    pub ring_slot_bytes: u64,
}

impl fmt::Display for DenseStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "dense weights: {} layers pinned ({:.1} MiB with what belongs to no layer), {} streamed for every token ({:.1} MiB) \
             through {} slots of {:.1} MiB",
            self.pinned_layers.len(),
            self.pinned_bytes as f64 / (1 << 20) as f64,
            self.streamed_layers.len(),
            self.streamed_bytes as f64 / (1 << 20) as f64,
            self.ring_slots,
            self.ring_slot_bytes as f64 / (1 << 20) as f64,
        )
    }
}

/// Bytes of the dense weights in memory, whole pages.
pub(super) fn all_bytes(slices: &Slices, pages: Pages) -> u64 {
    let ranges = slices.dense_ranges(pages.page_bytes);
    ranges.iter().map(|range| range.size_bytes).sum()
}

/// Bytes of each layer and of what belongs to none, each tensor rounded out to pages: read by itself.
fn by_layer(slices: &Slices, pages: Pages) -> (BTreeMap<u32, u64>, u64) {
    let mut layers: BTreeMap<u32, u64> = BTreeMap::new();
    let mut others = 0;
    for tensor in slices.dense_tensors() {
        let begin = tensor.offset / pages.page_bytes * pages.page_bytes;
        let end = (tensor.offset + tensor.size_bytes).next_multiple_of(pages.page_bytes);
        match tensor.layer {
            Some(layer) => *layers.entry(layer).or_default() += end - begin,
            None => others += end - begin,
        }
    }
    (layers, others)
}

/// The least memory in which the dense weights can be used at all.
pub(super) fn smallest(slices: &Slices, pages: Pages) -> u64 {
    let (layers, others) = by_layer(slices, pages);
    let ring = u64::from(RING_SLOTS) * layers.values().max().copied().unwrap_or(0);
    (others + ring).min(all_bytes(slices, pages))
}

impl DenseStream {
    /// Streams as few layers as a room of `room_bytes` demands; `None` if all weights fit in it.
    pub(super) fn new(slices: &Slices, room_bytes: u64, pages: Pages) -> Option<DenseStream> {
        if all_bytes(slices, pages) <= room_bytes {
            return None;
        }
        let (layers, others) = by_layer(slices, pages);
        let layers: Vec<(u32, u64)> = layers.into_iter().collect();
        (1..=layers.len())
            .map(|n_streamed| DenseStream::of(&layers, others, n_streamed))
            .find(|stream| stream.size_bytes() <= room_bytes)
    }

    /// With this many layers streamed, evenly spread.
    fn of(layers: &[(u32, u64)], others: u64, n_streamed: usize) -> DenseStream {
        // The Bresenham line: layer i is streamed where the count of streamed ones steps up.
        let count = |index: usize| (index * n_streamed + layers.len() / 2) / layers.len();
        let (mut streamed, mut pinned) = (Vec::new(), Vec::new());
        for (index, layer) in layers.iter().enumerate() {
            match count(index + 1) > count(index) {
                true => streamed.push(*layer),
                false => pinned.push(*layer),
            }
        }
        let bytes = |layers: &[(u32, u64)]| layers.iter().map(|(_, bytes)| bytes).sum::<u64>();
        let numbers = |layers: &[(u32, u64)]| layers.iter().map(|(layer, _)| *layer).collect();
        DenseStream {
            pinned_bytes: others + bytes(&pinned),
            streamed_bytes: bytes(&streamed),
            ring_slots: RING_SLOTS,
            ring_slot_bytes: streamed.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0),
            pinned_layers: numbers(&pinned),
            streamed_layers: numbers(&streamed),
        }
    }

    /// Memory that it takes: pinned weights and the ring.
    pub fn size_bytes(&self) -> u64 {
        self.pinned_bytes + u64::from(self.ring_slots) * self.ring_slot_bytes
    }
}
