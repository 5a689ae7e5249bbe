//! Which experts were used, token by token and layer by layer.

use tracer::{Op, Record, SliceKind, WHOLE};

use super::stream::{Collector, Phase, Step};
use super::weights::Model;
use crate::simulate::{Group, SliceInfo, Workload};

/// Choices that are kept for what needs their order: simulated caches, lags, predictions.
const CHOICES_MAX: usize = 4 << 20;
/// Sequences whose skew is kept.
const SEQUENCES_MAX: usize = 1 << 16;

/// A layer that has experts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Experts {
    pub(crate) layer: u32,
    pub(crate) n_experts: u32,
    /// Bytes of one expert: its matrices and biases.
    pub(crate) expert_bytes: u64,
    /// Where its experts begin in tables of all experts.
    pub(crate) first: usize,
}

/// How unevenly one sequence used the experts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SequenceUse {
    /// Means over layers.
    pub(crate) gini: f64,
    pub(crate) top_quarter: f64,
}

/// Collects them.
#[derive(Debug)]
pub(crate) struct Choices<'m> {
    model: &'m Model,
    pub(crate) layers: Vec<Experts>,
    /// By layer of the model: index into `layers`, and the tensor whose reads are counted, once one was seen.
    by_layer: Vec<Option<(usize, Option<u32>)>>,
    /// By phase (prompts, then decoding): uses of each expert; one use is one token.
    pub(crate) uses: [Vec<u64>; 2],
    /// Tokens of whole steps, by phase.
    pub(crate) n_tokens: [u64; 2],
    /// Whole steps that generate.
    pub(crate) n_steps: u64,
    accesses: Vec<u32>,
    groups: Vec<Group>,
    token_ends: Vec<u32>,
    sequence_begins: Vec<usize>,
    /// What was there before the step at hand.
    kept: (usize, usize),
    is_active: bool,
    /// Whether all steps fitted in.
    pub(crate) is_cut: bool,
    place: Option<(u16, u32)>,
    /// Uses of the step at hand, and of the sequence.
    step_uses: Vec<(u32, u32)>,
    sequence_uses: Vec<u64>,
    sequence_tokens: u64,
    last_place: Option<(u16, i64)>,
    pub(crate) sequences: Vec<SequenceUse>,
}

impl<'m> Choices<'m> {
    pub(crate) fn new(model: &'m Model) -> Choices<'m> {
        let mut layers: Vec<Experts> = Vec::new();
        let mut by_layer = vec![None; model.n_layers];
        let is_experts = |kind: Option<SliceKind>| kind == Some(SliceKind::Expert);
        for weight in model
            .weights
            .iter()
            .filter(|weight| is_experts(weight.kind))
        {
            let Some(layer) = weight.layer.filter(|_| weight.n_slices > 1) else {
                continue;
            };
            let index = match &by_layer[layer as usize] {
                Some((index, _)) => *index,
                None => {
                    layers.push(Experts {
                        layer,
                        n_experts: weight.n_slices,
                        expert_bytes: 0,
                        first: 0,
                    });
                    layers.len() - 1
                }
            };
            by_layer[layer as usize] = Some((index, None));
            layers[index].n_experts = layers[index].n_experts.max(weight.n_slices);
            layers[index].expert_bytes += weight.stride_bytes;
        }
        layers.sort_by_key(|experts| experts.layer);
        let mut n_experts = 0;
        for (index, experts) in layers.iter_mut().enumerate() {
            experts.first = n_experts;
            n_experts += experts.n_experts as usize;
            by_layer[experts.layer as usize] = Some((index, None));
        }
        Choices {
            model,
            layers,
            by_layer,
            uses: [vec![0; n_experts], vec![0; n_experts]],
            n_tokens: [0; 2],
            n_steps: 0,
            accesses: Vec::new(),
            groups: Vec::new(),
            token_ends: Vec::new(),
            sequence_begins: Vec::new(),
            kept: (0, 0),
            is_active: false,
            is_cut: false,
            place: None,
            step_uses: Vec::new(),
            sequence_uses: vec![0; n_experts],
            sequence_tokens: 0,
            last_place: None,
            sequences: Vec::new(),
        }
    }

    /// The kept choices as a workload, in which an expert with all its tensors is one slice. `None` without any.
    pub(crate) fn workload(&self) -> Option<Workload> {
        if self.token_ends.is_empty() {
            return None;
        }
        let slices = (0..).zip(&self.layers).flat_map(|(index, experts)| {
            let info = SliceInfo {
                layer: index,
                size_bytes: experts.expert_bytes,
            };
            std::iter::repeat_n(info, experts.n_experts as usize)
        });
        Some(Workload::assemble(
            slices.collect(),
            self.layers.iter().map(|experts| experts.layer).collect(),
            self.accesses.clone(),
            self.groups.clone(),
            self.token_ends.clone(),
            self.sequence_begins.clone(),
        ))
    }

    /// Bytes of all experts.
    pub(crate) fn size_bytes(&self) -> u64 {
        let layers = self.layers.iter();
        layers
            .map(|experts| u64::from(experts.n_experts) * experts.expert_bytes)
            .sum()
    }

    /// The uses of each layer's experts, in the order of [`Choices::layers`].
    pub(crate) fn by_layer<'a>(&'a self, uses: &'a [u64]) -> impl Iterator<Item = &'a [u64]> {
        let of = |experts: &Experts| experts.first..experts.first + experts.n_experts as usize;
        self.layers.iter().map(move |experts| &uses[of(experts)])
    }

    fn end_sequence(&mut self) {
        if self.sequence_tokens > 0 && self.sequences.len() < SEQUENCES_MAX {
            let (mut gini, mut top_quarter) = (0.0, 0.0);
            for uses in self.by_layer(&self.sequence_uses) {
                let mut uses = uses.to_vec();
                uses.sort_unstable();
                gini += crate::simulate::gini_of(&uses);
                top_quarter += crate::simulate::top_quarter_of(&uses);
            }
            let n_layers = self.layers.len().max(1) as f64;
            self.sequences.push(SequenceUse {
                gini: gini / n_layers,
                top_quarter: top_quarter / n_layers,
            });
        }
        self.sequence_uses.fill(0);
        self.sequence_tokens = 0;
    }

    /// Ends the last sequence.
    pub(crate) fn finish(&mut self) {
        self.end_sequence();
    }

    /// A step continues its sequence if it is of the same one, and begins where the step before ended.
    fn follow_sequence(&mut self, step: &Step) {
        let continues = match (step.place, self.last_place) {
            (Some((sequence, position)), Some((last, end))) => {
                sequence == last && i64::from(position) == end
            }
            (None, _) => true,
            (Some(_), None) => self.sequence_tokens == 0,
        };
        if !continues {
            self.end_sequence();
            let n_tokens = self.token_ends.len();
            if n_tokens > 0 && self.sequence_begins.last() != Some(&n_tokens) {
                self.sequence_begins.push(n_tokens);
            }
        }
        self.last_place = step
            .place
            .map(|(sequence, position)| (sequence, i64::from(position) + i64::from(step.n_tokens)));
    }
}

impl Collector for Choices<'_> {
    fn step_begin(&mut self, step: &Step) {
        self.follow_sequence(step);
        self.is_active = step.phase == Phase::Decode && !self.is_cut;
        self.kept = (self.accesses.len(), self.groups.len());
        self.place = None;
        self.step_uses.clear();
    }

    fn reads(&mut self, _: Option<&Step>, records: &[Record]) {
        for record in records {
            if record.op != Op::MUL_MAT_ID || record.slice == WHOLE {
                continue;
            }
            let Some(weight) = self.model.get(record.tensor) else {
                continue;
            };
            let Some(layer) = weight.layer.filter(|_| record.slice < weight.n_slices) else {
                continue;
            };
            let Some(Some((index, tensor))) = self.by_layer.get_mut(layer as usize) else {
                continue;
            };
            if *tensor.get_or_insert(record.tensor) != record.tensor {
                continue;
            }
            let index = *index;
            let expert = self.layers[index].first as u32 + record.slice;
            self.step_uses.push((expert, u32::from(record.n_used)));
            if !self.is_active {
                continue;
            }
            let place = (record.ubatch, layer);
            if self.place != Some(place) {
                self.place = Some(place);
                self.groups.push(Group {
                    layer: index as u32,
                    end: 0,
                });
            }
            let begin = match self.groups.len() {
                0 | 1 => 0,
                n => self.groups[n - 2].end as usize,
            };
            if !self.accesses[begin..].contains(&expert) {
                self.accesses.push(expert);
            }
            if let Some(group) = self.groups.last_mut() {
                group.end = self.accesses.len() as u32;
            }
        }
    }

    fn step_end(&mut self, step: &Step, duration_ns: Option<u32>) {
        let is_decode = step.phase == Phase::Decode;
        let is_active = std::mem::take(&mut self.is_active);
        if duration_ns.is_none() {
            self.accesses.truncate(self.kept.0);
            self.groups.truncate(self.kept.1);
            self.step_uses.clear();
            return;
        }
        let uses = &mut self.uses[usize::from(is_decode)];
        for (expert, n_used) in self.step_uses.drain(..) {
            uses[expert as usize] += u64::from(n_used);
            if is_decode {
                self.sequence_uses[expert as usize] += u64::from(n_used);
            }
        }
        self.n_tokens[usize::from(is_decode)] += u64::from(step.n_tokens);
        if !is_decode {
            return;
        }
        self.n_steps += 1;
        self.sequence_tokens += u64::from(step.n_tokens);
        if is_active && self.groups.len() > self.kept.1 {
            self.token_ends.push(self.groups.len() as u32);
        }
        self.is_cut |= self.accesses.len() >= CHOICES_MAX;
    }
}
