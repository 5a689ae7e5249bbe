//! How often slices were used lately.

use crate::Changed;

/// Uses of each slice, where all counts are multiplied by the decay before each token.
///
/// Instead, the weight of a new use grows by the inverse: the order is the same, and nothing has
/// to be done for slices that are not used.
#[derive(Clone, Debug)]
pub struct DecayedCounts {
    counts: Vec<f64>,
    decay: f64,
    increment: f64,
}

/// Counts are scaled down when the increment passes this: far from what a double can hold.
const INCREMENT_MAX: f64 = (1u128 << 100) as f64;

impl DecayedCounts {
    /// No slice was used yet. `decay` is more than 0 and at most 1; 1 counts for ever.
    pub fn new(n_slices: usize, decay: f64) -> DecayedCounts {
        DecayedCounts {
            counts: vec![0.0; n_slices],
            decay,
            increment: 1.0,
        }
    }

    /// A token begins. Says whose counts are others than before: those of all, if they had to be scaled down.
    pub fn begin_token(&mut self) -> Changed {
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

    /// The token uses the slice.
    pub fn count(&mut self, slice: usize) {
        self.counts[slice] += self.increment;
    }

    /// The slice's count, in a unit that all slices share.
    pub fn of(&self, slice: usize) -> f64 {
        self.counts[slice]
    }
}

/// The memories of [`MixedRates`].
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
    /// What had fewest misses on real routing; see `docs/policies.md`.
    fn default() -> Mix {
        Mix {
            short_decay: 0.7,
            long_decay: 0.97,
            short_share: 0.2,
        }
    }
}

/// How often each slice was used lately, as a weighted sum of a short and a long memory: a text uses some experts throughout, and
/// what the last few tokens used a little more than that.
///
/// Each memory is an exponential average of whether a token used the slice, 0 to 1. The rates of all slices change with every
/// token, so this costs more than [`DecayedCounts`].
#[derive(Clone, Debug)]
pub struct MixedRates {
    mix: Mix,
    /// By slice: short, long.
    rates: Vec<[f64; 2]>,
}

impl MixedRates {
    /// No slice was used yet. Decays are more than 0 and less than 1, the share 0 to 1.
    pub fn new(n_slices: usize, mix: Mix) -> MixedRates {
        MixedRates {
            mix,
            rates: vec![[0.0; 2]; n_slices],
        }
    }

    /// A token begins, and all rates change.
    pub fn begin_token(&mut self) -> Changed {
        for [short, long] in &mut self.rates {
            *short *= self.mix.short_decay;
            *long *= self.mix.long_decay;
        }
        Changed::All
    }

    /// The token uses the slice.
    pub fn count(&mut self, slice: usize) {
        let [short, long] = &mut self.rates[slice];
        *short += 1.0 - self.mix.short_decay;
        *long += 1.0 - self.mix.long_decay;
    }

    /// The slice's rate, 0 to 1.
    pub fn of(&self, slice: usize) -> f64 {
        let [short, long] = self.rates[slice];
        self.mix.short_share * short + (1.0 - self.mix.short_share) * long
    }
}
