//! What the pager did, in numbers.
//!
//! Whoever counts holds the lock around the pool, so a count is a load and a store. Any thread may add
//! stalls, and any may take a snapshot, which is not of one instant: each number is right by itself.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// The numbers while they grow.
#[derive(Debug)]
pub struct Counters {
    layers: Box<[Layer]>,
    delivered_bytes: AtomicU64,
    wasted_bytes: AtomicU64,
    n_evictions: AtomicU64,
    n_prefetches: AtomicU64,
    n_prefetches_used: AtomicU64,
    n_cancelled: AtomicU64,
    n_failed: AtomicU64,
    n_foreseeable: AtomicU64,
    n_foreseen: AtomicU64,
    repack_ns: AtomicU64,
    stream: Stream,
}

#[derive(Debug, Default)]
struct Stream {
    n_ready: AtomicU64,
    n_late: AtomicU64,
    n_missed: AtomicU64,
    consumed_bytes: AtomicU64,
    delivered_bytes: AtomicU64,
    dropped_bytes: AtomicU64,
    stall_ns: AtomicU64,
}

#[derive(Debug, Default)]
struct Layer {
    n_hits: AtomicU64,
    n_late: AtomicU64,
    n_misses: AtomicU64,
    consumed_bytes: AtomicU64,
    miss_bytes: AtomicU64,
    stall_ns: AtomicU64,
}

/// The numbers of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountersSnapshot {
    /// Sums over all layers.
    pub total: LayerCounts,
    /// Each layer.
    pub layers: Vec<LayerCounts>,
    /// Bytes that reads brought in, as far as they succeeded, page rounding included.
    pub delivered_bytes: u64,
    /// Bytes of slices that were read ahead and evicted before anybody used them.
    pub wasted_bytes: u64,
    /// Slices that gave way.
    pub n_evictions: u64,
    /// Slices read ahead.
    pub n_prefetches: u64,
    /// Those of them that were used.
    pub n_prefetches_used: u64,
    /// Reads that were cancelled.
    pub n_cancelled: u64,
    /// Reads that failed for good.
    pub n_failed: u64,
    /// Picks of layers whose router was computed in advance, from the state of the layer before.
    #[serde(default)]
    pub n_foreseeable: u64,
    /// Those of them that it had among its best.
    #[serde(default)]
    pub n_foreseen: u64,
    /// Time in which threads that needed a slice repacked slices that had arrived, in nanoseconds, summed over the threads.
    #[serde(default)]
    pub repack_ns: u64,
    /// Dense matrices that were streamed.
    pub stream: StreamCounts,
}

/// The numbers of dense matrices that pass through the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamCounts {
    /// Uses that found their matrix in the ring.
    pub n_ready: u64,
    /// Uses that found it on its way.
    pub n_late: u64,
    /// Uses that found it neither there nor on its way: the order was not known yet, or a decode was broken off.
    pub n_missed: u64,
    /// Bytes of all uses.
    pub consumed_bytes: u64,
    /// Bytes that were read, page rounding included.
    pub delivered_bytes: u64,
    /// Bytes of matrices that were read ahead and given up before anybody used them.
    pub dropped_bytes: u64,
    /// Time that compute threads waited, in nanoseconds, summed over the threads.
    pub stall_ns: u64,
}

impl StreamCounts {
    fn since(&self, earlier: &StreamCounts) -> StreamCounts {
        StreamCounts {
            n_ready: self.n_ready.saturating_sub(earlier.n_ready),
            n_late: self.n_late.saturating_sub(earlier.n_late),
            n_missed: self.n_missed.saturating_sub(earlier.n_missed),
            consumed_bytes: self.consumed_bytes.saturating_sub(earlier.consumed_bytes),
            delivered_bytes: self.delivered_bytes.saturating_sub(earlier.delivered_bytes),
            dropped_bytes: self.dropped_bytes.saturating_sub(earlier.dropped_bytes),
            stall_ns: self.stall_ns.saturating_sub(earlier.stall_ns),
        }
    }
}

/// The numbers of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerCounts {
    /// Slices that were in a slot when they were requested.
    pub n_hits: u64,
    /// Slices that were on their way when they were requested.
    pub n_late: u64,
    /// Slices that had to be read.
    pub n_misses: u64,
    /// Bytes of all slices requested.
    pub consumed_bytes: u64,
    /// Bytes of those that had to be read.
    pub miss_bytes: u64,
    /// Time that compute threads waited, in nanoseconds, summed over the threads.
    pub stall_ns: u64,
}

impl LayerCounts {
    /// Slices requested.
    pub fn n_requests(&self) -> u64 {
        self.n_hits + self.n_late + self.n_misses
    }

    /// Share of the requests that found their slice in a slot, 0 to 1; 0 if there were none.
    pub fn hit_rate(&self) -> f64 {
        match self.n_requests() {
            0 => 0.0,
            count => self.n_hits as f64 / count as f64,
        }
    }

    fn combine(&self, other: &LayerCounts, op: impl Fn(u64, u64) -> u64) -> LayerCounts {
        LayerCounts {
            n_hits: op(self.n_hits, other.n_hits),
            n_late: op(self.n_late, other.n_late),
            n_misses: op(self.n_misses, other.n_misses),
            consumed_bytes: op(self.consumed_bytes, other.consumed_bytes),
            miss_bytes: op(self.miss_bytes, other.miss_bytes),
            stall_ns: op(self.stall_ns, other.stall_ns),
        }
    }
}

impl CountersSnapshot {
    /// What was added since an earlier snapshot of the same counters.
    pub fn since(&self, earlier: &CountersSnapshot) -> CountersSnapshot {
        let layers = self.layers.iter().zip(&earlier.layers);
        CountersSnapshot {
            total: self.total.combine(&earlier.total, u64::saturating_sub),
            layers: layers
                .map(|(now, before)| now.combine(before, u64::saturating_sub))
                .collect(),
            delivered_bytes: self.delivered_bytes.saturating_sub(earlier.delivered_bytes),
            wasted_bytes: self.wasted_bytes.saturating_sub(earlier.wasted_bytes),
            n_evictions: self.n_evictions.saturating_sub(earlier.n_evictions),
            n_prefetches: self.n_prefetches.saturating_sub(earlier.n_prefetches),
            n_prefetches_used: self
                .n_prefetches_used
                .saturating_sub(earlier.n_prefetches_used),
            n_cancelled: self.n_cancelled.saturating_sub(earlier.n_cancelled),
            n_failed: self.n_failed.saturating_sub(earlier.n_failed),
            n_foreseeable: self.n_foreseeable.saturating_sub(earlier.n_foreseeable),
            n_foreseen: self.n_foreseen.saturating_sub(earlier.n_foreseen),
            repack_ns: self.repack_ns.saturating_sub(earlier.repack_ns),
            stream: self.stream.since(&earlier.stream),
        }
    }
}

/// How a request found its slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Resident,
    InFlight,
    Nowhere,
}

impl Counters {
    pub(crate) fn new(n_layers: usize) -> Counters {
        let zero = AtomicU64::default;
        Counters {
            layers: (0..n_layers).map(|_| Layer::default()).collect(),
            delivered_bytes: zero(),
            wasted_bytes: zero(),
            n_evictions: zero(),
            n_prefetches: zero(),
            n_prefetches_used: zero(),
            n_cancelled: zero(),
            n_failed: zero(),
            n_foreseeable: zero(),
            n_foreseen: zero(),
            repack_ns: zero(),
            stream: Stream::default(),
        }
    }

    /// A compute thread waited for a dense matrix. Any thread may call this.
    pub fn add_stream_stall(&self, time_ns: u64) {
        self.stream.stall_ns.fetch_add(time_ns, Ordering::Relaxed);
    }

    /// A thread that needed a slice repacked, or waited for others who did. Any thread may call this.
    pub fn add_repack(&self, time_ns: u64) {
        self.repack_ns.fetch_add(time_ns, Ordering::Relaxed);
    }

    /// A compute thread waited for a slice of this layer. Any thread may call this.
    ///
    /// # Panics
    ///
    /// If there is no such layer.
    pub fn add_stall(&self, layer: usize, time_ns: u64) {
        self.layers[layer]
            .stall_ns
            .fetch_add(time_ns, Ordering::Relaxed);
    }

    /// Time that compute threads have waited for slices, in nanoseconds, summed over the threads.
    pub(crate) fn stall_ns(&self) -> u64 {
        let layers = self.layers.iter();
        layers
            .map(|layer| layer.stall_ns.load(Ordering::Relaxed))
            .sum()
    }

    /// The numbers now.
    pub fn snapshot(&self) -> CountersSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let layers: Vec<LayerCounts> = self
            .layers
            .iter()
            .map(|layer| LayerCounts {
                n_hits: get(&layer.n_hits),
                n_late: get(&layer.n_late),
                n_misses: get(&layer.n_misses),
                consumed_bytes: get(&layer.consumed_bytes),
                miss_bytes: get(&layer.miss_bytes),
                stall_ns: get(&layer.stall_ns),
            })
            .collect();
        let total = layers.iter().fold(LayerCounts::default(), |total, layer| {
            total.combine(layer, |left, right| left + right)
        });
        CountersSnapshot {
            total,
            layers,
            delivered_bytes: get(&self.delivered_bytes),
            wasted_bytes: get(&self.wasted_bytes),
            n_evictions: get(&self.n_evictions),
            n_prefetches: get(&self.n_prefetches),
            n_prefetches_used: get(&self.n_prefetches_used),
            n_cancelled: get(&self.n_cancelled),
            n_failed: get(&self.n_failed),
            n_foreseeable: get(&self.n_foreseeable),
            n_foreseen: get(&self.n_foreseen),
            repack_ns: get(&self.repack_ns),
            stream: StreamCounts {
                n_ready: get(&self.stream.n_ready),
                n_late: get(&self.stream.n_late),
                n_missed: get(&self.stream.n_missed),
                consumed_bytes: get(&self.stream.consumed_bytes),
                delivered_bytes: get(&self.stream.delivered_bytes),
                dropped_bytes: get(&self.stream.dropped_bytes),
                stall_ns: get(&self.stream.stall_ns),
            },
        }
    }

    pub(crate) fn stream_used(&self, found: crate::ring::Found, size_bytes: u64) {
        use crate::ring::Found;
        add(&self.stream.consumed_bytes, size_bytes);
        let count = match found {
            Found::Ready => &self.stream.n_ready,
            Found::OnItsWay => &self.stream.n_late,
            Found::Nowhere => &self.stream.n_missed,
        };
        add(count, 1);
    }

    pub(crate) fn stream_delivered(&self, size_bytes: u64) {
        add(&self.stream.delivered_bytes, size_bytes);
    }

    pub(crate) fn stream_dropped(&self, size_bytes: u64) {
        add(&self.stream.dropped_bytes, size_bytes);
    }

    pub(crate) fn request(&self, layer: usize, found: Found, size_bytes: u64) {
        let layer = &self.layers[layer];
        add(&layer.consumed_bytes, size_bytes);
        match found {
            Found::Resident => add(&layer.n_hits, 1),
            Found::InFlight => add(&layer.n_late, 1),
            Found::Nowhere => {
                add(&layer.n_misses, 1);
                add(&layer.miss_bytes, size_bytes);
            }
        }
    }

    pub(crate) fn delivered(&self, size_bytes: u64) {
        add(&self.delivered_bytes, size_bytes);
    }

    pub(crate) fn evicted(&self) {
        add(&self.n_evictions, 1);
    }

    pub(crate) fn wasted(&self, size_bytes: u64) {
        add(&self.wasted_bytes, size_bytes);
    }

    pub(crate) fn prefetch(&self) {
        add(&self.n_prefetches, 1);
    }

    pub(crate) fn prefetch_used(&self) {
        add(&self.n_prefetches_used, 1);
    }

    /// So many picks of a layer are known, and so many of them were among the best of the router that was computed in advance.
    pub(crate) fn foreseen(&self, n_picks: usize, n_right: usize) {
        add(&self.n_foreseeable, n_picks as u64);
        add(&self.n_foreseen, n_right as u64);
    }

    pub(crate) fn cancelled(&self) {
        add(&self.n_cancelled, 1);
    }

    pub(crate) fn failed(&self) {
        add(&self.n_failed, 1);
    }
}

/// Only the holder of the lock around the pool calls this: a load and a store lose nothing.
fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Ordering::Relaxed) + amount, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_since() {
        let counters = Counters::new(2);
        counters.request(0, Found::Resident, 10);
        let before = counters.snapshot();
        counters.request(1, Found::Nowhere, 20);
        counters.request(1, Found::InFlight, 20);
        counters.delivered(4096);
        counters.add_stall(1, 5);
        let added = counters.snapshot().since(&before);
        assert_eq!(added.layers[0], LayerCounts::default());
        let expected = LayerCounts {
            n_hits: 0,
            n_late: 1,
            n_misses: 1,
            consumed_bytes: 40,
            miss_bytes: 20,
            stall_ns: 5,
        };
        assert_eq!((added.layers[1], added.total), (expected, expected));
        assert_eq!(added.delivered_bytes, 4096);
        let text = serde_json::to_string(&added).unwrap();
        assert_eq!(
            serde_json::from_str::<CountersSnapshot>(&text).unwrap(),
            added
        );
    }
}
