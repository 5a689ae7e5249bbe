//! LoRA adapters with random values.

use std::path::Path;

use gguf::{GgmlType, Gguf, GgufWriter, Layout};

use crate::Error;
use crate::rng::{self, BELL_ENTRIES, Rng};

/// Elements of the short side of both matrices.
pub const ADAPTER_RANK: u64 = 4;

/// Writes a LoRA adapter for `weights`, names of matrices of the model at `model`, as `path`: of each a matrix `.lora_a` of f32
/// and a matrix `.lora_b` of f16, with [`ADAPTER_RANK`] and a scale of 1. For experts both have a matrix for each expert.
///
/// # Errors
/// [`Error::NoTensor`] if the model has no tensor of a name; [`Error::Gguf`] if the model cannot be read or the adapter not
/// be written.
pub fn generate_adapter(
    model: &Path,
    path: &Path,
    weights: &[&str],
    seed: u64,
) -> Result<(), Error> {
    let model = Gguf::open(model)?;
    let mut layout = Layout::new();
    layout.kv("general.type", "adapter")?;
    layout.kv("adapter.type", "lora")?;
    layout.kv(
        "general.architecture",
        model.architecture().unwrap_or_default(),
    )?;
    layout.kv("adapter.lora.alpha", ADAPTER_RANK as f32)?;
    for name in weights {
        let weight = model.tensor(name).ok_or_else(|| Error::NoTensor {
            name: (*name).to_owned(),
        })?;
        let dim = |i: usize| weight.dims.get(i).copied().unwrap_or(1);
        // Rows of the embedding are looked up in the first matrix, so that this lies the other way round.
        let (a, rows) = match *name {
            "token_embd.weight" => ([ADAPTER_RANK, dim(1), dim(2)], dim(0)),
            _ => ([dim(0), ADAPTER_RANK, dim(2)], dim(1)),
        };
        let b = [ADAPTER_RANK, rows, dim(2)];
        let n_dims = weight.dims.len().min(3);
        layout.tensor(&format!("{name}.lora_a"), GgmlType::F32, &a[..n_dims])?;
        layout.tensor(&format!("{name}.lora_b"), GgmlType::F16, &b[..n_dims])?;
    }
    let bell = rng::bell();
    let mut writer = GgufWriter::create(path, layout)?;
    for tensor in writer.tensors().to_vec() {
        let mut rng = Rng::new(seed, &tensor.name, 0);
        let mut value = || bell[rng.next() as usize % BELL_ENTRIES] * 0.25;
        let n = tensor.n_elements();
        let bytes: Vec<u8> = if tensor.ggml_type == GgmlType::F32 {
            (0..n).flat_map(|_| value().to_le_bytes()).collect()
        } else {
            (0..n)
                .flat_map(|_| half::f16::from_f32(value()).to_le_bytes())
                .collect()
        };
        writer.write_tensor(&mut bytes.as_slice())?;
    }
    writer.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Shape, generate};

    #[test]
    fn both_matrices_fit_the_weight() {
        let folder = tempfile::tempdir().unwrap();
        let (model, path) = (folder.path().join("model"), folder.path().join("adapter"));
        let shape = Shape::by_name("tiny-qwen3moe").unwrap();
        generate(&shape, &model, 1, &mut |_, _| {}).unwrap();
        let weights = [
            "blk.1.attn_k.weight",
            "token_embd.weight",
            "blk.0.ffn_up_exps.weight",
        ];
        generate_adapter(&model, &path, &weights, 1).unwrap();
        let (model, adapter) = (Gguf::open(&model).unwrap(), Gguf::open(&path).unwrap());
        assert_eq!(adapter.tensors().len(), 6);
        for name in weights {
            let dims = |suffix: &str| {
                let tensor = adapter.tensor(&format!("{name}{suffix}")).unwrap();
                tensor.dims.clone()
            };
            let weight = &model.tensor(name).unwrap().dims;
            let (a, b) = (dims(".lora_a"), dims(".lora_b"));
            let sides = match name {
                "token_embd.weight" => [b[1], a[1]],
                _ => [a[0], b[1]],
            };
            assert_eq!(sides, weight[..2], "{name}");
            assert_eq!((&a[2..], &b[2..]), (&weight[2..], &weight[2..]), "{name}");
        }
        let missing = generate_adapter(model.path(), &path, &["no.weight"], 1).unwrap_err();
        assert!(missing.to_string().contains("no.weight"), "{missing}");
    }
}
