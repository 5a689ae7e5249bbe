//! Reports as Markdown, CSV and JSON.

use std::io::Write as _;
use std::path::Path;

use super::{Question, Report};
use crate::output::Sink;
use crate::{Result, Target};

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Sentences; with one question tables as well.
    Markdown,
    /// With one question its first table, otherwise the numbers behind the sentences: `question,name,value`.
    Csv,
    /// Everything, as one object.
    Json,
}

impl Report {
    /// Writes the report; `question` is the one that was asked, if it was only one.
    ///
    /// # Errors
    ///
    /// [`Error::Write`](crate::Error::Write) and [`Error::Output`](crate::Error::Output).
    pub fn write(&self, format: Format, question: Option<Question>, target: &Target) -> Result<()> {
        let mut sink = Sink::create(target, &[Path::new(&self.about.log)])?;
        let explain = sink.explain();
        let text = match format {
            Format::Markdown => self.markdown(question),
            Format::Csv => self.csv(question),
            Format::Json => {
                serde_json::to_string_pretty(self)
                    .map_err(std::io::Error::other)
                    .map_err(&explain)?
                    + "\n"
            }
        };
        sink.write_all(text.as_bytes()).map_err(&explain)?;
        sink.finish()
    }

    /// Sentences, and with a question its tables.
    pub fn markdown(&self, question: Option<Question>) -> String {
        let mut text = String::new();
        for (index, line) in self.heading().iter().enumerate() {
            let before = if index == 0 { "" } else { "- Missing: " };
            text += &format!("{before}{line}\n");
        }
        for section in self.sections() {
            text += &format!("\n{}", section.markdown(question.is_some()));
        }
        if self.experts.is_none() && question == Some(Question::Experts) {
            text += "\nThe model has no experts.\n";
        }
        text
    }

    fn csv(&self, question: Option<Question>) -> String {
        let sections = self.sections();
        if question.is_some() {
            let table = sections.first().and_then(|section| section.tables.first());
            return table.map_or(String::new(), |(_, sheet)| sheet.csv());
        }
        let mut text = String::from("question,name,value\n");
        for section in &sections {
            for fact in &section.facts {
                text += &format!("{},{},{}\n", section.question.name(), fact.name, fact.value);
            }
        }
        text
    }
}
