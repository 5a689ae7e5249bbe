//! Caches of weight slices, simulated on what a model really used.
//!
//! A [`Workload`] is what was used: token by token and layer by layer the slices (experts) that had
//! to be in memory together. It comes from a routing trace or from an access log. [`simulate`] plays
//! it through a cache of a [`Capacity`] under a policy and counts hits and missed bytes.
//!
//! The protocol, in which every policy is compared:
//!
//! - Slices of one layer of one token are looked up first, then the missing ones are inserted in
//!   the order of use. None of them gives way to another one.
//! - The cache starts empty, and is kept across sequences. A slice that was never used before is a
//!   miss, counted as a cold one as well.
//! - The slice of the lowest value gives way; of equal ones that which was used least recently.

mod error;
mod log;
mod policy;
mod pool;
mod report;
mod usage;
mod workload;

pub use error::SimulateError;
pub use forecast::{Changed, DecayedCounts, Mix, MixedRates};
pub use policy::{Access, Belady, ExpectedUse, Lru, OnlinePolicy, Policy, PolicyName};
pub use pool::{Cache, Capacity, Counts, Outcome, Sharing};
pub use report::{Report, Row, Size};
pub use usage::Usage;
pub(crate) use usage::{gini_of, top_quarter_of};
pub use workload::{Group, SliceInfo, Window, Workload};

/// Plays a workload through a cache under one of the policies that have a name.
///
/// # Errors
///
/// [`SimulateError::TooSmall`] if the slices of one layer of a token do not fit together.
pub fn simulate(
    workload: &Workload,
    cache: Cache,
    policy: &PolicyName,
) -> Result<Outcome, SimulateError> {
    let online = match policy {
        PolicyName::Online(online) => *online,
        PolicyName::Belady => return pool::run(workload, cache, Belady::new(workload)),
    };
    let n_slices = workload.slices().len();
    match online {
        OnlinePolicy::Lru => pool::run(workload, cache, Lru),
        OnlinePolicy::LfuDecay(decay) => {
            pool::run(workload, cache, DecayedCounts::new(n_slices, decay))
        }
        OnlinePolicy::LfuMix(mix) => pool::run(workload, cache, MixedRates::new(n_slices, mix)),
        OnlinePolicy::NextUse => pool::run(workload, cache, ExpectedUse::new(workload)),
    }
}

/// Plays a workload through a cache under a policy of the caller's.
///
/// # Errors
///
/// As [`simulate`].
pub fn simulate_with(
    workload: &Workload,
    cache: Cache,
    policy: impl Policy,
) -> Result<Outcome, SimulateError> {
    pool::run(workload, cache, policy)
}
