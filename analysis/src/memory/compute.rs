//! Buffers of intermediate results, from metadata alone: an estimate.
//!
//! llama.cpp plans these buffers for the largest graph, that of a full ubatch, and uses memory again as soon as a result has been
//! used (`ggml-alloc.c`). The most is alive where a feed-forward layer has its two projections and their product, which ggml does not
//! compute in place; beside that stand five hidden states, whose places are too small for anything else. Without the fused kernel
//! the scores of all heads are more. Whoever can, asks llama.cpp instead.

use gguf::{GgmlType, ModelFiles, TensorInfo, is_expert_name};

use super::shape::{CELLS, Shape};
use super::{GRAPH_ARENAS, Options};

/// Results are F32.
const VALUE_BYTES: u64 = 4;

/// Hidden states that have a place beside the largest results: input, residual, normalized, queries, attended.
const HIDDEN_STATES: u64 = 5;

/// Compute buffers. Generating asks for the logits of one token in an ubatch.
pub(super) fn buffer_bytes(shape: &Shape, options: &Options) -> u64 {
    let n_tokens = shape.n_ubatch(options.n_ctx, options.n_ubatch);
    let n_cells = shape.n_cells(options.n_ctx);
    let scores = match options.flash_attention {
        true => 0,
        false => shape.n_head * (n_cells + shape.key_length),
    };
    let values = HIDDEN_STATES * shape.n_embd + feed_forward_values(shape).max(scores);
    // Which tokens see which: once for all layers, and once for those with a window.
    let windowed = shape.window.as_ref().map_or(0, |window| {
        (window.n_tokens + n_tokens)
            .next_multiple_of(CELLS)
            .min(n_cells)
    });
    let mask_value_bytes = if options.flash_attention { 2 } else { 4 };
    let mask_bytes = (n_cells + windowed) * mask_value_bytes;
    n_tokens * (values * VALUE_BYTES + mask_bytes) + shape.n_vocab * VALUE_BYTES
}

/// Alive for one token in its feed-forward layer.
fn feed_forward_values(shape: &Shape) -> u64 {
    let experts = shape.experts.map_or(0, |experts| {
        let wide = experts.n_used * experts.n_ff;
        let results = experts.n_used * shape.n_embd;
        // The results of the experts take the place of the two projections, if that is large enough.
        3 * wide + if results > 2 * wide { results } else { 0 }
    });
    experts.max(3 * shape.n_ff)
}

/// Memory in which the CPU backend converts what is multiplied by quantized weights, and sorts tokens by expert
/// (`ggml_graph_plan`).
pub(super) fn work_bytes(shape: &Shape, files: &ModelFiles, options: &Options) -> u64 {
    let n_tokens = shape.n_ubatch(options.n_ctx, options.n_ubatch);
    let of_tensor = |tensor: &TensorInfo| {
        let row = tensor.dims.first().copied().unwrap_or(0);
        let converted = converted_bytes(tensor.ggml_type, row);
        let of_token = match shape.experts.filter(|_| is_expert_name(&tensor.name)) {
            Some(experts) => {
                // Each of a token's experts has an input of its own in the last projection only.
                let is_last = tensor.name.contains("ffn_down");
                let inputs = if is_last { experts.n_used } else { 1 };
                inputs * converted + experts.n * experts.n_used * SORTED_BYTES
            }
            None => converted,
        };
        let is_tiled = tensor.dims.len() == 2 && tensor.ggml_type.block_elements() == Some(256);
        n_tokens * of_token
            + if is_tiled {
                TILES_BYTES * u64::from(options.n_threads)
            } else {
                0
            }
    };
    let products = files
        .tensors()
        .map(|(_, tensor)| tensor)
        .filter(|tensor| tensor.dims.len() > 1 && tensor.name.starts_with("blk."));
    let product = products.map(of_tensor).max().unwrap_or(0);
    // Without the fused kernel, the scores are converted to be multiplied with the values.
    let scores = match options.flash_attention {
        true => 0,
        false => {
            n_tokens * shape.n_head * converted_bytes(options.type_v, shape.n_cells(options.n_ctx))
        }
    };
    product.max(scores)
}

/// Scratch memory of a thread that multiplies in tiles.
const TILES_BYTES: u64 = 512 << 10;

/// A pair of token and place in the list of an expert.
const SORTED_BYTES: u64 = 8;

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

/// Descriptions of graphs: arenas of so many nodes.
pub(super) fn graphs_bytes(files: &ModelFiles) -> u64 {
    let n_tensors: u64 = files
        .parts
        .iter()
        .map(|part| part.tensors().len() as u64)
        .sum();
    GRAPH_ARENAS * NODE_BYTES * (NODES_PER_TENSOR * n_tensors).max(NODES_MIN)
}

/// A tensor without data, and its places in a graph's tables.
const NODE_BYTES: u64 = 410;
/// What `llama_context::graph_max_nodes` allows for.
const NODES_PER_TENSOR: u64 = 8;
const NODES_MIN: u64 = 1024;
