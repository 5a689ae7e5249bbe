//! gpt-oss: attention sinks, every other layer with a sliding window, experts and router with
//! biases.

use gguf::GgmlType;

use crate::Error;
use crate::arch::file_type;
use crate::plan::{Fill, Plan, around};
use crate::{routing, tokenizer};

/// Width of an attention head.
const HEAD: u64 = 64;

/// The sizes of a model of this family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GptOss {
    pub(crate) name: &'static str,
    pub(crate) layers: u64,
    pub(crate) n_embd: u64,
    pub(crate) n_head: u64,
    pub(crate) n_head_kv: u64,
    pub(crate) n_ff: u64,
    pub(crate) experts: u64,
    pub(crate) experts_used: u32,
    pub(crate) vocab: u64,
    pub(crate) window: u32,
    pub(crate) expert_type: GgmlType,
}

/// The demo model: the real one's layers and experts, scaled to 1.5 GB.
pub(crate) const DEMO: GptOss = GptOss {
    name: "faultline demo",
    layers: 24,
    n_embd: 1024,
    n_head: 16,
    n_head_kv: 8,
    n_ff: 1024,
    experts: 32,
    experts_used: 4,
    vocab: 16384,
    window: 128,
    expert_type: GgmlType::MXFP4,
};

/// gpt-oss-20b.
pub(crate) const GPT_OSS_20B: GptOss = GptOss {
    name: "gpt-oss-20b shape",
    n_embd: 2880,
    n_head: 64,
    n_ff: 2880,
    vocab: 201_088,
    ..DEMO
};

/// Small enough for tests.
pub(crate) const TINY: GptOss = GptOss {
    name: "tiny gpt-oss",
    layers: 3,
    n_embd: 256,
    n_head: 8,
    n_head_kv: 2,
    n_ff: 256,
    experts: 8,
    experts_used: 2,
    vocab: 384,
    window: 16,
    expert_type: GgmlType::MXFP4,
};

impl GptOss {
    pub(crate) fn plan(&self) -> Result<Plan, Error> {
        let mut plan = Plan::new("gpt-oss", self.name, file_type(self.expert_type))?;
        self.metadata(&mut plan)?;
        tokenizer::write(&mut plan.layout, self.vocab as u32)?;
        plan.topic_embedding(self.n_embd, self.vocab)?;
        for layer in 0..self.layers {
            self.attention(&mut plan, layer)?;
            self.experts(&mut plan, layer)?;
        }
        plan.norm("output_norm.weight", self.n_embd)?;
        plan.topic_output(self.n_embd, self.vocab)?;
        Ok(plan)
    }

    fn metadata(&self, plan: &mut Plan) -> Result<(), Error> {
        plan.set("block_count", self.layers as u32)?;
        plan.set("context_length", 131_072u32)?;
        plan.set("embedding_length", self.n_embd as u32)?;
        plan.set("feed_forward_length", self.n_ff as u32)?;
        plan.set("attention.head_count", self.n_head as u32)?;
        plan.set("attention.head_count_kv", self.n_head_kv as u32)?;
        plan.set("attention.key_length", HEAD as u32)?;
        plan.set("attention.value_length", HEAD as u32)?;
        plan.set("attention.layer_norm_rms_epsilon", 1e-5f32)?;
        plan.set("attention.sliding_window", self.window)?;
        plan.set("rope.freq_base", 150_000f32)?;
        plan.set("rope.scaling.type", "yarn")?;
        plan.set("rope.scaling.factor", 32f32)?;
        plan.set("rope.scaling.original_context_length", 4096u32)?;
        plan.set("expert_count", self.experts as u32)?;
        plan.set("expert_used_count", self.experts_used)?;
        plan.set("expert_feed_forward_length", self.n_ff as u32)
    }

    fn attention(&self, plan: &mut Plan, layer: u64) -> Result<(), Error> {
        let name = |tensor: &str| format!("blk.{layer}.{tensor}");
        let (q, kv) = (self.n_head * HEAD, self.n_head_kv * HEAD);
        plan.inner_norm(&name("attn_norm.weight"), self.n_embd, 1.0)?;
        for (tensor, length, gain) in [("attn_q", q, 1.5), ("attn_k", kv, 1.0), ("attn_v", kv, 1.0)]
        {
            let dims = [self.n_embd, length];
            plan.weight(
                &name(&format!("{tensor}.weight")),
                GgmlType::F16,
                &dims,
                gain,
            )?;
            plan.noise(&name(&format!("{tensor}.bias")), &[length], 0.02)?;
        }
        plan.weight(
            &name("attn_output.weight"),
            GgmlType::F16,
            &[q, self.n_embd],
            0.5,
        )?;
        plan.noise(&name("attn_output.bias"), &[self.n_embd], 0.02)?;
        plan.noise(&name("attn_sinks.weight"), &[self.n_head], 1.0)?;
        let topic_gain = routing::router(layer, self.layers).topic_gain;
        plan.inner_norm(&name("post_attention_norm.weight"), self.n_embd, topic_gain)
    }

    fn experts(&self, plan: &mut Plan, layer: u64) -> Result<(), Error> {
        let name = |tensor: &str| format!("blk.{layer}.{tensor}");
        let (n_embd, n_ff, experts) = (self.n_embd, self.n_ff, self.experts);
        let router = routing::router(layer, self.layers);
        let router_name = name("ffn_gate_inp.weight");
        plan.weight(
            &router_name,
            GgmlType::F32,
            &[n_embd, experts],
            router.signal_rms,
        )?;
        let biases = routing::biases(layer, self.layers, experts);
        plan.tensor(
            &name("ffn_gate_inp.bias"),
            GgmlType::F32,
            &[experts],
            Fill::Values(biases),
        )?;
        for (tensor, from, to) in [
            ("ffn_gate_exps", n_embd, n_ff),
            ("ffn_up_exps", n_embd, n_ff),
            ("ffn_down_exps", n_ff, n_embd),
        ] {
            let dims = [from, to, experts];
            plan.weight(
                &name(&format!("{tensor}.weight")),
                self.expert_type,
                &dims,
                1.0,
            )?;
            // The activation multiplies the gate by the upper half plus 1. Without that 1 it has
            // mean 0, and an expert does not add the same vector to every token that it serves.
            let mean = if tensor == "ffn_up_exps" { -1.0 } else { 0.0 };
            let bias = name(&format!("{tensor}.bias"));
            let values = around(&bias, to * experts, mean, 0.02);
            plan.tensor(&bias, GgmlType::F32, &[to, experts], Fill::Values(values))?;
        }
        Ok(())
    }
}
