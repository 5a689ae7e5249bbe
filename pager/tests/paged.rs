//! A paged model computes what a mapped one computes, bit for bit, at any budget, and keeps to the budget's slots.

mod decode;

use std::path::Path;

use decode::{context_of_threads, logits, mapped_params, model_file, options};
use llama_rs::{Backend, Batch, Context, Model, Token};
use pager::engine::EngineChoice;
use pager::{PagedModel, PagerError, PlanError};

const SHAPES: [&str; 4] = [
    "tiny-gpt-oss-f16",
    "tiny-qwen3moe-q8_0",
    "tiny-deepseek2-f16",
    "tiny-gpt-oss",
];
const STEPS: usize = 40;

fn paged(path: &Path, budget_bytes: u64, engine: EngineChoice) -> Result<PagedModel, PagerError> {
    let options = options(budget_bytes, engine);
    PagedModel::load(&Backend::init(), path, &mapped_params(), options)
}

/// The smallest budget, as the error names it.
fn smallest(path: &Path) -> u64 {
    let model = paged(path, 1 << 40, EngineChoice::Auto).unwrap();
    let mut context = Context::new(model.model(), &context_of_threads(1)).unwrap();
    model.attach(&mut context).unwrap().plan().budget_min_bytes
}

#[test]
fn logits_are_those_of_a_mapped_model_at_any_budget() {
    let folder = tempfile::tempdir().unwrap();
    for name in SHAPES {
        let path = model_file(folder.path(), name);
        let expected = {
            let mapped = Model::load(&Backend::init(), &path, &mapped_params()).unwrap();
            logits(
                &mut Context::new(&mapped, &context_of_threads(2)).unwrap(),
                STEPS,
            )
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
                let mut context =
                    Context::new(model.model(), &context_of_threads(threads)).unwrap();
                let pager = model.attach(&mut context).unwrap();
                assert!(
                    logits(&mut context, STEPS) == expected,
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
    // Nothing is loaded where loading alone takes more.
    let error = paged(&path, 1 << 20, EngineChoice::Auto).unwrap_err();
    let PagerError::Loading { needed_bytes, .. } = error else {
        panic!("{error}");
    };
    assert!(error.to_string().contains("--budget"), "{error}");
    for budget_bytes in [needed_bytes, smallest(&path) / 2] {
        let error = refused(&path, budget_bytes);
        assert!(error.to_string().contains("--budget"), "{error}");
    }
}

/// Why a budget does not do, though the model can be loaded in it.
fn refused(path: &Path, budget_bytes: u64) -> PlanError {
    let model = paged(path, budget_bytes, EngineChoice::Auto).unwrap();
    let mut context = Context::new(model.model(), &context_of_threads(1)).unwrap();
    match model.attach(&mut context) {
        Err(PagerError::Plan(error)) => error,
        other => panic!("{budget_bytes}: {other:?}"),
    }
}

/// Whether dense weights are streamed, held as the plan decides, or read while loading.
#[test]
fn every_budget_from_the_smallest_on_works() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "tiny-gpt-oss-f16",
        "tiny-deepseek2-f16",
        "tiny-gpt-oss-wide",
    ] {
        let path = model_file(folder.path(), name);
        let smallest = refused(&path, 30 << 20).budget_min_bytes;
        assert_eq!(
            refused(&path, smallest - 1).budget_min_bytes,
            smallest,
            "{name}"
        );
        for sixteenths in 16..48 {
            let budget_bytes = smallest * sixteenths / 16;
            let model = paged(&path, budget_bytes, EngineChoice::Auto).unwrap();
            let mut context = Context::new(model.model(), &context_of_threads(1)).unwrap();
            let pager = model.attach(&mut context).unwrap();
            assert!(pager.plan().budget_min_bytes <= budget_bytes, "{name}");
        }
    }
}

#[test]
fn a_file_that_is_cut_while_it_is_used_ends_the_decode_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = model_file(folder.path(), "tiny-gpt-oss-f16");
    let model = paged(&path, smallest(&path), EngineChoice::Auto).unwrap();
    let mut context = Context::new(model.model(), &context_of_threads(2)).unwrap();
    let _pager = model.attach(&mut context).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(4096).unwrap();
    let mut batch = Batch::new(1, 1);
    batch.add(Token(1), 0, &[0], true).unwrap();
    let error = context.decode(&batch).unwrap_err().to_string();
    assert!(error.contains("tiny-gpt-oss-f16.gguf"), "{error}");
}
