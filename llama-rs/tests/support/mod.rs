//! What several tests share: tiny generated models, and the logits of a prompt and a few steps.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test binary compiles this module and uses a part of it"
)]

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use llama_rs::{Backend, Batch, Context, ContextParams, Model, ModelParams, Prefetch, Token};
use model_shapes::Shape;

/// Tokens of the prompt: enough for the batched kernels, which take over at 8 rows an expert.
pub const PROMPT_TOKENS: usize = 40;
/// Generated tokens after it.
pub const STEPS: usize = 6;

/// A folder for generated models on a real file system, removed when dropped.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for models")
}

/// Generates `shape` in `folder`.
pub fn model_file(folder: &Path, shape: &Shape) -> PathBuf {
    let path = folder.join(format!("{}.gguf", shape.name()));
    model_shapes::generate(shape, &path, 1, &mut |_, _| {}).expect("a generated model");
    path
}

/// Model parameters without repacking: what is read on demand is never repacked, and repacked kernels round differently.
pub fn params(prefetch: Prefetch) -> ModelParams {
    ModelParams {
        prefetch,
        repack: false,
        ..ModelParams::default()
    }
}

pub fn load(path: &Path, prefetch: Prefetch) -> Model {
    Model::load(&Backend::init(), path, &params(prefetch)).expect("a model")
}

pub fn context(model: &Model, threads: u32) -> Context<'_> {
    let params = ContextParams {
        n_ctx: 512,
        n_batch: 64,
        n_ubatch: 64,
        n_outputs_max: 64,
        n_threads: threads,
        n_threads_batch: threads,
        ..ContextParams::default()
    };
    Context::new(model, &params).expect("a context")
}

/// The logits of every token of a fixed prompt and of [`STEPS`] greedy steps after it: `[tokens][n_vocab]`, as bits.
pub fn logits(context: &mut Context<'_>) -> Vec<u32> {
    // llama.cpp's threads spin in barriers: two computations at once on two cores take many times as long as one after
    // the other. A test that failed holds nothing that matters.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let n_vocab = context.model().vocab().n_tokens() as i32;
    let prompt: Vec<Token> = (0..PROMPT_TOKENS as i32)
        .map(|i| Token((i * 7 + 3) % n_vocab))
        .collect();
    let mut all = Vec::new();
    let mut batch = Batch::new(64, 1);
    for (position, &token) in prompt.iter().enumerate() {
        batch
            .add(token, position as i32, &[0], true)
            .expect("room in the batch");
    }
    for step in 0..=STEPS {
        context.decode(&batch).expect("a decode");
        for row in 0..batch.len() {
            let row = context.logits(row as i32).expect("logits");
            all.extend(row.iter().map(|value| value.to_bits()));
        }
        let last = context.logits(-1).expect("logits");
        let best = (0..last.len())
            .rev()
            .max_by(|&a, &b| last[a].total_cmp(&last[b]));
        let next = Token(best.expect("a vocabulary") as i32);
        batch.clear();
        batch
            .add(next, (PROMPT_TOKENS + step) as i32, &[0], true)
            .expect("room in the batch");
    }
    all
}
