//! What a model will hold, from its file's header.

use gguf::{ModelFiles, Value};
use pager::Budget;

use super::BATCH_TOKENS;
use crate::config::{ModelConfig, PrefetchMode};

/// Bytes beside weights, cache and intermediate results: graphs, the tokenizer.
const FIXED_BYTES: u64 = 32 << 20;

/// An upper bound of what the model will hold, in bytes.
///
/// # Errors
///
/// A sentence, when the file is no model.
pub(super) fn bytes(config: &ModelConfig) -> Result<u64, String> {
    let named = |problem: String| format!("models.{}: {problem}", config.name);
    let files = ModelFiles::open(&config.path).map_err(|error| named(error.to_string()))?;
    let shape = Shape::of(&files).ok_or_else(|| {
        named(format!(
            "{}: its metadata name no architecture",
            config.path.display()
        ))
    })?;
    let n_ctx = u64::from(config.context_tokens(shape.n_ctx_train));
    // Rounded up by llama.cpp, keys and values in two bytes each.
    let kv = n_ctx
        .next_multiple_of(256)
        .saturating_mul(shape.kv_values)
        .saturating_mul(2);
    let state = config.keep_state_bytes.min(kv);
    if config.prefetch == PrefetchMode::Pager {
        let budget = config.budget.unwrap_or(Budget::Auto);
        let resolved = budget.resolve(files.total_bytes()).map_err(|error| {
            named(format!(
                "budget: it cannot be told how much memory is free: {error}"
            ))
        });
        return Ok(resolved?.saturating_add(state));
    }
    let copies = if config.repack {
        repacked_bytes(&files)
    } else {
        0
    };
    let logits = 8 * u64::from(config.concurrency_limit) * shape.n_vocab;
    let compute = 4 * u64::from(BATCH_TOKENS) * shape.widest;
    Ok([
        files.total_bytes(),
        copies,
        kv,
        state,
        logits,
        compute,
        FIXED_BYTES,
    ]
    .into_iter()
    .fold(0, u64::saturating_add))
}

/// Weights that may be copied into another layout: all matrices but the embedding's.
fn repacked_bytes(files: &ModelFiles) -> u64 {
    let tensors = files.tensors().map(|(_, tensor)| tensor);
    let matrices = tensors.filter(|tensor| tensor.dims.iter().filter(|dim| **dim > 1).count() > 1);
    matrices.map(|tensor| tensor.size_bytes).sum()
}

/// Of the metadata what decides on sizes.
struct Shape {
    n_ctx_train: u32,
    n_vocab: u64,
    /// Keys and values of one token in all layers.
    kv_values: u64,
    /// Values of one token that a graph needs at a time, roughly.
    widest: u64,
}

impl Shape {
    fn of(files: &ModelFiles) -> Option<Shape> {
        let metadata = files.metadata();
        let architecture = metadata.get("general.architecture")?.as_str()?;
        let values = |key: &str| {
            let value = metadata.get(&format!("{architecture}.{key}"));
            value.map(numbers).filter(|values| !values.is_empty())
        };
        let number = |key: &str| values(key).and_then(|values| values.into_iter().max());
        let n_embd = number("embedding_length")?;
        let n_layer = number("block_count")?;
        let n_head = number("attention.head_count").unwrap_or(1).max(1);
        let heads_kv = values("attention.head_count_kv").unwrap_or(vec![n_head]);
        // One number for all layers, or one for each.
        let all_heads = match heads_kv[..] {
            [heads] => heads.saturating_mul(n_layer),
            _ => heads_kv.iter().sum(),
        };
        let head = n_embd / n_head;
        let per_head = number("attention.key_length").unwrap_or(head)
            + number("attention.value_length").unwrap_or(head);
        let n_ff = number("feed_forward_length").unwrap_or(0)
            + number("expert_feed_forward_length").unwrap_or(0)
                * number("expert_used_count").unwrap_or(1);
        let vocabulary = files.tensor("token_embd.weight")?.1.dims.get(1).copied();
        Some(Shape {
            n_ctx_train: u32::try_from(number("context_length").unwrap_or(1)).unwrap_or(u32::MAX),
            n_vocab: vocabulary.unwrap_or(0),
            kv_values: all_heads.saturating_mul(per_head),
            widest: 8 * n_embd + 4 * n_ff,
        })
    }
}

/// A number, or an array of numbers.
fn numbers(value: &Value) -> Vec<u64> {
    match value.as_array() {
        Some(array) => array.iter().filter_map(|value| value.as_u64()).collect(),
        None => value.as_u64().into_iter().collect(),
    }
}
