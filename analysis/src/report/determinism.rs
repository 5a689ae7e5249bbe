//! Whether every token reads the same, in words.

use serde::{Deserialize, Serialize};

use super::repeats::{Place, Repeats};
use super::section::{Cell, Question, Section, Sheet};
use super::weights::Model;
use crate::text::{count, plural};

/// Where a step first differs from the first one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The step.
    pub step: u32,
    /// Operations before it in both.
    pub n_equal: u64,
    /// What the first step has there: operation and tensor.
    pub expected: String,
    /// What this step has there.
    pub found: String,
}

/// Whether every token reads the same: steps that generate, compared with the first of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Determinism {
    /// Steps that were compared: whole ones with as many tokens as the first.
    pub n_compared: u64,
    /// Number of the step that they are compared with.
    pub first_step: Option<u32>,
    /// Operations of that step that read weights.
    pub n_operations: u64,
    /// Steps with the same operations on the same tensors in the same order; slices may differ.
    pub n_equal: u64,
    /// Steps that read the same dense tensors in the same order.
    pub n_dense_equal: u64,
    /// Steps that read the same slices as well, in the same order.
    pub n_equal_slices: u64,
    /// Different sequences of operations.
    pub n_kinds: u64,
    /// Steps with another number of tokens, which are not compared.
    pub n_others: u64,
    /// The first difference in operations or tensors.
    pub difference: Option<Difference>,
}

impl Determinism {
    pub(crate) fn of(model: &Model, repeats: &Repeats) -> Determinism {
        let words = |place: Option<Place>| match place {
            None => "nothing more".to_owned(),
            Some(place) => {
                let name = model
                    .get(place.tensor)
                    .map_or("an unknown tensor", |w| &w.name);
                let what = if place.is_whole { "" } else { "slices of " };
                format!("{} of {what}{name}", place.op.name().unwrap_or("OTHER"))
            }
        };
        Determinism {
            n_compared: repeats.n_compared,
            first_step: repeats.first.map(|(number, _)| number),
            n_operations: match repeats.first {
                Some(_) => repeats.reference.len() as u64,
                None => 0,
            },
            n_equal: repeats.n_equal,
            n_dense_equal: repeats.n_dense_equal,
            n_equal_slices: repeats.n_equal_slices,
            n_kinds: repeats.n_kinds(),
            n_others: repeats.n_others,
            difference: repeats.divergence.map(|found| Difference {
                step: found.step,
                n_equal: found.at as u64,
                expected: words(found.expected),
                found: words(found.found),
            }),
        }
    }

    /// In words and tables.
    pub fn section(&self) -> Section {
        let mut section = Section::new(Question::Determinism);
        if self.n_compared == 0 {
            section.cannot.push(
                "whether tokens read the same: it takes two whole steps that generate".to_owned(),
            );
            return section;
        }
        let compared = plural(self.n_compared, "further step");
        if self.n_equal == self.n_compared {
            section.find(format!(
                "Every token reads the same, up to the slice: {compared} had the {} operations of the first on the same tensors in the same order.",
                count(self.n_operations)
            ));
        } else {
            section.find(format!(
                "Tokens do not read the same: {} of {compared} had another sequence of operations than the first; there are {} kinds of steps.",
                count(self.n_compared - self.n_equal),
                count(self.n_kinds),
            ));
        }
        if let Some(difference) = &self.difference {
            section.find(format!(
                "The first difference is in step {} after {} operations: {} where the first step has {}.",
                difference.step, difference.n_equal, difference.found, difference.expected
            ));
        }
        section.find(format!(
            "Dense tensors were read in the same order in {} of {}; all slices were the same in {}.",
            count(self.n_dense_equal),
            compared,
            count(self.n_equal_slices)
        ));
        section.fact(
            "steps_equal_share",
            self.n_equal as f64 / self.n_compared as f64,
        );
        section.fact(
            "steps_dense_equal_share",
            self.n_dense_equal as f64 / self.n_compared as f64,
        );
        section.fact(
            "steps_slices_equal_share",
            self.n_equal_slices as f64 / self.n_compared as f64,
        );
        section.fact("operations_per_step", self.n_operations as f64);
        let columns = [("what", "name"), ("steps", "n")];
        let rows = [
            ("compared with the first", self.n_compared),
            ("same operations and tensors", self.n_equal),
            ("same dense tensors", self.n_dense_equal),
            ("same slices", self.n_equal_slices),
            ("with another number of tokens", self.n_others),
        ];
        let cells = |(name, n): (&str, u64)| vec![Cell::from(name), Cell::Count(n)];
        section.table("Steps", Sheet::new(&columns, rows.map(cells)));
        section
    }
}
