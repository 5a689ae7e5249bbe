//! What a worker tells its parent: one JSON object a line on the worker's standard output.
//!
//! Times are CLOCK_MONOTONIC nanoseconds, which parent and worker share. A worker spends time on looking at itself
//! (`mincore` over the model, fingerprints of the logits); every mark carries how much so far, and the parent subtracts
//! it.

use serde::{Deserialize, Serialize};

use crate::residency::ByClass;

/// One line from the worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// A point of the run was reached.
    Mark(Mark),
    /// The run is complete. The worker waits for a line on its standard input before it exits, so that the parent can
    /// read its memory figures.
    Done(Box<Outcome>),
    /// The run failed; the worker exits with status 2.
    Error {
        /// The cause, with its context.
        message: String,
    },
}

/// Points of a run, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Point {
    /// The worker's `main` began.
    Start,
    /// The model's load call returned.
    Loaded,
    /// The prompt is computed and the first token chosen.
    FirstToken,
    /// The 16th token is chosen.
    Token16,
    /// The warm-up is over: tokens count from here.
    Counted,
    /// The last token is computed.
    End,
}

/// The worker's counters at one point.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) point: Point,
    /// CLOCK_MONOTONIC.
    pub(crate) at_ns: u64,
    /// Time spent on looking at itself, from the start to this point.
    pub(crate) probe_ns: u64,
    /// Bytes this process caused to be fetched from storage (`/proc/self/io`), where the kernel counts them.
    pub(crate) read_bytes: Option<u64>,
    /// Page faults that needed I/O.
    pub(crate) faults_major: u64,
    /// Page faults served from memory, without those of the worker's own looking.
    pub(crate) faults_minor: u64,
}

/// What a complete run found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) model: ModelFacts,
    pub(crate) build: BuildFacts,
    /// Duration of the model's load call.
    pub(crate) load_ns: u64,
    /// Duration of the prompt's decode calls; `None` without a prompt.
    pub(crate) prompt_ns: Option<u64>,
    /// Duration of each single-token decode before those that count.
    #[serde(default)]
    pub(crate) warm_up_ns: Vec<u64>,
    /// Duration of each single-token decode that counts. Sampling and fingerprints are outside.
    pub(crate) step_ns: Vec<u64>,
    /// Counters of the same decodes.
    #[serde(default)]
    pub(crate) steps: StepCounters,
    /// Duration of the whole decode loop; equals llama-bench's measure with [`TokenSource::LlamaBench`].
    ///
    /// [`TokenSource::LlamaBench`]: crate::spec::TokenSource::LlamaBench
    pub(crate) decode_loop_ns: u64,
    /// SHA-256 of the token ids and of the logits of every step, 16 hex digits each; `None` when logits were not read.
    pub(crate) fingerprint: Option<Fingerprint>,
    /// Pages of the model in the page cache; `None` from a program that does not look.
    pub(crate) resident_after_load: Option<ByClass>,
    pub(crate) resident_end: Option<ByClass>,
    /// Expert reads that were compared with the routing trace, where that was asked for.
    pub(crate) routing_checked: Option<u64>,
    /// Context size in tokens, after llama.cpp's rounding.
    pub(crate) n_ctx: u32,
    /// What `Advise` counted, by its own names.
    pub(crate) advise: Option<serde_json::Value>,
    /// The pager's plan and what it counted.
    #[serde(default)]
    pub(crate) pager: Option<PagerFacts>,
    /// llama.cpp's own account of its buffers.
    pub(crate) buffers: Vec<BufferFacts>,
}

/// What each step did, by step; empty lists where nobody looked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StepCounters {
    /// CPU time of all threads. What is missing to threads x duration they slept: for pages, or for a thread that did.
    pub(crate) cpu_ns: Vec<u64>,
    /// Bytes that the process caused to be fetched from storage; empty where the kernel does not count them.
    pub(crate) read_bytes: Vec<u64>,
    pub(crate) faults_major: Vec<u64>,
    pub(crate) faults_minor: Vec<u64>,
}

/// What the pager planned and did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PagerFacts {
    /// Its memory plan, by its own names.
    pub(crate) plan: serde_json::Value,
    /// How it read, in its own words.
    pub(crate) reads: String,
    pub(crate) policy: String,
    /// Slots of each class, the first class first.
    pub(crate) class_slots: Vec<u32>,
    /// Memory of all slots.
    pub(crate) slot_bytes: u64,
    /// The tensors whose slices are in slots.
    pub(crate) tensors: Vec<PagedTensor>,
    /// Counters of the whole run, by their own names.
    pub(crate) counters: serde_json::Value,
    /// What was counted while the tokens that count were decoded.
    pub(crate) counted: PagerCounts,
}

/// A tensor with experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PagedTensor {
    pub(crate) layer: u32,
    /// The class of its slots.
    pub(crate) class: u32,
    pub(crate) n_slices: u32,
    pub(crate) slice_bytes: u64,
}

/// Counters of the pager, sums over all layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PagerCounts {
    /// Slices that were in a slot when they were needed.
    pub(crate) n_hits: u64,
    /// Slices that were on their way.
    pub(crate) n_late: u64,
    /// Slices that had to be read.
    pub(crate) n_misses: u64,
    /// Bytes of the slices that had to be read.
    pub(crate) miss_bytes: u64,
    /// Bytes that reads brought in, page rounding included.
    pub(crate) delivered_bytes: u64,
    /// Bytes that were read ahead and never used.
    pub(crate) wasted_bytes: u64,
    /// Time that threads waited for reads, summed over the threads.
    pub(crate) stall_ns: u64,
    /// Time that threads repacked what they waited for, summed over the threads.
    #[serde(default)]
    pub(crate) repack_ns: u64,
    /// Slices that were read ahead, and those of them that were used.
    #[serde(default)]
    pub(crate) n_prefetches: u64,
    #[serde(default)]
    pub(crate) n_prefetches_used: u64,
    /// Picks of routers that were computed in advance, and those of them that were foreseen.
    #[serde(default)]
    pub(crate) n_foreseeable: u64,
    #[serde(default)]
    pub(crate) n_foreseen: u64,
}

/// Rows with equal arithmetic must agree on this, as far as both have computed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fingerprint {
    pub(crate) tokens: String,
    pub(crate) logits: String,
    /// The digest of the logits so far after each step, so that runs of different lengths can be compared.
    #[serde(default)]
    pub(crate) after: Vec<String>,
}

impl Fingerprint {
    /// What differs in the steps that both have computed.
    pub(crate) fn difference(&self, other: &Fingerprint) -> Option<&'static str> {
        let both = self.after.len().min(other.after.len());
        if self.after[..both].last() == other.after[..both].last() {
            return None;
        }
        let tokens_differ = self.after.len() == other.after.len() && self.tokens != other.tokens;
        Some(if tokens_differ { "tokens" } else { "logits" })
    }
}

/// What llama.cpp says about the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ModelFacts {
    /// `llama_model_desc`, such as `gpt-oss 20B MXFP4 MoE`.
    pub(crate) description: String,
    /// Bytes of all tensors.
    pub(crate) size_bytes: u64,
    pub(crate) n_params: u64,
    pub(crate) n_vocab: u32,
    pub(crate) n_layer: u32,
}

/// What was built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BuildFacts {
    /// Upstream's build, such as `b12032`.
    pub(crate) llama_build: String,
    pub(crate) ggml_version: String,
    /// First 12 hex digits of the digest of the patch series; empty without patches.
    pub(crate) patch_set_digest: String,
    pub(crate) cpu_features: String,
}

impl BuildFacts {
    /// Build and patches: `b12032+0123456789ab`.
    pub(crate) fn commit(&self) -> String {
        if self.patch_set_digest.is_empty() {
            self.llama_build.clone()
        } else {
            format!("{}+{}", self.llama_build, self.patch_set_digest)
        }
    }
}

/// One of llama.cpp's buffers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BufferFacts {
    pub(crate) name: String,
    pub(crate) model_bytes: u64,
    pub(crate) context_bytes: u64,
    pub(crate) compute_bytes: u64,
}
