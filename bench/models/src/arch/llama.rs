//! Llama: dense, every weight is read for every token.

use gguf::GgmlType;

use crate::Error;
use crate::arch::{file_type, more_bits};
use crate::plan::Plan;
use crate::tokenizer;

/// The sizes of a model of this family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Llama {
    pub(crate) name: &'static str,
    pub(crate) layers: u64,
    pub(crate) n_embd: u64,
    pub(crate) n_head: u64,
    pub(crate) n_head_kv: u64,
    pub(crate) n_ff: u64,
    pub(crate) vocab: u64,
    pub(crate) n_ctx: u32,
    pub(crate) tied: bool,
    /// Type of the matrices; Q4_K stands for the Q4_K_M recipe.
    pub(crate) weight_type: GgmlType,
    pub(crate) vocabulary: Vocabulary,
}

/// What the file says about its tokenizer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Vocabulary {
    /// One token for each byte.
    Bytes,
    /// That there is none.
    None,
    /// Nothing at all.
    Silent,
}

/// A model of 8 billion parameters, as Llama 3.1 8B.
pub(crate) const DENSE_8B: Llama = Llama {
    name: "dense llama 8B shape",
    layers: 32,
    n_embd: 4096,
    n_head: 32,
    n_head_kv: 8,
    n_ff: 14_336,
    vocab: 128_256,
    n_ctx: 131_072,
    tied: false,
    weight_type: GgmlType::Q4_K,
    vocabulary: Vocabulary::Bytes,
};

/// Llama 2 7B: heads do not share keys and values.
pub(crate) const LLAMA_2_7B: Llama = Llama {
    name: "Llama 2 7B shape",
    n_head_kv: 32,
    n_ff: 11_008,
    vocab: 32_000,
    n_ctx: 4096,
    ..DENSE_8B
};

/// A model of 3 billion parameters, as Llama 3.2 3B in Q8_0; one tensor is embedding and output.
pub(crate) const DENSE_3B: Llama = Llama {
    name: "dense llama 3B shape",
    layers: 28,
    n_embd: 3072,
    n_head: 24,
    n_head_kv: 8,
    n_ff: 8192,
    vocab: 128_256,
    n_ctx: 131_072,
    tied: true,
    weight_type: GgmlType::Q8_0,
    vocabulary: Vocabulary::Bytes,
};

/// Small enough for tests; one tensor is embedding and output.
pub(crate) const TINY: Llama = Llama {
    name: "tiny llama",
    layers: 2,
    n_embd: 256,
    n_head: 4,
    n_head_kv: 2,
    n_ff: 512,
    vocab: 384,
    n_ctx: 131_072,
    tied: true,
    weight_type: GgmlType::F16,
    vocabulary: Vocabulary::Bytes,
};

impl Llama {
    pub(crate) fn plan(&self) -> Result<Plan, Error> {
        let mut plan = Plan::new("llama", self.name, file_type(self.weight_type))?;
        plan.set("block_count", self.layers as u32)?;
        plan.set("context_length", self.n_ctx)?;
        plan.set("embedding_length", self.n_embd as u32)?;
        plan.set("feed_forward_length", self.n_ff as u32)?;
        plan.set("attention.head_count", self.n_head as u32)?;
        plan.set("attention.head_count_kv", self.n_head_kv as u32)?;
        plan.set("attention.layer_norm_rms_epsilon", 1e-5f32)?;
        plan.set("rope.dimension_count", (self.n_embd / self.n_head) as u32)?;
        plan.set("rope.freq_base", 500_000f32)?;
        plan.set("vocab_size", self.vocab as u32)?;
        match self.vocabulary {
            Vocabulary::Bytes => tokenizer::write(&mut plan.layout, self.vocab as u32)?,
            Vocabulary::None => {
                plan.layout.kv("tokenizer.ggml.model", "none")?;
            }
            Vocabulary::Silent => {}
        }
        match self.tied {
            true => plan.tied_embedding(self.weight_type, self.n_embd, self.vocab)?,
            false => plan.embedding(self.weight_type, self.n_embd, self.vocab)?,
        }
        for layer in 0..self.layers {
            self.layer(&mut plan, layer)?;
        }
        if self.tied {
            plan.scrambling_norm("output_norm.weight", self.n_embd)?;
        } else {
            plan.norm("output_norm.weight", self.n_embd)?;
            plan.output(self.important(true), self.n_embd, self.vocab)?;
        }
        Ok(plan)
    }

    /// The type of a tensor to which the Q4_K_M recipe may give more bits.
    fn important(&self, more: bool) -> GgmlType {
        match self.weight_type {
            GgmlType::Q4_K if more => GgmlType::Q6_K,
            other => other,
        }
    }

    fn layer(&self, plan: &mut Plan, layer: u64) -> Result<(), Error> {
        let name = |tensor: &str| format!("blk.{layer}.{tensor}.weight");
        let (n_embd, n_ff) = (self.n_embd, self.n_ff);
        let kv = n_embd / self.n_head * self.n_head_kv;
        let weight_type = self.weight_type;
        let important = self.important(more_bits(layer, self.layers));
        plan.norm(&name("attn_norm"), n_embd)?;
        plan.weight(&name("attn_q"), weight_type, &[n_embd, n_embd], 1.5)?;
        plan.weight(&name("attn_k"), weight_type, &[n_embd, kv], 1.0)?;
        plan.weight(&name("attn_v"), important, &[n_embd, kv], 1.0)?;
        plan.weight(&name("attn_output"), weight_type, &[n_embd, n_embd], 0.7)?;
        plan.norm(&name("ffn_norm"), n_embd)?;
        plan.weight(&name("ffn_gate"), weight_type, &[n_embd, n_ff], 1.0)?;
        plan.weight(&name("ffn_up"), weight_type, &[n_embd, n_ff], 1.0)?;
        plan.weight(&name("ffn_down"), important, &[n_ff, n_embd], 1.0)
    }
}
