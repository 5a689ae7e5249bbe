//! Where the weights are: in the mapping of the file, and as repacked copies.

use std::collections::BTreeMap;

use gguf::{GgmlType, ModelFiles, TensorInfo, is_expert_name};
use serde::Serialize;

use super::{Cpu, Options, Prefetch};

/// Pages of x86-64; those of the page cache may be larger.
pub(super) const PAGE_BYTES: u64 = 4096;

/// Rows that are interleaved: the number of rows must be a multiple of this (`ggml_repack_get_optimal_repack_type`).
const ROWS: u64 = 8;

/// Tensors that are read by `GET_ROWS` or added, not multiplied: they stay as they are, whatever their type.
const NOT_MULTIPLIED: [&str; 4] = [
    "token_embd.weight",
    "token_types.weight",
    "position_embd.weight",
    "per_layer_token_embd.weight",
];

/// Copies of weights in a layout that suits the CPU, by type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Repacked {
    /// ggml's name of the type.
    pub r#type: &'static str,
    /// Bytes of all copies of this type; each is as large as its original.
    pub size_bytes: u64,
    /// Names of the tensors. That of an embedding stands for the output that is tied to it.
    pub tensors: Vec<String>,
}

/// Where the weights are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Weights {
    /// In the mapping when the model has been loaded.
    pub mapped_at_load_bytes: u64,
    /// In the mapping when everything has been used.
    pub mapped_bytes: u64,
    /// Of these, tensors that also have a repacked copy, and whose pages are not used any more.
    pub mapped_unused_bytes: u64,
    /// Copies.
    pub repacked: Vec<Repacked>,
    /// What is read by slices: experts, and the embedding if the output has a tensor of its own.
    pub sparse_bytes: u64,
    /// Of these, experts.
    pub experts_bytes: u64,
}

impl Weights {
    /// All copies.
    pub fn repacked_bytes(&self) -> u64 {
        self.repacked.iter().map(|copies| copies.size_bytes).sum()
    }

    pub(super) fn predict(files: &ModelFiles, options: &Options) -> Weights {
        let is_lazy = |tensor: &TensorInfo| {
            options.prefetch != Prefetch::Eager && files.is_sparse(&tensor.name)
        };
        let is_copied = |tensor: &TensorInfo| {
            options.repack && !is_lazy(tensor) && is_repacked(tensor, options.cpu)
        };
        let mut copies: BTreeMap<u32, Vec<&TensorInfo>> = BTreeMap::new();
        let mut weights = Weights {
            sparse_bytes: files.dense_sparse().sparse_bytes,
            experts_bytes: files
                .tensors()
                .filter(|(_, tensor)| is_expert_name(&tensor.name))
                .map(|(_, tensor)| tensor.size_bytes)
                .sum(),
            ..Weights::default()
        };
        for part in &files.parts {
            // llama.cpp gives back what lies before the first and after the last tensor that stays mapped.
            let mut kept: Option<(u64, u64)> = None;
            let mut touched = Vec::new();
            for tensor in part.tensors() {
                let range = (tensor.offset, tensor.offset + tensor.size_bytes);
                if is_copied(tensor) {
                    copies.entry(tensor.ggml_type.0).or_default().push(tensor);
                } else {
                    let (begin, end) = kept.unwrap_or(range);
                    kept = Some((begin.min(range.0), end.max(range.1)));
                }
                let is_read = match options.prefetch {
                    Prefetch::Eager => true,
                    Prefetch::Selective => !is_lazy(tensor),
                    // A copy is made from the mapping.
                    Prefetch::None => is_copied(tensor),
                };
                if is_read {
                    touched.push(range);
                }
            }
            let Some(kept) = kept.map(pages) else {
                continue;
            };
            weights.mapped_bytes += kept.1 - kept.0;
            weights.mapped_at_load_bytes += match options.prefetch {
                Prefetch::Eager => kept.1 - kept.0,
                Prefetch::Selective | Prefetch::None => covered(touched, kept),
            };
            let copied = part.tensors().iter().filter(|tensor| is_copied(tensor));
            let inside = |tensor: &&TensorInfo| tensor.offset >= kept.0 && tensor.offset < kept.1;
            let unused = copied.filter(inside).map(|tensor| tensor.size_bytes);
            weights.mapped_unused_bytes += unused.sum::<u64>();
        }
        // The output of a model that has no tensor for it: the embedding a second time, multiplied.
        if options.repack && files.tensor("output.weight").is_none() {
            let tied = files.tensor("token_embd.weight").map(|(_, tensor)| tensor);
            if let Some(tied) = tied.filter(|tensor| can_be_repacked(tensor, options.cpu, 2)) {
                copies.entry(tied.ggml_type.0).or_default().push(tied);
            }
        }
        weights.repacked = copies
            .into_iter()
            .map(|(kind, tensors)| Repacked {
                r#type: GgmlType(kind).name().unwrap_or("unknown"),
                size_bytes: tensors.iter().map(|tensor| tensor.size_bytes).sum(),
                tensors: tensors.iter().map(|tensor| tensor.name.clone()).collect(),
            })
            .collect();
        weights
    }
}

/// Whether ggml copies this weight when it may.
fn is_repacked(tensor: &TensorInfo, cpu: Cpu) -> bool {
    let n_dims = if is_expert_name(&tensor.name) { 3 } else { 2 };
    !NOT_MULTIPLIED.contains(&tensor.name.as_str())
        && tensor.name.ends_with(".weight")
        && can_be_repacked(tensor, cpu, n_dims)
}

/// Whether the CPU has a layout for a matrix (or a stack of them) of this type and shape. Other dimensions than `n_dims` belong to
/// operations that read the layout of the file.
fn can_be_repacked(tensor: &TensorInfo, cpu: Cpu, n_dims: usize) -> bool {
    let dims = tensor
        .dims
        .iter()
        .rposition(|&n| n > 1)
        .map_or(1, |last| last + 1);
    if dims != n_dims {
        return false;
    }
    let rows = tensor.dims.get(1).copied().unwrap_or(1);
    let interleaved = match tensor.ggml_type {
        GgmlType::Q4_0 | GgmlType::Q4_K | GgmlType::IQ4_NL | GgmlType::MXFP4 => cpu.avx2,
        GgmlType::Q2_K => cpu.avx512,
        _ => false,
    };
    let tiled = cpu.amx
        && n_dims == 2
        && matches!(
            tensor.ggml_type,
            GgmlType::Q4_0
                | GgmlType::Q4_1
                | GgmlType::Q8_0
                | GgmlType::Q4_K
                | GgmlType::Q5_K
                | GgmlType::Q6_K
                | GgmlType::IQ4_XS
                | GgmlType::F16
        );
    (interleaved && rows.is_multiple_of(ROWS)) || tiled
}

/// The pages that a range of the file touches.
fn pages((begin, end): (u64, u64)) -> (u64, u64) {
    (
        begin / PAGE_BYTES * PAGE_BYTES,
        end.next_multiple_of(PAGE_BYTES),
    )
}

/// Bytes of pages that the ranges touch inside `bounds`.
fn covered(mut ranges: Vec<(u64, u64)>, bounds: (u64, u64)) -> u64 {
    ranges.sort_unstable();
    let mut next = bounds.0;
    let mut sum = 0;
    for (begin, end) in ranges.into_iter().map(pages) {
        let (begin, end) = (begin.max(next), end.min(bounds.1));
        if end > begin {
            sum += end - begin;
            next = end;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_pages_count_once() {
        assert_eq!(
            covered(vec![(1, 2), (4000, 4100), (9000, 9001)], (0, 1 << 20)),
            3 * 4096
        );
        assert_eq!(covered(vec![(0, 100), (8192, 12288)], (8192, 12288)), 4096);
        assert_eq!(covered(Vec::new(), (0, 4096)), 0);
    }
}
