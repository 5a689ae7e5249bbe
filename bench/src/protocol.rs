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
    /// Duration of each single-token decode. Sampling and fingerprints are outside.
    pub(crate) step_ns: Vec<u64>,
    /// Duration of the whole decode loop; equals llama-bench's measure with [`TokenSource::LlamaBench`].
    ///
    /// [`TokenSource::LlamaBench`]: crate::spec::TokenSource::LlamaBench
    pub(crate) decode_loop_ns: u64,
    /// SHA-256 of the token ids and of the logits of every step, 16 hex digits each; `None` when logits were not read.
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) resident_after_load: ByClass,
    pub(crate) resident_end: ByClass,
    /// Context size in tokens, after llama.cpp's rounding.
    pub(crate) n_ctx: u32,
    /// What `Advise` counted, by its own names.
    pub(crate) advise: Option<serde_json::Value>,
    /// llama.cpp's own account of its buffers.
    pub(crate) buffers: Vec<BufferFacts>,
}

/// Rows with equal arithmetic must agree on this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fingerprint {
    pub(crate) tokens: String,
    pub(crate) logits: String,
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
    /// First 12 hex digits of the digest of the patch series.
    pub(crate) patch_set_digest: String,
    pub(crate) cpu_features: String,
}

/// One of llama.cpp's buffers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BufferFacts {
    pub(crate) name: String,
    pub(crate) model_bytes: u64,
    pub(crate) context_bytes: u64,
    pub(crate) compute_bytes: u64,
}
