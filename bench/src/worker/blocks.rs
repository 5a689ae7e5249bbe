//! A process that decodes the same block of tokens each time it is told to, with or without a recording.
//!
//! `bench/native/blocks.cpp` does the same with llama.h alone.

use std::io::{self, BufRead as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use llama_rs::{Backend, Batch, Context, ContextParams, Model, ModelParams, Token};
use serde::{Deserialize, Serialize};
use tracer::{OnFull, Recorder};

use crate::procfs::monotonic_ns;

/// What to decode, and where the log goes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BlocksSpec {
    pub(crate) model: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) log_bytes: u64,
    pub(crate) n_tokens: u32,
    pub(crate) n_threads: u32,
}

/// A line on standard input: a block without a recording.
pub(crate) const PLAIN: &str = "plain";
/// A line on standard input: a block of which every access is recorded.
pub(crate) const RECORDED: &str = "recorded";

/// Runs the process; its errors are on standard error.
pub(crate) fn main(spec_json: &str) -> ExitCode {
    let spec = serde_json::from_str(spec_json).context("the specification of the blocks");
    match spec.and_then(|spec| run(&spec)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Answers each line with the block's time in nanoseconds; at the end, with the number of records.
fn run(spec: &BlocksSpec) -> Result<()> {
    let backend = Backend::init();
    let params = ModelParams {
        repack: false,
        ..ModelParams::default()
    };
    let model = Model::load(&backend, &spec.model, &params)?;
    let context_params = ContextParams {
        n_ctx: spec.n_tokens,
        n_batch: 1,
        n_ubatch: 1,
        n_threads: spec.n_threads,
        n_threads_batch: spec.n_threads,
        ..ContextParams::default()
    };
    let mut context = Context::new(&model, &context_params)?;
    let mut recorder = Some(Recorder::create(
        &spec.log,
        &model,
        spec.log_bytes,
        OnFull::Wrap,
    )?);
    let n_vocab = model.vocab().n_tokens().max(1);
    let mut batch = Batch::new(1, 1);
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let is_recorded = match line.context("the parent is gone")?.as_str() {
            RECORDED => true,
            PLAIN => false,
            other => bail!("unknown command {other:?}"),
        };
        context.clear_kv();
        if is_recorded && let Some(recorder) = recorder.take() {
            context.set_observer(recorder)?;
        }
        let begin_ns = monotonic_ns();
        for position in 0..spec.n_tokens {
            batch.clear();
            let token = Token((position.wrapping_mul(7919).wrapping_add(1) % n_vocab) as i32);
            batch.add(token, position as i32, &[0], true)?;
            context.decode(&batch)?;
            context.synchronize()?;
        }
        let block_ns = monotonic_ns() - begin_ns;
        if is_recorded {
            recorder = context.take_observer();
        }
        writeln!(out, "{block_ns}")?;
        out.flush()?;
    }
    if let Some(recorder) = recorder {
        let summary = recorder.finish()?;
        writeln!(out, "{}", summary.n_written)?;
    }
    Ok(())
}
