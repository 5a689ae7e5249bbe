//! The sizes of a model's experts.

use std::collections::BTreeMap;

use gguf::{ModelFiles, is_expert_name};

use super::RooflineError;
use crate::routing::RoutingTrace;
use crate::simulate::{Window, Workload};

/// What the experts of a model weigh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertSizes {
    /// Bytes of one expert of each layer that has experts, all its tensors together.
    pub layer_bytes: Vec<u64>,
    /// Experts of a layer.
    pub n_experts: u64,
    /// Experts that a token uses in each layer, if the file says so.
    pub top_k: Option<u64>,
    /// Bytes of one expert in the tensor where that is most.
    pub slice_bytes_max: u64,
}

impl ExpertSizes {
    /// Adds up the tensors of a model.
    ///
    /// # Errors
    ///
    /// [`RooflineError::Model`] for a model without experts, or with layers that have different numbers of them.
    pub fn of(model: &ModelFiles) -> Result<ExpertSizes, RooflineError> {
        let mut layers = BTreeMap::<u64, u64>::new();
        let mut n_experts = None;
        let mut slice_bytes_max = 0;
        for (_, tensor) in model.tensors() {
            if !is_expert_name(&tensor.name) {
                continue;
            }
            let layer = tensor
                .name
                .split('.')
                .nth(1)
                .and_then(|text| text.parse().ok());
            let (Some(layer), Some(&count)) = (layer, tensor.dims.last()) else {
                return Err(RooflineError::Model(format!(
                    "{}: the number of its layer or of its experts is missing",
                    tensor.name
                )));
            };
            let known = *n_experts.get_or_insert(count);
            if known != count {
                return Err(RooflineError::Model(format!(
                    "{} has {count} experts, other tensors have {known}",
                    tensor.name
                )));
            }
            *layers.entry(layer).or_default() += tensor.slice_bytes();
            slice_bytes_max = slice_bytes_max.max(tensor.slice_bytes());
        }
        let Some(n_experts) = n_experts else {
            return Err(RooflineError::Model(
                "the model has no experts: every token reads all of it, and no policy misses less than what does not fit"
                    .to_owned(),
            ));
        };
        let metadata = model.metadata();
        let top_k = metadata
            .architecture()
            .and_then(|architecture| metadata.u64(&format!("{architecture}.expert_used_count")));
        Ok(ExpertSizes {
            layer_bytes: layers.into_values().collect(),
            n_experts,
            top_k,
            slice_bytes_max,
        })
    }

    /// What a routing trace reads of this model.
    ///
    /// # Errors
    ///
    /// [`RooflineError::Mismatch`] names layers, experts or experts per token that differ; [`RooflineError::Window`].
    pub fn workload(
        &self,
        trace: &RoutingTrace,
        window: Window,
    ) -> Result<Workload, RooflineError> {
        let compare = |what, model: u64, trace: usize| match model == trace as u64 {
            true => Ok(()),
            false => Err(RooflineError::Mismatch {
                what,
                model,
                trace: trace as u64,
            }),
        };
        compare(
            "layers with experts",
            self.layer_bytes.len() as u64,
            trace.n_layers(),
        )?;
        compare("experts in a layer", self.n_experts, trace.n_experts())?;
        if let Some(top_k) = self.top_k {
            compare("experts for a token and layer", top_k, trace.top_k())?;
        }
        let workload = Workload::from_routing(trace, window, None)?;
        Ok(workload.with_layer_bytes(&self.layer_bytes))
    }
}
