//! DeepSeek-V2: multi-head latent attention, shared experts, a dense first layer.

use gguf::GgmlType;

use crate::Error;
use crate::arch::{file_type, more_bits, unbiased_router};
use crate::plan::Plan;
use crate::tokenizer;

/// The sizes of a model of this family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeepSeek2 {
    pub(crate) name: &'static str,
    pub(crate) layers: u64,
    pub(crate) dense_layers: u64,
    pub(crate) n_embd: u64,
    pub(crate) n_head: u64,
    /// Rank of the queries; `None` for the lite model, which has plain queries.
    pub(crate) q_rank: Option<u64>,
    pub(crate) kv_rank: u64,
    /// Part of a head that knows no position.
    pub(crate) nope: u64,
    /// Part of a head that does.
    pub(crate) rope: u64,
    pub(crate) value: u64,
    pub(crate) n_ff: u64,
    pub(crate) n_ff_expert: u64,
    pub(crate) experts: u64,
    pub(crate) experts_used: u32,
    pub(crate) experts_shared: u64,
    pub(crate) vocab: u64,
    /// Keys and values are kept compressed. Older files lack what that needs.
    pub(crate) latent: bool,
    pub(crate) types: Types,
}

/// Which types the tensors have.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Types {
    /// llama.cpp's Q4_K_M recipe; Q5_0 and Q8_0 where a row is no multiple of 256.
    Q4KM,
    /// F16, and this for the experts.
    Experts(GgmlType),
}

/// DeepSeek-V2-Lite.
pub(crate) const V2_LITE: DeepSeek2 = DeepSeek2 {
    name: "DeepSeek-V2-Lite shape",
    layers: 27,
    dense_layers: 1,
    n_embd: 2048,
    n_head: 16,
    q_rank: None,
    kv_rank: 512,
    nope: 128,
    rope: 64,
    value: 128,
    n_ff: 10_944,
    n_ff_expert: 1408,
    experts: 64,
    experts_used: 6,
    experts_shared: 2,
    vocab: 102_400,
    latent: true,
    types: Types::Q4KM,
};

/// Small enough for tests.
pub(crate) const TINY: DeepSeek2 = DeepSeek2 {
    name: "tiny deepseek2",
    layers: 3,
    dense_layers: 1,
    n_embd: 256,
    n_head: 4,
    q_rank: Some(128),
    kv_rank: 128,
    nope: 64,
    rope: 32,
    value: 64,
    n_ff: 512,
    n_ff_expert: 256,
    experts: 8,
    experts_used: 2,
    experts_shared: 1,
    vocab: 384,
    latent: true,
    types: Types::Experts(GgmlType::Q4_K),
};

impl DeepSeek2 {
    pub(crate) fn plan(&self) -> Result<Plan, Error> {
        let mostly = match self.types {
            Types::Q4KM => GgmlType::Q4_K,
            Types::Experts(t) => t,
        };
        let mut plan = Plan::new("deepseek2", self.name, file_type(mostly))?;
        self.metadata(&mut plan)?;
        tokenizer::write(&mut plan.layout, self.vocab as u32)?;
        plan.embedding(self.dense(self.n_embd), self.n_embd, self.vocab)?;
        for layer in 0..self.layers {
            self.attention(&mut plan, layer)?;
            match layer < self.dense_layers {
                true => self.dense_ffn(&mut plan, layer)?,
                false => self.experts(&mut plan, layer)?,
            }
        }
        plan.norm("output_norm.weight", self.n_embd)?;
        let output = match self.types {
            Types::Q4KM => GgmlType::Q6_K,
            Types::Experts(_) => GgmlType::F16,
        };
        plan.output(output, self.n_embd, self.vocab)?;
        Ok(plan)
    }

    fn metadata(&self, plan: &mut Plan) -> Result<(), Error> {
        plan.set("block_count", self.layers as u32)?;
        plan.set("context_length", 163_840u32)?;
        plan.set("embedding_length", self.n_embd as u32)?;
        plan.set("feed_forward_length", self.n_ff as u32)?;
        plan.set("vocab_size", self.vocab as u32)?;
        plan.set("leading_dense_block_count", self.dense_layers as u32)?;
        plan.set("attention.head_count", self.n_head as u32)?;
        let (key, value) = ((self.nope + self.rope) as u32, self.value as u32);
        if self.latent {
            // All heads share one key: the compressed one and the position.
            plan.set("attention.head_count_kv", 1u32)?;
            plan.set("attention.key_length", (self.kv_rank + self.rope) as u32)?;
            plan.set("attention.value_length", self.kv_rank as u32)?;
            plan.set("attention.key_length_mla", key)?;
            plan.set("attention.value_length_mla", value)?;
        } else {
            plan.set("attention.head_count_kv", self.n_head as u32)?;
            plan.set("attention.key_length", key)?;
            plan.set("attention.value_length", value)?;
        }
        plan.set("attention.kv_lora_rank", self.kv_rank as u32)?;
        if let Some(rank) = self.q_rank {
            plan.set("attention.q_lora_rank", rank as u32)?;
        }
        plan.set("attention.layer_norm_rms_epsilon", 1e-6f32)?;
        plan.set("rope.dimension_count", self.rope as u32)?;
        plan.set("rope.freq_base", 1e4f32)?;
        plan.set("rope.scaling.type", "yarn")?;
        plan.set("rope.scaling.factor", 40f32)?;
        plan.set("rope.scaling.original_context_length", 4096u32)?;
        plan.set("rope.scaling.yarn_log_multiplier", 0.0707f32)?;
        plan.set("expert_count", self.experts as u32)?;
        plan.set("expert_used_count", self.experts_used)?;
        plan.set("expert_shared_count", self.experts_shared as u32)?;
        plan.set("expert_feed_forward_length", self.n_ff_expert as u32)?;
        plan.set("expert_weights_scale", 1f32)
    }

    /// The type of a dense tensor with rows of this length.
    fn dense(&self, row: u64) -> GgmlType {
        match self.types {
            Types::Experts(_) => GgmlType::F16,
            Types::Q4KM if row.is_multiple_of(256) => GgmlType::Q4_K,
            Types::Q4KM => GgmlType::Q5_0,
        }
    }

    /// The type of a tensor to which the recipe gives more bits in some layers.
    fn important(&self, layer: u64, row: u64) -> GgmlType {
        match (self.types, more_bits(layer, self.layers)) {
            (Types::Q4KM, true) if row.is_multiple_of(256) => GgmlType::Q6_K,
            (Types::Q4KM, true) => GgmlType::Q8_0,
            _ => self.dense(row),
        }
    }

    fn attention(&self, plan: &mut Plan, layer: u64) -> Result<(), Error> {
        let name = |tensor: &str| format!("blk.{layer}.{tensor}.weight");
        let (n_embd, n_head, kv_rank) = (self.n_embd, self.n_head, self.kv_rank);
        let q = n_head * (self.nope + self.rope);
        plan.norm(&name("attn_norm"), n_embd)?;
        match self.q_rank {
            Some(rank) => {
                plan.weight(&name("attn_q_a"), self.dense(n_embd), &[n_embd, rank], 1.0)?;
                plan.norm(&name("attn_q_a_norm"), rank)?;
                plan.weight(&name("attn_q_b"), self.dense(rank), &[rank, q], 1.0)?;
            }
            None => plan.weight(&name("attn_q"), self.dense(n_embd), &[n_embd, q], 1.0)?,
        }
        let compressed = [n_embd, kv_rank + self.rope];
        plan.weight(&name("attn_kv_a_mqa"), self.dense(n_embd), &compressed, 1.0)?;
        plan.norm(&name("attn_kv_a_norm"), kv_rank)?;
        let decompress = self.dense(kv_rank);
        if self.latent {
            // Rows of the key matrix are shorter than a block of Q4_K.
            let key = match self.types {
                Types::Q4KM => GgmlType::Q8_0,
                Types::Experts(_) => GgmlType::F16,
            };
            plan.weight(&name("attn_k_b"), key, &[self.nope, kv_rank, n_head], 1.0)?;
            let value = [kv_rank, self.value, n_head];
            plan.weight(&name("attn_v_b"), decompress, &value, 1.0)?;
        } else {
            let both = [kv_rank, n_head * (self.nope + self.value)];
            plan.weight(&name("attn_kv_b"), decompress, &both, 1.0)?;
        }
        let joined = n_head * self.value;
        plan.weight(
            &name("attn_output"),
            self.dense(joined),
            &[joined, n_embd],
            2.0,
        )?;
        plan.norm(&name("ffn_norm"), n_embd)
    }

    fn dense_ffn(&self, plan: &mut Plan, layer: u64) -> Result<(), Error> {
        let name = |tensor: &str| format!("blk.{layer}.{tensor}.weight");
        let (n_embd, n_ff) = (self.n_embd, self.n_ff);
        plan.weight(&name("ffn_gate"), self.dense(n_embd), &[n_embd, n_ff], 1.0)?;
        plan.weight(&name("ffn_up"), self.dense(n_embd), &[n_embd, n_ff], 1.0)?;
        plan.weight(
            &name("ffn_down"),
            self.important(layer, n_ff),
            &[n_ff, n_embd],
            1.0,
        )
    }

    fn experts(&self, plan: &mut Plan, layer: u64) -> Result<(), Error> {
        let name = |tensor: &str| format!("blk.{layer}.{tensor}.weight");
        let (n_embd, n_ff, experts) = (self.n_embd, self.n_ff_expert, self.experts);
        unbiased_router(plan, layer, self.layers, n_embd, experts)?;
        let (gate_up, down) = match self.types {
            Types::Experts(t) => (t, t),
            Types::Q4KM => (GgmlType::Q4_K, self.important(layer, n_ff)),
        };
        plan.weight(
            &name("ffn_gate_exps"),
            gate_up,
            &[n_embd, n_ff, experts],
            1.0,
        )?;
        plan.weight(&name("ffn_up_exps"), gate_up, &[n_embd, n_ff, experts], 1.0)?;
        plan.weight(&name("ffn_down_exps"), down, &[n_ff, n_embd, experts], 1.0)?;
        let shared = n_ff * self.experts_shared;
        plan.weight(
            &name("ffn_gate_shexp"),
            self.dense(n_embd),
            &[n_embd, shared],
            1.0,
        )?;
        plan.weight(
            &name("ffn_up_shexp"),
            self.dense(n_embd),
            &[n_embd, shared],
            1.0,
        )?;
        plan.weight(
            &name("ffn_down_shexp"),
            self.important(layer, shared),
            &[shared, n_embd],
            1.0,
        )
    }
}
