//! LoRA adapters: two small matrices for a matrix of the model.
//!
//! llama.cpp compares the first two dimensions and takes types from the file. What it does not compare it finds out in the
//! running graph, where an assertion ends the process.

use std::collections::BTreeMap;

use gguf::{Gguf, ModelFiles, TensorInfo, Value};

use super::Verdict;
use super::tensors::is_multipliable;

/// Refuses files that are no LoRA adapter for this model.
///
/// # Errors
///
/// Which key or tensor is wrong.
pub(crate) fn check(adapter: &Gguf, model: &ModelFiles) -> Verdict {
    let architecture = model.metadata().architecture().unwrap_or_default();
    for (key, expected) in [
        ("general.type", "adapter"),
        ("adapter.type", "lora"),
        ("general.architecture", architecture),
    ] {
        match adapter.get(key) {
            None => {
                return Err(format!(
                    "the metadata key {key} is missing, which should be {expected:?}"
                ));
            }
            Some(value) if value.as_str() != Some(expected) => {
                let found = value.to_str_lossy().unwrap_or_else(|| "not text".into());
                return Err(format!(
                    "the metadata key {key} is {found:?}, not {expected:?}"
                ));
            }
            Some(_) => {}
        }
    }
    match adapter.get("adapter.lora.alpha") {
        None => {}
        Some(Value::F32(alpha)) if alpha.is_finite() => {}
        Some(value) => return Err(format!("adapter.lora.alpha is {value:?}, not a finite f32")),
    }
    let pairs = pairs(adapter)?;
    if pairs.is_empty() {
        return Err("it has no tensors".to_owned());
    }
    pairs
        .into_iter()
        .try_for_each(|(name, pair)| check_pair(name, pair, model))
}

/// Both matrices of each weight.
fn pairs(adapter: &Gguf) -> Result<BTreeMap<&str, [Option<&TensorInfo>; 2]>, String> {
    let mut pairs: BTreeMap<_, [Option<_>; 2]> = BTreeMap::new();
    for tensor in adapter.tensors() {
        let name = tensor.name.as_str();
        let (weight, place) = if let Some(weight) = name.strip_suffix(".lora_a") {
            (weight, 0)
        } else if let Some(weight) = name.strip_suffix(".lora_b") {
            (weight, 1)
        } else if name.ends_with("_norm.weight") {
            // llama.cpp leaves these out.
            continue;
        } else {
            return Err(format!(
                "tensor {name} ends with neither .lora_a nor .lora_b"
            ));
        };
        if !is_multipliable(tensor.ggml_type) {
            return Err(format!(
                "tensor {name} is of type {}, not one that matrices can have",
                tensor.ggml_type
            ));
        }
        pairs.entry(weight).or_default()[place] = Some(tensor);
    }
    Ok(pairs)
}

fn check_pair(name: &str, pair: [Option<&TensorInfo>; 2], model: &ModelFiles) -> Verdict {
    let [Some(a), Some(b)] = pair else {
        let missing = if pair[0].is_none() {
            "lora_a"
        } else {
            "lora_b"
        };
        return Err(format!("tensor {name}.{missing} is missing"));
    };
    let Some((_, weight)) = model.tensor(name) else {
        return Err(format!(
            "the model has no tensor {name}, which the adapter changes"
        ));
    };
    let (m, a_dims, b_dims) = (dims(weight), dims(a), dims(b));
    // The embedding is looked up by rows, so that its first matrix lies the other way round.
    let (rank, expected_a) = if name.ends_with("token_embd.weight") {
        (a_dims[0], [a_dims[0], m[1], m[2], m[3]])
    } else {
        (a_dims[1], [m[0], a_dims[1], m[2], m[3]])
    };
    let rows = if name.ends_with("token_embd.weight") {
        m[0]
    } else {
        m[1]
    };
    let expected_b = [rank, rows, m[2], m[3]];
    if rank == 0 || (a_dims, b_dims) != (expected_a, expected_b) {
        return Err(format!(
            "tensors {name}.lora_a {:?} and .lora_b {:?} do not fit {name} {:?} of the model",
            a.dims, b.dims, weight.dims
        ));
    }
    Ok(())
}

/// All four dimensions.
fn dims(tensor: &TensorInfo) -> [u64; 4] {
    std::array::from_fn(|i| tensor.dims.get(i).copied().unwrap_or(1))
}
