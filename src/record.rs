//! `faultline record`: text from a prompt, and a log of every access to a weight.

use std::cell::Cell;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Instant;

use llama_rs::{Context, Model};
use tracer::{
    ByClass, KernelCounts, KernelOptions, LogReader, PhaseTotals, Progress, Recorder, WHOLE,
    WeightClass,
};

use crate::cli::{OnFull, RecordArgs};
use crate::exit::Outcome;
use crate::output::note;
use crate::progress::LogLine;

pub(crate) fn run(args: &RecordArgs, started: Instant) -> anyhow::Result<Outcome> {
    crate::run::run(&args.run, started, Some(args))
}

/// A log that is being written.
pub(crate) struct Recording<'a> {
    args: &'a RecordArgs,
    /// Until it is attached to the context.
    recorder: Option<Recorder>,
    progress: Progress,
    line: Cell<Option<LogLine>>,
}

impl<'a> Recording<'a> {
    /// Creates the log, and begins to watch the kernel if asked to.
    pub(crate) fn create(args: &'a RecordArgs) -> anyhow::Result<Recording<'a>> {
        let on_full = match args.on_full {
            OnFull::Wrap => tracer::OnFull::Wrap,
            OnFull::Stop => tracer::OnFull::Stop,
        };
        let files = gguf::ModelFiles::open(&args.run.model).map_err(llama_rs::Error::from)?;
        let options = KernelOptions {
            faults: args.faults,
            block: args.block,
            residency_steps: args.residency,
        };
        // Before the log, which replaces an older one of that name.
        options.check(&files)?;
        let mut recorder = Recorder::open(&args.output, &files, args.log_size << 20, on_full)?;
        if !options.is_empty() {
            recorder.watch_kernel(&options)?;
        }
        Ok(Recording {
            args,
            progress: recorder.progress(),
            recorder: Some(recorder),
            line: Cell::new(None),
        })
    }

    /// To be called now and then while the model is loaded.
    pub(crate) fn collect(&mut self) {
        if let Some(recorder) = &mut self.recorder {
            recorder.collect();
        }
    }

    pub(crate) fn model_loaded(&mut self, model: &Model) {
        if let Some(recorder) = &mut self.recorder {
            recorder.model_loaded(model);
        }
    }

    /// Records this context from now on.
    pub(crate) fn attach(&mut self, context: &mut Context<'_>) -> anyhow::Result<()> {
        if let Some(recorder) = self.recorder.take() {
            context.set_observer(recorder)?;
        }
        if !self.args.run.quiet {
            self.line.set(LogLine::start(self.progress.clone()));
        }
        Ok(())
    }

    /// Text is about to be written: where it goes to a terminal, it takes the place of the progress.
    pub(crate) fn text_comes(&self) {
        if io::stdout().is_terminal() {
            drop(self.line.take());
        }
    }

    /// Whether the run has to end because the log is full.
    pub(crate) fn is_full(&self) -> bool {
        self.args.on_full == OnFull::Stop && self.progress.n_written() >= self.progress.capacity()
    }

    /// Closes the log and says what it holds.
    pub(crate) fn finish(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        drop(self.line.take());
        let Some(mut recorder) = context.take_observer::<Recorder>() else {
            return Ok(());
        };
        let n_unknown = recorder.n_unknown();
        let counts = recorder.end_watch();
        let summary = recorder.finish()?;
        if self.args.run.quiet {
            return Ok(());
        }
        let totals = Totals::read(&self.args.output)?;
        if self.args.run.verbose > 0 {
            totals.print_sparse();
            totals.print_phases(self.args);
        }
        note(format_args!(
            "{}: {} accesses, {} of them by slices; {} records lost; {:.1} MiB",
            self.args.output.display(),
            totals.n_accesses,
            totals.n_sparse,
            summary.n_lost + n_unknown,
            summary.size_bytes as f64 / f64::from(1 << 20),
        ));
        if let Some(counts) = counts {
            totals.print_kernel(self.args, &counts);
        }
        if self.args.on_full == OnFull::Stop && summary.n_lost > 0 {
            note(format_args!(
                "the log was full and ended the run; --log-size makes it larger"
            ));
        }
        Ok(())
    }
}

impl Drop for Recording<'_> {
    /// A log that was never attached holds nothing: the model could not be loaded.
    fn drop(&mut self) {
        if self.recorder.take().is_some() {
            // If that fails, an empty log is no harm.
            let _ = std::fs::remove_file(&self.args.output);
        }
    }
}

/// What a log says in total.
struct Totals {
    n_accesses: u64,
    n_sparse: u64,
    tensors: Vec<SlicesRead>,
    phases: tracer::Totals,
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
            phases: tracer::Totals::new(log.tables()),
        };
        let mut chunks = log.chunks();
        while let Some((_, records)) = chunks.next_chunk()? {
            for record in records {
                totals.phases.push(record);
                if record.op.is_mark() {
                    continue;
                }
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

impl Totals {
    fn phases(&self) -> [(&'static str, &PhaseTotals); 3] {
        let tracer::Totals {
            load,
            prompt,
            decode,
            ..
        } = &self.phases;
        [("load", load), ("prompt", prompt), ("decode", decode)]
    }

    /// What each phase consumed and what the kernel did for it, by kind of weight.
    fn print_phases(&self, args: &RecordArgs) {
        for (name, phase) in self.phases() {
            if phase.n_accesses > 0 {
                let consumed = by_class(&phase.consumed_bytes, bytes);
                note(format_args!("{name}: consumed {consumed}"));
            }
            if args.block {
                let delivered = by_class(&phase.delivered_bytes, bytes);
                let (n, consumed) = (phase.n_block_reads, phase.consumed_bytes.total());
                let times = match consumed {
                    0 => String::new(),
                    _ => format!(
                        ", {:.2} times the consumed bytes",
                        phase.delivered_bytes.total() as f64 / consumed as f64
                    ),
                };
                note(format_args!(
                    "{name}: delivered {delivered} by {n} reads{times}"
                ));
            }
            if args.faults {
                let count = |n: u64| n.to_string();
                note(format_args!(
                    "{name}: minor faults {}; major faults {}; in other memory {} and {}",
                    by_class(&phase.minor_faults, count),
                    by_class(&phase.major_faults, count),
                    phase.minor_elsewhere,
                    phase.major_elsewhere,
                ));
            }
        }
    }

    /// What the kernel did in total, and what was lost of it.
    fn print_kernel(&self, args: &RecordArgs, counts: &KernelCounts) {
        let sum = |of: fn(&PhaseTotals) -> u64| -> u64 {
            self.phases().iter().map(|(_, phase)| of(phase)).sum()
        };
        if args.faults {
            note(format_args!(
                "{} minor and {} major faults in the model's files, {} and {} in other memory",
                sum(|phase| phase.minor_faults.total()),
                sum(|phase| phase.major_faults.total()),
                counts.minor_elsewhere,
                counts.major_elsewhere,
            ));
        }
        if args.block {
            note(format_args!(
                "{} of the model's files read from the disk",
                bytes(sum(|phase| phase.delivered_bytes.total()))
            ));
        }
        if counts.n_lost > 0 {
            note(format_args!(
                "{} events of the kernel were lost: they came faster than they could be taken",
                counts.n_lost
            ));
        }
    }
}

/// Such as `12 (dense 7, experts 5)`.
fn by_class(numbers: &ByClass, text: impl Fn(u64) -> String) -> String {
    let parts: Vec<String> = WeightClass::ALL
        .iter()
        .filter(|class| numbers.of(**class) > 0)
        .map(|class| format!("{} {}", class.name(), text(numbers.of(*class))))
        .collect();
    match parts.as_slice() {
        [] => text(0),
        _ => format!("{} ({})", text(numbers.total()), parts.join(", ")),
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
