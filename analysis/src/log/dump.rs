//! A log as lines for people.

use std::io::Write;
use std::ops::ControlFlow;

use glob::Pattern;
use tracer::{Flags, KernelMark, NO_STEP, Op, Record};

use super::{Access, Entry, Log, Weights};
use crate::output::Sink;
use crate::text::size;
use crate::{Result, Target};

const HEADING: &str = "# record         time s    took us  step ubatch  node  what";

/// Which records to show.
#[derive(Debug, Clone, Default)]
pub struct Dump {
    /// Only records of this step.
    pub step: Option<u32>,
    /// Only accesses of tensors with such a name, and no marks.
    pub tensor: Option<Pattern>,
    /// At most this many.
    pub limit: Option<u64>,
}

impl Dump {
    /// Writes a heading and one line for each record.
    ///
    /// # Errors
    ///
    /// [`Error::Log`](crate::Error::Log) from the log, [`Error::Write`](crate::Error::Write) and
    /// [`Error::Output`](crate::Error::Output).
    pub fn write(&self, log: &Log, target: &Target) -> Result<()> {
        let mut sink = Sink::create(target, &[log.path()])?;
        let explain = sink.explain();
        let weights = Weights::of(log.reader());
        let mut left = self.limit.unwrap_or(u64::MAX);
        writeln!(sink, "{HEADING}").map_err(&explain)?;
        log.for_each(&weights, |entry| {
            if left == 0 {
                return Ok(ControlFlow::Break(()));
            }
            let line = match &entry {
                Entry::Access(access) if self.shows(access) => access_line(access),
                Entry::Mark {
                    sequence, record, ..
                } if self.tensor.is_none() && self.has_step(record) => mark_line(*sequence, record),
                _ => return Ok(ControlFlow::Continue(())),
            };
            left -= 1;
            writeln!(sink, "{line}").map_err(&explain)?;
            Ok(ControlFlow::Continue(()))
        })?;
        sink.finish()
    }

    fn has_step(&self, record: &Record) -> bool {
        self.step.is_none_or(|step| step == record.step)
    }

    fn shows(&self, access: &Access<'_>) -> bool {
        let matches = |pattern: &Pattern| {
            access
                .weight
                .is_some_and(|weight| pattern.matches(&weight.name))
        };
        self.has_step(&access.record) && self.tensor.as_ref().is_none_or(matches)
    }
}

fn access_line(access: &Access<'_>) -> String {
    let record = &access.record;
    let place = format!("{:>6} {:>5}", record.ubatch, record.node);
    let name = match access.weight {
        Some(weight) => weight.name.clone(),
        None => format!("tensor {} (not in the log's tables)", record.tensor),
    };
    let slice = match access.weight.map(|weight| weight.slice_kind(record)) {
        Some("whole") => String::new(),
        kind => format!(" {} {}", kind.unwrap_or("slice"), record.slice),
    };
    let bytes = match access.bytes().size_bytes {
        Some(bytes) => size(bytes),
        None => "unknown size".to_owned(),
    };
    let used = match record.n_used {
        1 => String::new(),
        n => format!(", used by {n} tokens"),
    };
    let fused = if record.flags.has(Flags::FUSED) {
        ", fused"
    } else {
        ""
    };
    line(
        access.sequence,
        record,
        &place,
        &format!("{} {name}{slice}, {bytes}{used}{fused}", op_name(record.op)),
    )
}

fn mark_line(sequence: u64, record: &Record) -> String {
    let phase = phase(record);
    let (place, what) = match record.op {
        Op::STEP_BEGIN => (
            String::new(),
            format!(
                "STEP_BEGIN {phase}, {} tokens, {} with logits",
                record.tensor, record.slice
            ),
        ),
        Op::STEP_TOKEN => (
            String::new(),
            format!(
                "STEP_TOKEN {} of the batch: id {}, position {}, sequence {}",
                record.duration_ns,
                record.tensor.cast_signed(),
                record.slice.cast_signed(),
                record.n_used
            ),
        ),
        Op::STEP_END => (String::new(), format!("STEP_END {phase}")),
        Op::UBATCH_BEGIN => (
            format!("{:>6}", record.ubatch),
            format!(
                "UBATCH_BEGIN {} tokens from {} of the batch",
                record.slice, record.tensor
            ),
        ),
        _ if let Some(mark) = KernelMark::of(record) => (
            String::new(),
            format!("{} {}", op_name(record.op), kernel_mark(&mark)),
        ),
        _ => (
            String::new(),
            format!(
                "{} tensor {} slice {} n_used {} ubatch {} node {} flags {:#04x}",
                op_name(record.op),
                record.tensor,
                record.slice,
                record.n_used,
                record.ubatch,
                record.node,
                record.flags.0
            ),
        ),
    };
    line(sequence, record, &place, &what)
}

fn kernel_mark(mark: &KernelMark) -> String {
    match mark {
        KernelMark::Fault(fault) => {
            format!("file {}, offset {}", fault.file, fault.offset_bytes)
        }
        KernelMark::BlockRead(read) => format!(
            "file {}, offset {}, {}",
            read.file,
            read.offset_bytes,
            size(read.size_bytes)
        ),
        KernelMark::Resident(resident) => format!(
            "tensor {}, {} of {} pages",
            resident.tensor, resident.n_resident, resident.n_pages
        ),
        KernelMark::FaultsElsewhere(faults) => {
            format!("{} minor, {} major", faults.n_minor, faults.n_major)
        }
    }
}

fn line(sequence: u64, record: &Record, place: &str, what: &str) -> String {
    let (s, ns) = (
        record.time_ns / 1_000_000_000,
        record.time_ns % 1_000_000_000,
    );
    let took = match record.op {
        // The other marks have other numbers in this field, or none.
        op if op.is_mark() && ![Op::STEP_END, Op::BLOCK_READ].contains(&op) => String::new(),
        Op::BLOCK_READ if record.duration_ns == u32::MAX => "?".to_owned(),
        _ => format!(
            "{}.{:03}",
            record.duration_ns / 1000,
            record.duration_ns % 1000
        ),
    };
    let step = match record.step {
        NO_STEP => "-".to_owned(),
        step => step.to_string(),
    };
    format!("{sequence:>8} {s:>4}.{ns:09} {took:>10} {step:>5} {place:<12}  {what}")
}

/// The name of an operation; `op77` for one that this version does not know.
pub(crate) fn op_name(op: Op) -> std::borrow::Cow<'static, str> {
    match op.name() {
        Some(name) => name.into(),
        None => format!("op{}", op.0).into(),
    }
}

/// `prompt` or `decode`.
pub(crate) fn phase(record: &Record) -> &'static str {
    if record.flags.has(Flags::PROMPT) {
        "prompt"
    } else {
        "decode"
    }
}
