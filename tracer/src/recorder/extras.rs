//! Weights that are not in the model's files: what the log calls them.

use std::collections::HashMap;

use llama_rs::{Access, Dim, TensorKey, WeightRef, Which};

use crate::model::layer_and_component;
use crate::{Extra, ExtraKind, LogWriter, WHOLE};

/// The extra tensors of a log, by their addresses.
///
/// An address tells two adapters apart that have tensors of the same names. Alone it is not enough: a recorder may watch
/// one context after another, and what a context allocates for itself, such as the rotation of its KV cache, may lie
/// where something else lay before.
#[derive(Debug, Default)]
pub(super) struct Extras {
    by_key: HashMap<TensorKey, Known>,
}

#[derive(Debug)]
struct Known {
    id: u32,
    /// By what it is sliced.
    dim: Dim,
    name: String,
    ggml_type: u32,
    size_bytes: u64,
}

impl Known {
    fn is(&self, weight: WeightRef<'_>) -> bool {
        self.name == weight.name()
            && self.ggml_type == weight.ggml_type().0
            && self.size_bytes == size_bytes(weight)
    }
}

impl Extras {
    /// The tensor and the slice that are read; `None` when the log has no room to name another tensor.
    pub(super) fn find(&mut self, log: &mut LogWriter, access: &Access<'_>) -> Option<(u32, u32)> {
        let weight = access.weight;
        let known = match self.by_key.get(&weight.key()) {
            Some(known) if known.is(weight) => known,
            _ => {
                let known = add(log, weight, access.which)?;
                self.by_key.insert(weight.key(), known);
                self.by_key.get(&weight.key())?
            }
        };
        let slice = match (known.dim, access.which) {
            (Dim::Rows, Which::Row(slice)) | (Dim::Matrices, Which::Matrix(slice)) => slice,
            _ => WHOLE,
        };
        Some((known.id, slice))
    }
}

/// Names `weight` in the log. What is read of it first says by what it is sliced.
fn add(log: &mut LogWriter, weight: WeightRef<'_>, which: Which) -> Option<Known> {
    let (dim, n_slices) = match which {
        Which::Row(_) => (Dim::Rows, weight.ne()[1]),
        Which::Matrix(_) => (Dim::Matrices, weight.ne()[2]),
        Which::Whole => (Dim::Whole, 1),
    };
    let ggml_type = weight.ggml_type();
    let (kind, layer) = origin(weight.name());
    let extra = Extra {
        kind,
        name: weight.name().to_owned(),
        ggml_type: ggml_type.0,
        type_name: ggml_type.name().unwrap_or("unknown").to_owned(),
        size_bytes: size_bytes(weight),
        slice_stride_bytes: weight.slice_bytes(dim) as u64,
        n_slices: u32::try_from(n_slices).ok()?,
        layer,
    };
    let id = log.add_extra(&extra).ok()?;
    Some(Known {
        id,
        dim,
        name: extra.name,
        ggml_type: extra.ggml_type,
        size_bytes: extra.size_bytes,
    })
}

fn size_bytes(weight: WeightRef<'_>) -> u64 {
    weight.slice_bytes(Dim::Whole) as u64
}

/// Where a tensor comes from and its layer, by the names that llama.cpp gives: `blk.3.….lora_a` and `….lora_b` (names of the
/// adapter's file); `cache_k_rot_l3` and `cache_v_rot_l3` for the rotation of a quantized KV cache, with more between
/// `cache_` and `k` for models that have several caches (`llama_kv_cache::init_rotation`).
fn origin(name: &str) -> (ExtraKind, i32) {
    if name.ends_with(".lora_a") || name.ends_with(".lora_b") {
        return (ExtraKind::LORA, layer_and_component(name).0);
    }
    let rotation = name
        .strip_prefix("cache_")
        .and_then(|rest| rest.rsplit_once("_rot_l"))
        .and_then(|(_, layer)| layer.parse().ok());
    match rotation {
        Some(layer) => (ExtraKind::KV_ROTATION, layer),
        None => (ExtraKind::OTHER, layer_and_component(name).0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_where_an_extra_tensor_comes_from() {
        for (name, expected) in [
            ("blk.0.attn_q.weight.lora_a", (ExtraKind::LORA, 0)),
            ("token_embd.weight.lora_b", (ExtraKind::LORA, -1)),
            ("cache_k_rot_l0", (ExtraKind::KV_ROTATION, 0)),
            ("cache_lid_v_rot_l17", (ExtraKind::KV_ROTATION, 17)),
            ("blk.2.attn_rot_embd", (ExtraKind::OTHER, 2)),
            ("cache_k_l3", (ExtraKind::OTHER, -1)),
            ("something", (ExtraKind::OTHER, -1)),
        ] {
            assert_eq!(origin(name), expected, "{name}");
        }
    }
}
