//! Answers from an access log: typed results, sentences, tables, figures and a page.
//!
//! [`read`] passes once over a log, of any size, in bounded memory: what is kept grows with the model and not with the
//! log. `docs/report.md` says what each answer means.

mod charts;
mod choices;
mod delivered;
mod determinism;
mod diff;
mod experts;
mod faults;
mod grid;
mod order;
mod page;
mod parts;
mod repeats;
mod reuse;
mod section;
mod sequence;
mod stream;
mod tally;
mod timeline;
mod times;
mod waste;
mod weights;
mod write;

use std::path::Path;

use figures::Chart;
use serde::{Deserialize, Serialize};

pub use delivered::{PhaseDelivered, Snapshot};
pub use determinism::{Determinism, Difference};
pub use diff::{Diff, DiffRow, open as open_report};
pub use experts::{Curve, CurvePoint, ExpertLayer, Experts, Lag, Pair, PerSequence, Prediction};
pub use faults::{FaultRow, Faults};
pub use order::{OrderAnswer, RequestSize, Requests, View};
pub use page::write_figures;
pub use parts::{OpPart, Part, Parts};
pub use reuse::{Again, Delivery, FaultsAgain, Reuse, ReuseSlice, ReuseTensor};
pub use section::{Cell, Fact, Question, Section, Sheet};
pub use sequence::{Gaps, Layout, MEDIUM_BYTES, Order, SEQUENTIAL_BYTES, SMALL_BYTES};
pub use tally::{Classes, Coverage, Spread};
pub use timeline::{Moment, StepGroup, TensorTime, Timeline};
pub use times::{BURST_GAP_NS, Durations};
pub use waste::{Waste, WasteRow};
pub use write::Format;

use crate::log::Log;
use crate::text::{count, plural};
use crate::{Error, Result};

/// Version of [`Report`]'s form.
pub const REPORT_FORMAT: u32 = 1;

/// What a report is about.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct About {
    /// The log.
    pub log: String,
    /// The model's first file, as it was named when the log was recorded.
    pub model: String,
    /// Names the tensors, wherever the files were; hexadecimal.
    pub model_digest: String,
    /// Records that were read.
    pub n_records: u64,
    /// Records that are missing: the log was full, or the file was cut short.
    pub n_lost: u64,
    /// Whether the first ones are among them.
    pub lost_beginning: bool,
    /// Of the records that were read, accesses.
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
#[allow(
    missing_docs,
    reason = "each is the answer to the question of its name"
)]
pub struct Report {
    /// Version of this form.
    pub report_format: u32,
    /// What it is about.
    pub about: About,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waste: Option<Waste>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse: Option<Reuse>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faults: Option<Faults>,
    /// Absent as well for a model without experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<Experts>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<OrderAnswer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub determinism: Option<Determinism>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Parts>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub components: Option<Parts>,
}

/// What to read a log with.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What to answer; nothing: everything.
    pub questions: Vec<Question>,
    /// Where the model's files are on their devices, from [`layout`].
    pub layout: Option<Layout>,
}

/// Reads a log once and answers.
///
/// # Errors
///
/// [`Error::Log`] from the file.
pub fn read(log: &Log, options: &Options) -> Result<Report> {
    read_and_draw(log, options, false).map(|(report, _)| report)
}

/// As [`read`], with a picture of everything that was asked for and that the log has.
///
/// # Errors
///
/// [`Error::Log`] from the file.
pub fn read_with_figures(log: &Log, options: &Options) -> Result<(Report, Vec<Chart>)> {
    read_and_draw(log, options, true)
}

fn read_and_draw(log: &Log, options: &Options, draw: bool) -> Result<(Report, Vec<Chart>)> {
    let model = weights::Model::of(log.reader());
    let layout = options.layout.as_ref();
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
    let about = about(log, &model, &seen, tally.n_unknown);
    let asked = |question| options.questions.is_empty() || options.questions.contains(&question);
    let report = Report {
        report_format: REPORT_FORMAT,
        waste: asked(Question::Waste).then(|| Waste::of(&model, &tally, &delivered)),
        reuse: asked(Question::Reuse).then(|| Reuse::of(&model, &tally, &delivered)),
        faults: asked(Question::Faults)
            .then(|| Faults::of(&model, &delivered, about.n_decode_tokens)),
        experts: asked(Question::Experts)
            .then(|| Experts::of(&choices))
            .flatten(),
        order: asked(Question::Order)
            .then(|| OrderAnswer::of(&model, &tally, &delivered, &sequences, &times, layout)),
        determinism: asked(Question::Determinism).then(|| Determinism::of(&model, &repeats)),
        timeline: asked(Question::Timeline).then(|| Timeline::of(&model, &tally, &times)),
        layers: asked(Question::Layers).then(|| Parts::layers(&model, &tally)),
        components: asked(Question::Components).then(|| Parts::components(&model, &tally, &times)),
        about,
    };
    let drawn = charts::Drawn {
        report: &report,
        model: &model,
        times: &times,
        sequences: &sequences,
    };
    let charts = if draw { drawn.charts() } else { Vec::new() };
    Ok((report, charts))
}

fn about(log: &Log, model: &weights::Model, seen: &stream::Seen, n_unknown: u64) -> About {
    let mut remarks: Vec<String> = log.missing().into_iter().collect();
    if seen.n_cut_steps > 0 {
        remarks.push(format!(
            "{} of which the beginning or the end is missing: its reads are counted, it is no token",
            plural(seen.n_cut_steps, "step")
        ));
    }
    if n_unknown > 0 {
        remarks.push(format!(
            "{} of tensors or slices that the log's tables do not have; they are left out",
            plural(n_unknown, "read")
        ));
    }
    if model.n_contradictions > 0 {
        remarks.push(format!(
            "{} whose numbers contradict each other in the log's table; their slices are left out",
            plural(model.n_contradictions as u64, "tensor")
        ));
    }
    if seen.n_accesses == 0 {
        remarks.push(
            "the log has no accesses: nothing was computed, or all of it was lost".to_owned(),
        );
    }
    About {
        log: log.path().display().to_string(),
        model: model
            .files
            .first()
            .map_or(String::new(), |file| file.path.clone()),
        model_digest: crate::text::hex(&log.reader().header().model_digest),
        n_records: seen.n_records,
        n_lost: log.n_missing(),
        lost_beginning: seen.lost_beginning,
        n_accesses: seen.n_accesses,
        n_whole_steps: seen.n_whole_steps,
        n_cut_steps: seen.n_cut_steps,
        n_prompt_tokens: seen.n_prompt_tokens,
        n_decode_tokens: seen.n_decode_tokens,
        duration_ns: seen
            .last_ns
            .saturating_sub(seen.first_ns.unwrap_or(seen.last_ns)),
        remarks,
    }
}

/// Where the files of a log's model are on their devices: of `model`, or of the files that the log names if they are still
/// the ones that were recorded. Otherwise the reason why that is not known.
pub fn layout(log: &Log, model: Option<&Path>) -> std::result::Result<Layout, String> {
    let recorded = log.reader().tables().files.first();
    let path = match (model, recorded) {
        (Some(model), _) => model,
        (None, Some(file)) => Path::new(&file.path),
        (None, None) => return Err("the log names no model".to_owned()),
    };
    log.check_model(path)
        .and_then(|map| {
            let extents = map.tables().files.iter();
            let extents = extents.map(|file| tracer::extents(&file.path));
            let files: tracer::Result<Vec<_>> = extents.collect();
            Ok(Layout::new(files.map_err(Error::Log)?))
        })
        .map_err(|error| error.to_string())
}

impl Report {
    /// The answers in words and tables, the most important first.
    pub fn sections(&self) -> Vec<Section> {
        let about = &self.about;
        let asked = |question: &Question| match question {
            Question::Waste => Some(self.waste.as_ref()?.section(about)),
            Question::Reuse => Some(self.reuse.as_ref()?.section(about)),
            Question::Faults => Some(self.faults.as_ref()?.section()),
            Question::Experts => Some(self.experts.as_ref()?.section()),
            Question::Order => Some(self.order.as_ref()?.section()),
            Question::Determinism => Some(self.determinism.as_ref()?.section()),
            Question::Timeline => Some(self.timeline.as_ref()?.section(about)),
            Question::Layers => Some(self.layers.as_ref()?.section(*question)),
            Question::Components => Some(self.components.as_ref()?.section(*question)),
        };
        Question::ALL.iter().filter_map(asked).collect()
    }

    /// What the report is about, a line each.
    pub fn heading(&self) -> Vec<String> {
        let about = &self.about;
        let model = Path::new(&about.model).file_name();
        let mut lines = vec![format!(
            "{}: {}, {}, {} and {} generated, in {}",
            about.log,
            model.map_or("no model".into(), |name| name.to_string_lossy()),
            plural(about.n_accesses, "read"),
            plural(about.n_prompt_tokens, "token") + " of prompts",
            count(about.n_decode_tokens),
            crate::text::duration(about.duration_ns)
        )];
        lines.extend(about.remarks.iter().cloned());
        lines
    }
}
