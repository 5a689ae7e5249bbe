//! How the routers of generated mixture-of-experts models are skewed.

use crate::plan::around;

/// Strength of the router of one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Router {
    /// Root mean square of the part of the router's logits that follows the hidden state.
    pub(crate) signal_rms: f32,
    /// Root mean square of the part that is always the same.
    pub(crate) bias_rms: f32,
}

/// The router of layer `layer` of `n_layers`.
pub(crate) fn router(layer: u64, n_layers: u64) -> Router {
    let _ = (layer, n_layers);
    Router {
        signal_rms: 0.8,
        bias_rms: 0.4,
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
