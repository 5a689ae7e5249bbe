//! When things happened, and how long they took.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tracer::{KernelMark, Record};

use super::grid::Grid;
use super::stream::{Collector, Phase, Step};
use super::weights::Model;

/// Columns of what is shown over time and over steps.
const COLUMNS: usize = 512;
/// Rows of the heat map; tensors of models with more share rows.
const TENSOR_ROWS_MAX: usize = 2048;
/// Operations that are told apart; others count as the last one.
const OPS: usize = 32;
/// Longer durations count as this in percentiles: over an hour.
const DURATION_MAX_NS: u64 = 1 << 42;
/// A read that is issued this long after the one before begins a new burst: 1 ms.
pub const BURST_GAP_NS: u64 = 1_000_000;

/// How long some things took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Durations {
    /// How many.
    pub n: u64,
    /// Their sum.
    pub total_ns: u64,
    /// The shortest.
    pub min_ns: u64,
    /// Half of them are not longer; to 0.1 %.
    pub median_ns: u64,
    /// 99 % of them are not longer; to 0.1 %.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

/// Durations that are being collected.
#[derive(Debug)]
pub(crate) struct Clocked {
    histogram: Histogram<u64>,
    n: u64,
    total_ns: u64,
    min_ns: u64,
    max_ns: u64,
}

impl Clocked {
    pub(crate) fn new() -> Clocked {
        let histogram = Histogram::new_with_bounds(1, DURATION_MAX_NS, 3);
        Clocked {
            histogram: histogram.expect("bounds that the crate documents as valid"),
            n: 0,
            total_ns: 0,
            min_ns: u64::MAX,
            max_ns: 0,
        }
    }

    pub(crate) fn add(&mut self, ns: u64) {
        self.histogram.saturating_record(ns);
        self.n += 1;
        self.total_ns += ns;
        self.min_ns = self.min_ns.min(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    pub(crate) fn durations(&self) -> Option<Durations> {
        let quantile = |share| {
            let value = self.histogram.value_at_quantile(share);
            value.clamp(self.min_ns, self.max_ns)
        };
        (self.n > 0).then(|| Durations {
            n: self.n,
            total_ns: self.total_ns,
            min_ns: self.min_ns,
            median_ns: quantile(0.5),
            p99_ns: quantile(0.99),
            max_ns: self.max_ns,
        })
    }
}

/// Operations of one kind on tensors of one component.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OpTime {
    pub(crate) n: u64,
    pub(crate) time_ns: u64,
}

/// What is shown over time; the rows of [`Times::over_time`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum OverTime {
    ConsumedBytes,
    DeliveredBytes,
    MinorFaults,
    MajorFaults,
}

/// Groups of device reads that follow each other closely.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bursts {
    pub(crate) n: u64,
    pub(crate) largest_bytes: u64,
    pub(crate) largest_at_ns: u64,
    last_ns: u64,
    begin_ns: u64,
    size_bytes: u64,
}

impl Bursts {
    fn add(&mut self, time_ns: u64, size_bytes: u64) {
        // Reads are logged when they end, so not quite in the order in which they begin.
        if self.n == 0 || time_ns > self.last_ns.saturating_add(BURST_GAP_NS) {
            self.n += 1;
            self.size_bytes = 0;
            self.begin_ns = time_ns;
        }
        self.last_ns = self.last_ns.max(time_ns);
        self.size_bytes += size_bytes;
        if self.size_bytes > self.largest_bytes {
            self.largest_bytes = self.size_bytes;
            self.largest_at_ns = self.begin_ns;
        }
    }
}

/// Collects them.
#[derive(Debug)]
pub(crate) struct Times<'m> {
    model: &'m Model,
    /// By component and operation.
    pub(crate) ops: Vec<[OpTime; OPS]>,
    /// Bytes by tensor (or group of tensors) and step.
    pub(crate) heat: Grid,
    /// Tensors of one row of `heat`.
    pub(crate) tensors_per_row: usize,
    /// One row each: duration of the step, tokens, steps, bytes.
    pub(crate) steps: Grid,
    /// The rows are those of [`OverTime`].
    pub(crate) over_time: Grid,
    /// The same, only up to the end of the first whole step.
    pub(crate) until_first: Grid,
    pub(crate) prompts: Clocked,
    /// Steps that generate one token.
    pub(crate) tokens: Clocked,
    /// The longest of these.
    pub(crate) longest: Option<(u32, u64)>,
    pub(crate) first_step_ns: Option<u64>,
    /// End of the first step.
    pub(crate) first_token_ns: Option<u64>,
    pub(crate) latencies: Clocked,
    /// Reads whose end was not seen.
    pub(crate) n_unfinished: u64,
    /// By the power of two of their size.
    pub(crate) request_sizes: [u64; 64],
    pub(crate) bursts: Bursts,
    pub(crate) block_span_ns: Option<(u64, u64)>,
    n_steps: u64,
    step_bytes: u64,
    /// Latest end of an operation of the step at hand.
    step_end_ns: u64,
    node_ns: Option<u64>,
}

impl<'m> Times<'m> {
    pub(crate) fn new(model: &'m Model) -> Times<'m> {
        let n_tensors = model.weights.len();
        let tensors_per_row = n_tensors.div_ceil(TENSOR_ROWS_MAX).max(1);
        Times {
            model,
            ops: vec![[OpTime::default(); OPS]; model.components.len()],
            heat: Grid::new(n_tensors.div_ceil(tensors_per_row).max(1), COLUMNS / 2, 0),
            tensors_per_row,
            steps: Grid::new(4, COLUMNS, 0),
            // From 1 us on.
            over_time: Grid::new(4, COLUMNS, 10),
            until_first: Grid::new(4, COLUMNS, 10),
            prompts: Clocked::new(),
            tokens: Clocked::new(),
            longest: None,
            first_step_ns: None,
            first_token_ns: None,
            latencies: Clocked::new(),
            n_unfinished: 0,
            request_sizes: [0; 64],
            bursts: Bursts::default(),
            block_span_ns: None,
            n_steps: 0,
            step_bytes: 0,
            step_end_ns: 0,
            node_ns: None,
        }
    }
}

impl Times<'_> {
    #[inline]
    fn at(&mut self, row: OverTime, time_ns: u64, value: u64) {
        self.over_time.add(row as usize, time_ns, value);
        if self
            .first_token_ns
            .is_none_or(|first_ns| time_ns <= first_ns)
        {
            self.until_first.add(row as usize, time_ns, value);
        }
    }
}

impl Collector for Times<'_> {
    fn step_begin(&mut self, step: &Step) {
        self.first_step_ns.get_or_insert(step.begin_ns);
        self.step_bytes = 0;
        self.step_end_ns = 0;
    }

    fn reads(&mut self, _: Option<&Step>, records: &[Record]) {
        let mut at_ns = records[0].time_ns;
        let mut bytes = 0;
        for record in records {
            let Some(weight) = self.model.get(record.tensor) else {
                continue;
            };
            if self.node_ns != Some(record.time_ns) {
                self.node_ns = Some(record.time_ns);
                let end_ns = record.time_ns.saturating_add(u64::from(record.duration_ns));
                self.step_end_ns = self.step_end_ns.max(end_ns);
                let op = usize::from(record.op.0).min(OPS - 1);
                let time = &mut self.ops[weight.component as usize][op];
                time.n += 1;
                time.time_ns += u64::from(record.duration_ns);
                self.at(OverTime::ConsumedBytes, at_ns, bytes);
                (at_ns, bytes) = (record.time_ns, 0);
            }
            if let Some((_, size_bytes)) = weight.read(record.slice) {
                bytes = size_bytes.saturating_add(bytes);
                self.step_bytes = self.step_bytes.saturating_add(size_bytes);
                let row = match self.tensors_per_row {
                    1 => record.tensor as usize,
                    n => record.tensor as usize / n,
                };
                self.heat.add(row, self.n_steps, size_bytes);
            }
        }
        self.at(OverTime::ConsumedBytes, at_ns, bytes);
    }

    fn kernel(&mut self, _: Phase, mark: &KernelMark) {
        match mark {
            KernelMark::Fault(fault) => {
                let row = match fault.is_major {
                    true => OverTime::MajorFaults,
                    false => OverTime::MinorFaults,
                };
                self.at(row, fault.time_ns, 1);
            }
            KernelMark::BlockRead(read) => {
                self.at(OverTime::DeliveredBytes, read.time_ns, read.size_bytes);
                self.request_sizes[read.size_bytes.max(1).ilog2() as usize] += 1;
                self.bursts.add(read.time_ns, read.size_bytes);
                let mut end_ns = read.time_ns;
                if read.latency_ns == u32::MAX {
                    self.n_unfinished += 1;
                } else {
                    self.latencies.add(u64::from(read.latency_ns));
                    end_ns = end_ns.saturating_add(u64::from(read.latency_ns));
                }
                let (begin, end) = self.block_span_ns.unwrap_or((read.time_ns, end_ns));
                self.block_span_ns = Some((begin.min(read.time_ns), end.max(end_ns)));
            }
            KernelMark::Resident(_) | KernelMark::FaultsElsewhere(_) => {}
        }
    }

    fn step_end(&mut self, step: &Step, duration_ns: Option<u32>) {
        if let Some(duration_ns) = duration_ns {
            // A record cannot say more than 4.29 s: then the step ends with its last operation.
            let recorded_ns = u64::from(duration_ns);
            let duration_ns = if duration_ns == u32::MAX {
                recorded_ns.max(self.step_end_ns.saturating_sub(step.begin_ns))
            } else {
                recorded_ns
            };
            let end_ns = step.begin_ns.saturating_add(duration_ns);
            self.first_token_ns.get_or_insert(end_ns);
            if step.phase == Phase::Prompt {
                self.prompts.add(duration_ns);
            }
            if step.is_single() {
                self.tokens.add(duration_ns);
                if self
                    .longest
                    .is_none_or(|(_, longest)| duration_ns > longest)
                {
                    self.longest = Some((step.number, duration_ns));
                }
            }
            let values = [duration_ns, u64::from(step.n_tokens), 1, self.step_bytes];
            for (row, value) in values.into_iter().enumerate() {
                self.steps.add(row, self.n_steps, value);
            }
        }
        self.n_steps += 1;
    }
}
