//! Whether every token reads the same.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hasher};

use tracer::{Op, Record, WHOLE};

use super::stream::{Collector, Phase, Step};

/// Reads of the step that the others are compared with, at most.
const REFERENCE_MAX: usize = 1 << 20;
/// Different steps that are told apart.
const KINDS_MAX: usize = 1 << 16;

/// One place in a step's sequence: an operation on a tensor, or on slices of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) tensor: u32,
    pub(crate) op: Op,
    pub(crate) is_whole: bool,
}

/// Where a step leaves the sequence of the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Divergence {
    pub(crate) step: u32,
    /// Operations before it.
    pub(crate) at: usize,
    /// What the first step has there; `None`: nothing more.
    pub(crate) expected: Option<Place>,
    /// What this step has there.
    pub(crate) found: Option<Place>,
}

/// Compares the steps that generate with the first of them.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    /// Operations of the first step, slices of one operation joined.
    pub(crate) reference: Vec<Place>,
    /// Its number and tokens.
    pub(crate) first: Option<(u32, u32)>,
    /// Whole steps with as many tokens as the first, without it.
    pub(crate) n_compared: u64,
    /// Of these, steps with the same operations on the same tensors.
    pub(crate) n_equal: u64,
    /// Of these, steps whose reads of whole tensors are those of the first in their order.
    pub(crate) n_dense_equal: u64,
    /// Of these, steps that also read the same slices.
    pub(crate) n_equal_slices: u64,
    /// Steps with another number of tokens.
    pub(crate) n_others: u64,
    pub(crate) divergence: Option<Divergence>,
    /// Hashes of the sequences.
    kinds: HashSet<u64>,
    sequence: DefaultHasher,
    is_active: bool,
    is_first: bool,
    /// The step at hand.
    at: usize,
    last: Option<(u64, Place)>,
    found: Option<Divergence>,
    /// Reads of whole tensors of the first step, and the next one of them for the step at hand.
    dense: Vec<Place>,
    dense_at: usize,
    dense_differs: bool,
    slices: DefaultHasher,
    first_slices: u64,
}

impl Repeats {
    /// Different sequences of operations that steps had.
    pub(crate) fn n_kinds(&self) -> u64 {
        self.kinds.len() as u64
    }

    fn visit(&mut self, step: u32, place: Place) {
        let key = u64::from(place.tensor) << 16 | u64::from(place.op.0) << 8;
        self.sequence.write_u64(key | u64::from(place.is_whole));
        if self.is_first {
            if self.reference.len() < REFERENCE_MAX {
                self.reference.push(place);
                if place.is_whole {
                    self.dense.push(place);
                }
            }
            return;
        }
        if self.at < REFERENCE_MAX {
            let expected = self.reference.get(self.at).copied();
            if self.found.is_none() && expected != Some(place) {
                self.found = Some(Divergence {
                    step,
                    at: self.at,
                    expected,
                    found: Some(place),
                });
            }
        }
        self.at += 1;
        if place.is_whole {
            let expected = self.dense.get(self.dense_at);
            self.dense_differs |= expected.is_some_and(|expected| *expected != place)
                || (expected.is_none() && self.dense.len() < REFERENCE_MAX);
            self.dense_at += 1;
        }
    }
}

impl Collector for Repeats {
    fn step_begin(&mut self, step: &Step) {
        self.is_active = step.phase == Phase::Decode;
        if !self.is_active {
            return;
        }
        if let Some((_, n_tokens)) = self.first
            && n_tokens != step.n_tokens
        {
            self.n_others += 1;
            self.is_active = false;
            return;
        }
        self.is_first = self.first.is_none();
        if self.is_first {
            self.reference.clear();
            self.dense.clear();
        }
        (self.at, self.dense_at, self.dense_differs) = (0, 0, false);
        (self.last, self.found) = (None, None);
        self.slices = DefaultHasher::new();
        self.sequence = DefaultHasher::new();
    }

    fn reads(&mut self, step: Option<&Step>, records: &[Record]) {
        let Some(step) = step.filter(|_| self.is_active) else {
            return;
        };
        for record in records {
            let place = Place {
                tensor: record.tensor,
                op: record.op,
                is_whole: record.slice == WHOLE,
            };
            self.slices
                .write_u64(u64::from(record.tensor) << 32 | u64::from(record.slice));
            if self.last == Some((record.time_ns, place)) && !place.is_whole {
                continue;
            }
            self.last = Some((record.time_ns, place));
            self.visit(step.number, place);
        }
    }

    fn step_end(&mut self, step: &Step, duration_ns: Option<u32>) {
        if !std::mem::take(&mut self.is_active) || duration_ns.is_none() {
            return;
        }
        if self.kinds.len() < KINDS_MAX {
            self.kinds.insert(self.sequence.finish());
        }
        let slices = self.slices.finish();
        if self.is_first {
            self.first = Some((step.number, step.n_tokens));
            self.first_slices = slices;
            return;
        }
        if self.found.is_none() && self.at < self.reference.len() {
            self.found = Some(Divergence {
                step: step.number,
                at: self.at,
                expected: self.reference.get(self.at).copied(),
                found: None,
            });
        }
        self.dense_differs |= self.dense_at < self.dense.len();
        self.n_compared += 1;
        self.n_dense_equal += u64::from(!self.dense_differs);
        self.n_equal_slices += u64::from(slices == self.first_slices);
        match self.found {
            None => self.n_equal += 1,
            Some(found) => {
                self.divergence.get_or_insert(found);
            }
        }
    }
}
