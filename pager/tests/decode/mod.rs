//! What is computed, to compare it.

use std::path::{Path, PathBuf};

use llama_rs::{Batch, Context, ContextParams, ModelParams, Prefetch, Token};
use model_shapes::Shape;

const PROMPT_TOKENS: usize = 21;

/// A model that the kernel maps, without repacking.
pub(crate) fn mapped_params() -> ModelParams {
    ModelParams {
        prefetch: Prefetch::Eager,
        repack: false,
        ..ModelParams::default()
    }
}

/// Prompts take several ubatches.
pub(crate) fn context_params(threads: u32) -> ContextParams {
    ContextParams {
        n_ctx: 256,
        n_batch: 32,
        n_ubatch: 8,
        n_threads: threads,
        n_threads_batch: threads,
        ..ContextParams::default()
    }
}

/// A generated model.
pub(crate) fn model_file(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(format!("{name}.gguf"));
    model_shapes::generate(&Shape::by_name(name).unwrap(), &path, 1, &mut |_, _| {}).unwrap();
    path
}

/// A model in the cache folder, or `None` after saying why the test does nothing.
#[allow(dead_code, reason = "not every test program has real models")]
pub(crate) fn cache_model(name: &str) -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let cache = variable("FAULTLINE_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("faultline")))
        .or_else(|| Some(variable("HOME")?.join(".cache/faultline")));
    let path = cache?.join("models").join(format!("{name}.gguf"));
    if path.is_file() {
        return Some(path);
    }
    println!(
        "skipped: {} is not there (scripts/fetch-models.sh)",
        path.display()
    );
    None
}

/// The logits of a prompt and of greedy steps, as bits.
pub(crate) fn logits(context: &mut Context<'_>, n_steps: usize) -> Vec<u32> {
    let mut all = Vec::new();
    let mut batch = Batch::new(32, 1);
    for position in 0..PROMPT_TOKENS {
        let token = Token((position as i32 * 7 + 3) % 64);
        let is_last = position + 1 == PROMPT_TOKENS;
        batch.add(token, position as i32, &[0], is_last).unwrap();
    }
    for step in 0..=n_steps {
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
