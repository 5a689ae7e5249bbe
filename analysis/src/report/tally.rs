//! What was read: by tensor, by slice, by phase, and in each step.

use serde::{Deserialize, Serialize};
use tracer::{Record, WHOLE, WeightClass};

use super::stream::{Collector, Phase, Step};
use super::weights::Model;

/// A number for each kind of weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Classes {
    /// Read in full for every token.
    pub dense: u64,
    /// Matrices and biases of experts.
    pub experts: u64,
    /// The token embedding.
    pub embedding: u64,
    /// Tensors that are in no file; of files the metadata and gaps.
    pub outside: u64,
}

impl Classes {
    /// The number of one kind.
    pub fn of(&self, class: WeightClass) -> u64 {
        match class {
            WeightClass::Dense => self.dense,
            WeightClass::Experts => self.experts,
            WeightClass::Embedding => self.embedding,
            WeightClass::Outside => self.outside,
        }
    }

    /// The sum.
    pub fn total(&self) -> u64 {
        WeightClass::ALL
            .iter()
            .fold(0, |sum, &class| sum.saturating_add(self.of(class)))
    }

    #[inline]
    pub(crate) fn add(&mut self, class: WeightClass, n: u64) {
        let field = match class {
            WeightClass::Dense => &mut self.dense,
            WeightClass::Experts => &mut self.experts,
            WeightClass::Embedding => &mut self.embedding,
            WeightClass::Outside => &mut self.outside,
        };
        *field = field.saturating_add(n);
    }
}

/// Smallest, mean and largest of some numbers.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Spread {
    /// How many numbers.
    pub n: u64,
    /// The smallest; 0 without any.
    pub min: u64,
    /// The mean; 0 without any.
    pub mean: f64,
    /// The largest.
    pub max: u64,
}

/// Numbers that a [`Spread`] is made of.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spreading {
    n: u64,
    min: u64,
    max: u64,
    sum: u128,
}

impl Spreading {
    pub(crate) fn add(&mut self, value: u64) {
        self.min = if self.n == 0 {
            value
        } else {
            self.min.min(value)
        };
        self.max = self.max.max(value);
        self.n += 1;
        self.sum += u128::from(value);
    }

    pub(crate) fn spread(&self) -> Spread {
        Spread {
            n: self.n,
            min: self.min,
            mean: self.sum as f64 / self.n.max(1) as f64,
            max: self.max,
        }
    }
}

/// What was read by a point of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Coverage {
    /// Generated tokens so far.
    pub n_tokens: u64,
    /// Bytes that at least one of them read.
    pub touched_bytes: Classes,
}

/// Sums of one tensor; the first of each pair is of prompts, the second of decoding.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TensorTally {
    pub(crate) n_reads: [u64; 2],
    pub(crate) bytes: [u64; 2],
    /// Operations whose first read is of this tensor, and their time.
    pub(crate) n_nodes: [u64; 2],
    pub(crate) time_ns: [u64; 2],
    /// Reads of all of it.
    n_whole: u32,
    /// By phase, as bits: whether all of it was read.
    whole_phases: u8,
}

impl TensorTally {
    pub(crate) fn reads(&self) -> u64 {
        self.n_reads[0] + self.n_reads[1]
    }

    pub(crate) fn consumed_bytes(&self) -> u64 {
        self.bytes[0].saturating_add(self.bytes[1])
    }
}

/// Collects them.
#[derive(Debug)]
pub(crate) struct Tally<'m> {
    model: &'m Model,
    pub(crate) tensors: Vec<TensorTally>,
    /// Reads of each slice by itself.
    slot_reads: Vec<u32>,
    /// By phase, as bits: whether the slice was read.
    slot_phases: Vec<u8>,
    /// Reads that contradict the tables.
    pub(crate) n_unknown: u64,
    /// Bytes read by phase: prompts, then decoding.
    pub(crate) consumed: [Classes; 2],
    /// When the operation at hand began.
    node_ns: Option<u64>,
    step_consumed: Classes,
    step_touched: Classes,
    /// Bytes that generated tokens read at least once.
    touched: Classes,
    coverage: Vec<Coverage>,
    n_tokens: u64,
    next_point: u64,
    /// Bytes that each generated token read.
    pub(crate) per_token: [Spreading; 4],
    pub(crate) per_token_total: Spreading,
}

impl<'m> Tally<'m> {
    pub(crate) fn new(model: &'m Model) -> Tally<'m> {
        Tally {
            model,
            tensors: vec![TensorTally::default(); model.weights.len()],
            slot_reads: vec![0; model.n_slots],
            slot_phases: vec![0; model.n_slots],
            n_unknown: 0,
            consumed: [Classes::default(); 2],
            node_ns: None,
            step_consumed: Classes::default(),
            step_touched: Classes::default(),
            touched: Classes::default(),
            coverage: Vec::new(),
            n_tokens: 0,
            next_point: 1,
            per_token: [Spreading::default(); 4],
            per_token_total: Spreading::default(),
        }
    }

    /// How often a slice was read, by itself or with all of its tensor.
    pub(crate) fn reads_of(&self, tensor: usize, slice: usize) -> u64 {
        let slot = self.model.weights[tensor].first_slot as usize + slice;
        u64::from(self.slot_reads[slot]) + u64::from(self.tensors[tensor].n_whole)
    }

    /// Slices of a tensor that were read.
    pub(crate) fn n_slices_read(&self, tensor: usize) -> u64 {
        let weight = &self.model.weights[tensor];
        if self.tensors[tensor].n_whole > 0 {
            return u64::from(weight.n_slices.max(1));
        }
        let reads = &self.slot_reads[weight.slots()];
        reads.iter().filter(|count| **count > 0).count() as u64
    }

    /// Bytes of a tensor that were read at least once.
    pub(crate) fn touched_bytes(&self, tensor: usize) -> u64 {
        let weight = &self.model.weights[tensor];
        if self.tensors[tensor].n_whole > 0 {
            return weight.size_bytes;
        }
        self.n_slices_read(tensor) * weight.stride_bytes
    }

    /// The first read of all of a tensor in a phase: what of it was not read before is new.
    #[cold]
    fn touch_whole(&mut self, tensor: usize, bit: u8) {
        let weight = &self.model.weights[tensor];
        self.tensors[tensor].whole_phases |= bit;
        let mut new_bytes = weight.size_bytes;
        for phases in &mut self.slot_phases[weight.slots()] {
            if *phases & bit != 0 {
                new_bytes -= weight.stride_bytes;
            }
            *phases |= bit;
        }
        self.step_touched.add(weight.class, new_bytes);
    }

    /// What generated tokens had read at least once by some points of the run, and by its end.
    pub(crate) fn coverage(&self) -> Vec<Coverage> {
        let mut coverage = self.coverage.clone();
        if coverage
            .last()
            .is_some_and(|last| last.n_tokens < self.n_tokens)
        {
            coverage.push(Coverage {
                n_tokens: self.n_tokens,
                touched_bytes: self.touched,
            });
        }
        coverage
    }

    fn end_single(&mut self) {
        for (class, spreading) in WeightClass::ALL.iter().zip(&mut self.per_token) {
            spreading.add(self.step_consumed.of(*class));
        }
        self.per_token_total.add(self.step_consumed.total());
    }

    fn end_decode(&mut self, step: &Step) {
        for class in WeightClass::ALL {
            self.touched.add(class, self.step_touched.of(class));
        }
        self.n_tokens += u64::from(step.n_tokens);
        let is_round = self.n_tokens <= 1000 && self.n_tokens.is_multiple_of(100);
        if self.n_tokens < self.next_point && !is_round {
            return;
        }
        self.coverage.push(Coverage {
            n_tokens: self.n_tokens,
            touched_bytes: self.touched,
        });
        // Steps of 2 %: some hundred points however long the run.
        self.next_point = self.n_tokens + (self.n_tokens / 50).max(1);
    }
}

impl Collector for Tally<'_> {
    fn step_begin(&mut self, _: &Step) {
        self.step_consumed = Classes::default();
        self.step_touched = Classes::default();
    }

    fn reads(&mut self, _: Option<&Step>, records: &[Record]) {
        let is_decode = Phase::of(&records[0]) == Phase::Decode;
        let phase = usize::from(is_decode);
        let bit = 1 << phase;
        let model = self.model;
        for record in records {
            let tensor = record.tensor as usize;
            let Some(weight) = model.weights.get(tensor) else {
                self.n_unknown += 1;
                continue;
            };
            let tally = &mut self.tensors[tensor];
            if self.node_ns != Some(record.time_ns) {
                self.node_ns = Some(record.time_ns);
                tally.n_nodes[phase] += 1;
                tally.time_ns[phase] += u64::from(record.duration_ns);
            }
            let Some((_, size_bytes)) = weight.read(record.slice) else {
                self.n_unknown += 1;
                continue;
            };
            tally.n_reads[phase] += 1;
            tally.bytes[phase] = tally.bytes[phase].saturating_add(size_bytes);
            self.consumed[phase].add(weight.class, size_bytes);
            self.step_consumed.add(weight.class, size_bytes);
            if record.slice == WHOLE {
                tally.n_whole = tally.n_whole.saturating_add(1);
                if tally.whole_phases & bit == 0 {
                    self.touch_whole(tensor, bit);
                }
                continue;
            }
            let slot = weight.first_slot as usize + record.slice as usize;
            self.slot_reads[slot] = self.slot_reads[slot].saturating_add(1);
            let phases = &mut self.slot_phases[slot];
            if *phases & bit == 0 {
                *phases |= bit;
                self.step_touched.add(weight.class, size_bytes);
            }
        }
    }

    fn step_end(&mut self, step: &Step, duration_ns: Option<u32>) {
        if step.phase == Phase::Decode && duration_ns.is_some() {
            self.end_decode(step);
            if step.is_single() {
                self.end_single();
            }
        }
    }
}
