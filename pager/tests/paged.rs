//! A paged model computes what a mapped one computes, bit for bit, at any budget, and keeps to the budget's slots.

use std::path::{Path, PathBuf};

use llama_rs::{Backend, Batch, Context, ContextParams, Model, ModelParams, Prefetch, Token};
use model_shapes::Shape;
use pager::engine::{EngineChoice, Preference};
use pager::{Budget, PagedModel, PagerError, PagerOptions};

const SHAPES: [&str; 4] = [
    "tiny-gpt-oss-f16",
    "tiny-qwen3moe-q8_0",
    "tiny-deepseek2-f16",
    "tiny-gpt-oss",
];
const PROMPT_TOKENS: usize = 21;
const STEPS: usize = 40;

fn params() -> ModelParams {
    ModelParams {
        prefetch: Prefetch::Eager,
        repack: false,
        ..ModelParams::default()
    }
}

fn context_params(threads: u32) -> ContextParams {
    ContextParams {
        n_ctx: 256,
        n_batch: 32,
        n_ubatch: 8,
        n_threads: threads,
        n_threads_batch: threads,
        ..ContextParams::default()
    }
}

fn model_file(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(format!("{name}.gguf"));
    model_shapes::generate(&Shape::by_name(name).unwrap(), &path, 1, &mut |_, _| {}).unwrap();
    path
}

/// The logits of a prompt and of greedy steps, as bits.
fn logits(context: &mut Context<'_>) -> Vec<u32> {
    let mut all = Vec::new();
    let mut batch = Batch::new(32, 1);
    for position in 0..PROMPT_TOKENS {
        let token = Token((position as i32 * 7 + 3) % 64);
        let is_last = position + 1 == PROMPT_TOKENS;
        batch.add(token, position as i32, &[0], is_last).unwrap();
    }
    for step in 0..=STEPS {
        context.decode(&batch).unwrap();
        let row = context.logits(-1).unwrap();
        let best = (0..row.len())
            .rev()
            .max_by(|&a, &b| row[a].total_cmp(&row[b]));
        all.extend(row.iter().map(|value| value.to_bits()));
        batch.clear();
        let position = (PROMPT_TOKENS + step) as i32;
        batch
            .add(Token(best.unwrap() as i32), position, &[0], true)
            .unwrap();
    }
    all
}

fn paged(path: &Path, budget_bytes: u64, engine: EngineChoice) -> Result<PagedModel, PagerError> {
    let reads = Preference {
        engine,
        ..Preference::default()
    };
    let options = PagerOptions {
        budget: Budget::Bytes(budget_bytes),
        reads,
        process_bytes: Some(0),
        ..PagerOptions::default()
    };
    PagedModel::load(&Backend::init(), path, &params(), options)
}

/// The smallest budget, as the error names it.
fn smallest(path: &Path) -> u64 {
    let model = paged(path, 1 << 40, EngineChoice::Auto).unwrap();
    let mut context = Context::new(model.model(), &context_params(1)).unwrap();
    model.attach(&mut context).unwrap().plan().budget_min_bytes
}

#[test]
fn logits_are_those_of_a_mapped_model_at_any_budget() {
    let folder = tempfile::tempdir().unwrap();
    for name in SHAPES {
        let path = model_file(folder.path(), name);
        let expected = {
            let mapped = Model::load(&Backend::init(), &path, &params()).unwrap();
            logits(&mut Context::new(&mapped, &context_params(2)).unwrap())
        };
        let smallest = smallest(&path);
        let size_bytes = std::fs::metadata(&path).unwrap().len();
        for (extra_bytes, engine) in [
            (0, EngineChoice::Auto),
            (0, EngineChoice::Threads),
            (size_bytes / 4, EngineChoice::Auto),
            (4 * size_bytes, EngineChoice::Auto),
        ] {
            let model = paged(&path, smallest + extra_bytes, engine).unwrap();
            for threads in [1, 2] {
                let mut context = Context::new(model.model(), &context_params(threads)).unwrap();
                let pager = model.attach(&mut context).unwrap();
                assert!(
                    logits(&mut context) == expected,
                    "{name}, {extra_bytes} bytes more, {threads} threads: {}",
                    pager.plan()
                );
                let counters = pager.counters();
                let has_room = extra_bytes > size_bytes;
                assert_eq!(counters.n_evictions == 0, has_room, "{name}: {counters:?}");
            }
        }
    }
}

#[test]
fn a_budget_that_is_too_small_is_an_error_with_the_smallest_that_works() {
    let folder = tempfile::tempdir().unwrap();
    let path = model_file(folder.path(), "tiny-gpt-oss-f16");
    let error = paged(&path, 1 << 20, EngineChoice::Auto).unwrap_err();
    assert!(matches!(error, PagerError::Dense { .. }), "{error}");
    let smallest = smallest(&path);
    let model = paged(&path, smallest / 2, EngineChoice::Auto);
    let error = match model {
        Err(error) => error,
        Ok(model) => {
            let mut context = Context::new(model.model(), &context_params(1)).unwrap();
            model.attach(&mut context).unwrap_err()
        }
    };
    assert!(error.to_string().contains("--budget"), "{error}");
}

#[test]
fn a_file_that_is_cut_while_it_is_used_ends_the_decode_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = model_file(folder.path(), "tiny-gpt-oss-f16");
    let model = paged(&path, smallest(&path), EngineChoice::Auto).unwrap();
    let mut context = Context::new(model.model(), &context_params(2)).unwrap();
    let _pager = model.attach(&mut context).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(4096).unwrap();
    let mut batch = Batch::new(1, 1);
    batch.add(Token(1), 0, &[0], true).unwrap();
    let error = context.decode(&batch).unwrap_err().to_string();
    assert!(error.contains("tiny-gpt-oss-f16.gguf"), "{error}");
}
