//! The speed that no engine exceeds within a budget of memory.
//!
//! A token takes at least as long as its computation takes with all weights in memory, and at least as long as the
//! device takes to read what even Belady's policy misses. Where both overlap perfectly, the longer of the two is left:
//!
//! ```text
//! tokens/s <= 1 / max(step in memory, Belady's miss bytes per token / rate of the device)
//! ```
//!
//! The device's rate is the fastest of its curve for requests up to the size of a slice, at any depth: an engine may
//! divide slices. The bound is of means over the tokens of a workload; reads may thus be made tokens ahead.
//!
//! Three limits of it. The cache starts empty, so over few tokens most misses are first uses, which an engine that fills
//! its slots while it loads does not have: count after a warm-up. Belady's policy misses fewest bytes where all slices
//! have the same size, and nearly so where sizes are similar. The rates are those of the curve: a device that was slower
//! then gives a bound that can be exceeded.

mod error;
mod model;

pub use error::RooflineError;
pub use model::ExpertSizes;

use device_curve::{DeviceCurve, Fastest};
use serde::Serialize;

use crate::simulate::{Cache, Capacity, PolicyName, Workload, simulate};

/// What a model and a machine need beside slots for slices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// Memory of a budget that is not for slots: dense tensors, KV cache, compute buffers.
    pub other_bytes: u64,
    /// The most that is read at once: a slice of one tensor.
    pub request_bytes: u64,
    /// One token, all weights in memory.
    pub in_ram_step_ms: f64,
}

/// Bounds for budgets.
#[derive(Debug)]
pub struct Roofline<'a> {
    workload: &'a Workload,
    device: Fastest,
    conditions: Conditions,
}

/// What limits a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// Computing takes longer than reading.
    Compute,
    /// Reading takes longer than computing.
    Device,
}

/// The bound for one budget.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bound {
    /// The budget; `None`: all weights are in memory, and nothing is read.
    pub budget_bytes: Option<u64>,
    /// What of it is for slots.
    pub slot_bytes: Option<u64>,
    /// What Belady's policy misses in a pool of that size that all layers share.
    pub miss_bytes_per_token: f64,
    /// Share of the uses that hit in it, in per cent.
    pub hit_percent: f64,
    /// The device's rate.
    pub device_bytes_per_s: f64,
    /// Reading for one token.
    pub device_ms: f64,
    /// Computing one token.
    pub in_ram_step_ms: f64,
    /// The bound: reading and computing overlap.
    pub tokens_per_s: f64,
    /// For information: one after the other.
    pub tokens_per_s_serial: f64,
    /// Which of the two it is.
    pub limit: Limit,
}

impl<'a> Roofline<'a> {
    /// Bounds of what a workload reads, on a device.
    ///
    /// # Errors
    ///
    /// [`RooflineError::NoSizes`] where the workload does not know the sizes of its slices,
    /// [`RooflineError::Conditions`] for a step or a request of no length.
    pub fn new(
        workload: &'a Workload,
        curve: &DeviceCurve,
        conditions: Conditions,
    ) -> Result<Roofline<'a>, RooflineError> {
        if !workload.has_sizes() {
            return Err(RooflineError::NoSizes);
        }
        let step_ms = conditions.in_ram_step_ms;
        if !(step_ms.is_finite() && step_ms > 0.0) || conditions.request_bytes == 0 {
            return Err(RooflineError::Conditions {
                in_ram_step_ms: step_ms,
                request_bytes: conditions.request_bytes,
            });
        }
        Ok(Roofline {
            workload,
            device: curve.fastest(conditions.request_bytes),
            conditions,
        })
    }

    /// The rate that the bounds are made with, and the requests that have it.
    pub fn device(&self) -> Fastest {
        self.device
    }

    /// The bound for a budget, in bytes; `None`: all weights are in memory.
    ///
    /// # Errors
    ///
    /// [`RooflineError::Budget`] where no slots are left, or too few for one layer of a token.
    pub fn bound(&self, budget_bytes: Option<u64>) -> Result<Bound, RooflineError> {
        let Some(budget_bytes) = budget_bytes else {
            return Ok(self.with_misses(None, None, 0.0, 100.0));
        };
        let slot_bytes = budget_bytes.saturating_sub(self.conditions.other_bytes);
        let cache = Cache::global(Capacity::Bytes(slot_bytes));
        let outcome = simulate(self.workload, cache, &PolicyName::Belady).map_err(|source| {
            RooflineError::Budget {
                budget_bytes,
                other_bytes: self.conditions.other_bytes,
                source,
            }
        })?;
        let n_tokens = self.workload.n_tokens() - self.workload.n_warmup();
        Ok(self.with_misses(
            Some(budget_bytes),
            Some(slot_bytes),
            outcome.total.miss_bytes as f64 / n_tokens as f64,
            100.0 * outcome.total.hit_rate(),
        ))
    }

    fn with_misses(
        &self,
        budget_bytes: Option<u64>,
        slot_bytes: Option<u64>,
        miss_bytes_per_token: f64,
        hit_percent: f64,
    ) -> Bound {
        let compute_ms = self.conditions.in_ram_step_ms;
        let device_ms = 1e3 * miss_bytes_per_token / self.device.bytes_per_s;
        Bound {
            budget_bytes,
            slot_bytes,
            miss_bytes_per_token,
            hit_percent,
            device_bytes_per_s: self.device.bytes_per_s,
            device_ms,
            in_ram_step_ms: compute_ms,
            tokens_per_s: 1e3 / compute_ms.max(device_ms),
            tokens_per_s_serial: 1e3 / (compute_ms + device_ms),
            limit: if device_ms > compute_ms {
                Limit::Device
            } else {
                Limit::Compute
            },
        }
    }
}

/// What a row of results has to say for its share of the bound.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowInputs {
    /// The row's budget; `None`: it had no limit.
    pub budget_bytes: Option<u64>,
    /// Its decode speed; `None`: it has none.
    pub tokens_per_s: Option<f64>,
}

/// A measured speed beside its bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    /// Measured speed divided by the bound. More than 1 where the curve or the step that the bound was made with were
    /// slower than those of the run, or where its slots were filled before (see [the module](self)).
    pub share: f64,
    /// The bound.
    pub bound: Bound,
}

/// The share of the bound that a row reached; `None` for a row without a speed, and where no bound can be given for its
/// budget.
pub fn share_of_bound(roofline: &Roofline<'_>, row: &RowInputs) -> Option<Share> {
    let measured = row.tokens_per_s?;
    if !(measured.is_finite() && measured > 0.0) {
        return None;
    }
    let bound = roofline.bound(row.budget_bytes).ok()?;
    Some(Share {
        share: measured / bound.tokens_per_s,
        bound,
    })
}
