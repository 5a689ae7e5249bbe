//! Two reports side by side.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::section::{Cell, Sheet};
use super::{Format, Options, REPORT_FORMAT, Report, layout, read};
use crate::log::Log;
use crate::output::{self, Sink};
use crate::{Error, Result, Target};

/// A report that is larger is none: 1 GiB.
const REPORT_BYTES_MAX: u64 = 1 << 30;

/// A number of both.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiffRow {
    /// The question that it answers.
    pub question: String,
    /// Its name, whose end is its unit.
    pub name: String,
    /// Of the first; `None` if that does not have it.
    pub a: Option<f64>,
    /// Of the second.
    pub b: Option<f64>,
}

impl DiffRow {
    /// The second divided by the first, if both are there and the first is not 0.
    pub fn ratio(&self) -> Option<f64> {
        match (self.a, self.b) {
            (Some(a), Some(b)) if a != 0.0 => Some(b / a),
            _ => None,
        }
    }
}

/// Two reports side by side, as `perf diff` shows two profiles.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diff {
    /// The first log.
    pub a: String,
    /// The second log.
    pub b: String,
    /// What keeps them from being compared fairly, a sentence each.
    pub remarks: Vec<String>,
    /// Numbers that at least one has, by question.
    pub rows: Vec<DiffRow>,
    #[serde(skip)]
    inputs: Vec<PathBuf>,
}

/// Reads a report: a JSON file that [`Report::write`] wrote, or a log.
///
/// # Errors
///
/// [`Error::Log`] of a log, [`Error::NotAReport`] of JSON.
pub fn open(path: &Path) -> Result<Report> {
    if !is_json(path) {
        let log = Log::open(path, None)?;
        let options = Options {
            layout: layout(&log, None).ok(),
            ..Options::default()
        };
        return read(&log, &options);
    }
    let problem = |problem: String| Error::NotAReport {
        path: path.to_owned(),
        problem,
    };
    let file = File::open(path).map_err(|error| problem(error.to_string()))?;
    let input = BufReader::new(file.take(REPORT_BYTES_MAX));
    let report: Report =
        serde_json::from_reader(input).map_err(|error| problem(error.to_string()))?;
    if report.report_format != REPORT_FORMAT {
        return Err(problem(format!(
            "of form {}, where this version writes {REPORT_FORMAT}: use the version that wrote it",
            report.report_format
        )));
    }
    Ok(report)
}

/// Whether the first letter is that of an object, which no log begins with.
fn is_json(path: &Path) -> bool {
    let mut first = [0];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut first));
    read.is_ok() && first[0] == b'{'
}

impl Diff {
    /// Compares the numbers behind two reports' sentences.
    pub fn of(a: &Report, b: &Report) -> Diff {
        let facts = |report: &Report| -> Vec<(String, String, f64)> {
            let sections = report.sections();
            let facts = sections.iter().flat_map(|section| {
                let question = section.question.name();
                let fact = move |f: &super::Fact| (question.to_owned(), f.name.clone(), f.value);
                section.facts.iter().map(fact)
            });
            facts.collect()
        };
        let row = |question: String, name: String| DiffRow {
            question,
            name,
            a: None,
            b: None,
        };
        let mut rows: Vec<DiffRow> = Vec::new();
        for (question, name, value) in facts(a) {
            rows.push(DiffRow {
                a: Some(value),
                ..row(question, name)
            });
        }
        for (question, name, value) in facts(b) {
            let is_same = |row: &&mut DiffRow| row.question == question && row.name == name;
            match rows.iter_mut().find(is_same) {
                Some(row) => row.b = Some(value),
                None => {
                    // Behind the last of its question.
                    let last = rows.iter().rposition(|row| row.question == question);
                    let at = last.map_or(rows.len(), |last| last + 1);
                    let new = DiffRow {
                        b: Some(value),
                        ..row(question, name)
                    };
                    rows.insert(at, new);
                }
            }
        }
        Diff {
            a: a.about.log.clone(),
            b: b.about.log.clone(),
            remarks: remarks(a, b),
            rows,
            inputs: [a, b].map(|report| PathBuf::from(&report.about.log)).into(),
        }
    }

    /// The numbers as a table.
    pub fn sheet(&self) -> Sheet {
        let columns = [
            ("question", "question"),
            ("number", "name"),
            ("A", "a"),
            ("B", "b"),
            ("B - A", "difference"),
            ("B / A", "ratio"),
        ];
        let cell = |value: Option<f64>| value.map_or(Cell::None, Cell::Number);
        let cells = |row: &DiffRow| {
            let difference = row.a.zip(row.b).map(|(a, b)| b - a);
            vec![
                Cell::from(&row.question),
                Cell::from(&row.name),
                cell(row.a),
                cell(row.b),
                cell(difference),
                cell(row.ratio()),
            ]
        };
        Sheet::new(&columns, self.rows.iter().map(cells))
    }

    /// For people: numbers in the unit of their name.
    pub fn markdown(&self) -> String {
        let mut text = format!("A: {}\nB: {}\n", self.a, self.b);
        for remark in &self.remarks {
            text += &format!("- {remark}\n");
        }
        let mut table = figures::Table::default();
        for (name, right) in [
            ("question", false),
            ("number", false),
            ("A", true),
            ("B", true),
            ("B - A", true),
            ("B / A", true),
        ] {
            table.column(name, right);
        }
        for row in &self.rows {
            let cell = |value: Option<f64>| value.map_or("-".to_owned(), |v| in_unit(&row.name, v));
            let difference = row.a.zip(row.b).map(|(a, b)| b - a);
            let sign = if difference.is_some_and(|d| d > 0.0) {
                "+"
            } else {
                ""
            };
            table.row(vec![
                row.question.clone(),
                row.name.clone(),
                cell(row.a),
                cell(row.b),
                format!("{sign}{}", cell(difference)),
                row.ratio()
                    .map_or("-".to_owned(), |ratio| format!("{ratio:.3}")),
            ]);
        }
        text + "\n" + &table.markdown()
    }

    /// Writes the comparison.
    ///
    /// # Errors
    ///
    /// [`Error::Write`] and [`Error::Output`].
    pub fn write(&self, format: Format, target: &Target) -> Result<()> {
        let inputs: Vec<&Path> = self.inputs.iter().map(PathBuf::as_path).collect();
        let sink = Sink::create(target, &inputs)?;
        sink.write_text(match format {
            Format::Markdown => Ok(self.markdown()),
            Format::Csv => Ok(self.sheet().csv()),
            Format::Json => output::json(self),
        })
    }
}

/// A value in the unit that its name ends with.
fn in_unit(name: &str, value: f64) -> String {
    let sign = if value < 0.0 { "-" } else { "" };
    let whole = value.abs().round() as u64;
    if name.contains("bytes") {
        format!("{sign}{}", crate::text::size(whole))
    } else if name.ends_with("_ns") {
        format!("{sign}{}", crate::text::duration(whole))
    } else if name.contains("share") || name.ends_with("recall") {
        crate::text::percent(value)
    } else if value.fract() == 0.0 {
        format!("{sign}{}", crate::text::count(whole))
    } else {
        format!("{value:.3}")
    }
}

fn remarks(a: &Report, b: &Report) -> Vec<String> {
    let mut remarks = Vec::new();
    for (name, about) in [("A", &a.about), ("B", &b.about)] {
        remarks.extend(
            about
                .remarks
                .iter()
                .map(|remark| format!("{name}: {remark}")),
        );
    }
    let differs = |what: &str, a: &dyn std::fmt::Display, b: &dyn std::fmt::Display| {
        format!("{what} differ: A has {a}, B has {b}")
    };
    if a.about.model_digest != b.about.model_digest {
        remarks.push(differs("The models", &a.about.model, &b.about.model));
    }
    if a.about.n_decode_tokens != b.about.n_decode_tokens {
        remarks.push(differs(
            "The numbers of generated tokens, and with them all totals,",
            &a.about.n_decode_tokens,
            &b.about.n_decode_tokens,
        ));
    }
    if a.about.n_prompt_tokens != b.about.n_prompt_tokens {
        remarks.push(differs(
            "The numbers of tokens of prompts",
            &a.about.n_prompt_tokens,
            &b.about.n_prompt_tokens,
        ));
    }
    remarks
}
