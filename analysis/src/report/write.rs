//! Reports as Markdown, CSV and JSON.

use std::path::Path;

use super::{Question, Report};
use crate::output::{self, Sink};
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
        let sink = Sink::create(target, &[Path::new(&self.about.log)])?;
        sink.write_text(match format {
            Format::Markdown => Ok(self.markdown(question)),
            Format::Csv => Ok(self.csv(question)),
            Format::Json => output::json(self),
        })
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
