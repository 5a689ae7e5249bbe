//! Answers from an access log: typed results, sentences, tables, figures and a page.
//!
//! [`read`] passes once over a log, of any size, in bounded memory: what is kept grows with the model and not with the
//! log. `docs/report.md` says what each answer means.

mod choices;
mod delivered;
mod grid;
mod repeats;
mod section;
mod sequence;
mod stream;
mod tally;
mod times;
mod waste;
mod weights;

use serde::{Deserialize, Serialize};

pub use delivered::{PhaseDelivered, Snapshot};
pub use section::{Cell, Fact, Question, Section, Sheet};
pub use sequence::{Gaps, Layout, MEDIUM_BYTES, Order, SEQUENTIAL_BYTES, SMALL_BYTES};
pub use tally::{Classes, Coverage, Spread};
pub use times::{BURST_GAP_NS, Durations};
pub use waste::{Waste, WasteRow};

use crate::Result;
use crate::log::Log;

/// What a report is about.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct About {
    /// The log.
    pub log: String,
    /// The model's first file, as it was named when the log was recorded.
    pub model: String,
    /// Records that were read.
    pub n_records: u64,
    /// Of these, accesses.
    pub n_accesses: u64,
    /// Decode calls that the log has as a whole.
    pub n_whole_steps: u64,
    /// Decode calls of which the beginning or the end is missing.
    pub n_cut_steps: u64,
    /// Tokens of prompts, in whole steps.
    pub n_prompt_tokens: u64,
    /// Tokens generated, in whole steps.
    pub n_decode_tokens: u64,
    /// From the first access or step to the end of the last.
    pub duration_ns: u64,
    /// What is missing or contradicts itself, a sentence each.
    pub remarks: Vec<String>,
}

/// Answers to questions; `None` where the question was not asked. The fields are the keys of the JSON.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Report {
    /// Version of this form.
    pub report_format: u32,
    /// What it is about.
    pub about: About,
    /// See [`Question::Waste`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waste: Option<Waste>,
}

/// Version of [`Report`]'s form.
pub const REPORT_FORMAT: u32 = 1;

/// Reads a log once and answers.
///
/// # Errors
///
/// [`Error::Log`](crate::Error::Log) from the file.
pub fn read(log: &Log, questions: &[Question], layout: Option<&Layout>) -> Result<Report> {
    let model = weights::Model::of(log.reader());
    let mut tally = tally::Tally::new(&model);
    let mut delivered = delivered::Delivered::new(&model);
    let mut sequences = sequence::Sequences::new(&model, layout);
    let mut repeats = repeats::Repeats::default();
    let mut choices = choices::Choices::new(&model);
    let mut times = times::Times::new(&model);
    let seen = stream::walk(
        log,
        &mut [
            &mut tally,
            &mut delivered,
            &mut sequences,
            &mut repeats,
            &mut choices,
            &mut times,
        ],
    )?;
    choices.finish();
    let about = About {
        log: log.path().display().to_string(),
        model: model
            .files
            .first()
            .map_or(String::new(), |file| file.path.clone()),
        n_records: seen.n_records,
        n_accesses: seen.n_accesses,
        n_whole_steps: seen.n_whole_steps,
        n_cut_steps: seen.n_cut_steps,
        n_prompt_tokens: seen.n_prompt_tokens,
        n_decode_tokens: seen.n_decode_tokens,
        duration_ns: seen
            .last_ns
            .saturating_sub(seen.first_ns.unwrap_or(seen.last_ns)),
        remarks: Vec::new(),
    };
    let asked = |question| questions.contains(&question);
    Ok(Report {
        report_format: REPORT_FORMAT,
        about,
        waste: asked(Question::Waste).then(|| Waste::of(&model, &tally, &delivered)),
    })
}
