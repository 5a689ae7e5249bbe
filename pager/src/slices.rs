//! Which bytes of a model are read in full for every token, and which by slices.

use std::collections::HashMap;
use std::ops::Range;

use gguf::{ModelFiles, TensorInfo, is_expert_name};
use llama_rs::{LoadedWeight, Packing};
use serde::Serialize;

/// Number of a sparse slice: an expert of one tensor. Those of a layer follow each other, and so do those of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceId(pub u32);

impl SliceId {
    /// As an index into tables.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What an expert's tensor does, in the order of a file's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// Gate and up in one tensor.
    GateUp,
    /// Gate.
    Gate,
    /// Up.
    Up,
    /// Down.
    Down,
    /// Values of an attention with experts.
    Value,
}

/// A tensor whose slices are read when the router picks them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparseTensor {
    /// Its name in the file.
    pub name: String,
    /// Index among all tensors of the model, as [`ModelFiles::tensors`] goes through them.
    pub tensor: usize,
    /// Index of the file.
    pub part: usize,
    /// The layer.
    pub layer: u32,
    /// What it does.
    pub projection: Projection,
    /// Where slice 0 begins, in bytes from the start of the file.
    pub offset: u64,
    /// Bytes of each slice; the next one follows at once.
    pub slice_bytes: u64,
    /// Number of its slice 0; those of the others follow.
    pub first: SliceId,
    /// Slices, that is experts.
    pub n_slices: u32,
    chunked: bool,
}

impl SparseTensor {
    /// The numbers of its slices.
    pub fn slices(&self) -> impl ExactSizeIterator<Item = SliceId> + use<> {
        (self.first.0..self.first.0 + self.n_slices).map(SliceId)
    }
}

/// Where a slice is in the model's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Index of the file.
    pub part: usize,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Its size.
    pub size_bytes: u64,
    /// The layer.
    pub layer: u32,
    /// The expert.
    pub expert: u32,
    /// Index into [`Slices::sparse_tensors`].
    pub sparse_tensor: usize,
}

impl Slice {
    /// The pages that hold the slice, as a range of offsets in the file: what a direct read asks for. Its first byte is
    /// `offset % page_bytes` bytes behind the begin of the range.
    pub fn pages(&self, page_bytes: u64) -> Range<u64> {
        round_out(self.offset, self.size_bytes, page_bytes)
    }
}

/// A tensor that is read in full for every token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenseTensor {
    /// Index among all tensors of the model.
    pub tensor: usize,
    /// Index of the file.
    pub part: usize,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Its size.
    pub size_bytes: u64,
    /// The layer, of tensors that belong to one.
    pub layer: Option<u32>,
    /// Whether it is a matrix that can be read for each token: of some size, and no embedding, of which a token looks
    /// up a row.
    pub is_streamable: bool,
    /// In which order the tensors of a layer are used, as far as their names tell.
    pub order: u32,
}

impl DenseTensor {
    /// The pages that hold the tensor, as a range of offsets in the file.
    pub fn pages(&self, page_bytes: u64) -> Range<u64> {
        round_out(self.offset, self.size_bytes, page_bytes)
    }
}

/// The embedding of a model whose output has its own tensor: a token needs one row of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Embedding {
    /// Index among all tensors of the model.
    pub tensor: usize,
    /// Index of the file.
    pub part: usize,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes of a row.
    pub row_bytes: u64,
    /// Rows.
    pub n_rows: u64,
}

impl Embedding {
    /// Bytes of all rows.
    pub fn size_bytes(&self) -> u64 {
        self.row_bytes * self.n_rows
    }

    /// The most bytes of whole pages that a row touches.
    pub fn row_slot_bytes(&self, page_bytes: u64) -> u64 {
        let spread = (self.row_bytes + page_bytes - 1).next_multiple_of(page_bytes);
        // Rows of whole pages begin on one if the tensor does.
        match self.row_bytes.is_multiple_of(page_bytes) && self.offset.is_multiple_of(page_bytes) {
            true => self.row_bytes,
            false => spread,
        }
    }
}

/// A range of a file that holds only dense tensors and padding, rounded out to pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenseRange {
    /// Index of the file.
    pub part: usize,
    /// Bytes from the start of the file, on a page.
    pub offset: u64,
    /// Its size, whole pages. It may end up to a page behind the end of the file.
    pub size_bytes: u64,
}

impl DenseRange {
    /// Bytes in aligned blocks of `huge_page_bytes` that lie in the range as a whole, if the file's memory begins on a huge
    /// page. The rest, at both borders, is on ordinary pages: a huge page there would hold bytes of the neighbour.
    pub fn huge_bytes(&self, huge_page_bytes: u64) -> u64 {
        let range = self.huge_range(huge_page_bytes);
        range.end - range.start
    }

    /// Where these blocks are in the file; empty if there are none.
    pub(crate) fn huge_range(&self, huge_page_bytes: u64) -> Range<u64> {
        let begin = self.offset.next_multiple_of(huge_page_bytes);
        let end = (self.offset + self.size_bytes) / huge_page_bytes * huge_page_bytes;
        begin..end.max(begin)
    }
}

/// The embedding of a model is dense up to this size, though only rows of it are needed: reading rows one by one pays only
/// where it frees a good number of slots.
pub const EMBEDDING_DENSE_MAX_BYTES: u64 = 32 << 20;

/// A model has more experts than can be numbered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the tensor `{name}` has {n_slices} slices; a model has at most 2^32 - 1 in all: its file is broken"
)]
pub struct TooManySlices {
    name: String,
    n_slices: u64,
}

/// The tables of a model. See the [module](self).
#[derive(Clone, Debug)]
pub struct Slices {
    sparse: Vec<SparseTensor>,
    n_slices: usize,
    dense: Vec<DenseTensor>,
    embedding: Option<Embedding>,
    /// By number of the tensor in the model: index into `sparse`, or `u32::MAX`.
    by_tensor: Vec<u32>,
    by_name: HashMap<String, usize>,
    n_experts_used: u32,
    is_dense_on_demand: bool,
}

const DENSE: u32 = u32::MAX;

impl Slices {
    /// The tables of a model.
    ///
    /// # Errors
    ///
    /// [`TooManySlices`].
    pub fn new(model: &ModelFiles) -> Result<Slices, TooManySlices> {
        let metadata = model.metadata();
        let n_experts_used = metadata
            .architecture()
            .and_then(|name| metadata.u32(&format!("{name}.expert_used_count")));
        let tables: Vec<&[TensorInfo]> = model.parts.iter().map(|part| part.tensors()).collect();
        Slices::from_tables(&tables, n_experts_used)
    }

    /// The same from the tensor tables of the files, whose offsets count from the start of the file.
    /// `n_experts_used` is how many experts a token uses in a layer; if it is not known, all of them.
    ///
    /// # Errors
    ///
    /// [`TooManySlices`].
    pub fn from_tables(
        tables: &[&[TensorInfo]],
        n_experts_used: Option<u32>,
    ) -> Result<Slices, TooManySlices> {
        let tensors = || {
            let parts = tables.iter().enumerate();
            parts
                .flat_map(|(part, table)| table.iter().map(move |tensor| (part, tensor)))
                .enumerate()
        };
        let own_output = tensors().any(|(_, (_, tensor))| tensor.name == "output.weight");
        let (mut sparse, mut dense, mut embedding) = (Vec::new(), Vec::new(), None);
        let mut by_name = HashMap::new();
        for (index, (part, tensor)) in tensors() {
            by_name.insert(tensor.name.clone(), index);
            if let Some(mut stack) = stack_of(tensor) {
                (stack.tensor, stack.part) = (index, part);
                sparse.push((stack, tensor.dims.last().copied().unwrap_or(1)));
                continue;
            }
            let is_embedding = own_output && tensor.name == "token_embd.weight";
            if is_embedding && tensor.size_bytes > EMBEDDING_DENSE_MAX_BYTES {
                embedding = Some(Embedding {
                    tensor: index,
                    part,
                    offset: tensor.offset,
                    row_bytes: tensor.slice_bytes(),
                    n_rows: tensor.dims.last().copied().unwrap_or(1),
                });
                continue;
            }
            dense.push(DenseTensor {
                tensor: index,
                part,
                offset: tensor.offset,
                size_bytes: tensor.size_bytes,
                layer: layer_of(&tensor.name),
                is_streamable: is_streamable(tensor),
                order: order_of(&tensor.name),
            });
        }
        sparse.sort_by_key(|(stack, _)| (stack.layer, stack.chunked, stack.projection));
        let mut next = 0u32;
        let mut by_tensor = vec![DENSE; tensors().count()];
        for (index, (stack, n_slices)) in (0..).zip(&mut sparse) {
            let end = u32::try_from(*n_slices)
                .ok()
                .and_then(|count| next.checked_add(count))
                .ok_or_else(|| TooManySlices {
                    name: stack.name.clone(),
                    n_slices: *n_slices,
                })?;
            (stack.first, stack.n_slices) = (SliceId(next), end - next);
            by_tensor[stack.tensor] = index;
            next = end;
        }
        let n_experts = sparse
            .iter()
            .map(|(stack, _)| stack.n_slices)
            .max()
            .unwrap_or(0);
        Ok(Slices {
            sparse: sparse.into_iter().map(|(stack, _)| stack).collect(),
            n_slices: next as usize,
            dense,
            embedding,
            by_tensor,
            by_name,
            n_experts_used: n_experts_used
                .map_or(n_experts, |used| used.clamp(1, n_experts.max(1))),
            is_dense_on_demand: next == 0,
        })
    }

    /// Whether dense matrices are read on demand: a plan decides which of them stay in memory and which are streamed. So it is
    /// with models that have no experts. With others all dense tensors are in memory.
    pub fn is_dense_on_demand(&self) -> bool {
        self.is_dense_on_demand
    }

    /// The dense tensors that are read on demand, with their index among the dense ones.
    pub fn on_demand(&self) -> impl Iterator<Item = (usize, &DenseTensor)> {
        let tensors = self.dense.iter().enumerate();
        tensors.filter(|(_, tensor)| self.is_dense_on_demand && tensor.is_streamable)
    }

    /// The same model with its dense matrices on demand.
    #[must_use]
    pub fn with_dense_on_demand(self) -> Slices {
        Slices {
            is_dense_on_demand: true,
            ..self
        }
    }

    /// The same model with all dense tensors in memory, unless it has no experts.
    pub(crate) fn with_dense_in_memory(self) -> Slices {
        Slices {
            is_dense_on_demand: self.is_empty(),
            ..self
        }
    }

    /// How many slices there are; their numbers go from 0 up.
    pub fn len(&self) -> usize {
        self.n_slices
    }

    /// Whether the model has no experts.
    pub fn is_empty(&self) -> bool {
        self.n_slices == 0
    }

    /// Experts that a token uses in each layer that has some.
    pub fn n_experts_used(&self) -> u32 {
        self.n_experts_used
    }

    /// The tensors that have slices, by layer and projection.
    pub fn sparse_tensors(&self) -> &[SparseTensor] {
        &self.sparse
    }

    /// The tensors that are read in full, in the order of the files.
    pub fn dense_tensors(&self) -> &[DenseTensor] {
        &self.dense
    }

    /// The embedding, if rows of it are read one by one: its output is a tensor of its own, and it is larger than
    /// [`EMBEDDING_DENSE_MAX_BYTES`].
    pub fn embedding(&self) -> Option<&Embedding> {
        self.embedding.as_ref()
    }

    /// Index of the tensor of this name among all tensors of the model.
    pub fn tensor(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// How llama.cpp repacks a tensor of a loaded model, by its index among all; `None` if it leaves it as it is in the file.
    pub(crate) fn packing(&self, weights: &[LoadedWeight], tensor: usize) -> Option<Packing> {
        let is_it = |weight: &&LoadedWeight| self.tensor(&weight.name) == Some(tensor);
        weights.iter().find(is_it)?.packing
    }

    /// The number of a tensor's slice; `None` if the tensor is dense or there is no such slice. Two loads.
    #[inline]
    pub fn id(&self, tensor: usize, slice: u32) -> Option<SliceId> {
        let stack = self.sparse.get(*self.by_tensor.get(tensor)? as usize)?;
        (slice < stack.n_slices).then(|| SliceId(stack.first.0 + slice))
    }

    /// Where a slice is.
    ///
    /// # Panics
    ///
    /// If there is no such slice.
    pub fn slice(&self, id: SliceId) -> Slice {
        assert!(
            id.index() < self.n_slices,
            "there are {} slices",
            self.n_slices
        );
        let sparse_tensor = self.sparse.partition_point(|stack| stack.first <= id) - 1;
        let stack = &self.sparse[sparse_tensor];
        let expert = id.0 - stack.first.0;
        Slice {
            part: stack.part,
            offset: stack.offset + u64::from(expert) * stack.slice_bytes,
            size_bytes: stack.slice_bytes,
            layer: stack.layer,
            expert,
            sparse_tensor,
        }
    }

    /// All slices, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = Slice> {
        (0..self.n_slices as u32).map(|id| self.slice(SliceId(id)))
    }

    /// The tensors of a layer that have slices.
    pub fn layer(&self, layer: u32) -> &[SparseTensor] {
        let begin = self.sparse.partition_point(|stack| stack.layer < layer);
        let end = self.sparse.partition_point(|stack| stack.layer <= layer);
        &self.sparse[begin..end]
    }

    /// Slices that are used together with this one, itself included: gate, up and down of one expert.
    ///
    /// # Panics
    ///
    /// If there is no such slice.
    pub fn expert(&self, id: SliceId) -> impl Iterator<Item = SliceId> {
        let slice = self.slice(id);
        let own = &self.sparse[slice.sparse_tensor];
        let kind = |stack: &SparseTensor| (stack.chunked, stack.projection == Projection::Value);
        self.layer(slice.layer)
            .iter()
            .filter(move |stack| kind(stack) == kind(own) && slice.expert < stack.n_slices)
            .map(move |stack| SliceId(stack.first.0 + slice.expert))
    }

    /// Bytes of all slices.
    pub fn sparse_bytes(&self) -> u64 {
        let bytes = |stack: &SparseTensor| stack.slice_bytes * u64::from(stack.n_slices);
        self.sparse.iter().map(bytes).sum()
    }

    /// Bytes of all dense tensors.
    pub fn dense_bytes(&self) -> u64 {
        self.dense.iter().map(|tensor| tensor.size_bytes).sum()
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        let embedding = self.embedding.as_ref().map_or(0, Embedding::size_bytes);
        self.sparse_bytes() + self.dense_bytes() + embedding
    }

    /// What is read while loading: the dense tensors, rounded out to pages, where those that touch are one range. Ordered by
    /// file and offset.
    pub fn dense_ranges(&self, page_bytes: u64) -> Vec<DenseRange> {
        merged_ranges(self.dense.iter(), page_bytes)
    }

    /// The same of those that are no matrices to stream.
    pub fn fixed_ranges(&self, page_bytes: u64) -> Vec<DenseRange> {
        let fixed = self.dense.iter().filter(|tensor| !tensor.is_streamable);
        merged_ranges(fixed, page_bytes)
    }
}

/// The pages of some tensors, where those that touch are one range. Ordered by file and offset.
pub(crate) fn merged_ranges<'a>(
    tensors: impl Iterator<Item = &'a DenseTensor>,
    page_bytes: u64,
) -> Vec<DenseRange> {
    let mut ranges: Vec<(usize, Range<u64>)> = tensors
        .map(|tensor| (tensor.part, tensor.pages(page_bytes)))
        .collect();
    ranges.sort_by_key(|(part, range)| (*part, range.start));
    let mut merged: Vec<(usize, Range<u64>)> = Vec::new();
    for (part, range) in ranges {
        match merged.last_mut() {
            Some((last_part, last)) if *last_part == part && range.start <= last.end => {
                last.end = last.end.max(range.end);
            }
            _ => merged.push((part, range)),
        }
    }
    merged
        .into_iter()
        .map(|(part, range)| DenseRange {
            part,
            offset: range.start,
            size_bytes: range.end - range.start,
        })
        .collect()
}

fn round_out(offset: u64, size_bytes: u64, page_bytes: u64) -> Range<u64> {
    let begin = offset / page_bytes * page_bytes;
    begin..(offset + size_bytes).next_multiple_of(page_bytes)
}

/// The layer of a tensor called `blk.N.something`.
fn layer_of(name: &str) -> Option<u32> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// Matrices of this size and more are streamed one by one: one read has fewer than 2^32 bytes.
const STREAMED_MAX_BYTES: u64 = 1 << 31;

fn is_streamable(tensor: &TensorInfo) -> bool {
    let is_matrix = tensor.dims.iter().filter(|&&dim| dim > 1).count() > 1;
    is_matrix && tensor.name != "token_embd.weight" && tensor.size_bytes < STREAMED_MAX_BYTES
}

/// What llama.cpp's graphs use one after the other in a layer; others come in between, in the order of the file.
const ORDER: [(&str, u32); 8] = [
    ("attn_q", 1),
    ("attn_k", 2),
    ("attn_v", 3),
    ("attn_output", 5),
    ("ffn_gate", 6),
    ("ffn_up", 7),
    ("ffn_down", 8),
    ("output", 9),
];

/// A guess of the order; what is used is learned from the first token.
fn order_of(name: &str) -> u32 {
    let kind = name.strip_suffix(".weight").unwrap_or(name);
    let kind = kind.rsplit('.').next().unwrap_or(kind);
    let known = ORDER.iter().find(|(suffix, _)| *suffix == kind);
    known.map_or(4, |(_, order)| *order)
}

/// A stack of experts, without what only the whole model knows.
fn stack_of(tensor: &TensorInfo) -> Option<SparseTensor> {
    if !is_expert_name(&tensor.name) {
        return None;
    }
    let layer = layer_of(&tensor.name)?;
    let kind = tensor.name.split('.').nth(2)?;
    let projection = match kind.strip_prefix("ffn_").map(|kind| kind.rsplit_once('_')) {
        Some(Some(("gate_up", _))) => Projection::GateUp,
        Some(Some(("gate", _))) => Projection::Gate,
        Some(Some(("up", _))) => Projection::Up,
        Some(Some(("down", _))) => Projection::Down,
        _ => Projection::Value,
    };
    Some(SparseTensor {
        name: tensor.name.clone(),
        tensor: 0,
        part: 0,
        layer,
        projection,
        offset: tensor.offset,
        slice_bytes: tensor.slice_bytes(),
        first: SliceId(0),
        n_slices: 0,
        chunked: kind.ends_with("_chexps"),
    })
}
