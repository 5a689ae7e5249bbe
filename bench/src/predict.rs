//! What the simulator says that the pager misses, beside what it missed.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

use analysis::routing::RoutingTrace;
use analysis::simulate::{Cache, Capacity, PolicyName, Window, Workload, simulate};
use anyhow::Result;

use crate::protocol::{Outcome, PagedTensor, PagerFacts};

/// What a prediction depends on; the model is the same for all runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    policy: String,
    class_slots: Vec<u32>,
    n_warm_up: usize,
    n_tokens: usize,
}

/// Predictions for runs that replay a trace.
#[derive(Debug)]
pub(crate) struct Predictor {
    trace: RoutingTrace,
    /// Tokens of the trace before the prompt.
    skip: usize,
    n_prompt: usize,
    known: RefCell<HashMap<Key, Option<u64>>>,
}

impl Predictor {
    pub(crate) fn new(routing: &Path, skip: usize, n_prompt: usize) -> Result<Predictor> {
        Ok(Predictor {
            trace: RoutingTrace::open(routing)?,
            skip,
            n_prompt,
            known: RefCell::default(),
        })
    }

    /// Bytes that the pager of a run is to miss while the tokens that count are decoded. The tokens before them, those of the prompt too,
    /// fill the slots one by one. `None` for runs without a pager.
    pub(crate) fn miss_bytes(&self, outcome: &Outcome) -> Option<u64> {
        let facts = outcome.pager.as_ref()?;
        let key = Key {
            policy: facts.policy.clone(),
            class_slots: facts.class_slots.clone(),
            n_warm_up: outcome.warm_up_ns.len(),
            n_tokens: outcome.step_ns.len(),
        };
        if let Some(&known) = self.known.borrow().get(&key) {
            return known;
        }
        let predicted = self.simulate(&key, facts);
        self.known.borrow_mut().insert(key, predicted);
        predicted
    }

    fn simulate(&self, key: &Key, facts: &PagerFacts) -> Option<u64> {
        let window = Window {
            skip: self.skip,
            warmup: self.n_prompt + key.n_warm_up,
            n_tokens: Some(key.n_tokens),
        };
        let policy: PolicyName = key.policy.parse().ok()?;
        let workload = Workload::from_routing(&self.trace, window, None).ok()?;
        let mut layers: Vec<u32> = facts.tensors.iter().map(|tensor| tensor.layer).collect();
        layers.dedup();
        if layers.len() != workload.layers().len() {
            return None;
        }
        let mut miss_bytes = 0;
        // Slots of one size are a cache of their own.
        for (class, n_slots) in (0..).zip(&key.class_slots) {
            let of_class = |layer: u32| {
                let tensors = facts.tensors.iter();
                tensors.filter(move |tensor| tensor.layer == layer && tensor.class == class)
            };
            let sum = |value: fn(&PagedTensor) -> u64| -> Vec<u64> {
                let layers = layers.iter();
                layers
                    .map(|&layer| of_class(layer).map(value).sum())
                    .collect()
            };
            let slots = sum(|_| 1);
            let bytes = sum(|tensor| tensor.slice_bytes);
            let in_slots = workload.clone().with_layer_bytes(&slots);
            let cache = Cache::global(Capacity::Bytes(u64::from(*n_slots)));
            let outcome = simulate(&in_slots, cache, &policy).ok()?;
            let misses = outcome.layers.iter().zip(bytes);
            miss_bytes += misses
                .map(|(counts, bytes)| counts.n_misses() * bytes)
                .sum::<u64>();
        }
        Some(miss_bytes)
    }
}
