//! A model whose dense weights exceed the budget computes what a mapped one computes, bit for bit; what is streamed is nowhere else in memory.

mod decode;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use decode::{context_of_threads, decode_until_it_works, logits, mapped_params, model_file};
use llama_rs::{Backend, Batch, Context, Error, Model, Token};
use model_shapes::local::real_model;
use pager::engine::{EngineChoice, Fault, Faults};
use pager::{PagedModel, Pager, PagerOptions};

const STEPS: usize = 32;

fn options(budget_bytes: u64, engine: EngineChoice) -> PagerOptions {
    PagerOptions {
        dense_on_demand: true,
        ..decode::options(budget_bytes, engine)
    }
}

fn paged(path: &Path, budget_bytes: u64, engine: EngineChoice) -> PagedModel {
    decode::paged(path, options(budget_bytes, engine))
}

/// The smallest budget, and one with which half of what it streams stays in memory.
fn budgets(path: &Path) -> [u64; 2] {
    let smallest = {
        let model = paged(path, 1 << 40, EngineChoice::Auto);
        let mut context = Context::new(model.model(), &context_of_threads(1)).unwrap();
        let pager = model.attach(&mut context).unwrap();
        assert_eq!(pager.plan().dense_stream, None);
        pager.plan().budget_min_bytes
    };
    let model = paged(path, smallest, EngineChoice::Auto);
    let mut context = Context::new(model.model(), &context_of_threads(1)).unwrap();
    let pager = model.attach(&mut context).unwrap();
    let stream = pager.plan().dense_stream.as_ref().unwrap();
    [smallest, smallest + stream.streamed_bytes / 2]
}

fn expected(path: &Path) -> Vec<Vec<u32>> {
    let mapped = Model::load(&Backend::init(), path, &mapped_params()).unwrap();
    logits(
        &mut Context::new(&mapped, &context_of_threads(2)).unwrap(),
        STEPS,
    )
}

fn tiny_models(folder: &Path) -> Vec<PathBuf> {
    let names = [
        "tiny-llama-f16",
        "tiny-llama-untied-q4_k",
        "tiny-deepseek2-f16",
        "tiny-gpt-oss",
    ];
    names.iter().map(|name| model_file(folder, name)).collect()
}

/// Each matrix is read once for a ubatch and for a token, but for what was read ahead at the end and what the first pass got wrong.
fn assert_read_once(pager: &Pager, what: &str) {
    let stream = pager.plan().dense_stream.as_ref().unwrap();
    let counts = pager.counters().stream;
    let n_uses = counts.n_ready + counts.n_late + counts.n_missed;
    let n_passes = n_uses.div_ceil(stream.streamed.len() as u64) + 1;
    assert!(
        counts.delivered_bytes <= n_passes * stream.streamed_bytes + stream.ring_bytes,
        "{what}: {counts:?}, {stream}"
    );
    assert!(n_uses >= (STEPS * stream.streamed.len()) as u64);
}

#[test]
fn logits_are_those_of_a_mapped_model_with_streamed_weights() {
    let folder = tempfile::tempdir().unwrap();
    for path in tiny_models(folder.path()) {
        let expected = expected(&path);
        for budget_bytes in budgets(&path) {
            for engine in [EngineChoice::Auto, EngineChoice::Threads] {
                let model = paged(&path, budget_bytes, engine);
                for threads in [1, 2] {
                    let mut context =
                        Context::new(model.model(), &context_of_threads(threads)).unwrap();
                    let pager = model.attach(&mut context).unwrap();
                    let what = format!("{}, {budget_bytes}, {threads}", path.display());
                    assert!(
                        logits(&mut context, STEPS) == expected,
                        "{what}: {}",
                        pager.plan()
                    );
                    assert_read_once(&pager, &what);
                }
            }
        }
    }
}

#[test]
fn real_models() {
    for (name, cases) in [
        (
            "smollm2-135m",
            &[(0, EngineChoice::Auto), (0, EngineChoice::Threads)][..],
        ),
        ("qwen2.5-coder-0.5b", &[(1, EngineChoice::Auto)]),
    ] {
        let Some(path) = real_model(name) else {
            continue;
        };
        let expected = expected(&path);
        let budgets = budgets(&path);
        for &(budget, engine) in cases {
            let model = paged(&path, budgets[budget], engine);
            let mut context = Context::new(model.model(), &context_of_threads(2)).unwrap();
            let pager = model.attach(&mut context).unwrap();
            assert!(
                logits(&mut context, STEPS) == expected,
                "{name}: {}",
                pager.plan()
            );
            assert_read_once(&pager, name);
        }
    }
}

/// What the kernel says of the memory around an address.
fn protection(address: usize) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| {
        let (begin, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let number = |text| usize::from_str_radix(text, 16).unwrap();
        (number(begin)..number(end)).contains(&address)
    });
    line.unwrap().split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn what_is_on_demand_cannot_be_read_where_it_is_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let path = model_file(folder.path(), "tiny-llama-untied-q4_k");
    let model = paged(&path, budgets(&path)[0], EngineChoice::Auto);
    let mut context = Context::new(model.model(), &context_of_threads(2)).unwrap();
    let _pager = model.attach(&mut context).unwrap();
    logits(&mut context, 2);
    let mut n_matrices = 0;
    for weight in model.model().weights() {
        // A page inside; its neighbours may be readable.
        let page = weight.address.next_multiple_of(4096);
        if page + 4096 > weight.address + weight.size_bytes as usize {
            continue;
        }
        let is_matrix = weight.is_lazy && weight.name != "token_embd.weight";
        n_matrices += usize::from(is_matrix);
        let expected = if is_matrix { "---p" } else { "rw-p" };
        assert_eq!(protection(page), expected, "{}", weight.name);
    }
    assert!(n_matrices >= 10);
}

#[test]
fn a_decode_that_is_broken_off_leaves_a_context_that_works() {
    let folder = tempfile::tempdir().unwrap();
    let path = model_file(folder.path(), "tiny-llama-untied-q4_k");
    let expected = expected(&path);
    let model = paged(&path, budgets(&path)[0], EngineChoice::Auto);
    let mut context = Context::new(model.model(), &context_of_threads(2)).unwrap();
    let _pager = model.attach(&mut context).unwrap();
    let abort = Arc::new(AtomicBool::new(true));
    context.set_abort(Arc::clone(&abort));
    let mut batch = Batch::new(1, 1);
    batch.add(Token(1), 0, &[0], true).unwrap();
    for _ in 0..3 {
        assert!(matches!(context.decode(&batch), Err(Error::Aborted)));
    }
    abort.store(false, Ordering::Relaxed);
    context.clear_kv();
    assert!(logits(&mut context, STEPS) == expected);
}

#[test]
fn a_file_that_is_cut_ends_the_decode_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = model_file(folder.path(), "tiny-llama-untied-q4_k");
    let model = paged(&path, budgets(&path)[0], EngineChoice::Auto);
    let mut context = Context::new(model.model(), &context_of_threads(2)).unwrap();
    let _pager = model.attach(&mut context).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(4096).unwrap();
    let mut batch = Batch::new(1, 1);
    batch.add(Token(1), 0, &[0], true).unwrap();
    let error = context.decode(&batch).unwrap_err().to_string();
    assert!(error.contains("tiny-llama-untied-q4_k.gguf"), "{error}");
    // And when a context begins, where pinned weights are read.
    let mut context = Context::new(model.model(), &context_of_threads(2)).unwrap();
    let error = paged_error(&model, &mut context);
    assert!(error.contains("tiny-llama-untied-q4_k.gguf"), "{error}");
}

fn paged_error(model: &PagedModel, context: &mut Context<'_>) -> String {
    let error = match model.attach(context) {
        Err(error) => return error.to_string(),
        Ok(_pager) => {
            let mut batch = Batch::new(1, 1);
            batch.add(Token(1), 0, &[0], true).unwrap();
            context.decode(&batch).unwrap_err()
        }
    };
    error.to_string()
}

/// A device with faults that pass, and one that is gone for a while: a read ahead that fails ends no step that can do without it.
#[test]
fn faults_change_no_logit_and_end_only_what_needs_the_matrix() {
    let folder = tempfile::tempdir().unwrap();
    let path = model_file(folder.path(), "tiny-llama-untied-q4_k");
    let whole = expected(&path);
    let single = decode::expected(&path, 256, 1, STEPS);
    let budget_bytes = budgets(&path)[0];
    for engine in [EngineChoice::Auto, EngineChoice::Threads] {
        let model = paged(&path, budget_bytes, engine);
        let options = options(budget_bytes, engine);
        let mut context = Context::new(model.model(), &context_of_threads(2)).unwrap();
        let faults = Faults::random(5, 150);
        let pager = model
            .attach_faulty(&mut context, options.clone(), faults)
            .unwrap();
        assert!(logits(&mut context, STEPS) == whole);
        assert!(pager.read_counters().n_retries > 4);

        context.clear_kv();
        let n_broken = 300;
        let faults = Faults::script((0..n_broken).map(|_| Some(Fault::Eio)));
        let _pager = model
            .attach_faulty(&mut context, options.clone(), faults)
            .unwrap();
        decode_until_it_works(&mut context, &single, n_broken, || ());
    }
}
