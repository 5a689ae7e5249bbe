//! What a worker process is told.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{FlashAttn, Mode};

/// What a worker process is told, as JSON in its argument list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WorkerSpec {
    pub(crate) model: PathBuf,
    pub(crate) mode: Mode,
    /// For the pager; without it, the pager takes what is free.
    pub(crate) budget_bytes: Option<u64>,
    pub(crate) repack: bool,
    pub(crate) advise: bool,
    /// Tokens of a prompt.
    pub(crate) n_prompt: u32,
    /// Prompts one after the other, each with an emptied KV cache; the last one counts.
    pub(crate) n_prompts: u32,
    /// Most tokens between the prompt and those that count.
    pub(crate) n_warm_up: u32,
    /// Most tokens that count.
    pub(crate) n_gen: u32,
    /// No further token of the warm-up, or of those that count, is begun when those before it have taken this long together.
    pub(crate) decode_limit_ns: Option<u64>,
    pub(crate) n_batch: u32,
    pub(crate) n_ubatch: u32,
    pub(crate) n_threads: u32,
    pub(crate) flash_attn: FlashAttn,
    pub(crate) tokens: TokenSource,
    pub(crate) routing: Option<Routing>,
    /// Look at every expert that is read, and fail unless all are those of the routing trace. For a run that is not measured.
    pub(crate) check_routing: bool,
    /// The `cgroup.procs` file that the worker writes itself into before it loads anything.
    pub(crate) cgroup_procs: Option<PathBuf>,
    /// What the pager evicts, by name; `None`: its default.
    pub(crate) policy: Option<String>,
    /// What the pager reads ahead, by name: the pager's, or `told:P`; `None`: its default.
    pub(crate) lookahead: Option<String>,
    /// Where the pager finds what an earlier run needed, and keeps what this one does; `None`: it does neither.
    pub(crate) replay: Option<PathBuf>,
    pub(crate) reads: Reads,
}

/// How the pager reads. `None` is its default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Reads {
    pub(crate) engine: ReadEngine,
    /// Requests at a time.
    pub(crate) depth: Option<u16>,
    /// Larger reads are split.
    pub(crate) request_bytes: Option<u32>,
}

/// Which engine reads for the pager.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ReadEngine {
    /// `io_uring`, and threads where it is refused.
    #[default]
    Auto,
    Uring,
    Threads,
}

/// Whose experts are used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Routing {
    /// The model's own. The computation is interrupted in the same places as with a trace, whose cost this shows.
    Own,
    /// Those of a trace.
    Trace(Window),
}

/// The part of a routing trace that a run uses, as a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Window {
    /// u8 `[tokens][layers][n_used]`: experts, the best first.
    pub(crate) file: PathBuf,
    /// The model's layers that have experts, ascending.
    pub(crate) layers: Vec<u32>,
    pub(crate) n_used: usize,
}

/// Where the tokens that are fed to the model come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TokenSource {
    /// A fixed text as prompt, then the most likely token of every step. Logits are fingerprinted.
    Greedy,
    /// What llama-bench feeds: its warm-up step, then the C library's unseeded `rand()`. Nothing is sampled and logits
    /// are not looked at, as in llama-bench.
    LlamaBench,
    /// Nowhere: the model is loaded, what a pager plans is planned, and nothing is computed.
    Nowhere,
}
