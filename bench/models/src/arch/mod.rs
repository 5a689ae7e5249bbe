//! The model families: which metadata and tensors llama.cpp wants of each, and the sizes of real
//! ones.

pub(crate) mod deepseek2;
pub(crate) mod gpt_oss;
pub(crate) mod llama;
pub(crate) mod qwen3moe;

use gguf::GgmlType;

use crate::Error;
use crate::fill::BIAS_CHANNELS;
use crate::plan::{Fill, Plan, unit};
use crate::routing;

/// llama.cpp's number for a file of mostly this type.
pub(crate) fn file_type(of: GgmlType) -> u32 {
    match of {
        GgmlType::F16 => 1,
        GgmlType::Q4_0 => 2,
        GgmlType::Q8_0 => 7,
        GgmlType::Q4_K => 15,
        GgmlType::MXFP4 => 38,
        _ => 0,
    }
}

/// True for the layers in which llama.cpp's Q4_K_M recipe gives the more important tensors more
/// bits: the first and last eighth, and every third between.
pub(crate) fn more_bits(layer: u64, n_layers: u64) -> bool {
    let eighth = n_layers / 8;
    layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2
}

/// A router without a bias tensor. Its rows are lifted on the bias channels instead, where the
/// hidden state is about 1.
pub(crate) fn unbiased_router(
    plan: &mut Plan,
    layer: u64,
    n_layers: u64,
    n_embd: u64,
    n_experts: u64,
) -> Result<(), Error> {
    let lifts = routing::biases(layer, n_layers, n_experts)
        .into_iter()
        .map(|bias| bias / BIAS_CHANNELS as f32)
        .collect();
    let rms = routing::router(layer, n_layers).signal_rms * unit(n_embd);
    let name = format!("blk.{layer}.ffn_gate_inp.weight");
    plan.tensor(
        &name,
        GgmlType::F32,
        &[n_embd, n_experts],
        Fill::Router { rms, lifts },
    )
}
