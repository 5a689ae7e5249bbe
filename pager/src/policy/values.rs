//! The policies.

use forecast::NextUse;

use super::{Changed, Policy};
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

/// Least frequently used, where all counts are multiplied by the decay before each token.
///
/// Instead, the weight of a new use grows by the inverse: the order is the same, and nothing has
/// to be done for slices that are not used.
#[derive(Clone, Debug)]
pub struct DecayedLfu {
    counts: Vec<f64>,
    decay: f64,
    increment: f64,
}

/// Counts are scaled down when the increment passes this: far from what a double can hold.
const INCREMENT_MAX: f64 = (1u128 << 100) as f64;

impl DecayedLfu {
    /// No slice was used yet. `decay` is more than 0 and at most 1; 1 counts for ever.
    pub fn new(n_slices: usize, decay: f64) -> DecayedLfu {
        DecayedLfu {
            counts: vec![0.0; n_slices],
            decay,
            increment: 1.0,
        }
    }
}

impl Policy for DecayedLfu {
    fn begin_token(&mut self) -> Changed {
        self.increment /= self.decay;
        if self.increment < INCREMENT_MAX {
            return Changed::Accessed;
        }
        // A power of two: exact, so that equal counts stay equal.
        for count in &mut self.counts {
            *count /= INCREMENT_MAX;
        }
        self.increment /= INCREMENT_MAX;
        Changed::All
    }

    fn access(&mut self, slice: SliceId) {
        self.counts[slice.index()] += self.increment;
    }

    fn value(&self, slice: SliceId) -> f64 {
        self.counts[slice.index()]
    }
}

/// How often a slice was used lately, as a weighted sum of a short and a long memory.
///
/// Each memory is an exponential average of whether a token used the slice, 0 to 1. Values of all
/// slices change with every token, so this costs more than [`DecayedLfu`].
#[derive(Clone, Debug)]
pub struct MixedLfu {
    mix: Mix,
    /// By slice: short, long.
    rates: Vec<[f64; 2]>,
}

/// The memories of [`MixedLfu`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    /// Decay of the short memory per token.
    pub short_decay: f64,
    /// Decay of the long memory per token.
    pub long_decay: f64,
    /// Weight of the short memory; the long one has the rest of 1.
    pub short_share: f64,
}

impl Default for Mix {
    /// What had fewest misses on real routing.
    fn default() -> Mix {
        Mix {
            short_decay: 0.7,
            long_decay: 0.97,
            short_share: 0.2,
        }
    }
}

impl MixedLfu {
    /// No slice was used yet. Decays are more than 0 and less than 1, the share 0 to 1.
    pub fn new(n_slices: usize, mix: Mix) -> MixedLfu {
        MixedLfu {
            mix,
            rates: vec![[0.0; 2]; n_slices],
        }
    }
}

impl Policy for MixedLfu {
    fn begin_token(&mut self) -> Changed {
        for [short, long] in &mut self.rates {
            *short *= self.mix.short_decay;
            *long *= self.mix.long_decay;
        }
        Changed::All
    }

    fn access(&mut self, slice: SliceId) {
        let [short, long] = &mut self.rates[slice.index()];
        *short += 1.0 - self.mix.short_decay;
        *long += 1.0 - self.mix.long_decay;
    }

    fn value(&self, slice: SliceId) -> f64 {
        let [short, long] = self.rates[slice.index()];
        self.mix.short_share * short + (1.0 - self.mix.short_share) * long
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
