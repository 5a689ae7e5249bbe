//! The policies.

use forecast::{Changed, DecayedCounts, MixedRates, NextUse};

use super::Policy;
use crate::SliceId;
use crate::pool::PoolSlice;

/// Least recently used.
#[derive(Clone, Copy, Debug)]
pub struct Lru;

impl Policy for Lru {
    fn access(&mut self, _: SliceId) {}

    fn value(&self, _: SliceId) -> f64 {
        0.0
    }
}

impl Policy for DecayedCounts {
    fn begin_token(&mut self) -> Changed {
        DecayedCounts::begin_token(self)
    }

    fn access(&mut self, slice: SliceId) {
        self.count(slice.index());
    }

    fn value(&self, slice: SliceId) -> f64 {
        self.of(slice.index())
    }
}

impl Policy for MixedRates {
    fn begin_token(&mut self) -> Changed {
        MixedRates::begin_token(self)
    }

    fn access(&mut self, slice: SliceId) {
        self.count(slice.index());
    }

    fn value(&self, slice: SliceId) -> f64 {
        self.of(slice.index())
    }
}

/// The sooner a slice is expected to be used again, the more it is worth: see [`NextUse`].
#[derive(Clone, Debug)]
pub struct ExpectedUse {
    next: NextUse,
    /// Index of the layer among those that have slices, and the expert, by slice.
    places: Vec<(usize, usize)>,
    /// The layers that have slices, ascending.
    layers: Vec<u32>,
    /// Experts that the token at hand uses of a layer.
    picks: Vec<u32>,
}

impl ExpectedUse {
    /// No slice was used yet. Slices of one expert are worth the same.
    pub fn new(slices: &[PoolSlice]) -> ExpectedUse {
        let mut layers: Vec<u32> = slices.iter().map(|slice| slice.layer).collect();
        layers.sort_unstable();
        layers.dedup();
        let index_of = |slice: &PoolSlice| layers.partition_point(|&layer| layer < slice.layer);
        let mut n_experts = vec![0; layers.len()];
        for slice in slices {
            let n = &mut n_experts[index_of(slice)];
            *n = (*n).max(slice.expert as usize + 1);
        }
        ExpectedUse {
            next: NextUse::new(&n_experts),
            places: slices
                .iter()
                .map(|slice| (index_of(slice), slice.expert as usize))
                .collect(),
            layers,
            picks: Vec::new(),
        }
    }
}

impl Policy for ExpectedUse {
    fn access(&mut self, slice: SliceId) {
        let expert = self.places[slice.index()].1 as u32;
        if !self.picks.contains(&expert) {
            self.picks.push(expert);
        }
    }

    fn end_layer(&mut self, layer: u32) -> Changed {
        let index = self.layers.partition_point(|&other| other < layer);
        self.next.observe(index, &self.picks);
        self.picks.clear();
        Changed::Layer
    }

    fn value(&self, slice: SliceId) -> f64 {
        let (layer, expert) = self.places[slice.index()];
        -self.next.of(layer, expert)
    }
}
