//! Weights of a model within a memory budget.
//!
//! [`Slices`] says which bytes of a model are read by slices, [`MemoryPlan`] what of them lives where in
//! a budget, and [`Pool`] which slice is in which slot: none of these reads a byte.
#![deny(missing_docs)]

mod arrivals;
pub mod budget;
mod counters;
pub mod engine;
mod heap;
pub mod lookahead;
mod paged;
mod pinned;
pub mod plan;
pub mod policy;
pub mod pool;
mod provider;
mod region;
pub mod replay;
pub mod residency;
mod ring;
pub mod slices;
mod weights;

pub use budget::Budget;
pub use counters::{Counters, CountersSnapshot, LayerCounts, StreamCounts};
pub use lookahead::{Foresight, Lookahead};
pub use paged::{PagedModel, Pager, PagerError, PagerOptions};
pub use plan::{Demand, MemoryPlan, Pages, PlanError};
pub use policy::{Policy, PolicyName};
pub use pool::{Census, Fetch, Pool, PoolFull, PoolMode, PoolSlice, SlotId};
pub use replay::{Replay, ReplayReport, cache_folder};
pub use residency::{Residency, State};
pub use slices::{SliceId, Slices};
