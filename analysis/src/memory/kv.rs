//! The KV cache, from metadata alone.
//!
//! The rules are those of `llama_kv_cache` and `llama_kv_cache_iswa`: one row a cell and layer for keys and one for values, and
//! for quantized types a rotation matrix in F32 for each.

use gguf::GgmlType;
use serde::Serialize;

use super::Options;
use super::shape::{CELLS, Shape};
use crate::text::size;

/// Architectures whose cache follows these rules. Others have states, indexers or shared layers besides, or windows of a
/// pattern that the file does not say.
const KNOWN: [&str; 8] = [
    "llama",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "deepseek2",
    "gpt-oss",
    "olmoe",
];

/// Smallest side of a rotation matrix, and what a head must be a multiple of to be rotated.
const ROTATION: u64 = 64;

/// The KV cache of a context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KvCache {
    /// All of it.
    pub size_bytes: u64,
    /// The layers that see everything and, if there are such, those that see a window.
    pub groups: Vec<KvGroup>,
}

/// Layers whose caches have the same number of cells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KvGroup {
    /// Whether the layers see a window of tokens only.
    pub is_windowed: bool,
    /// Layers.
    pub n_layers: u64,
    /// Tokens that each of them keeps.
    pub n_cells: u64,
    /// Bytes that a token takes in all of these layers, keys and values.
    pub token_bytes: u64,
    /// Matrices that rotate what is quantized.
    pub rotation_bytes: u64,
}

/// `None` for an architecture that is not known.
pub(super) fn predict(shape: &Shape, options: &Options) -> Option<KvCache> {
    if !KNOWN.contains(&shape.architecture.as_str()) {
        return None;
    }
    let n_cells = shape.n_cells(options.n_ctx);
    let mut groups = Vec::new();
    let is_windowed = |layer: usize| {
        let window = shape.window.as_ref();
        window.is_some_and(|window| window.is_windowed.get(layer).copied().unwrap_or(false))
    };
    for windowed in [false, true] {
        let layers: Vec<usize> = (0..shape.n_layer)
            .filter(|&layer| is_windowed(layer) == windowed)
            .collect();
        if layers.is_empty() {
            continue;
        }
        let n_cells = match (&shape.window, windowed) {
            (Some(window), true) => {
                let n_ubatch = shape.n_ubatch(options.n_ctx, options.n_ubatch);
                n_cells
                    .min(window.n_tokens + n_ubatch)
                    .next_multiple_of(CELLS)
            }
            _ => n_cells,
        };
        let mut token_bytes = 0;
        for &layer in &layers {
            let heads = *shape.n_head_kv.get(layer)?;
            token_bytes += options.type_k.row_bytes(shape.key_length * heads)?;
            if !shape.is_mla {
                token_bytes += options.type_v.row_bytes(shape.value_length * heads)?;
            }
        }
        groups.push(KvGroup {
            is_windowed: windowed,
            n_layers: layers.len() as u64,
            n_cells,
            token_bytes,
            rotation_bytes: layers.len() as u64 * rotation_bytes(shape, options),
        });
    }
    let size_bytes = groups
        .iter()
        .map(|group| group.n_cells * group.token_bytes + group.rotation_bytes)
        .sum();
    Some(KvCache { size_bytes, groups })
}

/// Of one layer. Keys are rotated by the largest power of two that divides them, values by the smallest.
fn rotation_bytes(shape: &Shape, options: &Options) -> u64 {
    let is_rotated = |kind: GgmlType, length: u64| {
        kind.block_elements().is_some_and(|n| n > 1)
            && length > 0
            && length.is_multiple_of(ROTATION)
    };
    let square = |side: u64| side * side * 4;
    let mut bytes = 0;
    if is_rotated(options.type_k, shape.key_length) {
        let mut side = ROTATION;
        while shape.key_length.is_multiple_of(2 * side) {
            side *= 2;
        }
        bytes += square(side);
    }
    if !shape.is_mla && is_rotated(options.type_v, shape.value_length) {
        bytes += square(ROTATION);
    }
    bytes
}

/// Why the cache has this size, in words.
pub(super) fn reason(shape: &Shape, options: &Options, cache: &KvCache) -> String {
    let types = |kind: GgmlType| kind.name().unwrap_or("unknown");
    let each = if shape.is_mla {
        format!(
            "latent attention (MLA): {} {} values per token and layer, the value is a part of them",
            shape.key_length,
            types(options.type_k)
        )
    } else {
        let heads = shape.n_head_kv.iter().max().copied().unwrap_or(0);
        format!(
            "{heads} KV heads of {} {} and {} {} values",
            shape.key_length,
            types(options.type_k),
            shape.value_length,
            types(options.type_v),
        )
    };
    let groups: Vec<String> = cache
        .groups
        .iter()
        .map(|group| {
            let window = match (&shape.window, group.is_windowed) {
                (Some(window), true) => format!(" (sliding window of {})", window.n_tokens),
                _ => String::new(),
            };
            let per_token = size(group.token_bytes);
            format!(
                "{} layers x {} tokens{window} at {per_token} per token",
                group.n_layers, group.n_cells
            )
        })
        .collect();
    let rotation: u64 = cache.groups.iter().map(|group| group.rotation_bytes).sum();
    let rotation = match rotation {
        0 => String::new(),
        bytes => format!("; rotation of quantized values {}", size(bytes)),
    };
    format!("{}; {each}{rotation}", groups.join(", "))
}
