//! The engine: llama.cpp, with the pager where the configuration says so.

mod decoder;
mod need;
mod probabilities;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use llama_rs::{
    Advise, Backend, Context, ContextParams, Error, LoadMode, Model, ModelParams, Prefetch,
};
use pager::{PagedModel, Pager, PagerError, PagerOptions, Replay};

use crate::config::{ModelConfig, PrefetchMode};
use crate::engine::{Ended, Engine, Holding, Session};
use crate::generate::{Batcher, Failure};
use crate::memory::{self, MappedFile, PageCache};
use crate::states::States;

use decoder::LlamaDecoder;

/// Most tokens that are computed at once: llama.cpp's default for a ubatch, and what `faultline run` uses.
const BATCH_TOKENS: u32 = 512;

/// For writing the states of sequences when a model leaves: another one may wait for its room.
const SAVE_TIME_MAX: Duration = Duration::from_secs(2);

/// Loads models with llama.cpp, mapped or in the pager's memory.
#[derive(Clone, Debug)]
pub struct LlamaEngine {
    backend: Backend,
}

impl LlamaEngine {
    /// Initialises llama.cpp, and sees to it that what models free goes back to the system.
    pub fn new() -> LlamaEngine {
        memory::map_large_blocks();
        LlamaEngine {
            backend: Backend::init(),
        }
    }
}

impl Default for LlamaEngine {
    fn default() -> LlamaEngine {
        LlamaEngine::new()
    }
}

/// A loaded model, in whose memory ever.
enum Loaded {
    Mapped(Box<Model>),
    Paged(Box<PagedModel>),
}

impl Loaded {
    fn model(&self) -> &Model {
        match self {
            Loaded::Mapped(model) => model,
            Loaded::Paged(paged) => paged.model(),
        }
    }
}

impl Engine for LlamaEngine {
    fn need_bytes(&self, config: &ModelConfig) -> Result<u64, String> {
        need::bytes(config)
    }

    fn run(&self, config: &ModelConfig, session: &Session) -> Result<(), Ended> {
        // Before loading: whoever replaces a file later is noticed.
        let files = files(config).map_err(Ended::Failed)?;
        let page_cache = PageCache::before_load(&files);
        let result = self.serve(config, session, &files);
        // The model is gone, so nothing of this process holds the pages.
        page_cache.give_back();
        result
    }
}

/// The files of a model, without links.
fn files(config: &ModelConfig) -> Result<Vec<MappedFile>, String> {
    let model = gguf::ModelFiles::open(&config.path).map_err(|error| error.to_string())?;
    let file = |part: &gguf::Gguf| {
        MappedFile::of(part.path()).map_err(|error| format!("{}: {error}", part.path().display()))
    };
    model.parts.iter().map(file).collect()
}

impl LlamaEngine {
    fn serve(
        &self,
        config: &ModelConfig,
        session: &Session,
        files: &[MappedFile],
    ) -> Result<(), Ended> {
        let loaded = self.load(config, session).map_err(Ended::Failed)?;
        if config.use_mlock {
            lock(files).map_err(Ended::Failed)?;
        }
        let model = loaded.model();
        let params = context_params(config, model);
        let mut context = Context::new(model, &params).map_err(failed)?;
        context.set_abort(session.abort().clone());
        let pager = match &loaded {
            Loaded::Paged(paged) => Some(paged.attach(&mut context).map_err(failed)?),
            Loaded::Mapped(model) => {
                if config.prefetch == PrefetchMode::Mapped(Prefetch::Selective) {
                    let advise = Advise::new(model).map_err(failed)?;
                    context.set_slice_provider(advise).map_err(failed)?;
                }
                None
            }
        };
        let mut holding = holding(&context, pager.as_ref(), files).map_err(failed)?;
        holding.state_bytes = config.keep_state_bytes.min(holding.kv_bytes);
        let decoder = LlamaDecoder::new(context, config.concurrency_limit);
        session.ready(holding);
        let states = States::of(config, files);
        let batcher = Batcher::new(decoder, session.counters(), config.cache_prompt, states);
        serve_jobs(session, batcher, pager.as_ref())
    }

    fn load(&self, config: &ModelConfig, session: &Session) -> Result<Loaded, String> {
        let params = ModelParams {
            repack: config.repack,
            prefetch: match config.prefetch {
                PrefetchMode::Mapped(prefetch) => prefetch,
                PrefetchMode::Pager => Prefetch::Selective,
            },
            load_mode: LoadMode::Mmap,
            ..ModelParams::default()
        };
        let progress = |fraction| session.progress(fraction);
        match config.prefetch {
            PrefetchMode::Mapped(_) => {
                let model = Model::load_with(&self.backend, &config.path, &params, progress);
                Ok(Loaded::Mapped(Box::new(
                    model.map_err(|error| error.to_string())?,
                )))
            }
            PrefetchMode::Pager => {
                let options = PagerOptions {
                    budget: config.budget.unwrap_or_default(),
                    // Other models and the server itself are not this model's.
                    process_bytes: Some(0),
                    replay: match config.replay {
                        true => Replay::in_cache(),
                        false => Replay::Off,
                    },
                    ..PagerOptions::default()
                };
                let paged =
                    PagedModel::load_with(&self.backend, &config.path, &params, options, progress);
                Ok(Loaded::Paged(Box::new(
                    paged.map_err(|error: PagerError| error.to_string())?,
                )))
            }
        }
    }
}

fn failed(error: impl std::fmt::Display) -> Ended {
    Ended::Failed(error.to_string())
}

fn lock(files: &[MappedFile]) -> Result<(), String> {
    memory::lock(files).map(drop).map_err(|error| {
        format!("use_mlock: its pages cannot be locked in memory: {error}; raise RLIMIT_MEMLOCK (ulimit -l)")
    })
}

fn context_params(config: &ModelConfig, model: &Model) -> ContextParams {
    let n_threads = config.n_threads.unwrap_or_else(llama_rs::default_threads);
    ContextParams {
        n_ctx: config.context_tokens(model.n_ctx_train()),
        n_batch: BATCH_TOKENS,
        n_ubatch: BATCH_TOKENS,
        n_seq_max: config.concurrency_limit,
        kv_unified: true,
        n_outputs_max: config.concurrency_limit,
        n_threads,
        n_threads_batch: n_threads,
        ..ContextParams::default()
    }
}

/// llama.cpp's name for buffers in mappings of the model files.
const MAPPED_BUFFER: &str = "CPU_Mapped";

fn holding(
    context: &Context<'_>,
    pager: Option<&Pager>,
    files: &[MappedFile],
) -> Result<Holding, Error> {
    let model = context.model();
    let buffers = context.memory_breakdown()?;
    let mapped = buffers.iter().filter(|buffer| buffer.name == MAPPED_BUFFER);
    let mapped_bytes = match pager {
        Some(_) => 0,
        None => mapped.map(|buffer| buffer.model_bytes).sum(),
    };
    let weights_bytes = match pager {
        // Of the plan all but what the context needs.
        Some(pager) => {
            let plan = pager.plan();
            let others = buffers
                .iter()
                .map(|buffer| buffer.context_bytes + buffer.compute_bytes);
            (plan.budget_bytes - plan.unused_bytes()).saturating_sub(others.sum())
        }
        None => buffers.iter().map(|buffer| buffer.model_bytes).sum(),
    };
    Ok(Holding {
        description: model.desc(),
        files: files.to_vec(),
        weights_bytes,
        kv_bytes: buffers.iter().map(|buffer| buffer.context_bytes).sum(),
        compute_bytes: buffers.iter().map(|buffer| buffer.compute_bytes).sum(),
        state_bytes: 0,
        mapped_bytes,
        budget_bytes: pager.map(|pager| pager.plan().budget_bytes),
        n_ctx: context.n_ctx_seq(),
        n_ctx_train: model.n_ctx_train(),
        chat_template: model.chat_template(),
    })
}

/// Computes until there are no more jobs.
fn serve_jobs(
    session: &Session,
    mut batcher: Batcher<'_, LlamaDecoder<'_>>,
    pager: Option<&Pager>,
) -> Result<(), Ended> {
    let counters = session.counters();
    let mut counted = pager::CountersSnapshot::default();
    let mut count = || {
        if let Some(pager) = pager {
            let now = pager.counters();
            counters.paged(&now.since(&counted));
            counted = now;
        }
    };
    let is_aborted = || session.abort().load(Ordering::Relaxed);
    loop {
        if batcher.is_idle() {
            counters.set_running(std::iter::empty());
            count();
            match session.wait() {
                Some(job) => batcher.push(job),
                None => {
                    let deadline = Instant::now() + SAVE_TIME_MAX;
                    batcher.leave(&|| Instant::now() < deadline && !is_aborted());
                    return Ok(());
                }
            }
        }
        while let Some(job) = session.try_next() {
            batcher.push(job);
        }
        if let Err(reason) = batcher.step() {
            count();
            return Err(Ended::Gone(reason));
        }
        if is_aborted() {
            batcher.fail_all(&Failure::Unavailable(
                "the server is shutting down".to_owned(),
            ));
        }
    }
}
