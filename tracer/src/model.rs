//! From a model's files to the tables of a log.

use gguf::ModelFiles;

use crate::{ModelFile, Tables, Tensor};

/// What a log knows about a model's files. Everything that divides tensors into slices uses this, so
/// that a log and a map of the same model agree.
pub fn tables(files: &ModelFiles) -> Tables {
    let model_file = |part: &gguf::Gguf| ModelFile {
        path: part.path().display().to_string(),
        size_bytes: part.file_size(),
    };
    let tensor = |(part, info): (usize, &gguf::TensorInfo)| {
        let (layer, component) = layer_and_component(&info.name);
        let n_slices = n_slices(&info.name, &info.dims);
        Tensor {
            name: info.name.clone(),
            file: part as u32,
            offset_bytes: info.offset,
            size_bytes: info.size_bytes,
            ggml_type: info.ggml_type.0,
            type_name: info.ggml_type.name().unwrap_or("unknown").to_owned(),
            slice_stride_bytes: info.size_bytes / u64::from(n_slices),
            n_slices,
            layer,
            component: component.to_owned(),
        }
    };
    Tables {
        files: files.parts.iter().map(model_file).collect(),
        tensors: files.tensors().map(tensor).collect(),
        ..Tables::default()
    }
}

/// What the slices of a tensor are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SliceKind {
    /// One for each expert: its matrix, or the row of a stack of biases.
    Expert,
    /// The rows of a table.
    Row,
}

impl SliceKind {
    /// The kind of slice that the tensor of this name is read by, if it is read by slices. Any
    /// tensor may be read as a whole besides.
    pub fn of(tensor_name: &str) -> Option<SliceKind> {
        if gguf::is_expert_name(tensor_name) || tensor_name.ends_with("_exps.bias") {
            Some(SliceKind::Expert)
        } else if tensor_name == "token_embd.weight" {
            Some(SliceKind::Row)
        } else {
            None
        }
    }

    /// A word for people and tables.
    pub fn name(self) -> &'static str {
        match self {
            SliceKind::Expert => "expert",
            SliceKind::Row => "row",
        }
    }
}

/// Slices of a tensor: matrices of experts, rows of their biases and of the token embedding.
fn n_slices(name: &str, dims: &[u64]) -> u32 {
    let n = match (SliceKind::of(name), dims) {
        (Some(SliceKind::Expert), [_, _, n]) if !name.ends_with(".bias") => *n,
        (Some(SliceKind::Expert), [_, n]) if name.ends_with(".bias") => *n,
        (Some(SliceKind::Row), [_, n]) => *n,
        _ => 1,
    };
    u32::try_from(n.max(1)).unwrap_or(1)
}

/// `blk.7.attn_q.weight` is `attn_q` of layer 7; `output_norm.weight` is `output_norm` of no layer (-1).
pub(crate) fn layer_and_component(name: &str) -> (i32, &str) {
    let (layer, rest) = match name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'))
    {
        Some((layer, rest)) => match layer.parse() {
            Ok(layer) => (layer, rest),
            Err(_) => (-1, name),
        },
        None => (-1, name),
    };
    let component = rest
        .strip_suffix(".weight")
        .or_else(|| rest.strip_suffix(".bias"))
        .unwrap_or(rest);
    (layer, component)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_layer_and_component() {
        assert_eq!(layer_and_component("blk.7.attn_q.weight"), (7, "attn_q"));
        assert_eq!(
            layer_and_component("blk.23.ffn_down_exps.bias"),
            (23, "ffn_down_exps")
        );
        assert_eq!(
            layer_and_component("output_norm.weight"),
            (-1, "output_norm")
        );
        assert_eq!(layer_and_component("blk.x.y"), (-1, "blk.x.y"));
        assert_eq!(layer_and_component("rope_freqs"), (-1, "rope_freqs"));
    }

    #[test]
    fn slices_are_experts_and_rows() {
        assert_eq!(n_slices("blk.0.ffn_up_exps.weight", &[64, 32, 8]), 8);
        assert_eq!(n_slices("blk.0.ffn_up_exps.bias", &[32, 8]), 8);
        assert_eq!(n_slices("token_embd.weight", &[64, 1000]), 1000);
        assert_eq!(n_slices("output.weight", &[64, 1000]), 1);
        assert_eq!(n_slices("blk.0.ffn_up_exps.weight", &[64, 32]), 1);
    }
}
