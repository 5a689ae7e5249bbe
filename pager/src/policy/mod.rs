//! Which slice gives way when a slot is needed.
//!
//! The same policies, with the same numbers, as in `analysis::simulate`: what was chosen there on
//! recorded routing is what runs. `docs/policies.md` says how they compare.

mod values;

use std::fmt;

use crate::SliceId;
use crate::pool::PoolSlice;

pub use forecast::{Changed, DecayedCounts, Mix, MixedRates, PolicyError, PolicyName};
pub use values::{ExpectedUse, Lru};

/// What a slice is worth. The slice of the lowest value gives way, of equal ones that which was used
/// least recently.
///
/// Values are also kept of slices that are in no slot.
pub trait Policy: fmt::Debug + Send {
    /// A token begins.
    fn begin_token(&mut self) -> Changed {
        Changed::Accessed
    }

    /// A slice is used, whether it was in a slot or not.
    fn access(&mut self, slice: SliceId);

    /// All slices of a layer that a token uses were accessed; those that are missing get slots after this.
    fn end_layer(&mut self, layer: u32) -> Changed {
        let _ = layer;
        Changed::Accessed
    }

    /// What the slice is worth now; not NaN, and more than negative infinity.
    fn value(&self, slice: SliceId) -> f64;
}

/// The policy of this name, for these slices of which none was used yet.
pub fn policy_for(name: PolicyName, slices: &[PoolSlice]) -> Box<dyn Policy> {
    let n_slices = slices.len();
    match name {
        PolicyName::Lru => Box::new(Lru),
        PolicyName::LfuDecay(decay) => Box::new(DecayedCounts::new(n_slices, decay)),
        PolicyName::LfuMix(mix) => Box::new(MixedRates::new(n_slices, mix)),
        PolicyName::NextUse => Box::new(ExpectedUse::new(slices)),
    }
}
