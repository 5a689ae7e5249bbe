//! The table of `faultline check`.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::config::shown_bytes;

/// All measurements.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Model by model.
    pub rows: Vec<Row>,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The model; empty for what is of the whole machine.
    pub model: String,
    /// What was measured.
    pub what: &'static str,
    /// What came out.
    pub value: Measure,
    /// The threshold.
    pub limit: Option<Measure>,
    /// How they compare.
    pub verdict: Verdict,
}

/// A value, in JSON as a number of bytes or seconds.
#[derive(Clone, Debug, PartialEq)]
pub enum Measure {
    /// Of memory.
    Bytes(u64),
    /// Of a token.
    Time(Duration),
    /// Of a compression.
    Ratio(f64),
    /// In words.
    Text(String),
}

/// How a measurement compares with its threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Within it.
    Pass,
    /// Beyond it.
    Fail,
    /// There is none, or nothing to compare.
    Measured,
}

impl Row {
    /// A value that passes if it is not above its threshold.
    pub(super) fn at_most(
        model: &str,
        what: &'static str,
        value: Measure,
        limit: Option<Measure>,
    ) -> Row {
        let is_within = |limit: &Measure| match (&value, limit) {
            (Measure::Bytes(value), Measure::Bytes(limit)) => value <= limit,
            (Measure::Time(value), Measure::Time(limit)) => value <= limit,
            _ => false,
        };
        let verdict = match &limit {
            None => Verdict::Measured,
            Some(limit) if is_within(limit) => Verdict::Pass,
            Some(_) => Verdict::Fail,
        };
        Row {
            model: model.to_owned(),
            what,
            value,
            limit,
            verdict,
        }
    }

    /// A value that could not be had. With a threshold that is a failure.
    pub(super) fn unknown(model: &str, what: &'static str, limit: Option<Measure>) -> Row {
        let value = Measure::Text("cannot be measured".to_owned());
        Row::at_most(model, what, value, limit)
    }
}

impl Report {
    /// Whether every threshold was kept.
    pub fn passed(&self) -> bool {
        self.rows.iter().all(|row| row.verdict != Verdict::Fail)
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Measure::Bytes(bytes) => f.write_str(&shown_bytes(*bytes)),
            Measure::Time(time) if time.as_secs() >= 10 => write!(f, "{:.1} s", time.as_secs_f64()),
            Measure::Time(time) => write!(f, "{:.1} ms", 1e3 * time.as_secs_f64()),
            Measure::Ratio(ratio) => write!(f, "{ratio:.2}"),
            Measure::Text(text) => f.write_str(text),
        }
    }
}

impl Serialize for Measure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Measure::Bytes(bytes) => serializer.serialize_u64(*bytes),
            Measure::Time(time) => serializer.serialize_f64(time.as_secs_f64()),
            Measure::Ratio(ratio) => serializer.serialize_f64(*ratio),
            Measure::Text(text) => serializer.serialize_str(text),
        }
    }
}

impl fmt::Display for Report {
    /// A table in Markdown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["model", "what", "measured", "limit", ""].map(str::to_owned);
        let rows = self.rows.iter().map(|row| {
            let verdict = match row.verdict {
                Verdict::Pass => "pass",
                Verdict::Fail => "FAIL",
                Verdict::Measured => "",
            };
            let limit = row
                .limit
                .as_ref()
                .map_or_else(String::new, ToString::to_string);
            [
                row.model.clone(),
                row.what.to_owned(),
                row.value.to_string(),
                limit,
                verdict.to_owned(),
            ]
        });
        let table: Vec<[String; 5]> = std::iter::once(head).chain(rows).collect();
        let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max();
        let widths: [usize; 5] = std::array::from_fn(|column| width(column).unwrap_or(0));
        for (index, row) in table.iter().enumerate() {
            for (cell, width) in row.iter().zip(widths) {
                write!(f, "| {cell:width$} ")?;
            }
            writeln!(f, "|")?;
            if index == 0 {
                for width in widths {
                    write!(f, "|{}", "-".repeat(width + 2))?;
                }
                writeln!(f, "|")?;
            }
        }
        Ok(())
    }
}
