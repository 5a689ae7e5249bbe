//! What was used, whatever it was recorded with.

use std::ops::Range;

use super::SimulateError;
use crate::routing::RoutingTrace;

/// Accesses that a workload may have: 1 GiB of memory.
pub(super) const ACCESSES_MAX: usize = 1 << 28;

/// Which tokens of a trace are simulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Tokens at the beginning that are left out.
    pub skip: usize,
    /// Tokens after those that are simulated and not counted.
    pub warmup: usize,
    /// Tokens that are counted; `None`: all that are left.
    pub n_tokens: Option<usize>,
}

impl Window {
    /// The tokens to simulate, of a trace that has `n_tokens`.
    pub(super) fn range(&self, n_tokens: usize) -> Result<Range<usize>, SimulateError> {
        let counted = self.skip.saturating_add(self.warmup);
        if counted >= n_tokens || self.n_tokens == Some(0) {
            return Err(SimulateError::NothingLeft {
                n_tokens,
                skip: self.skip,
                warmup: self.warmup,
            });
        }
        let end = match self.n_tokens {
            Some(count) => counted.saturating_add(count).min(n_tokens),
            None => n_tokens,
        };
        Ok(self.skip..end)
    }
}

/// One slice of the model: one expert, or one of an expert's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceInfo {
    /// Index of its layer among those that have slices.
    pub layer: u32,
    /// What a miss of it reads; 1 where that is not known.
    pub size_bytes: u64,
}

/// The slices that one layer of one token uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Index of the layer among those that have slices.
    pub layer: u32,
    /// Where its accesses end; they begin where those of the group before end.
    pub end: u32,
}

/// Token by token and layer by layer the slices that had to be in memory together.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Ordered by layer.
    pub(super) slices: Vec<SliceInfo>,
    /// The number in the model of each layer that has slices.
    pub(super) layers: Vec<u32>,
    /// Indices of slices. Those of a group differ from each other.
    pub(super) accesses: Vec<u32>,
    pub(super) groups: Vec<Group>,
    /// Where the groups of each token end.
    pub(super) token_ends: Vec<u32>,
    /// First tokens of sequences, except the first one's.
    pub(super) sequence_begins: Vec<usize>,
    /// Tokens that are simulated and not counted.
    pub(super) n_warmup: usize,
    /// Whether the sizes of slices are known.
    pub(super) has_sizes: bool,
}

impl Workload {
    /// What a routing trace has in a window. All experts have `slice_bytes`, if it is known.
    ///
    /// # Errors
    ///
    /// [`SimulateError::NothingLeft`] and [`SimulateError::TooLong`].
    pub fn from_routing(
        trace: &RoutingTrace,
        window: Window,
        slice_bytes: Option<u64>,
    ) -> Result<Workload, SimulateError> {
        let tokens = window.range(trace.n_tokens())?;
        let n_experts = trace.n_experts() as u32;
        let n_accesses = tokens.len() * trace.n_layers() * trace.top_k();
        if n_accesses > ACCESSES_MAX {
            return Err(SimulateError::TooLong { max: ACCESSES_MAX });
        }
        let slices = (0..trace.n_layers() as u32)
            .flat_map(|layer| {
                let info = SliceInfo {
                    layer,
                    size_bytes: slice_bytes.unwrap_or(1),
                };
                std::iter::repeat_n(info, trace.n_experts())
            })
            .collect();
        let mut accesses = Vec::with_capacity(n_accesses);
        let mut groups = Vec::with_capacity(tokens.len() * trace.n_layers());
        let mut token_ends = Vec::with_capacity(tokens.len());
        for token in tokens.clone() {
            for (layer, experts) in (0..).zip(trace.token(token).layers()) {
                accesses.extend(
                    experts
                        .iter()
                        .map(|&expert| layer * n_experts + u32::from(expert)),
                );
                groups.push(Group {
                    layer,
                    end: accesses.len() as u32,
                });
            }
            token_ends.push(groups.len() as u32);
        }
        Ok(Workload {
            slices,
            layers: (0..trace.n_layers() as u32).collect(),
            accesses,
            groups,
            token_ends,
            sequence_begins: trace
                .sequences()
                .map(|sequence| sequence.start)
                .filter(|begin| tokens.contains(begin) && *begin > tokens.start)
                .map(|begin| begin - tokens.start)
                .collect(),
            n_warmup: window.warmup,
            has_sizes: slice_bytes.is_some(),
        })
    }

    /// A workload of its parts: slices and layers as [`Workload::slices`] and [`Workload::layers`] have them, indices of
    /// slices in the order of use, where the groups and tokens end, and the first token of each sequence but the first.
    pub(crate) fn assemble(
        slices: Vec<SliceInfo>,
        layers: Vec<u32>,
        accesses: Vec<u32>,
        groups: Vec<Group>,
        token_ends: Vec<u32>,
        sequence_begins: Vec<usize>,
    ) -> Workload {
        Workload {
            slices,
            layers,
            accesses,
            groups,
            token_ends,
            sequence_begins,
            n_warmup: 0,
            has_sizes: true,
        }
    }

    /// The same uses of slices that have these sizes, one for each of [`Workload::layers`].
    ///
    /// # Panics
    ///
    /// If there are not as many sizes as layers.
    pub fn with_layer_bytes(mut self, layer_bytes: &[u64]) -> Workload {
        assert_eq!(
            layer_bytes.len(),
            self.layers.len(),
            "a size for each layer"
        );
        for slice in &mut self.slices {
            slice.size_bytes = layer_bytes[slice.layer as usize];
        }
        self.has_sizes = true;
        self
    }

    /// The slices, ordered by layer.
    pub fn slices(&self) -> &[SliceInfo] {
        &self.slices
    }

    /// Layers that have slices, by their number in the model.
    pub fn layers(&self) -> &[u32] {
        &self.layers
    }

    /// Indices of slices in the order of use.
    pub fn accesses(&self) -> &[u32] {
        &self.accesses
    }

    /// Tokens (of an access log: steps) that are simulated.
    pub fn n_tokens(&self) -> usize {
        self.token_ends.len()
    }

    /// Those of them that are simulated and not counted.
    pub fn n_warmup(&self) -> usize {
        self.n_warmup
    }

    /// Whether the sizes of slices are known. If not, each counts as one byte.
    pub fn has_sizes(&self) -> bool {
        self.has_sizes
    }

    /// Bytes of all slices.
    pub fn size_bytes(&self) -> u64 {
        self.slices.iter().map(|slice| slice.size_bytes).sum()
    }

    /// Slices of the layer that has most.
    pub fn n_slices_per_layer(&self) -> usize {
        self.slices
            .chunk_by(|left, right| left.layer == right.layer)
            .map(<[SliceInfo]>::len)
            .max()
            .unwrap_or(0)
    }

    /// The groups of each token, with where their accesses begin.
    pub(crate) fn tokens(&self) -> impl ExactSizeIterator<Item = (usize, &[Group])> {
        let mut first_group = 0;
        self.token_ends.iter().map(move |&end| {
            let begin = match first_group {
                0 => 0,
                first => self.groups[first - 1].end as usize,
            };
            let groups = &self.groups[first_group..end as usize];
            first_group = end as usize;
            (begin, groups)
        })
    }
}
