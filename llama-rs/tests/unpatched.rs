//! The logits of the patched library are those of an unpatched one.
//!
//! `FAULTLINE_REFERENCE` names tests/cpp/reference.cpp, built against the unpatched tree; `make test` builds it and sets
//! the variable. Without it these tests are skipped.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use llama_rs::{Advise, Backend, Model, ModelParams, Prefetch};
use model_shapes::local::real_model;
use model_shapes::{ExpertType, Shape};
use support::{PROMPT_TOKENS, STEPS, context, folder, logits, model_file, params};

fn reference_program() -> Option<PathBuf> {
    let program = std::env::var_os("FAULTLINE_REFERENCE").map(PathBuf::from);
    if program.is_none() {
        eprintln!(
            "skipped: FAULTLINE_REFERENCE is not set; `make test STEPS=unpatched` builds the program and sets it"
        );
    }
    program
}

/// The logits as an unpatched llama.cpp computes them, in the form of [`logits`].
fn reference_logits(
    program: &Path,
    model: &Path,
    threads: u32,
    repack: bool,
    n_vocab: i32,
) -> Vec<u32> {
    let out = tempfile::NamedTempFile::new().unwrap();
    let tokens = (0..PROMPT_TOKENS as i32).map(|i| ((i * 7 + 3) % n_vocab).to_string());
    let output = Command::new(program)
        .arg(model)
        .arg(out.path())
        .args([
            (STEPS + 1).to_string(),
            threads.to_string(),
            u8::from(repack).to_string(),
        ])
        .args(tokens)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let bytes = std::fs::read(out.path()).unwrap();
    bytes
        .chunks_exact(4)
        .map(|four| u32::from_ne_bytes(four.try_into().unwrap()))
        .collect()
}

fn check(program: &Path, path: &Path, threads: u32) {
    let modes = [
        (Prefetch::Eager, true),
        (Prefetch::Eager, false),
        (Prefetch::None, false),
        (Prefetch::Selective, false),
    ];
    for (prefetch, repack) in modes {
        let params = ModelParams {
            repack,
            ..params(prefetch)
        };
        let model = Model::load(&Backend::init(), path, &params).unwrap();
        let mut context = context(&model, threads);
        if prefetch == Prefetch::Selective {
            context
                .set_slice_provider(Advise::new(&model).unwrap())
                .unwrap();
        }
        let n_vocab = model.vocab().n_tokens() as i32;
        let expected = reference_logits(program, path, threads, repack, n_vocab);
        let rows = PROMPT_TOKENS + STEPS;
        assert_eq!(expected.len(), rows * n_vocab as usize);
        assert!(
            logits(&mut context) == expected,
            "{}, {threads} threads, {prefetch}, repack {repack}",
            path.display()
        );
    }
}

#[test]
fn generated_models() {
    let Some(program) = reference_program() else {
        return;
    };
    let moe = ["tiny-gpt-oss", "tiny-qwen3moe", "tiny-deepseek2"]
        .into_iter()
        .flat_map(|name| ExpertType::ALL.map(|experts| Shape::tiny(name, experts).unwrap()));
    let dense = ["tiny-llama", "tiny-llama-untied"].map(|name| Shape::by_name(name).unwrap());
    for shape in moe.chain(dense) {
        let folder = folder();
        let path = model_file(folder.path(), &shape);
        for threads in [1, 2] {
            check(&program, &path, threads);
        }
    }
}

#[test]
fn real_models() {
    let Some(program) = reference_program() else {
        return;
    };
    for name in ["smollm2-135m", "qwen2.5-coder-0.5b"] {
        if let Some(path) = real_model(name) {
            check(&program, &path, 2);
        }
    }
}
