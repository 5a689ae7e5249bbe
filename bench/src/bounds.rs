//! `--device-curve`: what the device limits each run's speed to, whatever the engine.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

use ::device_curve::DeviceCurve;
use analysis::roofline::{Conditions, ExpertSizes, Roofline};
use analysis::routing::RoutingTrace;
use analysis::simulate::Window;
use anyhow::{Context as _, Result};

use crate::protocol::Outcome;
use crate::record::DeviceBound;

/// What a bound depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    budget_bytes: Option<u64>,
    n_warm_up: usize,
    n_tokens: usize,
    /// KV cache and compute buffers.
    buffer_bytes: u64,
}

/// What bounds are made of.
#[derive(Debug)]
pub(crate) struct Bounds {
    trace: RoutingTrace,
    sizes: ExpertSizes,
    curve: DeviceCurve,
    dense_bytes: u64,
    /// Tokens of the trace before the first that is decoded: left out, and those of the prompt.
    skip: usize,
    n_prompt: usize,
    /// Runs of a row mostly agree in what their bound depends on.
    known: RefCell<HashMap<Key, Option<DeviceBound>>>,
}

impl Bounds {
    /// Bounds for runs that replay `routing` from token `skip` on.
    pub(crate) fn new(
        curve: &Path,
        routing: &Path,
        (skip, n_prompt): (usize, usize),
        files: &gguf::ModelFiles,
    ) -> Result<Bounds> {
        let name = curve.display();
        let text = fs::read_to_string(curve).with_context(|| name.to_string())?;
        Ok(Bounds {
            trace: RoutingTrace::open(routing)?,
            sizes: ExpertSizes::of(files)?,
            curve: DeviceCurve::from_json(&text).with_context(|| name.to_string())?,
            dense_bytes: files.dense_sparse().dense_bytes,
            skip,
            n_prompt,
            known: RefCell::default(),
        })
    }

    /// For the tokens of a run that count, with the cache as the tokens before them left it. `None` where nothing was
    /// decoded or the budget leaves too few slots for a layer.
    pub(crate) fn of(&self, budget_bytes: Option<u64>, outcome: &Outcome) -> Option<DeviceBound> {
        let n_tokens = outcome.step_ns.len();
        let buffers = outcome.buffers.iter();
        let buffer_bytes = buffers
            .map(|buffer| buffer.context_bytes + buffer.compute_bytes)
            .sum();
        let key = Key {
            budget_bytes,
            n_warm_up: outcome.warm_up_ns.len(),
            n_tokens,
            buffer_bytes,
        };
        if let Some(&bound) = self.known.borrow().get(&key) {
            return bound;
        }
        let bound = self.compute(key);
        self.known.borrow_mut().insert(key, bound);
        bound
    }

    fn compute(&self, key: Key) -> Option<DeviceBound> {
        let window = Window {
            skip: self.skip,
            warmup: self.n_prompt + key.n_warm_up,
            n_tokens: Some(key.n_tokens),
        };
        let workload = self.sizes.workload(&self.trace, window).ok()?;
        let conditions = Conditions {
            other_bytes: self.dense_bytes + key.buffer_bytes,
            request_bytes: self.sizes.slice_bytes_max,
            // Of no influence on what is taken from the bound here.
            in_ram_step_ms: 1.0,
        };
        let roofline = Roofline::new(&workload, &self.curve, conditions).ok()?;
        let bound = roofline.bound(key.budget_bytes).ok()?;
        Some(DeviceBound {
            slot_bytes: bound.slot_bytes,
            miss_bytes_per_token: bound.miss_bytes_per_token,
            device_ms: bound.device_ms,
        })
    }
}
