//! How long tokens take, and what happens when.

use serde::{Deserialize, Serialize};

use super::About;
use super::section::{Cell, Question, Section, Sheet};
use super::tally::Tally;
use super::times::{Durations, OverTime, Times};
use super::weights::Model;
use crate::text::{duration, percent, plural, share};

/// Tensors that are listed by their time.
const LISTED: usize = 50;

/// Some time of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Its beginning, since the log's.
    pub time_ns: u64,
    /// Bytes that operations read that began in it.
    pub consumed_bytes: u64,
    /// Bytes of reads that were issued to the device in it.
    pub delivered_bytes: u64,
    /// Minor faults in the model's files.
    pub minor_faults: u64,
    /// Major faults in the model's files.
    pub major_faults: u64,
}

/// Some steps in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepGroup {
    /// Number of the first, counted in the log.
    pub first_step: u64,
    /// How many of them the log has as a whole.
    pub n_steps: u64,
    /// Tokens of these.
    pub n_tokens: u64,
    /// Their durations together.
    pub time_ns: u64,
    /// Bytes that they read.
    pub consumed_bytes: u64,
}

/// Operations whose first read is of this tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorTime {
    /// The tensor.
    pub tensor: String,
    /// How many operations.
    pub n_operations: u64,
    /// Their time.
    pub time_ns: u64,
}

/// How long tokens take, and what happens when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// From the log's beginning to the first step: loading the model.
    pub load_ns: Option<u64>,
    /// From the log's beginning to the end of the first whole step.
    pub first_token_ns: Option<u64>,
    /// Steps with a prompt.
    pub prompts: Option<Durations>,
    /// Steps that generate one token.
    pub tokens: Option<Durations>,
    /// Number and duration of the longest of them.
    pub longest: Option<(u32, u64)>,
    /// Time of operations that read weights, in decode steps.
    pub decode_weights_time_ns: u64,
    /// Tensors by the time of their operations; at most 50.
    pub tensors: Vec<TensorTime>,
    /// Steps in groups of equal length.
    pub steps: Vec<StepGroup>,
    /// Pieces of time of equal length.
    pub moments: Vec<Moment>,
    /// That length.
    pub moment_ns: u64,
}

impl Timeline {
    pub(crate) fn of(model: &Model, tally: &Tally<'_>, times: &Times<'_>) -> Timeline {
        let mut tensors: Vec<TensorTime> = model
            .weights
            .iter()
            .zip(&tally.tensors)
            .map(|(weight, sums)| TensorTime {
                tensor: weight.name.clone(),
                n_operations: sums.n_nodes.iter().sum(),
                time_ns: sums.time_ns.iter().sum(),
            })
            .filter(|row| row.n_operations > 0)
            .collect();
        tensors.sort_by_key(|row| std::cmp::Reverse((row.time_ns, row.n_operations)));
        tensors.truncate(LISTED);
        let over_time = &times.over_time;
        let moments = (0..over_time.n_used()).map(|column| {
            let of = |row: OverTime| over_time.row(row as usize)[column];
            Moment {
                time_ns: column as u64 * over_time.width(),
                consumed_bytes: of(OverTime::ConsumedBytes),
                delivered_bytes: of(OverTime::DeliveredBytes),
                minor_faults: of(OverTime::MinorFaults),
                major_faults: of(OverTime::MajorFaults),
            }
        });
        let steps = (0..times.steps.n_used()).map(|column| StepGroup {
            first_step: column as u64 * times.steps.width(),
            time_ns: times.steps.row(0)[column],
            n_tokens: times.steps.row(1)[column],
            n_steps: times.steps.row(2)[column],
            consumed_bytes: times.steps.row(3)[column],
        });
        Timeline {
            load_ns: times.first_step_ns,
            first_token_ns: times.first_token_ns,
            prompts: times.prompts.durations(),
            tokens: times.tokens.durations(),
            longest: times.longest,
            decode_weights_time_ns: tally.tensors.iter().map(|sums| sums.time_ns[1]).sum(),
            tensors,
            steps: steps.collect(),
            moments: moments.collect(),
            moment_ns: over_time.width(),
        }
    }

    /// In words and tables.
    pub fn section(&self, about: &About) -> Section {
        let mut section = Section::new(Question::Timeline);
        match self.tokens {
            Some(tokens) => {
                let per_second = tokens.n as f64 * 1e9 / tokens.total_ns.max(1) as f64;
                let longest = self.longest.map_or(0, |(step, _)| step);
                section.find(format!(
                    "{} took {} each (median; shortest {}, 99 % within {}, longest {} in step {longest}): {per_second:.2} a second.",
                    plural(tokens.n, "generated token"),
                    duration(tokens.median_ns),
                    duration(tokens.min_ns),
                    duration(tokens.p99_ns),
                    duration(tokens.max_ns),
                ));
                section.fact("tokens_per_second", per_second);
                section.fact("token_median_ns", tokens.median_ns as f64);
                section.fact("token_p99_ns", tokens.p99_ns as f64);
                section.fact("token_max_ns", tokens.max_ns as f64);
                let part = share(self.decode_weights_time_ns, tokens.total_ns);
                section.find(format!(
                    "Operations that read weights took {} of the time of generated tokens.",
                    percent(part.min(1.0))
                ));
                section.fact("weights_time_share", part);
            }
            None => section.cannot.push(
                "how long a token takes: no whole step of the log generates one token".to_owned(),
            ),
        }
        if about.lost_beginning {
            section.cannot.push(
                "how long loading and the first token took: the log has lost its beginning"
                    .to_owned(),
            );
        } else if let (Some(load), Some(first)) = (self.load_ns, self.first_token_ns) {
            section.find(format!(
                "The first step began {} after the log, and ended after {}.",
                duration(load),
                duration(first)
            ));
            section.fact("load_ns", load as f64);
            section.fact("first_token_ns", first as f64);
        }
        if let Some(prompts) = self.prompts {
            section.find(format!(
                "{} took {} together.",
                plural(prompts.n, "prompt step"),
                duration(prompts.total_ns)
            ));
            section.fact("prompts_total_ns", prompts.total_ns as f64);
        }
        section.table("Steps", self.steps_sheet());
        section.table("Tensors by time", self.tensors_sheet());
        section.table("Over time", self.moments_sheet());
        section
    }

    fn steps_sheet(&self) -> Sheet {
        let columns = [
            ("first step", "first_step"),
            ("steps", "n_steps"),
            ("tokens", "n_tokens"),
            ("time", "time_ns"),
            ("read", "consumed_bytes"),
        ];
        let cells = |group: &StepGroup| {
            vec![
                Cell::Count(group.first_step),
                Cell::Count(group.n_steps),
                Cell::Count(group.n_tokens),
                Cell::Ns(group.time_ns),
                Cell::Bytes(group.consumed_bytes),
            ]
        };
        Sheet::new(&columns, self.steps.iter().map(cells))
    }

    fn tensors_sheet(&self) -> Sheet {
        let columns = [
            ("tensor", "tensor"),
            ("operations", "n_operations"),
            ("time", "time_ns"),
            ("each", "mean_ns"),
        ];
        let cells = |row: &TensorTime| {
            vec![
                Cell::from(&row.tensor),
                Cell::Count(row.n_operations),
                Cell::Ns(row.time_ns),
                Cell::Ns(row.time_ns / row.n_operations.max(1)),
            ]
        };
        Sheet::new(&columns, self.tensors.iter().map(cells))
    }

    fn moments_sheet(&self) -> Sheet {
        let columns = [
            ("from", "time_ns"),
            ("consumed", "consumed_bytes"),
            ("delivered", "delivered_bytes"),
            ("minor faults", "minor_faults"),
            ("major faults", "major_faults"),
        ];
        let cells = |moment: &Moment| {
            vec![
                Cell::Ns(moment.time_ns),
                Cell::Bytes(moment.consumed_bytes),
                Cell::Bytes(moment.delivered_bytes),
                Cell::Count(moment.minor_faults),
                Cell::Count(moment.major_faults),
            ]
        };
        Sheet::new(&columns, self.moments.iter().map(cells))
    }
}
