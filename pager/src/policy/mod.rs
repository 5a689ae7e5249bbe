//! Which slice gives way when a slot is needed.
//!
//! The same policies, with the same numbers, as in `analysis::simulate`: what was chosen there on
//! recorded routing is what runs. `docs/policies.md` says how they compare.

mod name;
mod values;

use std::fmt;

use crate::SliceId;

pub use name::{PolicyError, PolicyName};
pub use values::{DecayedLfu, ExpectedUse, Lru, Mix, MixedLfu};

/// Which values of a policy may be others than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Only those of slices that were accessed.
    Accessed,
    /// Those of every slice of the layer.
    Layer,
    /// All.
    All,
}

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
