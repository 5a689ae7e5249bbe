//! Workloads from access logs.

use std::collections::HashMap;

use tracer::{ExtraKind, Flags, LogReader, Op, Record, WHOLE};

use super::SimulateError;
use super::workload::{ACCESSES_MAX, Group, SliceInfo, Window, Workload};

impl Workload {
    /// What the decode steps of an access log read of experts: each tensor of an expert (gate, up,
    /// down) is a slice of its own, with its size. The slices that a step reads of one layer are
    /// used together. Left out are prompts, which read most experts once and are not what a cache is
    /// for, and steps that the log does not have as a whole. `name` stands for the log in errors.
    ///
    /// # Errors
    ///
    /// [`SimulateError::Log`], [`SimulateError::Record`] and [`SimulateError::NoExperts`] if the log
    /// cannot be used, [`SimulateError::NothingLeft`] and [`SimulateError::TooLong`] if the window
    /// cannot.
    pub fn from_log(
        log: &LogReader,
        name: &str,
        window: Window,
    ) -> Result<Workload, SimulateError> {
        let mut collector = Collector::new(log, name);
        let mut chunks = log.chunks();
        while let Some((first, records)) = chunks.next_chunk()? {
            for (sequence, record) in (first..).zip(records) {
                collector.add(sequence, record)?;
            }
        }
        collector.finish(window)
    }
}

/// A tensor that experts are read from.
#[derive(Clone, Copy)]
struct Experts {
    /// Number of its first slice, in the order in which tensors are met.
    first: u32,
    n_slices: u32,
    layer: u32,
    slice_bytes: u64,
}

struct Collector<'a> {
    log: &'a LogReader,
    name: &'a str,
    /// By number in the log; `None` for tensors that are no experts of a layer.
    tensors: HashMap<u32, Option<Experts>>,
    /// For each slice the group that used it last, plus one.
    last_group: Vec<u32>,
    accesses: Vec<u32>,
    /// The layers are numbers of the model here.
    groups: Vec<Group>,
    token_ends: Vec<u32>,
    /// The decode step at hand, if its beginning was seen.
    in_step: bool,
    /// Its ubatch and layer at hand.
    current: Option<(u16, u32)>,
    n_steps: u64,
}

impl<'a> Collector<'a> {
    fn new(log: &'a LogReader, name: &'a str) -> Collector<'a> {
        Collector {
            log,
            name,
            tensors: HashMap::new(),
            last_group: Vec::new(),
            accesses: Vec::new(),
            groups: Vec::new(),
            token_ends: Vec::new(),
            in_step: false,
            current: None,
            n_steps: 0,
        }
    }

    fn add(&mut self, sequence: u64, record: &Record) -> Result<(), SimulateError> {
        match record.op {
            Op::STEP_BEGIN => {
                self.drop_step();
                self.n_steps += 1;
                self.in_step = !record.flags.has(Flags::PROMPT);
            }
            Op::STEP_END if self.in_step => {
                let n_groups = self.groups.len() as u32;
                if self.token_ends.last().copied().unwrap_or(0) < n_groups {
                    self.token_ends.push(n_groups);
                }
                self.in_step = false;
            }
            Op::MUL_MAT_ID if self.in_step => self.use_slice(sequence, record)?,
            _ => {}
        }
        Ok(())
    }

    /// Takes back what a step without an end has left.
    fn drop_step(&mut self) {
        let n_groups = self.token_ends.last().map_or(0, |&end| end as usize);
        self.groups.truncate(n_groups);
        let n_accesses = self.groups.last().map_or(0, |group| group.end as usize);
        self.accesses.truncate(n_accesses);
        // Numbers of groups are used again.
        for last in &mut self.last_group {
            *last = (*last).min(n_groups as u32);
        }
        self.current = None;
    }

    fn use_slice(&mut self, sequence: u64, record: &Record) -> Result<(), SimulateError> {
        let Some(experts) = self.experts(sequence, record)? else {
            return Ok(());
        };
        let slices = match record.slice {
            WHOLE => 0..experts.n_slices,
            slice if slice < experts.n_slices => slice..slice + 1,
            slice => {
                return Err(self.problem(
                    sequence,
                    format!("slice {slice}, where the tensor has {}", experts.n_slices),
                ));
            }
        };
        let place = Some((record.ubatch, experts.layer));
        if self.current != place {
            self.current = place;
            self.groups.push(Group {
                layer: experts.layer,
                end: self.accesses.len() as u32,
            });
        }
        let number = self.groups.len() as u32;
        for slice in slices {
            let slice = experts.first + slice;
            let last = &mut self.last_group[slice as usize];
            if *last == number {
                continue;
            }
            *last = number;
            self.accesses.push(slice);
        }
        if self.accesses.len() > ACCESSES_MAX {
            return Err(SimulateError::TooLong { max: ACCESSES_MAX });
        }
        if let Some(group) = self.groups.last_mut() {
            group.end = self.accesses.len() as u32;
        }
        Ok(())
    }

    /// What the tables say about the record's tensor.
    fn experts(
        &mut self,
        sequence: u64,
        record: &Record,
    ) -> Result<Option<Experts>, SimulateError> {
        if let Some(experts) = self.tensors.get(&record.tensor) {
            return Ok(*experts);
        }
        let (layer, n_slices, slice_bytes) = match (
            self.log.tensor(record.tensor),
            self.log.extra(record.tensor),
        ) {
            (Some(tensor), _) => (tensor.layer, tensor.n_slices, tensor.slice_stride_bytes),
            (None, Some(extra)) if extra.kind == ExtraKind::REPACKED => {
                (extra.layer, extra.n_slices, extra.slice_stride_bytes)
            }
            (None, Some(_)) => (-1, 0, 0),
            (None, None) => {
                return Err(self.problem(
                    sequence,
                    format!(
                        "tensor {}, which the log's tables do not have",
                        record.tensor
                    ),
                ));
            }
        };
        let n_before = self.last_group.len();
        let experts = match u32::try_from(layer) {
            Ok(layer) if n_before + n_slices as usize <= ACCESSES_MAX => Some(Experts {
                first: n_before as u32,
                n_slices,
                layer,
                slice_bytes,
            }),
            Ok(_) => {
                return Err(self.problem(sequence, format!("a tensor of {n_slices} slices")));
            }
            Err(_) => None,
        };
        if experts.is_some() {
            self.last_group.resize(n_before + n_slices as usize, 0);
        }
        self.tensors.insert(record.tensor, experts);
        Ok(experts)
    }

    fn problem(&self, record: u64, problem: String) -> SimulateError {
        SimulateError::Record {
            name: self.name.to_owned(),
            record,
            problem,
        }
    }

    fn finish(mut self, window: Window) -> Result<Workload, SimulateError> {
        self.drop_step();
        if self.token_ends.is_empty() {
            return Err(SimulateError::NoExperts {
                name: self.name.to_owned(),
                problem: format!(
                    "it has {} records and {} steps, prompts included",
                    self.log.n_records(),
                    self.n_steps
                ),
            });
        }
        let tokens = window.range(self.token_ends.len())?;
        self.cut(tokens.start, tokens.end);

        // Slices by layer, in each layer in the order in which its tensors were met.
        let mut tensors: Vec<Experts> = self.tensors.values().flatten().copied().collect();
        tensors.sort_by_key(|experts| (experts.layer, experts.first));
        let mut layers: Vec<u32> = tensors.iter().map(|experts| experts.layer).collect();
        layers.dedup();
        let index_of = |layer: u32| layers.partition_point(|&other| other < layer) as u32;
        let mut numbers = vec![0; self.last_group.len()];
        let mut slices = Vec::with_capacity(numbers.len());
        for experts in &tensors {
            let info = SliceInfo {
                layer: index_of(experts.layer),
                size_bytes: experts.slice_bytes,
            };
            for slice in experts.first..experts.first + experts.n_slices {
                numbers[slice as usize] = slices.len() as u32;
                slices.push(info);
            }
        }
        for slice in &mut self.accesses {
            *slice = numbers[*slice as usize];
        }
        for group in &mut self.groups {
            group.layer = index_of(group.layer);
        }
        Ok(Workload {
            slices,
            layers,
            accesses: self.accesses,
            groups: self.groups,
            token_ends: self.token_ends,
            sequence_begins: Vec::new(),
            n_warmup: window.warmup,
            has_sizes: true,
        })
    }

    /// Keeps the tokens from `begin` up to, not including, `end`.
    fn cut(&mut self, begin: usize, end: usize) {
        let first_group = match begin {
            0 => 0,
            begin => self.token_ends[begin - 1],
        };
        let first_access = match first_group {
            0 => 0,
            first => self.groups[first as usize - 1].end,
        };
        self.token_ends.truncate(end);
        self.groups.truncate(self.token_ends[end - 1] as usize);
        self.accesses
            .truncate(self.groups[self.groups.len() - 1].end as usize);
        self.token_ends.drain(..begin);
        self.groups.drain(..first_group as usize);
        self.accesses.drain(..first_access as usize);
        for end in &mut self.token_ends {
            *end -= first_group;
        }
        for group in &mut self.groups {
            group.end -= first_access;
        }
    }
}
