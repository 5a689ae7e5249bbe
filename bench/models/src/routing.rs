//! How the routers of generated mixture-of-experts models are skewed.
//!
//! The numbers below, those of [`crate::topics`], and the gains of the gpt-oss family were tuned on
//! the demo model until its routing resembled that of gpt-oss-20b. Measured with llama.cpp, experts
//! of single-token decodes after six prompts (English, code, numbers) of 18 to 80 bytes:
//!
//! | | gpt-oss-20b | demo, greedy | demo, temperature 1 | demo, random tokens |
//! |---|---|---|---|---|
//! | tokens | 215,438 | 6 x 256 | 4 x 128 | 2 x 128 |
//! | Gini of usage, mean over layers | 0.397 | 0.385 | 0.377 | 0.349 |
//! | smallest and largest layer | 0.25, 0.51 | 0.29, 0.50 | 0.26, 0.52 | 0.18, 0.45 |
//! | expert used again by the next token | 0.437 | 0.447 | 0.353 | 0.186 |
//! | smallest and largest layer | 0.19, 0.59 | 0.35, 0.52 | 0.28, 0.41 | 0.12, 0.23 |
//! | again after 2, 4, 8, 16, 64 tokens | .382 .364 .351 .341 .331 | .420 .339 .275 .239 .206 | .301 .239 .211 .190 .193 | .178 .182 .185 .184 .170 |
//!
//! What it lacks: the memory of a real text lasts for hundreds of tokens, that of a generated one
//! for some ten. Tokens drawn at random, as llama-bench feeds them, have no memory at all. Judge
//! cache policies on real traces.

use crate::plan::around;

/// The router of one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Router {
    /// Root mean square of the part of the router's logits that follows the hidden state.
    pub(crate) signal_rms: f32,
    /// Root mean square of the part that is always the same.
    pub(crate) bias_rms: f32,
    /// How much the half of the hidden state that carries the topic counts. What the experts add to
    /// it buries the topic with depth.
    pub(crate) topic_gain: f32,
}

/// The router of layer `layer` of `n_layers`.
pub(crate) fn router(layer: u64, n_layers: u64) -> Router {
    let depth = layer as f32 / n_layers as f32;
    // Neighbouring layers differ: a walk in steps of 7 through 24 strengths.
    let strength = (layer * 7 % 24) as f32 / 24.0;
    Router {
        signal_rms: 0.8,
        bias_rms: 0.05 + 0.2 * strength,
        topic_gain: 0.15 + 2.6 * depth.min(0.2) + 1.4 * (depth - 0.2).max(0.0),
    }
}

/// What a router adds to the logit of each expert whatever the hidden state is.
pub(crate) fn biases(layer: u64, n_layers: u64, n_experts: u64) -> Vec<f32> {
    around(
        &format!("router {layer}"),
        n_experts,
        0.0,
        router(layer, n_layers).bias_rms,
    )
}
