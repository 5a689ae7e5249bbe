//! Small models that are decoded step by step, mapped and paged.
#![allow(dead_code, reason = "each test file uses a part of this")]

use std::path::{Path, PathBuf};

use llama_rs::{Backend, Batch, Context, ContextParams, Model, ModelParams, Token};
use model_shapes::Shape;
use pager::engine::{EngineChoice, Preference};
use pager::{Budget, PagedModel, Pager, PagerOptions};

/// A folder on the disk that the tests are built on: reads there can be direct.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

pub(crate) fn model_file(folder: &Path, shape: &str) -> PathBuf {
    model_file_of(folder, shape, 1)
}

/// With weights of this seed.
pub(crate) fn model_file_of(folder: &Path, shape: &str, seed: u64) -> PathBuf {
    let path = folder.join(format!("{shape}.gguf"));
    let shape = Shape::by_name(shape).unwrap();
    model_shapes::generate(&shape, &path, seed, &mut |_, _| {}).unwrap();
    path
}

/// A model that the kernel maps, without repacking.
pub(crate) fn mapped_params() -> ModelParams {
    ModelParams {
        repack: false,
        ..ModelParams::default()
    }
}

pub(crate) fn context_params(n_ctx: u32) -> ContextParams {
    ContextParams {
        n_ctx,
        n_batch: 16,
        n_ubatch: 4,
        n_threads: 2,
        n_threads_batch: 2,
        ..ContextParams::default()
    }
}

/// For [`logits`]: the prompt takes several ubatches.
pub(crate) fn context_of_threads(threads: u32) -> ContextParams {
    ContextParams {
        n_batch: 32,
        n_ubatch: 8,
        n_threads: threads,
        n_threads_batch: threads,
        ..context_params(256)
    }
}

pub(crate) fn mapped(path: &Path) -> Model {
    Model::load(&Backend::init(), path, &mapped_params()).unwrap()
}

/// The process's own memory does not count, so that budgets depend on the model alone.
pub(crate) fn options(budget_bytes: u64, engine: EngineChoice) -> PagerOptions {
    PagerOptions {
        reads: Preference {
            engine,
            ..Preference::default()
        },
        process_bytes: Some(0),
        ..PagerOptions::with_budget(Budget::Bytes(budget_bytes))
    }
}

pub(crate) fn paged(path: &Path, options: PagerOptions) -> PagedModel {
    PagedModel::load(&Backend::init(), path, &mapped_params(), options).unwrap()
}

/// The smallest budget that works for a model in a context of this size.
pub(crate) fn smallest_budget(path: &Path, n_ctx: u32) -> u64 {
    let model = paged(path, options(1 << 40, EngineChoice::Auto));
    let (_, pager) = model.context(&context_params(n_ctx)).unwrap();
    pager.plan().budget_min_bytes
}

/// A model in a folder of its own, and what it gives when it is mapped.
pub(crate) struct Fixture {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) path: PathBuf,
    /// The smallest that works.
    pub(crate) budget_bytes: u64,
    /// See [`expected`].
    pub(crate) expected: Vec<Vec<u32>>,
}

impl Fixture {
    /// `n_steps` steps after a prompt of `n_prompt` tokens, in a context of `n_ctx`.
    pub(crate) fn new(shape: &str, n_ctx: u32, n_prompt: i32, n_steps: usize) -> Fixture {
        let folder = folder();
        let path = model_file(folder.path(), shape);
        Fixture {
            budget_bytes: smallest_budget(&path, n_ctx),
            expected: expected(&path, n_ctx, n_prompt, n_steps),
            path,
            folder,
        }
    }
}

/// Nothing is pinned and nothing is on its way, and every slot has a place.
///
/// # Errors
///
/// Where the slots are instead.
pub(crate) fn at_rest(pager: &Pager) -> Result<(), String> {
    let census = pager.census();
    let n_slots: u32 = pager.plan().slots.iter().map(|class| class.n_slots).sum();
    let is_at_rest = (census.n_lost, census.n_pinned, census.n_in_flight) == (0, 0, 0)
        && census.n_free + census.n_resident == n_slots as usize;
    match is_at_rest {
        true => Ok(()),
        false => Err(format!("of {n_slots} slots: {census:?}")),
    }
}

#[track_caller]
pub(crate) fn assert_at_rest(pager: &Pager) {
    at_rest(pager).unwrap();
}

/// Greedy decoding, one step at a time. A step that failed can be tried again.
pub(crate) struct Decoder {
    batch: Batch,
    /// Of the tokens in the KV cache.
    n_past: i32,
    n_in_batch: i32,
}

impl Decoder {
    /// The first step will be a prompt of this many tokens.
    pub(crate) fn new(n_prompt: i32) -> Decoder {
        let tokens: Vec<Token> = (0..n_prompt).map(|at| Token((at * 7 + 3) % 64)).collect();
        Decoder::of(&tokens)
    }

    /// The first step will be this prompt.
    pub(crate) fn of(prompt: &[Token]) -> Decoder {
        let mut batch = Batch::new(prompt.len().max(1), 1);
        for (position, &token) in prompt.iter().enumerate() {
            let is_last = position + 1 == prompt.len();
            batch.add(token, position as i32, &[0], is_last).unwrap();
        }
        Decoder {
            batch,
            n_past: 0,
            n_in_batch: prompt.len() as i32,
        }
    }

    /// Computes a step and chooses its token. Gives the logits as bits.
    pub(crate) fn step(&mut self, context: &mut Context<'_>) -> llama_rs::Result<Vec<u32>> {
        context.decode(&self.batch)?;
        let row = context.logits(-1)?;
        let best = (0..row.len())
            .rev()
            .max_by(|&a, &b| row[a].total_cmp(&row[b]));
        let bits = row.iter().map(|value| value.to_bits()).collect();
        self.n_past += self.n_in_batch;
        self.n_in_batch = 1;
        self.batch.clear();
        let token = Token(best.expect("a vocabulary") as i32);
        self.batch.add(token, self.n_past, &[0], true)?;
        Ok(bits)
    }
}

/// Decodes on a device of which the first `n_broken` attempts fail: each step gives the logits that are expected, or an error, and
/// then it is tried again. One token at a time: of a prompt in parts, those before the failure would stay.
pub(crate) fn decode_until_it_works(
    context: &mut Context<'_>,
    expected: &[Vec<u32>],
    n_broken: usize,
    mut after_error: impl FnMut(),
) {
    let mut decoder = Decoder::new(1);
    let (mut n_done, mut n_failed) = (0, 0);
    while n_done < expected.len() {
        match decoder.step(context) {
            Ok(logits) => {
                assert!(logits == expected[n_done], "step {n_done}");
                n_done += 1;
            }
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("Input/output error"), "{error}");
                n_failed += 1;
                assert!(n_failed <= n_broken / 4, "the device is back: {error}");
                after_error();
            }
        }
    }
    assert!(n_failed > 0, "{n_broken} errors were retried away");
}

/// The logits of each of `n_steps` steps of a mapped model after a prompt of `n_prompt` tokens.
pub(crate) fn expected(path: &Path, n_ctx: u32, n_prompt: i32, n_steps: usize) -> Vec<Vec<u32>> {
    let model = mapped(path);
    let mut context = Context::new(&model, &context_params(n_ctx)).unwrap();
    let mut decoder = Decoder::new(n_prompt);
    (0..n_steps)
        .map(|_| decoder.step(&mut context).unwrap())
        .collect()
}

/// The logits of a prompt of 21 tokens and of greedy steps after it.
pub(crate) fn logits(context: &mut Context<'_>, n_steps: usize) -> Vec<Vec<u32>> {
    let mut decoder = Decoder::new(21);
    (0..=n_steps)
        .map(|_| decoder.step(context).unwrap())
        .collect()
}
