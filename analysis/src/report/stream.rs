//! One pass over a log, which feeds independent collectors.

use tracer::{Flags, KernelMark, NO_STEP, Op, Record};

use crate::Result;
use crate::log::{Log, Tracker};

/// Part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Before the first decode call.
    Load,
    /// Decode calls with a prompt.
    Prompt,
    /// Decode calls that generate.
    Decode,
}

impl Phase {
    /// The phase that a record says it belongs to.
    #[inline]
    pub(crate) fn of(record: &Record) -> Phase {
        if record.step == NO_STEP {
            Phase::Load
        } else if record.flags.has(Flags::PROMPT) {
            Phase::Prompt
        } else {
            Phase::Decode
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Phase::Load => "load",
            Phase::Prompt => "prompt",
            Phase::Decode => "decode",
        }
    }
}

/// A decode call of which the log has the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// As records number it.
    pub(crate) number: u32,
    pub(crate) phase: Phase,
    pub(crate) n_tokens: u32,
    /// Number of its first token in the recording.
    pub(crate) first_token: Option<u64>,
    /// Sequence and position of its first token.
    pub(crate) place: Option<(u16, i32)>,
    pub(crate) begin_ns: u64,
}

impl Step {
    /// Whether it generates one token.
    pub(crate) fn is_single(&self) -> bool {
        self.phase == Phase::Decode && self.n_tokens == 1
    }
}

/// Takes what it needs of a log. All calls come in the order of the log.
pub(crate) trait Collector: Send {
    /// A step begins. Reads before the first step that is left have none.
    fn step_begin(&mut self, step: &Step) {
        let _ = step;
    }

    /// Accesses of one ubatch, one or more, in the order of the log. One node's may come in two calls.
    fn reads(&mut self, step: Option<&Step>, records: &[Record]) {
        let _ = (step, records);
    }

    /// Something that the kernel did.
    fn kernel(&mut self, phase: Phase, mark: &KernelMark) {
        let _ = (phase, mark);
    }

    /// A step ends: with its duration, or without its end being in the log.
    fn step_end(&mut self, step: &Step, duration_ns: Option<u32>) {
        let _ = (step, duration_ns);
    }
}

/// What a pass saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) n_records: u64,
    pub(crate) n_accesses: u64,
    pub(crate) n_whole_steps: u64,
    /// Steps of which the log lacks the beginning or the end.
    pub(crate) n_cut_steps: u64,
    /// Tokens of whole steps.
    pub(crate) n_prompt_tokens: u64,
    pub(crate) n_decode_tokens: u64,
    /// Whether the log has lost its first records.
    pub(crate) lost_beginning: bool,
    /// Earliest and latest time of an access or step.
    pub(crate) first_ns: Option<u64>,
    pub(crate) last_ns: u64,
}

/// Reads all of a log.
///
/// # Errors
///
/// [`Error::Log`](crate::Error::Log) from the file.
pub(crate) fn walk(log: &Log, collectors: &mut [&mut dyn Collector]) -> Result<Seen> {
    let mut walker = Walker::new(collectors);
    let mut chunks = log.reader().chunks();
    while let Some((first, records)) = chunks.next_chunk()? {
        walker.chunk(first, records);
    }
    Ok(walker.finish())
}

/// Cuts records into steps and reads.
struct Walker<'c, 'd> {
    collectors: &'c mut [&'d mut dyn Collector],
    tracker: Tracker,
    next_sequence: u64,
    step: Option<Step>,
    /// Whether the collectors know of the step: its tokens come after its beginning.
    is_announced: bool,
    seen: Seen,
}

impl<'c, 'd> Walker<'c, 'd> {
    fn new(collectors: &'c mut [&'d mut dyn Collector]) -> Walker<'c, 'd> {
        Walker {
            collectors,
            tracker: Tracker::new(true),
            next_sequence: 0,
            step: None,
            is_announced: false,
            seen: Seen::default(),
        }
    }

    fn chunk(&mut self, first: u64, records: &[Record]) {
        if first != self.next_sequence {
            self.seen.lost_beginning |= self.next_sequence == 0;
            self.end_step(None);
            self.tracker = Tracker::new(false);
        }
        self.next_sequence = first + records.len() as u64;
        self.seen.n_records += records.len() as u64;
        let same = |a: &Record, b: &Record| {
            a.op.is_mark() == b.op.is_mark() && (a.step, a.ubatch) == (b.step, b.ubatch)
        };
        for run in records.chunk_by(same) {
            if run[0].op.is_mark() {
                run.iter().for_each(|record| self.mark(record));
            } else {
                self.reads(run);
            }
        }
    }

    fn reads(&mut self, records: &[Record]) {
        self.announce();
        self.seen.n_accesses += records.len() as u64;
        let (first, last) = (&records[0], &records[records.len() - 1]);
        self.time(first.time_ns, last.time_ns, last.duration_ns);
        if self.step.is_none_or(|step| step.number != first.step) {
            self.end_step(None);
        }
        let step = self.step.as_ref();
        for collector in &mut *self.collectors {
            collector.reads(step, records);
        }
    }

    fn time(&mut self, begin_ns: u64, last_begin_ns: u64, duration_ns: u32) {
        let earliest = self.seen.first_ns.map_or(begin_ns, |at| at.min(begin_ns));
        self.seen.first_ns = Some(earliest);
        let end_ns = last_begin_ns.saturating_add(u64::from(duration_ns));
        self.seen.last_ns = self.seen.last_ns.max(end_ns);
    }

    fn mark(&mut self, record: &Record) {
        match record.op {
            Op::STEP_BEGIN => {
                self.end_step(None);
                self.tracker.mark(record);
                self.time(record.time_ns, record.time_ns, 0);
                self.step = Some(Step {
                    number: record.step,
                    phase: Phase::of(record),
                    n_tokens: record.tensor,
                    first_token: None,
                    place: None,
                    begin_ns: record.time_ns,
                });
                self.is_announced = false;
            }
            Op::STEP_TOKEN => {
                self.tracker.mark(record);
                if let Some(step) = &mut self.step
                    && step.number == record.step
                    && record.duration_ns == 0
                {
                    step.place = Some((record.n_used, record.slice.cast_signed()));
                }
            }
            Op::STEP_END => {
                self.time(record.time_ns, record.time_ns, record.duration_ns);
                let is_this = |step: &Step| step.number == record.step;
                if self.step.as_ref().is_some_and(is_this) {
                    self.end_step(Some(record.duration_ns));
                } else {
                    self.end_step(None);
                    self.seen.n_cut_steps += 1;
                }
            }
            _ => {
                self.tracker.mark(record);
                self.announce();
                if let Some(mark) = KernelMark::of(record) {
                    let phase = Phase::of(record);
                    for collector in &mut *self.collectors {
                        collector.kernel(phase, &mark);
                    }
                }
            }
        }
    }

    /// Tells the collectors of a step, all of whose tokens are known now.
    fn announce(&mut self) {
        if self.is_announced {
            return;
        }
        if let Some(step) = &mut self.step {
            step.first_token = self.tracker.step(step.number).map(|token| token.index);
            for collector in &mut *self.collectors {
                collector.step_begin(step);
            }
            self.is_announced = true;
        }
    }

    fn end_step(&mut self, duration_ns: Option<u32>) {
        self.announce();
        let Some(step) = self.step.take() else {
            return;
        };
        if duration_ns.is_some() {
            self.seen.n_whole_steps += 1;
            let n_tokens = match step.phase {
                Phase::Decode => &mut self.seen.n_decode_tokens,
                _ => &mut self.seen.n_prompt_tokens,
            };
            *n_tokens += u64::from(step.n_tokens);
        } else {
            self.seen.n_cut_steps += 1;
        }
        for collector in &mut *self.collectors {
            collector.step_end(&step, duration_ns);
        }
    }

    fn finish(mut self) -> Seen {
        self.end_step(None);
        self.seen
    }
}
