//! Qwen3 mixture of experts: many small experts, norms on queries and keys, no biases.

use gguf::GgmlType;

use crate::Error;
use crate::arch::{file_type, more_bits, unbiased_router};
use crate::plan::Plan;
use crate::tokenizer;

/// The sizes of a model of this family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Qwen3Moe {
    pub(crate) name: &'static str,
    pub(crate) layers: u64,
    pub(crate) n_embd: u64,
    pub(crate) n_head: u64,
    pub(crate) n_head_kv: u64,
    pub(crate) head: u64,
    pub(crate) n_ff: u32,
    pub(crate) n_ff_expert: u64,
    pub(crate) experts: u64,
    pub(crate) experts_used: u32,
    pub(crate) vocab: u64,
    pub(crate) types: Types,
}

/// Which types the tensors have.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Types {
    /// llama.cpp's Q4_K_M recipe, as in the published file of Qwen3-Coder-30B-A3B.
    Q4KM,
    /// F16, and this for the experts.
    Experts(GgmlType),
}

/// Qwen3-30B-A3B.
pub(crate) const QWEN3_30B_A3B: Qwen3Moe = Qwen3Moe {
    name: "Qwen3-30B-A3B shape",
    layers: 48,
    n_embd: 2048,
    n_head: 32,
    n_head_kv: 4,
    head: 128,
    n_ff: 5472,
    n_ff_expert: 768,
    experts: 128,
    experts_used: 8,
    vocab: 151_936,
    types: Types::Q4KM,
};

/// Small enough for tests.
pub(crate) const TINY: Qwen3Moe = Qwen3Moe {
    name: "tiny qwen3moe",
    layers: 2,
    n_embd: 256,
    n_head: 4,
    n_head_kv: 2,
    head: 64,
    n_ff: 512,
    n_ff_expert: 256,
    experts: 16,
    experts_used: 4,
    vocab: 384,
    types: Types::Experts(GgmlType::Q4_K),
};

impl Qwen3Moe {
    pub(crate) fn plan(&self) -> Result<Plan, Error> {
        let mostly = match self.types {
            Types::Q4KM => GgmlType::Q4_K,
            Types::Experts(t) => t,
        };
        let mut plan = Plan::new("qwen3moe", self.name, file_type(mostly))?;
        self.metadata(&mut plan)?;
        tokenizer::write(&mut plan.layout, self.vocab as u32)?;
        let (embedding, output) = match self.types {
            Types::Q4KM => (GgmlType::Q4_K, GgmlType::Q6_K),
            Types::Experts(_) => (GgmlType::F16, GgmlType::F16),
        };
        plan.embedding(embedding, self.n_embd, self.vocab)?;
        for layer in 0..self.layers {
            self.layer(&mut plan, layer)?;
        }
        plan.norm("output_norm.weight", self.n_embd)?;
        plan.output(output, self.n_embd, self.vocab)?;
        Ok(plan)
    }

    fn metadata(&self, plan: &mut Plan) -> Result<(), Error> {
        plan.set("block_count", self.layers as u32)?;
        plan.set("context_length", 262_144u32)?;
        plan.set("embedding_length", self.n_embd as u32)?;
        plan.set("feed_forward_length", self.n_ff)?;
        plan.set("attention.head_count", self.n_head as u32)?;
        plan.set("attention.head_count_kv", self.n_head_kv as u32)?;
        plan.set("attention.key_length", self.head as u32)?;
        plan.set("attention.value_length", self.head as u32)?;
        plan.set("attention.layer_norm_rms_epsilon", 1e-6f32)?;
        plan.set("rope.freq_base", 1e7f32)?;
        plan.set("expert_count", self.experts as u32)?;
        plan.set("expert_used_count", self.experts_used)?;
        plan.set("expert_feed_forward_length", self.n_ff_expert as u32)
    }

    fn layer(&self, plan: &mut Plan, layer: u64) -> Result<(), Error> {
        let name = |tensor: &str| format!("blk.{layer}.{tensor}.weight");
        let (n_embd, n_ff, experts) = (self.n_embd, self.n_ff_expert, self.experts);
        let (q, kv) = (self.n_head * self.head, self.n_head_kv * self.head);
        let (attention, values, gate_up, down) = self.layer_types(layer);
        plan.norm(&name("attn_norm"), n_embd)?;
        plan.weight(&name("attn_q"), attention, &[n_embd, q], 1.0)?;
        plan.norm(&name("attn_q_norm"), self.head)?;
        plan.weight(&name("attn_k"), attention, &[n_embd, kv], 1.0)?;
        plan.norm(&name("attn_k_norm"), self.head)?;
        plan.weight(&name("attn_v"), values, &[n_embd, kv], 1.0)?;
        plan.weight(&name("attn_output"), attention, &[q, n_embd], 0.7)?;
        plan.norm(&name("ffn_norm"), n_embd)?;
        unbiased_router(plan, layer, self.layers, n_embd, experts)?;
        plan.weight(
            &name("ffn_gate_exps"),
            gate_up,
            &[n_embd, n_ff, experts],
            1.0,
        )?;
        plan.weight(&name("ffn_up_exps"), gate_up, &[n_embd, n_ff, experts], 1.0)?;
        plan.weight(&name("ffn_down_exps"), down, &[n_ff, n_embd, experts], 1.0)
    }

    /// The types of queries, keys and attention output; of values; of gate and up; of down.
    fn layer_types(&self, layer: u64) -> (GgmlType, GgmlType, GgmlType, GgmlType) {
        if let Types::Experts(experts) = self.types {
            return (GgmlType::F16, GgmlType::F16, experts, experts);
        }
        let bits = |more| if more { GgmlType::Q6_K } else { GgmlType::Q4_K };
        let more = more_bits(layer, self.layers);
        // The published file has the down tensor of layer 9 in more bits instead of that of layer
        // 11.
        let down = match layer {
            9 => true,
            11 => false,
            _ => more,
        };
        (GgmlType::Q4_K, bits(more), GgmlType::Q4_K, bits(down))
    }
}
