//! Answers as sentences, numbers with names, and tables.

use std::fmt::Write as _;

use figures::Table;
use serde::{Deserialize, Serialize};

use crate::text::{duration, percent, size};

/// Rows of a table that people see; all are in CSV, JSON and on the page.
const ROWS_SHOWN: usize = 40;

/// A question to a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Question {
    /// Which bytes are never read?
    Waste,
    /// Which bytes are read again, and by whom?
    Reuse,
    /// How unevenly are experts used, and what would a cache of them reach?
    Experts,
    /// In which order are the files read?
    Order,
    /// Is every token's sequence the same?
    Determinism,
    /// How much does each layer read, and how long does it take?
    Layers,
    /// The same by component.
    Components,
    /// How long do tokens take, and what happens when?
    Timeline,
    /// What did the kernel do for it?
    Faults,
}

impl Question {
    /// All of them, the most important first.
    pub const ALL: [Question; 9] = [
        Question::Waste,
        Question::Reuse,
        Question::Faults,
        Question::Experts,
        Question::Order,
        Question::Determinism,
        Question::Timeline,
        Question::Layers,
        Question::Components,
    ];

    /// The verb of the command line.
    pub fn name(self) -> &'static str {
        match self {
            Question::Waste => "waste",
            Question::Reuse => "reuse",
            Question::Experts => "experts",
            Question::Order => "order",
            Question::Determinism => "determinism",
            Question::Layers => "layers",
            Question::Components => "components",
            Question::Timeline => "timeline",
            Question::Faults => "faults",
        }
    }

    /// The question in words.
    pub fn title(self) -> &'static str {
        match self {
            Question::Waste => "Which bytes are never read?",
            Question::Reuse => "Which bytes are read again?",
            Question::Experts => "How unevenly are experts used?",
            Question::Order => "In which order are the files read?",
            Question::Determinism => "Does every token read the same?",
            Question::Layers => "What does each layer read?",
            Question::Components => "What does each component read?",
            Question::Timeline => "How long do tokens take?",
            Question::Faults => "What did the kernel do for it?",
        }
    }
}

/// A number with a name that stays the same from log to log.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact {
    /// Such as `expert_share_per_token`.
    pub name: String,
    /// In the unit that the name ends with; shares from 0 to 1.
    pub value: f64,
}

/// The answer to one question.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    /// The question.
    pub question: Question,
    /// What was found, in words; the most important first.
    pub findings: Vec<String>,
    /// What the log cannot answer, and why.
    pub cannot: Vec<String>,
    /// The numbers behind the words.
    pub facts: Vec<Fact>,
    /// Details, each with a heading; the first table is the CSV of the question.
    pub tables: Vec<(String, Sheet)>,
}

impl Section {
    pub(crate) fn new(question: Question) -> Section {
        Section {
            question,
            findings: Vec::new(),
            cannot: Vec::new(),
            facts: Vec::new(),
            tables: Vec::new(),
        }
    }

    pub(crate) fn find(&mut self, text: String) {
        self.findings.push(text);
    }

    pub(crate) fn fact(&mut self, name: impl Into<String>, value: f64) {
        self.facts.push(Fact {
            name: name.into(),
            value,
        });
    }

    pub(crate) fn table(&mut self, heading: &str, sheet: Sheet) {
        self.tables.push((heading.to_owned(), sheet));
    }

    /// Heading and sentences, and with `tables` the details.
    pub fn markdown(&self, tables: bool) -> String {
        let mut text = format!("## {}\n\n", self.question.title());
        // Here and below: writing to a string does not fail.
        for finding in &self.findings {
            let _ = writeln!(text, "- {finding}");
        }
        for cannot in &self.cannot {
            let _ = writeln!(text, "- No answer: {cannot}");
        }
        if tables {
            for (index, (heading, sheet)) in self.tables.iter().enumerate() {
                if sheet.rows.is_empty() {
                    continue;
                }
                let table = sheet.table(ROWS_SHOWN).markdown();
                let _ = write!(text, "\n### {heading}\n\n{table}");
                let n_left = sheet.rows.len().saturating_sub(ROWS_SHOWN);
                if n_left > 0 {
                    let form = if index == 0 { "csv" } else { "json" };
                    let _ = writeln!(text, "\n{n_left} more rows with `-o {form}`.");
                }
            }
        }
        text
    }
}

/// A value of a [`Sheet`].
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// A name.
    Text(String),
    /// A size or an amount in bytes.
    Bytes(u64),
    /// A number of things.
    Count(u64),
    /// From 0 to 1.
    Share(f64),
    /// A duration or time in nanoseconds.
    Ns(u64),
    /// A ratio, a mean.
    Number(f64),
    /// Not known.
    None,
}

impl Cell {
    /// For people.
    fn text(&self) -> String {
        match self {
            Cell::Text(text) => text.clone(),
            Cell::Bytes(bytes) => size(*bytes),
            Cell::Count(n) => n.to_string(),
            Cell::Share(value) => percent(*value),
            Cell::Ns(ns) => duration(*ns),
            Cell::Number(value) => format!("{value:.3}"),
            Cell::None => String::new(),
        }
    }

    /// For programs: the number in the unit of its column.
    fn raw(&self) -> String {
        match self {
            Cell::Text(text) => text.clone(),
            Cell::Bytes(n) | Cell::Count(n) | Cell::Ns(n) => n.to_string(),
            Cell::Share(value) | Cell::Number(value) => value.to_string(),
            Cell::None => String::new(),
        }
    }

    /// The value as a number, if it is one.
    pub fn number(&self) -> Option<f64> {
        match self {
            Cell::Bytes(n) | Cell::Count(n) | Cell::Ns(n) => Some(*n as f64),
            Cell::Share(value) | Cell::Number(value) => Some(*value),
            Cell::Text(_) | Cell::None => None,
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        Cell::Text(text.to_owned())
    }
}

impl From<&String> for Cell {
    fn from(text: &String) -> Cell {
        Cell::Text(text.clone())
    }
}

/// A table of values.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sheet {
    /// For each column its name in words, and for programs, where it ends with the unit.
    pub columns: Vec<(&'static str, &'static str)>,
    /// A cell for each column.
    pub rows: Vec<Vec<Cell>>,
}

impl Sheet {
    pub(crate) fn new(
        columns: &[(&'static str, &'static str)],
        rows: impl IntoIterator<Item = Vec<Cell>>,
    ) -> Sheet {
        Sheet {
            columns: columns.to_vec(),
            rows: rows.into_iter().collect(),
        }
    }

    /// For people, at most `n_rows` rows of it.
    pub fn table(&self, n_rows: usize) -> Table {
        let mut table = Table::default();
        for (index, (title, _)) in self.columns.iter().enumerate() {
            let is_number = |row: &Vec<Cell>| row[index].number().is_some();
            table.column(title, self.rows.iter().any(is_number));
        }
        for row in self.rows.iter().take(n_rows) {
            table.row(row.iter().map(Cell::text).collect());
        }
        table
    }

    /// For programs.
    pub fn csv(&self) -> String {
        let mut table = Table::default();
        for (_, name) in &self.columns {
            table.column(name, false);
        }
        for row in &self.rows {
            table.row(row.iter().map(Cell::raw).collect());
        }
        table.csv()
    }
}
