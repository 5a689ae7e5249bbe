//! `faultline record`: text from a prompt, and a log of every access to a weight.

use std::path::{Path, PathBuf};
use std::time::Instant;

use llama_rs::{Context, Model};
use tracer::{LogReader, Progress, Recorder, WHOLE};

use crate::cli::{OnFull, RecordArgs};
use crate::exit::Outcome;
use crate::output::note;

pub(crate) fn run(args: &RecordArgs, started: Instant) -> anyhow::Result<Outcome> {
    crate::run::run(&args.run, started, Some(args))
}

/// A log that is being written.
pub(crate) struct Recording {
    path: PathBuf,
    progress: Progress,
    ends_when_full: bool,
    is_quiet: bool,
    is_verbose: bool,
}

impl Recording {
    /// Creates the log and attaches it to the context.
    pub(crate) fn start(
        args: &RecordArgs,
        model: &Model,
        context: &mut Context<'_>,
    ) -> anyhow::Result<Recording> {
        let on_full = match args.on_full {
            OnFull::Wrap => tracer::OnFull::Wrap,
            OnFull::Stop => tracer::OnFull::Stop,
        };
        let recorder = Recorder::create(&args.output, model, args.log_size << 20, on_full)?;
        let progress = recorder.progress();
        context.set_observer(recorder)?;
        Ok(Recording {
            path: args.output.clone(),
            progress,
            ends_when_full: args.on_full == OnFull::Stop,
            is_quiet: args.run.quiet,
            is_verbose: args.run.verbose > 0,
        })
    }

    /// Whether the run has to end because the log is full.
    pub(crate) fn is_full(&self) -> bool {
        self.ends_when_full && self.progress.n_written() >= self.progress.capacity()
    }

    /// Closes the log and says what it holds.
    pub(crate) fn finish(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let Some(recorder) = context.take_observer::<Recorder>() else {
            return Ok(());
        };
        let n_unknown = recorder.n_unknown();
        let summary = recorder.finish()?;
        if self.is_quiet {
            return Ok(());
        }
        let totals = Totals::read(&self.path)?;
        if self.is_verbose {
            totals.print_sparse();
        }
        note(format_args!(
            "{}: {} accesses, {} of them by slices; {} records lost; {:.1} MiB",
            self.path.display(),
            totals.n_accesses,
            totals.n_sparse,
            summary.n_lost + n_unknown,
            summary.size_bytes as f64 / f64::from(1 << 20),
        ));
        if self.ends_when_full && summary.n_lost > 0 {
            note(format_args!(
                "the log was full and ended the run; --log-size makes it larger"
            ));
        }
        Ok(())
    }
}

/// What a log says in total.
struct Totals {
    n_accesses: u64,
    n_sparse: u64,
    tensors: Vec<SlicesRead>,
}

/// Which slices of a tensor were read.
struct SlicesRead {
    name: String,
    size_bytes: u64,
    stride_bytes: u64,
    op: &'static str,
    is_read: Vec<bool>,
}

impl Totals {
    fn read(path: &Path) -> tracer::Result<Totals> {
        let log = LogReader::open(path)?;
        let tensors = log.tables().tensors.iter().map(|tensor| SlicesRead {
            name: tensor.name.clone(),
            size_bytes: tensor.size_bytes,
            stride_bytes: tensor.slice_stride_bytes,
            op: "",
            is_read: vec![false; tensor.n_slices as usize],
        });
        let mut totals = Totals {
            n_accesses: 0,
            n_sparse: 0,
            tensors: tensors.collect(),
        };
        let mut chunks = log.chunks();
        while let Some((_, records)) = chunks.next_chunk()? {
            for record in records.iter().filter(|record| !record.op.is_mark()) {
                totals.n_accesses += 1;
                if record.slice == WHOLE {
                    continue;
                }
                totals.n_sparse += 1;
                let tensor = totals.tensors.get_mut(record.tensor as usize);
                if let Some(tensor) = tensor
                    && let Some(is_read) = tensor.is_read.get_mut(record.slice as usize)
                {
                    *is_read = true;
                    tensor.op = record.op.name().unwrap_or("OTHER");
                }
            }
        }
        Ok(totals)
    }

    /// One line for each tensor that was read by slices.
    fn print_sparse(&self) {
        for tensor in self.tensors.iter().filter(|tensor| !tensor.op.is_empty()) {
            let slices: Vec<usize> = (0..)
                .zip(&tensor.is_read)
                .filter_map(|(slice, &is_read)| is_read.then_some(slice))
                .collect();
            let kind = if tensor.op == "MUL_MAT_ID" {
                "experts"
            } else {
                "rows"
            };
            let list = if slices.len() <= 32 {
                format!("{slices:?}").replace(", ", ",")
            } else {
                format!("[{} of {}]", slices.len(), tensor.is_read.len())
            };
            let read_bytes = slices.len() as u64 * tensor.stride_bytes;
            note(format_args!(
                "{}: {} {kind} {list} = {} of {} ({:.1} % not read)",
                tensor.op,
                tensor.name,
                bytes(read_bytes),
                bytes(tensor.size_bytes),
                100.0 - 100.0 * read_bytes as f64 / tensor.size_bytes.max(1) as f64,
            ));
        }
    }
}

fn bytes(n: u64) -> String {
    let n = n as f64;
    if n < f64::from(1 << 20) {
        format!("{:.1} KiB", n / 1024.0)
    } else {
        format!("{:.1} MiB", n / f64::from(1 << 20))
    }
}
