//! Which slice gives way.

use std::fmt;
use std::str::FromStr;

pub use forecast::PolicyName as OnlinePolicy;
use forecast::{Changed, DecayedCounts, MixedRates, NextUse, PolicyError};

use super::{SimulateError, Workload};

/// One use of a slice.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Number of the access in the workload.
    pub index: usize,
    /// Index of the slice in the workload.
    pub slice: usize,
    /// Index of its layer among those that have slices.
    pub layer: usize,
    /// Place among the slices of the token and layer, in the order of use.
    pub rank: usize,
}

/// What a slice is worth. The cache evicts the slice of the lowest value, of equal ones that which
/// was used least recently.
///
/// Values are asked for after every access and whenever the policy says that they changed. They may
/// be kept for slices that are not in the cache.
pub trait Policy {
    /// A token begins.
    fn begin_token(&mut self) -> Changed {
        Changed::Accessed
    }

    /// A slice is used, whether it was in the cache or not.
    fn access(&mut self, access: &Access);

    /// All slices of a layer of a token were accessed; the missing ones are inserted after this.
    fn end_group(&mut self, layer: usize) -> Changed {
        let _ = layer;
        Changed::Accessed
    }

    /// What the slice is worth now; not NaN.
    fn value(&self, slice: usize) -> f64;
}

/// Least recently used.
#[derive(Clone, Copy, Debug)]
pub struct Lru;

impl Policy for Lru {
    fn access(&mut self, _: &Access) {}

    fn value(&self, _: usize) -> f64 {
        0.0
    }
}

impl Policy for DecayedCounts {
    fn begin_token(&mut self) -> Changed {
        DecayedCounts::begin_token(self)
    }

    fn access(&mut self, access: &Access) {
        self.count(access.slice);
    }

    fn value(&self, slice: usize) -> f64 {
        self.of(slice)
    }
}

impl Policy for MixedRates {
    fn begin_token(&mut self) -> Changed {
        MixedRates::begin_token(self)
    }

    fn access(&mut self, access: &Access) {
        self.count(access.slice);
    }

    fn value(&self, slice: usize) -> f64 {
        self.of(slice)
    }
}

/// The slice that is expected to be used last gives way: see [`NextUse`].
#[derive(Clone, Debug)]
pub struct ExpectedUse {
    next: NextUse,
    /// Layer of each slice.
    layers: Vec<usize>,
    /// First slice of each layer.
    begins: Vec<usize>,
    picks: Vec<u32>,
}

impl ExpectedUse {
    /// No slice was used yet.
    pub fn new(workload: &Workload) -> ExpectedUse {
        let (mut begins, mut n_slices) = (Vec::new(), Vec::new());
        for (index, slice) in workload.slices().iter().enumerate() {
            while begins.len() <= slice.layer as usize {
                begins.push(index);
                n_slices.push(0);
            }
            n_slices[slice.layer as usize] += 1;
        }
        ExpectedUse {
            next: NextUse::new(&n_slices),
            layers: workload
                .slices()
                .iter()
                .map(|slice| slice.layer as usize)
                .collect(),
            begins,
            picks: Vec::new(),
        }
    }
}

impl Policy for ExpectedUse {
    fn access(&mut self, access: &Access) {
        let pick = access.slice - self.begins[access.layer];
        self.picks.push(pick as u32);
    }

    fn end_group(&mut self, layer: usize) -> Changed {
        self.next.observe(layer, &self.picks);
        self.picks.clear();
        Changed::Layer
    }

    fn value(&self, slice: usize) -> f64 {
        let layer = self.layers[slice];
        -self.next.of(layer, slice - self.begins[layer])
    }
}

/// The slice whose next use is farthest away gives way (Belady's MIN), which needs the future. No
/// policy has fewer misses where all slices have the same size; where they differ, some may.
#[derive(Clone, Debug)]
pub struct Belady {
    /// For each access the number of the next one of the same slice.
    next: Vec<u32>,
    values: Vec<f64>,
}

impl Belady {
    /// Looks through all of the workload.
    pub fn new(workload: &Workload) -> Belady {
        let n_slices = workload.slices().len();
        let mut upcoming = vec![u32::MAX; n_slices];
        let mut next = vec![u32::MAX; workload.accesses().len()];
        for (index, &slice) in workload.accesses().iter().enumerate().rev() {
            next[index] = std::mem::replace(&mut upcoming[slice as usize], index as u32);
        }
        Belady {
            next,
            values: vec![0.0; n_slices],
        }
    }
}

impl Policy for Belady {
    fn access(&mut self, access: &Access) {
        self.values[access.slice] = -f64::from(self.next[access.index]);
    }

    fn value(&self, slice: usize) -> f64 {
        self.values[slice]
    }
}

/// A policy as the user writes it: those of [`OnlinePolicy`], and `belady`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PolicyName {
    /// One that a running model can have.
    Online(OnlinePolicy),
    /// [`Belady`].
    Belady,
}

impl PolicyName {
    /// [`Lru`].
    pub const LRU: PolicyName = PolicyName::Online(OnlinePolicy::Lru);
    /// Least frequently used, counted since the beginning, also while a slice is not in the cache.
    pub const LFU: PolicyName = PolicyName::Online(OnlinePolicy::LFU);
    /// [`ExpectedUse`].
    pub const NEXT_USE: PolicyName = PolicyName::Online(OnlinePolicy::NextUse);

    /// Least frequently used, where all counts are multiplied by this decay before each token.
    pub const fn lfu_decay(decay: f64) -> PolicyName {
        PolicyName::Online(OnlinePolicy::LfuDecay(decay))
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PolicyName::Online(policy) => policy.fmt(formatter),
            PolicyName::Belady => formatter.write_str("belady"),
        }
    }
}

impl FromStr for PolicyName {
    type Err = SimulateError;

    fn from_str(text: &str) -> Result<PolicyName, SimulateError> {
        match text.parse() {
            Ok(policy) => Ok(PolicyName::Online(policy)),
            Err(PolicyError::Name { .. }) if text == "belady" => Ok(PolicyName::Belady),
            Err(PolicyError::Name { text }) => Err(SimulateError::PolicyName { text }),
            Err(error) => Err(SimulateError::Policy(error)),
        }
    }
}
