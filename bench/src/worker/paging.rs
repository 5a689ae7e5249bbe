//! The pager of a run: what it is told, and what it counted.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use llama_rs::Model;
use pager::engine::{EngineChoice, Preference};
use pager::{Budget, CountersSnapshot, Lookahead, Pager, PagerOptions, PolicyName, Replay, Slices};

use crate::protocol::{PagedTensor, PagerCounts, PagerFacts};
use crate::spec::{ReadEngine, TOLD, WorkerSpec};

use super::replay::{Choices, Foretold};

/// What is evicted.
fn policy(spec: &WorkerSpec) -> Result<PolicyName> {
    match &spec.policy {
        Some(name) => Ok(name.parse()?),
        None => Ok(PolicyName::default()),
    }
}

/// What is read ahead.
fn lookahead(spec: &WorkerSpec, choices: Option<&Arc<Choices>>) -> Result<Lookahead> {
    let Some(name) = &spec.lookahead else {
        return Ok(Lookahead::default());
    };
    let Some(probability) = name.strip_prefix(TOLD) else {
        return Ok(name.parse()?);
    };
    let choices = choices.context("a lookahead that is told needs a routing trace")?;
    let foretold = Foretold::new(Arc::clone(choices), probability.parse()?);
    Ok(Lookahead::Told(Arc::new(foretold)))
}

pub(super) fn options(spec: &WorkerSpec, choices: Option<&Arc<Choices>>) -> Result<PagerOptions> {
    let default = Preference::default();
    let reads = &spec.reads;
    Ok(PagerOptions {
        budget: spec.budget_bytes.map_or(Budget::Auto, Budget::Bytes),
        policy: policy(spec)?,
        reads: Preference {
            engine: match reads.engine {
                ReadEngine::Auto => EngineChoice::Auto,
                ReadEngine::Uring => EngineChoice::Uring,
                ReadEngine::Threads => EngineChoice::Threads,
            },
            depth: reads.depth.unwrap_or(default.depth),
            request_bytes_max: reads.request_bytes.unwrap_or(default.request_bytes_max),
            ..default
        },
        lookahead: lookahead(spec, choices)?,
        replay: spec.replay.clone().map_or(Replay::Off, Replay::In),
        ..PagerOptions::default()
    })
}

/// What was planned, and what was counted since `before`.
pub(super) fn facts(
    pager: &Pager,
    before: CountersSnapshot,
    spec: &WorkerSpec,
    model: &Model,
) -> Result<PagerFacts> {
    let plan = pager.plan();
    let counters = pager.counters();
    let slots = plan.slots.iter();
    Ok(PagerFacts {
        plan: serde_json::to_value(plan)?,
        reads: pager.reads().to_string(),
        policy: policy(spec)?.to_string(),
        class_slots: plan.class_slots(),
        slot_bytes: slots
            .map(|class| u64::from(class.n_slots) * class.slot_bytes)
            .sum(),
        tensors: tensors(pager, model)?,
        counted: counts(&counters.since(&before)),
        counters: serde_json::to_value(counters)?,
    })
}

fn tensors(pager: &Pager, model: &Model) -> Result<Vec<PagedTensor>> {
    let slices = Slices::new(model.files()).context("the tables of slices")?;
    let table = pager.plan().pool_slices(&slices);
    let tensor = |stack: &pager::slices::SparseTensor| PagedTensor {
        layer: stack.layer,
        class: table[stack.first.index()].class,
        n_slices: stack.n_slices,
        slice_bytes: stack.slice_bytes,
    };
    Ok(slices.sparse_tensors().iter().map(tensor).collect())
}

fn counts(counters: &CountersSnapshot) -> PagerCounts {
    let total = &counters.total;
    PagerCounts {
        n_hits: total.n_hits,
        n_late: total.n_late,
        n_misses: total.n_misses,
        miss_bytes: total.miss_bytes,
        delivered_bytes: counters.delivered_bytes,
        wasted_bytes: counters.wasted_bytes,
        stall_ns: total.stall_ns + counters.stream.stall_ns,
        repack_ns: counters.repack_ns,
        n_prefetches: counters.n_prefetches,
        n_prefetches_used: counters.n_prefetches_used,
        n_foreseeable: counters.n_foreseeable,
        n_foreseen: counters.n_foreseen,
    }
}
