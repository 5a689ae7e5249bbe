//! What a log holds, in numbers.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;
use tracer::{OnFull, Op, State, WHOLE};

use super::dump::{op_name, phase};
use super::{Entry, Log, Weights};
use crate::output::Sink;
use crate::text::{Table, hex, size};
use crate::{Error, Result, Target};

/// How the numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InfoFormat {
    /// Lines for people.
    Text,
    /// One object.
    Json,
}

/// What a log says about itself, and what its records add up to. The fields are the keys of the
/// JSON.
#[derive(Debug, Clone, Serialize)]
#[allow(
    missing_docs,
    reason = "names say it; docs/export.md has what does not fit"
)]
pub struct Info {
    pub path: String,
    pub format_version: String,
    /// `closed`, `open` (its writer is at work or died), or `cut` (the file was shortened).
    pub state: &'static str,
    pub size_bytes: u64,
    pub started: String,
    pub pid: u32,
    pub on_full: &'static str,
    pub model_digest: String,
    pub files: Vec<InfoFile>,
    pub n_tensors: u64,
    pub n_extra_tensors: u64,
    pub properties: BTreeMap<String, String>,
    /// Records that the log can hold.
    pub capacity_records: u64,
    pub n_written: u64,
    pub n_lost: u64,
    /// Records that can be read.
    pub n_records: u64,
    pub n_accesses: u64,
    pub n_slice_accesses: u64,
    pub bytes_accessed: u64,
    /// Steps of which the beginning or the end is in the log.
    pub n_steps: u64,
    pub n_complete_steps: u64,
    pub n_prompt_tokens: u64,
    pub n_decode_tokens: u64,
    /// From the earliest time in the log to the end of the last access or step.
    pub duration_ns: u64,
    pub records_by_op: BTreeMap<String, u64>,
    /// One line that says what is missing.
    pub missing: Option<String>,
}

/// A file of the model, as it was when the log was recorded.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "as for `Info`")]
pub struct InfoFile {
    pub path: String,
    pub size_bytes: u64,
}

impl Info {
    /// Reads all of a log.
    ///
    /// # Errors
    ///
    /// [`Error::Log`] from the file.
    pub fn read(log: &Log) -> Result<Info> {
        let reader = log.reader();
        let (header, tables) = (reader.header(), reader.tables());
        let size_bytes = log
            .path()
            .metadata()
            .map_err(|source| {
                Error::Log(tracer::Error::Io {
                    path: log.path().to_owned(),
                    action: "ask for its size",
                    source,
                })
            })?
            .len();
        let started = UNIX_EPOCH + Duration::from_nanos(header.epoch_realtime_ns);
        let mut info = Info {
            path: log.path().display().to_string(),
            format_version: format!("{}.{}", header.version.0, header.version.1),
            state: match (reader.damage(), header.state) {
                (Some(_), _) => "cut",
                (None, State::Open) => "open",
                (None, State::Closed) => "closed",
            },
            size_bytes,
            started: humantime::format_rfc3339_millis(started).to_string(),
            pid: header.pid,
            on_full: match header.on_full {
                OnFull::Wrap => "wrap",
                OnFull::Stop => "stop",
            },
            model_digest: hex(&header.model_digest),
            files: (tables.files.iter())
                .map(|file| InfoFile {
                    path: file.path.clone(),
                    size_bytes: file.size_bytes,
                })
                .collect(),
            n_tensors: tables.tensors.len() as u64,
            n_extra_tensors: reader.extras().len() as u64,
            properties: tables.properties.iter().cloned().collect(),
            capacity_records: header.capacity,
            n_written: header.n_written,
            n_lost: header.n_lost,
            n_records: reader.n_records(),
            n_accesses: 0,
            n_slice_accesses: 0,
            bytes_accessed: 0,
            n_steps: 0,
            n_complete_steps: 0,
            n_prompt_tokens: 0,
            n_decode_tokens: 0,
            duration_ns: 0,
            records_by_op: BTreeMap::new(),
            missing: log.missing(),
        };
        info.count(log)?;
        Ok(info)
    }

    fn count(&mut self, log: &Log) -> Result<()> {
        let weights = Weights::of(log.reader());
        let mut by_op = [0u64; 256];
        let mut first_ns = u64::MAX;
        let mut last_ns = 0;
        let mut last_step = None;
        log.for_each(&weights, |entry| {
            let (Entry::Mark { record, .. } | Entry::Access(super::Access { record, .. })) = &entry;
            by_op[usize::from(record.op.0)] += 1;
            first_ns = first_ns.min(record.time_ns);
            // Other marks have other numbers in these fields.
            let is_access = !record.op.is_mark();
            if is_access || record.op == Op::STEP_END {
                let took_ns = u64::from(record.duration_ns);
                last_ns = last_ns.max(record.time_ns.saturating_add(took_ns));
            } else {
                last_ns = last_ns.max(record.time_ns);
            }
            let is_of_step = is_access || [Op::STEP_BEGIN, Op::STEP_END].contains(&record.op);
            if is_of_step && last_step != Some(record.step) {
                last_step = Some(record.step);
                self.n_steps += 1;
            }
            match &entry {
                Entry::Access(access) => {
                    self.n_accesses += 1;
                    self.n_slice_accesses += u64::from(record.slice != WHOLE);
                    let bytes = access.bytes().size_bytes.unwrap_or(0);
                    self.bytes_accessed = self.bytes_accessed.saturating_add(bytes);
                }
                Entry::Mark { record, .. } if record.op == Op::STEP_BEGIN => {
                    let n_tokens = u64::from(record.tensor);
                    match phase(record) {
                        "prompt" => self.n_prompt_tokens += n_tokens,
                        _ => self.n_decode_tokens += n_tokens,
                    }
                }
                Entry::Mark { record, .. } => {
                    self.n_complete_steps += u64::from(record.op == Op::STEP_END);
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        self.duration_ns = last_ns.saturating_sub(first_ns);
        self.records_by_op = (0..=u8::MAX)
            .zip(by_op)
            .filter(|&(_, count)| count > 0)
            .map(|(op, count)| (op_name(Op(op)).into_owned(), count))
            .collect();
        Ok(())
    }

    /// Writes the numbers to standard output or a file.
    ///
    /// # Errors
    ///
    /// [`Error::Write`] and [`Error::Output`].
    pub fn write(&self, format: InfoFormat, target: &Target) -> Result<()> {
        let mut sink = Sink::create(target, &[self.path.as_ref()])?;
        let explain = sink.explain();
        match format {
            InfoFormat::Text => self.write_text(&mut sink),
            InfoFormat::Json => serde_json::to_writer_pretty(&mut sink, self)
                .map_err(io::Error::from)
                .and_then(|()| writeln!(sink)),
        }
        .map_err(explain)?;
        sink.finish()
    }

    fn write_text(&self, sink: &mut impl Write) -> io::Result<()> {
        let state = match self.state {
            "open" => "open: its writer is at work or died",
            "cut" => "cut: the file was shortened",
            closed => closed,
        };
        let mut lines = vec![
            (
                "log",
                format!(
                    "{}, format {}, {}",
                    self.path,
                    self.format_version,
                    size(self.size_bytes)
                ),
            ),
            ("state", state.to_owned()),
            (
                "started",
                format!("{} by process {}", self.started, self.pid),
            ),
            ("model", self.model_digest.clone()),
        ];
        lines.extend(
            self.files
                .iter()
                .map(|file| ("file", format!("{}, {}", file.path, size(file.size_bytes)))),
        );
        lines.extend([
            (
                "tensors",
                format!(
                    "{}, and {} outside the files",
                    self.n_tensors, self.n_extra_tensors
                ),
            ),
            (
                "records",
                format!(
                    "{} of {} written, {} lost; room for {} (when full: {})",
                    self.n_records,
                    self.n_written,
                    self.n_lost,
                    self.capacity_records,
                    self.on_full
                ),
            ),
            (
                "accesses",
                format!(
                    "{}, {} of them by slices, {} in total",
                    self.n_accesses,
                    self.n_slice_accesses,
                    size(self.bytes_accessed)
                ),
            ),
            (
                "steps",
                format!("{}, {} complete", self.n_steps, self.n_complete_steps),
            ),
            (
                "tokens",
                format!(
                    "{} of prompts, {} generated and computed",
                    self.n_prompt_tokens, self.n_decode_tokens
                ),
            ),
            (
                "duration",
                format!(
                    "{:.3} s",
                    Duration::from_nanos(self.duration_ns).as_secs_f64()
                ),
            ),
        ]);
        lines.extend(
            self.properties
                .iter()
                .map(|(key, value)| ("property", format!("{key} = {value}"))),
        );
        for (name, text) in lines {
            writeln!(sink, "{name:<9} {text}")?;
        }
        let mut table = Table::new(&["operation", "records"], &[0]);
        for (op, count) in &self.records_by_op {
            table.push(vec![op.clone(), count.to_string()]);
        }
        write!(sink, "\n{table}")
    }
}
