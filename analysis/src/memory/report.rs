//! A prediction, what would change it, and what was measured, as Markdown, CSV and JSON.

use std::fmt::Write as _;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::weights::PAGE_BYTES;
use super::{
    Answers, Change, Held, Model, PAGE_TABLE_ENTRY_BYTES, PartKind, Prediction, Prefetch, explain,
};
use crate::output::{Sink, csv_error};
use crate::text::size;
use crate::{Result, Target};

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Tables for people.
    Markdown,
    /// One line for each part of each scenario.
    Csv,
    /// One object.
    Json,
}

/// What a process that ran the model held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// By the kernel's account, when model and context were there.
    pub at_load: Held,
    /// By the kernel's account, after the last token.
    pub held: Held,
    /// Of the model's files, in the page cache; `None` where the kernel does not tell.
    pub page_cache_bytes: Option<u64>,
    /// What llama.cpp had allocated.
    pub allocated: Answers,
    /// Tokens that were computed.
    pub n_tokens: u32,
}

/// The same model with one or more changes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scenario {
    /// What is changed, such as `n_ctx=2048`.
    pub name: String,
    /// What it then takes.
    pub prediction: Prediction,
}

/// Everything that is known about a model's memory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The model's files.
    pub files: Vec<String>,
    /// Their size.
    pub file_bytes: u64,
    /// The architecture that the file names.
    pub architecture: String,
    /// With the options that were asked for.
    pub base: Prediction,
    /// With one change each, and with all.
    pub what_if: Vec<Scenario>,
    /// A process that ran with the options that were asked for.
    pub measured: Option<Measured>,
    /// In words; empty if nobody asked.
    pub explanation: Vec<String>,
}

#[derive(Serialize)]
struct Json<'a> {
    #[serde(flatten)]
    report: &'a Report,
    totals: Totals,
    measured_totals: Option<Totals>,
    /// Of the resident size: (predicted - measured) / measured; `null` where weights are read on demand.
    error_percent: Option<f64>,
    /// The same when model and context were there.
    error_at_load_percent: Option<f64>,
}

#[derive(Serialize)]
struct Totals {
    anonymous_bytes: u64,
    file_bytes: u64,
    held_bytes: u64,
    page_tables_bytes: u64,
}

impl Measured {
    /// As one line of text, for another process.
    ///
    /// # Errors
    ///
    /// None that are known: all fields are numbers.
    pub fn to_line(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// What [`to_line`](Measured::to_line) wrote.
    ///
    /// # Errors
    ///
    /// The text is something else.
    pub fn from_line(line: &str) -> serde_json::Result<Measured> {
        serde_json::from_str(line)
    }

    /// What a part took: for memory of llama.cpp what it had allocated, for the program what is left. `None` if that is nothing: then pages
    /// of buffers that nobody has touched are as much as the program has.
    fn part_bytes(&self, kind: PartKind) -> Option<u64> {
        let allocated = &self.allocated;
        let of_llama = allocated.repacked_bytes
            + allocated.kv_bytes
            + allocated.compute_bytes
            + allocated.outputs_bytes
            + allocated.work_bytes
            + allocated.graphs_bytes;
        Some(match kind {
            PartKind::MappedWeights => self.held.model_bytes,
            PartKind::RepackedWeights => allocated.repacked_bytes,
            PartKind::KvCache => allocated.kv_bytes,
            PartKind::Compute => allocated.compute_bytes,
            PartKind::Logits => allocated.outputs_bytes,
            PartKind::Work => allocated.work_bytes,
            PartKind::Graphs => allocated.graphs_bytes,
            PartKind::Program => {
                let left = self.held.anonymous_bytes.checked_sub(of_llama);
                return left.filter(|left| *left > 0);
            }
            PartKind::ProgramFile => self.held.file_bytes.saturating_sub(self.held.model_bytes),
        })
    }
}

impl Report {
    /// Of a model with some options, without anything else.
    pub fn new(model: &Model, base: Prediction) -> Report {
        Report {
            files: model
                .paths()
                .iter()
                .map(|path| path.display().to_string())
                .collect(),
            file_bytes: model.files.total_bytes(),
            architecture: model.architecture().to_owned(),
            base,
            what_if: Vec::new(),
            measured: None,
            explanation: Vec::new(),
        }
    }

    /// Adds words: `steps` are [`alternatives`](super::alternatives) and what the model then takes.
    pub fn explain(&mut self, steps: &[(Vec<Change>, Prediction)]) {
        self.explanation = explain::paragraphs(self.file_bytes, &self.base, steps);
    }

    /// How far the predicted resident size is from the measured one, in percent of the latter. `None` where weights are read on
    /// demand: what is predicted is then the most that it can become.
    pub fn error_percent(&self) -> Option<f64> {
        if self.base.options.prefetch != Prefetch::Eager {
            return None;
        }
        let measured = self.measured?.held.resident_bytes();
        Some(excess_percent(self.base.held_bytes(), measured))
    }

    /// The same when model and context were there, and no token had been computed.
    pub fn error_at_load_percent(&self) -> Option<f64> {
        let measured = self.measured?.at_load.resident_bytes();
        Some(excess_percent(self.base.held_at_load_bytes(), measured))
    }

    /// Writes it to standard output or a file.
    ///
    /// # Errors
    ///
    /// [`Error::Write`](crate::Error::Write) and [`Error::Output`](crate::Error::Output).
    pub fn write(&self, format: Format, target: &Target) -> Result<()> {
        let inputs: Vec<&std::path::Path> = self.files.iter().map(std::path::Path::new).collect();
        let mut sink = Sink::create(target, &inputs)?;
        let explain = sink.explain();
        match format {
            Format::Markdown => sink.write_all(self.markdown().as_bytes()),
            Format::Csv => self.write_csv(&mut sink).map_err(csv_error),
            Format::Json => self.write_json(&mut sink),
        }
        .map_err(explain)?;
        sink.finish()
    }

    fn write_json(&self, sink: &mut impl Write) -> io::Result<()> {
        let json = Json {
            report: self,
            totals: Totals {
                anonymous_bytes: self.base.anonymous_bytes(),
                file_bytes: self.base.file_bytes(),
                held_bytes: self.base.held_bytes(),
                page_tables_bytes: self.base.page_tables_bytes(),
            },
            measured_totals: self.measured.map(|measured| Totals {
                anonymous_bytes: measured.held.anonymous_bytes,
                file_bytes: measured.held.file_bytes,
                held_bytes: measured.held.resident_bytes(),
                page_tables_bytes: measured.held.page_tables_bytes,
            }),
            error_percent: self.error_percent(),
            error_at_load_percent: self.error_at_load_percent(),
        };
        serde_json::to_writer_pretty(&mut *sink, &json)?;
        writeln!(sink)
    }

    fn write_csv(&self, sink: &mut impl Write) -> csv::Result<()> {
        let mut csv = csv::Writer::from_writer(sink);
        csv.write_record([
            "scenario",
            "part",
            "pages",
            "predicted_bytes",
            "at_load_bytes",
            "measured_bytes",
            "source",
            "reason",
        ])?;
        let scenarios = self
            .what_if
            .iter()
            .map(|scenario| (scenario.name.as_str(), &scenario.prediction));
        for (name, prediction) in std::iter::once(("", &self.base)).chain(scenarios) {
            for part in &prediction.parts {
                let measured = self.measured.filter(|_| name.is_empty());
                let measured = measured.and_then(|measured| measured.part_bytes(part.kind));
                let measured = measured.map(|bytes| bytes.to_string());
                csv.write_record([
                    name,
                    part.kind.name(),
                    pages(part.kind),
                    &part.size_bytes.to_string(),
                    &part.at_load_bytes.to_string(),
                    &measured.unwrap_or_default(),
                    part.source.name(),
                    &part.reason,
                ])?;
            }
        }
        Ok(csv.flush()?)
    }

    fn markdown(&self) -> String {
        let options = &self.base.options;
        let kind = |of: gguf::GgmlType| of.name().unwrap_or("unknown");
        let mut text = format!(
            "{}: {}, {} on disk\ncontext {} tokens, ubatch {}, KV cache {} and {}, repacking {}, prefetch {}, {} threads\n\n",
            self.files.join(", "),
            self.architecture,
            size(self.file_bytes),
            options.n_ctx,
            options.n_ubatch,
            kind(options.type_k),
            kind(options.type_v),
            if options.repack { "on" } else { "off" },
            options.prefetch.as_str(),
            options.n_threads,
        );
        text.push_str(&table(&self.parts_table()));
        if self.base.part_bytes(PartKind::KvCache) == 0 {
            let _ = writeln!(
                text,
                "\nThe KV cache is not counted: its rules are not known here for {}; llama.cpp knows them.",
                self.architecture
            );
        }
        if let (Some(at_load), Some(measured)) = (self.error_at_load_percent(), self.measured) {
            let (held, loaded) = (
                measured.held.resident_bytes(),
                measured.at_load.resident_bytes(),
            );
            let after = match self.error_percent() {
                Some(error) => format!(
                    "{error:+.1} % of the {} after {} tokens",
                    size(held),
                    measured.n_tokens
                ),
                None => format!(
                    "up to {} when all experts have been used, of which {} were held after {} tokens",
                    size(self.base.held_bytes()),
                    size(held),
                    measured.n_tokens
                ),
            };
            let _ = writeln!(
                text,
                "\nPredicted: {at_load:+.1} % of the {} that the process held after loading, and {after}.",
                size(loaded)
            );
            let mapped = self.base.part_bytes(PartKind::MappedWeights);
            let missing = mapped.saturating_sub(measured.held.model_bytes);
            // A mapped page may be missing at the ends of a range.
            if self.base.options.prefetch == Prefetch::Eager && missing * 100 > mapped {
                let with = measured.held.resident_bytes() + missing;
                let _ = writeln!(
                    text,
                    "Of the mapped weights, {} were not in memory any more: the kernel took them back for something else. With them \
                     the process would hold {}, of which the prediction is {:+.1} % off.",
                    size(missing),
                    size(with),
                    100.0 * (self.base.held_bytes() as f64 / with as f64 - 1.0),
                );
            }
        }
        if !self.what_if.is_empty() {
            text.push('\n');
            text.push_str(&table(&self.what_if_table()));
        }
        for paragraph in &self.explanation {
            let _ = write!(text, "\n{paragraph}\n");
        }
        text
    }

    fn parts_table(&self) -> Vec<Vec<String>> {
        let base = &self.base;
        let row = |name: &str,
                   pages: &str,
                   predicted: u64,
                   at_load: u64,
                   measured: Option<u64>,
                   source: &str,
                   why: &str| {
            let mut cells = vec![
                name.to_owned(),
                pages.to_owned(),
                size(predicted),
                size(at_load),
            ];
            if self.measured.is_some() {
                cells.push(measured.map_or_else(|| "-".to_owned(), size));
            }
            cells.extend([source.to_owned(), why.to_owned()]);
            cells
        };
        let mut heading = vec!["part", "pages", "predicted", "at load"];
        heading.extend(self.measured.map(|_| "measured"));
        heading.extend(["from", "why"]);
        let mut rows = vec![heading.into_iter().map(str::to_owned).collect()];
        for part in &base.parts {
            let measured = self
                .measured
                .and_then(|measured| measured.part_bytes(part.kind));
            let (pages, source) = (pages(part.kind), part.source.name());
            rows.push(row(
                part.kind.name(),
                pages,
                part.size_bytes,
                part.at_load_bytes,
                measured,
                source,
                &part.reason,
            ));
        }
        let at_load = |is_file: bool| {
            let parts = base
                .parts
                .iter()
                .filter(|part| part.kind.is_file() == is_file);
            parts.map(|part| part.at_load_bytes).sum::<u64>()
        };
        let held = self.measured.map(|measured| measured.held);
        rows.push(row(
            "sum of its own",
            "anonymous",
            base.anonymous_bytes(),
            at_load(false),
            held.map(|held| held.anonymous_bytes),
            "",
            "the machine must have it",
        ));
        rows.push(row(
            "sum of files' pages",
            "file",
            base.file_bytes(),
            at_load(true),
            held.map(|held| held.file_bytes),
            "",
            "the kernel takes them back when memory is short",
        ));
        rows.push(row(
            "process (RSS)",
            "",
            base.held_bytes(),
            base.held_at_load_bytes(),
            held.map(|held| held.resident_bytes()),
            "",
            "",
        ));
        rows.push(row(
            "page tables",
            "kernel",
            base.page_tables_bytes(),
            base.held_at_load_bytes() / PAGE_BYTES * PAGE_TABLE_ENTRY_BYTES,
            held.map(|held| held.page_tables_bytes),
            "estimate",
            "8 bytes a page; fewer with huge pages",
        ));
        rows.push(row(
            "page cache",
            "file",
            self.file_bytes,
            self.page_cache_at_load(),
            self.measured.and_then(|measured| measured.page_cache_bytes),
            "metadata",
            "the model's files; mapped weights are part of it",
        ));
        rows
    }

    /// Whatever is mapped is in the page cache; reading at load fills it with the whole file.
    fn page_cache_at_load(&self) -> u64 {
        match self.base.options.prefetch {
            Prefetch::Eager => self.file_bytes,
            _ => self.base.weights.mapped_at_load_bytes,
        }
    }

    fn what_if_table(&self) -> Vec<Vec<String>> {
        let base = &self.base;
        let difference = |before: u64, after: u64| {
            let sign = match after.cmp(&before) {
                std::cmp::Ordering::Less => "-",
                std::cmp::Ordering::Equal => "",
                std::cmp::Ordering::Greater => "+",
            };
            format!("{sign}{}", size(after.abs_diff(before)))
        };
        let heading = [
            "what if",
            "of its own",
            "difference",
            "process (RSS)",
            "difference",
            "at load",
            "difference",
            "changed",
        ];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        for Scenario { name, prediction } in &self.what_if {
            let changed: Vec<String> = PartKind::ALL
                .into_iter()
                .filter(|&kind| base.part_bytes(kind) != prediction.part_bytes(kind))
                .map(|kind| {
                    let amount = difference(base.part_bytes(kind), prediction.part_bytes(kind));
                    format!("{} {amount}", kind.name())
                })
                .collect();
            rows.push(vec![
                name.clone(),
                size(prediction.anonymous_bytes()),
                difference(base.anonymous_bytes(), prediction.anonymous_bytes()),
                size(prediction.held_bytes()),
                difference(base.held_bytes(), prediction.held_bytes()),
                size(prediction.held_at_load_bytes()),
                difference(base.held_at_load_bytes(), prediction.held_at_load_bytes()),
                changed.join(", "),
            ]);
        }
        rows
    }
}

fn excess_percent(predicted: u64, measured: u64) -> f64 {
    100.0 * (predicted as f64 - measured as f64) / measured.max(1) as f64
}

fn pages(kind: PartKind) -> &'static str {
    if kind.is_file() { "file" } else { "anonymous" }
}

/// A Markdown table: sizes to the right, words to the left.
fn table(rows: &[Vec<String>]) -> String {
    let n_columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..n_columns).map(width).collect();
    let is_size = |column: usize| {
        let mut cells = rows.iter().skip(1).map(|row| row[column].as_str());
        cells.all(|cell| {
            cell == "-"
                || cell
                    .trim_start_matches(['+', '-'])
                    .starts_with(|first: char| first.is_ascii_digit())
        })
    };
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let _ = match is_size(column) {
                true => write!(text, "| {cell:>width$} "),
                // The last column ends where its words end.
                false if column + 1 == n_columns => write!(text, "| {cell} "),
                false => write!(text, "| {cell:width$} "),
            };
        }
        text.push_str("|\n");
        if index == 0 {
            for (column, &width) in widths.iter().enumerate() {
                let last = column + 1 == n_columns && !is_size(column);
                let dashes = "-".repeat(if last { 3 } else { width + 1 });
                text.push_str(&format!(
                    "|{dashes}{}",
                    if is_size(column) { ":" } else { "-" }
                ));
            }
            text.push_str("|\n");
        }
    }
    text
}
