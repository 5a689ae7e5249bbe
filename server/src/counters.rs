//! What a model has done since the server began, over all its loads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde::Serialize;

use crate::generate::Finished;

/// The numbers while they grow. The model's thread adds; anybody reads. Relaxed: each number is right by itself.
#[derive(Debug, Default)]
pub struct ModelCounters {
    loads: AtomicU64,
    unloads: AtomicU64,
    load_failures: AtomicU64,
    load_ns: AtomicU64,
    requests: AtomicU64,
    cancelled: AtomicU64,
    suspended: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    prompt_ns: AtomicU64,
    generated_tokens: AtomicU64,
    generate_ns: AtomicU64,
    steps: AtomicU64,
    step_tokens: AtomicU64,
    decoding_sequences: AtomicU64,
    step_ns: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    delivered_bytes: AtomicU64,
    stall_ns: AtomicU64,
    saved_states: AtomicU64,
    restored_states: AtomicU64,
    running: Mutex<Vec<RunningSlot>>,
}

/// A request that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunningSlot {
    /// Its sequence in the KV cache.
    pub id: u32,
    /// Tokens of its prompt.
    pub n_prompt: usize,
    /// Those of them that an earlier request had left in the KV cache.
    pub n_cached: usize,
    /// Tokens that are in the KV cache.
    pub n_past: usize,
    /// Tokens that were generated.
    pub n_generated: usize,
}

/// The numbers of one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CountersSnapshot {
    /// Loads that ended well.
    pub loads: u64,
    /// Times that the model left.
    pub unloads: u64,
    /// Loads that failed.
    pub load_failures: u64,
    /// Time of all loads that ended well.
    pub load_ns: u64,
    /// Requests that were computed to their end.
    pub requests: u64,
    /// Requests whose client went away.
    pub cancelled: u64,
    /// Times that a request gave its part of the KV cache up for others.
    pub suspended: u64,
    /// Tokens of prompts that were computed, of requests that were computed to their end.
    pub prompt_tokens: u64,
    /// Tokens of prompts that an earlier request had left in the KV cache, of the same requests.
    pub cached_tokens: u64,
    /// Time from the beginning of a request to its first token, summed over requests.
    pub prompt_ns: u64,
    /// Tokens that were generated.
    pub generated_tokens: u64,
    /// Time from the first token to the last one, summed over requests.
    pub generate_ns: u64,
    /// Batches that were computed.
    pub steps: u64,
    /// Tokens in them.
    pub step_tokens: u64,
    /// Requests that generated, summed over batches.
    pub decoding_sequences: u64,
    /// Time of all batches.
    pub step_ns: u64,
    /// Slices that were in memory when they were needed (pager).
    pub hits: u64,
    /// Slices that had to be read or waited for (pager).
    pub misses: u64,
    /// Bytes that were read for them (pager).
    pub delivered_bytes: u64,
    /// Time that threads waited for them, summed over threads (pager).
    pub stall_ns: u64,
    /// Sequences that were kept in files when the model left.
    pub saved_states: u64,
    /// Requests that began with a sequence from a file.
    pub restored_states: u64,
}

impl ModelCounters {
    /// The requests that run.
    pub fn running(&self) -> Vec<RunningSlot> {
        self.lock_running().clone()
    }

    pub(crate) fn set_running(&self, slots: impl Iterator<Item = RunningSlot>) {
        let mut running = self.lock_running();
        running.clear();
        running.extend(slots);
    }

    /// It is plain data, so it is good after a panic, too.
    fn lock_running(&self) -> MutexGuard<'_, Vec<RunningSlot>> {
        self.running
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn loaded(&self, time: Duration) {
        add(&self.loads, 1);
        add(&self.load_ns, nanoseconds(time));
    }

    pub(crate) fn unloaded(&self) {
        add(&self.unloads, 1);
    }

    pub(crate) fn load_failed(&self) {
        add(&self.load_failures, 1);
    }

    pub(crate) fn stepped(&self, n_tokens: usize, n_decoding: usize, time: Duration) {
        add(&self.steps, 1);
        add(&self.step_tokens, n_tokens as u64);
        add(&self.decoding_sequences, n_decoding as u64);
        add(&self.step_ns, nanoseconds(time));
    }

    pub(crate) fn generated(&self) {
        add(&self.generated_tokens, 1);
    }

    pub(crate) fn finished(&self, finished: &Finished) {
        add(&self.requests, 1);
        add(
            &self.prompt_tokens,
            (finished.n_prompt - finished.n_cached).into(),
        );
        add(&self.cached_tokens, finished.n_cached.into());
        add(&self.prompt_ns, nanoseconds(finished.prompt_time));
        add(&self.generate_ns, nanoseconds(finished.generate_time));
    }

    pub(crate) fn cancelled(&self) {
        add(&self.cancelled, 1);
    }

    pub(crate) fn suspended(&self) {
        add(&self.suspended, 1);
    }

    pub(crate) fn saved(&self, count: u64) {
        add(&self.saved_states, count);
    }

    pub(crate) fn restored(&self) {
        add(&self.restored_states, 1);
    }

    /// Adds what a pager did since the last time.
    pub(crate) fn paged(&self, done: &pager::CountersSnapshot) {
        add(&self.hits, done.total.n_hits);
        add(&self.misses, done.total.n_misses + done.total.n_late);
        add(&self.delivered_bytes, done.delivered_bytes);
        add(&self.stall_ns, done.total.stall_ns);
    }

    /// The numbers now.
    pub fn snapshot(&self) -> CountersSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CountersSnapshot {
            loads: get(&self.loads),
            unloads: get(&self.unloads),
            load_failures: get(&self.load_failures),
            load_ns: get(&self.load_ns),
            requests: get(&self.requests),
            cancelled: get(&self.cancelled),
            suspended: get(&self.suspended),
            prompt_tokens: get(&self.prompt_tokens),
            cached_tokens: get(&self.cached_tokens),
            prompt_ns: get(&self.prompt_ns),
            generated_tokens: get(&self.generated_tokens),
            generate_ns: get(&self.generate_ns),
            steps: get(&self.steps),
            step_tokens: get(&self.step_tokens),
            decoding_sequences: get(&self.decoding_sequences),
            step_ns: get(&self.step_ns),
            hits: get(&self.hits),
            misses: get(&self.misses),
            delivered_bytes: get(&self.delivered_bytes),
            stall_ns: get(&self.stall_ns),
            saved_states: get(&self.saved_states),
            restored_states: get(&self.restored_states),
        }
    }
}

impl CountersSnapshot {
    /// Share of the slices that were in memory when they were needed, 0 to 1; `None` if none was needed.
    pub fn hit_rate(&self) -> Option<f64> {
        match self.hits + self.misses {
            0 => None,
            requests => Some(self.hits as f64 / requests as f64),
        }
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
