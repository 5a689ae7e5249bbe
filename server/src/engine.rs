//! What loads models and computes with them, as the host sees it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;

use crate::config::ModelConfig;
use crate::counters::ModelCounters;
use crate::generate::Job;
use crate::memory::MappedFile;

/// Loads a model, and serves requests with it until it is told to end. The one implementation outside of tests is
/// [`LlamaEngine`](crate::llama::LlamaEngine).
pub trait Engine: Send + Sync + 'static {
    /// Bytes that a model will hold, at most, as far as that can be told without loading it.
    ///
    /// # Errors
    ///
    /// A sentence that names the file, if it cannot be a model.
    fn need_bytes(&self, model: &ModelConfig) -> Result<u64, String>;

    /// Loads the model, calls [`Session::ready`], and serves the session's jobs until there are no more. Runs on a thread of its
    /// own, which is the only one that computes with the model; when it returns, the model's memory is free.
    ///
    /// # Errors
    ///
    /// Why it could not be loaded or served. `Ok` before [`Session::ready`] is an error of the engine.
    fn run(&self, model: &ModelConfig, session: &Session) -> Result<(), Ended>;
}

/// Why a model's thread ended before it was told to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Something is wrong; a pause comes before the next attempt.
    Failed(String),
    /// It cannot serve any more, and that is no failure of it: its file was written to, or the server ends. The next request
    /// loads it again.
    Gone(String),
}

/// A loaded model, as listings show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Architecture, size and type in one line.
    pub description: String,
    /// Its files.
    pub files: Vec<MappedFile>,
    /// Bytes of weights: mapped, copied, or in the pager's slots.
    pub weights_bytes: u64,
    /// Bytes of the KV cache.
    pub kv_bytes: u64,
    /// Bytes for intermediate results.
    pub compute_bytes: u64,
    /// Bytes of the copy that a state may take when it is written to a file or read from one, at most.
    pub state_bytes: u64,
    /// Bytes of all these that are in mappings of the files, where the kernel decides what is in memory.
    pub mapped_bytes: u64,
    /// The model's own budget, if it has one.
    pub budget_bytes: Option<u64>,
    /// Tokens of the KV cache.
    pub n_ctx: u32,
    /// Tokens that the model was trained for.
    pub n_ctx_train: u32,
    /// Its chat template.
    pub chat_template: Option<String>,
}

impl Holding {
    /// Bytes that count in the server's budget.
    pub fn held_bytes(&self) -> u64 {
        let all = self.weights_bytes + self.kv_bytes + self.compute_bytes;
        self.budget_bytes.map_or(all, |budget| budget.max(all)) + self.state_bytes
    }
}

/// What a model's thread and the host tell each other.
pub struct Session {
    pub(crate) jobs: Receiver<Job>,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) abort: Arc<AtomicBool>,
    pub(crate) counters: Arc<ModelCounters>,
    pub(crate) on_progress: Box<dyn Fn(f32) + Send>,
    pub(crate) on_ready: Box<dyn Fn(Holding) + Send>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("stop", &self.stop)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Tells how much is loaded, 0 to 1. `Break`: nobody wants the model any more.
    pub fn progress(&self, fraction: f32) -> ControlFlow<()> {
        (self.on_progress)(fraction);
        match self.stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// Tells that the model is loaded. To be called once.
    pub fn ready(&self, holding: Holding) {
        (self.on_ready)(holding);
    }

    /// The next job, as soon as there is one; `None`: the model is to leave.
    pub fn wait(&self) -> Option<Job> {
        self.jobs.recv().ok()
    }

    /// The next job, if there is one.
    pub fn try_next(&self) -> Option<Job> {
        // A channel that is closed is noticed by `wait`.
        self.jobs.try_recv().ok()
    }

    /// Becomes true when whatever is computed is not wanted any more: the server ends and does not wait longer.
    pub fn abort(&self) -> &Arc<AtomicBool> {
        &self.abort
    }

    /// Where to count.
    pub fn counters(&self) -> &ModelCounters {
        &self.counters
    }
}
