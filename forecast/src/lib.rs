//! Which experts a model will use next, told from those that it used: nothing but routers' picks goes in.
//!
//! [`NextUse`] says when an expert will probably be used again, which is what a cache wants to know of the one it gives up.
//! [`Lookahead`] says which experts the next layer will probably use, which is what to read ahead. Both learn while they watch, and
//! the pager and the cache simulator share them, so that what was simulated is what runs. The simpler counts that other policies
//! go by, and the policies' names ([`PolicyName`]), are here for the same reason.
#![deny(missing_docs)]

mod frequency;
mod lookahead;
mod next_use;
mod policy;
mod rates;
mod recall;

pub use frequency::{DecayedCounts, Mix, MixedRates};
pub use lookahead::{Guess, Lookahead};
pub use next_use::NextUse;
pub use policy::{Changed, PolicyError, PolicyName};
