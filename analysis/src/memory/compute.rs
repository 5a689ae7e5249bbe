//! Buffers of intermediate results, from metadata alone: an estimate.
//!
//! llama.cpp plans these buffers for the largest graph, that of a full ubatch, and uses memory again as soon as a result has been
//! used. Most is alive either in attention, in the feed-forward layer or at the end, where logits are; which results those are is
//! fixed by the order in which the graphs of `llama-graph.cpp` are built. Whoever can, asks llama.cpp instead.

use gguf::{GgmlType, ModelFiles};

use super::Options;
use super::shape::Shape;

/// Results are F32.
const VALUE_BYTES: u64 = 4;

/// Rows with logits in one ubatch: generating asks for one.
const OUTPUTS: u64 = 1;

/// Compute buffers.
pub(super) fn buffer_bytes(shape: &Shape, options: &Options) -> u64 {
    let n_tokens = shape.n_ubatch(options.n_ctx, options.n_ubatch);
    let n_cells = shape.n_cells(options.n_ctx);
    // One hidden state that skips the layer, one that is normalized for it.
    let hidden = 2 * shape.n_embd;
    let per_token = attention_values(shape, options, n_cells).max(feed_forward_values(shape));
    // With a window there are two masks. Flash attention wants them as F16 too.
    let n_masks = 1 + u64::from(shape.window.is_some());
    let mask_bytes = n_cells * (VALUE_BYTES + if options.flash_attention { 2 } else { 0 });
    let logits = OUTPUTS * shape.n_vocab;
    n_tokens * ((hidden + per_token) * VALUE_BYTES + n_masks * mask_bytes) + logits * VALUE_BYTES
}

/// Alive for one token while it attends.
fn attention_values(shape: &Shape, options: &Options, n_cells: u64) -> u64 {
    let n_head_kv = shape.n_head_kv.iter().max().copied().unwrap_or(0);
    let queries = shape.n_head * shape.key_length;
    let keys_values = n_head_kv * (shape.key_length + shape.value_length);
    let attended = shape.n_head * shape.value_length;
    let scores = match options.flash_attention {
        true => 0,
        false => shape.n_head * n_cells,
    };
    queries + keys_values + attended + scores
}

/// Alive for one token in its feed-forward layer: two projections of all experts, or one and their results.
fn feed_forward_values(shape: &Shape) -> u64 {
    let dense = 2 * shape.n_ff;
    let experts = shape.experts.map_or(0, |experts| {
        experts.n_used * (experts.n_ff + experts.n_ff.max(shape.n_embd)) + 2 * experts.n
    });
    dense.max(experts)
}

/// Memory in which the CPU backend converts what is multiplied by quantized weights, and sorts tokens by expert.
pub(super) fn work_bytes(shape: &Shape, files: &ModelFiles, options: &Options) -> u64 {
    let n_tokens = shape.n_ubatch(options.n_ctx, options.n_ubatch);
    let experts = |name: &str| shape.experts.filter(|_| gguf::is_expert_name(name));
    let of_tensor = |tensor: &gguf::TensorInfo| {
        let row = tensor.dims.first().copied().unwrap_or(0);
        let (rows, sorting) = match experts(&tensor.name) {
            // Each of a token's experts has an input of its own only in the last projection.
            Some(experts) if tensor.name.contains("ffn_down") => {
                (experts.n_used, experts.n * experts.n_used * 8)
            }
            Some(experts) => (1, experts.n * experts.n_used * 8),
            None => (1, 0),
        };
        n_tokens * (rows * converted_bytes(tensor.ggml_type, row) + sorting)
    };
    let multiplied = files.tensors().map(|(_, tensor)| tensor).filter(|tensor| {
        tensor.dims.len() > 1
            && tensor.name != "token_embd.weight"
            && tensor.name != "output.weight"
    });
    let product = multiplied.map(of_tensor).max().unwrap_or(0);
    product + TILES_BYTES * u64::from(options.n_threads)
}

/// Scratch memory of a thread that multiplies in tiles.
const TILES_BYTES: u64 = 512 << 10;

/// A row of inputs in the type that the product with this type of weights wants.
fn converted_bytes(weights: GgmlType, row: u64) -> u64 {
    match weights {
        GgmlType::F32 => 0,
        GgmlType::F16 | GgmlType::BF16 => 2 * row,
        // Blocks of 256 want blocks of 256: 292 bytes. Others are multiplied in blocks of 32: 34 bytes.
        _ if weights.block_elements() == Some(256) => row * 292 / 256,
        _ => row * 34 / 32,
    }
}

/// Descriptions of graphs: three arenas of so many nodes.
pub(super) fn graphs_bytes(files: &ModelFiles) -> u64 {
    let n_tensors: u64 = files
        .parts
        .iter()
        .map(|part| part.tensors().len() as u64)
        .sum();
    3 * NODE_BYTES * (8 * n_tensors).max(1024)
}

/// A tensor without data, and its places in a graph's tables.
const NODE_BYTES: u64 = 416;
