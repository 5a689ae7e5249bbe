//! Which slice gives way.

use std::fmt;
use std::str::FromStr;

use forecast::NextUse;

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

/// Least frequently used, counted since the beginning, also while a slice is not in the cache.
#[derive(Clone, Debug)]
pub struct Lfu {
    counts: Vec<f64>,
}

impl Lfu {
    /// No slice was used yet.
    pub fn new(workload: &Workload) -> Lfu {
        Lfu {
            counts: vec![0.0; workload.slices().len()],
        }
    }
}

impl Policy for Lfu {
    fn access(&mut self, access: &Access) {
        self.counts[access.slice] += 1.0;
    }

    fn value(&self, slice: usize) -> f64 {
        self.counts[slice]
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
    /// No slice was used yet. `decay` is more than 0 and at most 1.
    pub fn new(workload: &Workload, decay: f64) -> DecayedLfu {
        DecayedLfu {
            counts: vec![0.0; workload.slices().len()],
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

    fn access(&mut self, access: &Access) {
        self.counts[access.slice] += self.increment;
    }

    fn value(&self, slice: usize) -> f64 {
        self.counts[slice]
    }
}

/// How often a slice was used lately, as a weighted sum of a short and a long memory: a text uses some
/// experts throughout, and what the last few tokens used a little more than that.
///
/// Each memory is an exponential average of whether a token used the slice, 0 to 1.
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
    /// What had fewest misses on real traces; see `docs/policies.md`.
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
    pub fn new(workload: &Workload, mix: Mix) -> MixedLfu {
        MixedLfu {
            mix,
            rates: vec![[0.0; 2]; workload.slices().len()],
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

    fn access(&mut self, access: &Access) {
        let [short, long] = &mut self.rates[access.slice];
        *short += 1.0 - self.mix.short_decay;
        *long += 1.0 - self.mix.long_decay;
    }

    fn value(&self, slice: usize) -> f64 {
        let [short, long] = self.rates[slice];
        self.mix.short_share * short + (1.0 - self.mix.short_share) * long
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

/// A policy as the user writes it: `lru`, `lfu`, `lfu-decay:0.99`, `lfu-mix`, `lfu-mix:0.7:0.97:0.2`,
/// `next-use`, `belady`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PolicyName {
    /// [`Lru`].
    Lru,
    /// [`Lfu`].
    Lfu,
    /// [`DecayedLfu`] with this decay per token.
    LfuDecay(f64),
    /// [`MixedLfu`] with short decay, long decay and the share of the short one.
    LfuMix(Mix),
    /// [`ExpectedUse`].
    NextUse,
    /// [`Belady`].
    Belady,
}

impl fmt::Display for PolicyName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PolicyName::Lru => formatter.write_str("lru"),
            PolicyName::Lfu => formatter.write_str("lfu"),
            PolicyName::LfuDecay(decay) => write!(formatter, "lfu-decay:{decay}"),
            PolicyName::LfuMix(mix) => write!(
                formatter,
                "lfu-mix:{}:{}:{}",
                mix.short_decay, mix.long_decay, mix.short_share
            ),
            PolicyName::NextUse => formatter.write_str("next-use"),
            PolicyName::Belady => formatter.write_str("belady"),
        }
    }
}

impl FromStr for PolicyName {
    type Err = SimulateError;

    fn from_str(text: &str) -> Result<PolicyName, SimulateError> {
        let error = |problem: &str| SimulateError::Policy {
            text: text.to_owned(),
            problem: problem.to_owned(),
        };
        match text {
            "lru" => return Ok(PolicyName::Lru),
            "lfu" => return Ok(PolicyName::Lfu),
            "lfu-mix" => return Ok(PolicyName::LfuMix(Mix::default())),
            "next-use" => return Ok(PolicyName::NextUse),
            "belady" => return Ok(PolicyName::Belady),
            _ => {}
        }
        if let Some(numbers) = text.strip_prefix("lfu-mix:") {
            return match numbers.split(':').map(str::parse).collect::<Vec<_>>()[..] {
                [Ok(short_decay), Ok(long_decay), Ok(short_share)]
                    if (1e-3..1.0).contains(&short_decay)
                        && (short_decay..1.0).contains(&long_decay)
                        && (0.0..=1.0).contains(&short_share) =>
                {
                    Ok(PolicyName::LfuMix(Mix {
                        short_decay,
                        long_decay,
                        short_share,
                    }))
                }
                _ => Err(error(
                    "its numbers are a short decay and a longer one, 0.001 to less than 1, and the share of the short \
                     one, 0 to 1, as in lfu-mix:0.7:0.97:0.2",
                )),
            };
        }
        let Some(decay) = text.strip_prefix("lfu-decay:") else {
            return Err(error(
                "there are lru, lfu, lfu-decay:0.99, lfu-mix, next-use and belady",
            ));
        };
        match decay.parse::<f64>() {
            Ok(decay) if (1e-3..=1.0).contains(&decay) => Ok(PolicyName::LfuDecay(decay)),
            _ => Err(error(
                "the decay per token is a number from 0.001 to 1, as in lfu-decay:0.99",
            )),
        }
    }
}
