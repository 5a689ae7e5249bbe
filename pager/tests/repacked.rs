//! With repacking the logits are those of llama.cpp with repacking: experts are repacked when they have arrived in their slots, dense
//! weights where they are.

mod decode;

use std::path::Path;

use decode::{
    assert_at_rest, context_of_threads, decode_until_it_works, logits, model_file, options,
};
use llama_rs::{Backend, Context, Model, ModelParams};
use pager::engine::{EngineChoice, Fault, Faults};
use pager::{PagedModel, PagerOptions, Replay};

const STEPS: usize = 24;

fn repacked() -> ModelParams {
    ModelParams {
        repack: true,
        ..ModelParams::default()
    }
}

fn paged(path: &Path, options: PagerOptions) -> PagedModel {
    PagedModel::load(&Backend::init(), path, &repacked(), options).unwrap()
}

/// Those of copies that llama.cpp repacks.
fn expected(path: &Path) -> Vec<Vec<u32>> {
    let mapped = Model::load(&Backend::init(), path, &repacked()).unwrap();
    let mut context = Context::new(&mapped, &context_of_threads(2)).unwrap();
    logits(&mut context, STEPS)
}

/// Decodes with the smallest budget, with half of what that lacks, and with all. Gives how many weights are repacked where they are.
fn n_repacked(path: &Path, dense_on_demand: bool) -> usize {
    let expected = expected(path);
    let options = |budget_bytes| PagerOptions {
        dense_on_demand,
        ..options(budget_bytes, EngineChoice::Auto)
    };
    let smallest = {
        let model = paged(path, options(1 << 40));
        let (_, pager) = model.context(&context_of_threads(1)).unwrap();
        pager.plan().budget_min_bytes
    };
    let size_bytes = std::fs::metadata(path).unwrap().len();
    let mut n_packed = 0;
    for extra_bytes in [0, size_bytes / 2, 4 * size_bytes] {
        let model = paged(path, options(smallest + extra_bytes));
        let weights = model.model().weights().into_iter();
        n_packed = weights.filter(|weight| weight.packing.is_some()).count();
        for threads in [1, 2] {
            let (mut context, pager) = model.context(&context_of_threads(threads)).unwrap();
            assert!(
                logits(&mut context, STEPS) == expected,
                "{}, {extra_bytes} bytes more, {threads} threads, dense on demand: {dense_on_demand}, {}",
                path.display(),
                pager.plan()
            );
            assert_at_rest(&pager);
        }
    }
    n_packed
}

fn check(shapes: &[&str], dense_on_demand: bool) {
    let folder = decode::folder();
    for name in shapes {
        let path = model_file(folder.path(), name);
        let n_packed = n_repacked(&path, dense_on_demand);
        assert_eq!(n_packed > 0, has_repacked_kernels(), "{name}: {n_packed}");
    }
}

fn has_repacked_kernels() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    cfg!(target_arch = "aarch64")
}

#[test]
fn logits_are_those_of_repacked_copies_at_any_budget() {
    check(&["tiny-gpt-oss", "tiny-deepseek2-q4_k"], false);
}

#[test]
fn streamed_matrices_are_repacked_in_the_ring() {
    let names = [
        "tiny-llama-untied-q4_k",
        "tiny-llama-q4_k",
        "tiny-qwen3moe-q4_k",
    ];
    check(&names, true);
}

/// With replay dense matrices arrive while the model is loaded, and are repacked when the first of its contexts needs them; experts
/// of the last run are repacked before anybody asks for them.
#[test]
fn what_a_replay_reads_is_repacked_once() {
    let folder = decode::folder();
    for name in ["tiny-qwen3moe-q4_k", "tiny-gpt-oss"] {
        let path = model_file(folder.path(), name);
        let expected = expected(&path);
        let options = PagerOptions {
            replay: Replay::In(folder.path().join("patterns")),
            ..options(1 << 30, EngineChoice::Auto)
        };
        for _ in 0..2 {
            let model = paged(&path, options.clone());
            for _ in 0..2 {
                let (mut context, pager) = model.context(&context_of_threads(2)).unwrap();
                let found = logits(&mut context, STEPS);
                assert!(found == expected, "{name}: {}", pager.replay());
            }
        }
    }
}

/// A decode that was broken off leaves slices that have arrived and that nobody has repacked.
#[test]
fn what_a_failed_decode_leaves_is_repacked_or_read_again() {
    let folder = decode::folder();
    let path = model_file(folder.path(), "tiny-gpt-oss");
    let expected: Vec<_> = {
        let mapped = Model::load(&Backend::init(), &path, &repacked()).unwrap();
        let mut context = Context::new(&mapped, &context_of_threads(2)).unwrap();
        let mut decoder = decode::Decoder::new(1);
        (0..STEPS)
            .map(|_| decoder.step(&mut context).unwrap())
            .collect()
    };
    let model = paged(&path, options(1 << 30, EngineChoice::Auto));
    for n_broken in [30, 400] {
        let mut context = Context::new(model.model(), &context_of_threads(2)).unwrap();
        let faults = Faults::script((0..n_broken).map(|_| Some(Fault::Eio)));
        let pager = model
            .attach_faulty(&mut context, options(1 << 30, EngineChoice::Auto), faults)
            .unwrap();
        decode_until_it_works(&mut context, &expected, n_broken, || {
            pager.census();
        });
        let census = pager.census();
        assert_eq!((census.n_lost, census.n_in_flight), (0, 0), "{census:?}");
    }
}
