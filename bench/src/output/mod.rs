//! Results as text: Markdown for people, CSV and JSON with llama-bench's field names for programs.

mod against;
mod columns;
mod csv;
mod json;
mod md;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::plot;
use crate::record::{RunRecord, SCHEMA};
use crate::results::{Report, Setup};

pub(crate) use figures::Table;
pub(crate) use md::{distinct, header, notes, readaheads, tables};

/// Format of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Md,
    Csv,
    Json,
    Jsonl,
}

impl Format {
    /// The report in this format.
    pub(crate) fn render(self, report: &Report) -> String {
        match self {
            Format::Md => md::render(report),
            Format::Csv => csv::render(report),
            Format::Json => json::render(report),
            Format::Jsonl => json::render_lines(report),
        }
    }
}

/// The folder that keeps a run: raw samples while it goes on, the summary at the end.
#[derive(Debug)]
pub(crate) struct RunFolder {
    folder: PathBuf,
    raw: File,
}

impl RunFolder {
    /// Makes the folder, before the first measurement: a folder that cannot be written must not cost an hour.
    pub(crate) fn create(folder: &Path) -> Result<RunFolder> {
        fs::create_dir_all(folder)
            .with_context(|| format!("{}: cannot be made", folder.display()))?;
        let path = folder.join("raw.jsonl");
        let raw = File::create(&path).with_context(|| path.display().to_string())?;
        Ok(RunFolder {
            folder: folder.to_path_buf(),
            raw,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    /// Writes the set-up. Before the first run: a measurement that is killed leaves raw samples that `bench report` can read.
    pub(crate) fn keep_setup(&self, setup: &Setup) -> Result<()> {
        let mut text = serde_json::to_string_pretty(setup)?;
        text.push('\n');
        self.write("setup.json", &text)
    }

    /// Appends one run.
    pub(crate) fn append(&mut self, run: &RunRecord) -> Result<()> {
        #[derive(Serialize)]
        struct Line<'a> {
            schema: u32,
            #[serde(flatten)]
            run: &'a RunRecord,
        }
        let mut line = serde_json::to_vec(&Line {
            schema: SCHEMA,
            run,
        })?;
        line.push(b'\n');
        self.raw
            .write_all(&line)
            .with_context(|| format!("{}/raw.jsonl", self.folder.display()))
    }

    /// Writes the set-up, the summaries and the picture.
    pub(crate) fn finish(&self, report: &Report) -> Result<()> {
        self.keep_setup(&report.setup)?;
        self.write("summary.md", &Format::Md.render(report))?;
        self.write("summary.csv", &Format::Csv.render(report))?;
        self.write("summary.json", &Format::Json.render(report))?;
        if let Some(chart) = plot::load_timeline(report, "load-rss") {
            self.write("load-rss.svg", &chart.svg())?;
        }
        Ok(())
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())
    }
}

/// Prints `text`; a reader that has gone away is not an error.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}
