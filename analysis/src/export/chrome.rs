//! Trace events for viewers: the "Trace Event Format" of Chrome, which Perfetto opens.
//!
//! # References
//!
//! Trace Event Format, <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>

use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::ControlFlow;

use serde_json::json;
use tracer::{Op, Record, WHOLE};

use crate::Result;
use crate::log::{Access, Entry, Log, Token, Weights, op_name, phase};
use crate::output::Sink;

/// Most slices of one event; a node with more becomes several events.
const EVENT_SLICES_MAX: usize = 1 << 16;

const STEPS_TID: usize = 1;

/// The track of accesses whose tensor a damaged log does not have.
const UNKNOWN: &str = "unknown";

pub(super) fn write(log: &Log, sink: Sink) -> Result<()> {
    let explain = sink.explain();
    let weights = Weights::of(log.reader());
    let mut trace = Trace::new(log, &weights, sink);
    trace.begin(log).map_err(&explain)?;
    log.for_each(&weights, |entry| {
        match entry {
            Entry::Access(access) => trace.access(access),
            Entry::Mark { record, token, .. } => trace.mark(&record, token),
        }
        .map_err(&explain)?;
        Ok(ControlFlow::Continue(()))
    })?;
    trace.end().map_err(&explain)?;
    trace.sink.finish()
}

struct Trace<'w> {
    sink: Sink,
    pid: u32,
    /// Numbers of the tracks by component, and the components in that order.
    tids: HashMap<&'w str, usize>,
    components: Vec<&'w str>,
    is_first_event: bool,
    /// Adjacent accesses of one tensor by one node.
    group: Vec<Access<'w>>,
    step: Option<OpenStep>,
}

/// A step whose end has not come yet.
struct OpenStep {
    begin: Record,
    token: Option<Token>,
    /// When its last access ended.
    last_ns: u64,
}

impl<'w> Trace<'w> {
    fn new(log: &Log, weights: &'w Weights, sink: Sink) -> Trace<'w> {
        let mut tids = HashMap::new();
        let mut components = Vec::new();
        let names = weights.iter().map(|weight| weight.component.as_str());
        for name in names.chain([UNKNOWN]) {
            tids.entry(name).or_insert_with(|| {
                components.push(name);
                STEPS_TID + components.len()
            });
        }
        Trace {
            sink,
            pid: log.reader().header().pid,
            tids,
            components,
            is_first_event: true,
            group: Vec::new(),
            step: None,
        }
    }

    fn begin(&mut self, log: &Log) -> io::Result<()> {
        let header = log.reader().header();
        let files = log.reader().tables().files.iter();
        let about = json!({
            "log": log.path().display().to_string(),
            "model": files.map(|file| &file.path).collect::<Vec<_>>(),
            "epoch_unix_ns": header.epoch_realtime_ns.to_string(),
            "lost_records": header.n_lost,
        });
        write!(
            self.sink,
            "{{\"displayTimeUnit\":\"ns\",\"otherData\":{about},\"traceEvents\":["
        )?;
        self.metadata("process_name", 0, json!({"name": "faultline"}))?;
        for index in 0..=self.components.len() {
            let name = match index {
                0 => "steps",
                component => self.components[component - 1],
            };
            let tid = STEPS_TID + index;
            self.metadata("thread_name", tid, json!({ "name": name }))?;
            self.metadata("thread_sort_index", tid, json!({ "sort_index": tid }))?;
        }
        Ok(())
    }

    fn metadata(&mut self, name: &str, tid: usize, args: serde_json::Value) -> io::Result<()> {
        let pid = self.pid;
        self.event(
            &json!({"name": name, "ph": "M", "pid": pid, "tid": tid, "args": args}).to_string(),
        )
    }

    fn event(&mut self, event: &str) -> io::Result<()> {
        let separator = if std::mem::take(&mut self.is_first_event) {
            "\n"
        } else {
            ",\n"
        };
        write!(self.sink, "{separator}{event}")
    }

    /// An event with a duration. Times are in microseconds, with all their digits.
    fn complete(
        &mut self,
        name: &str,
        category: &str,
        tid: usize,
        (begin_ns, duration_ns): (u64, u64),
        args: &serde_json::Value,
    ) -> io::Result<()> {
        let name = serde_json::to_string(name)?;
        let category = serde_json::to_string(category)?;
        let us = |ns: u64| format!("{}.{:03}", ns / 1000, ns % 1000);
        let (ts, dur, pid) = (us(begin_ns), us(duration_ns), self.pid);
        self.event(&format!(
            "{{\"name\":{name},\"cat\":{category},\"ph\":\"X\",\"ts\":{ts},\"dur\":{dur},\
             \"pid\":{pid},\"tid\":{tid},\"args\":{args}}}"
        ))
    }

    fn access(&mut self, access: Access<'w>) -> io::Result<()> {
        let record = &access.record;
        if let Some(step) = &mut self.step {
            let end_ns = record.time_ns.saturating_add(record.duration_ns.into());
            step.last_ns = step.last_ns.max(end_ns);
        }
        let key = |record: &Record| {
            (
                record.time_ns,
                record.step,
                record.ubatch,
                record.node,
                record.tensor,
                record.op,
            )
        };
        if let Some(first) = self.group.first()
            && (key(&first.record) != key(record) || self.group.len() >= EVENT_SLICES_MAX)
        {
            self.flush_group()?;
        }
        self.group.push(access);
        Ok(())
    }

    /// Writes the collected accesses as one event.
    fn flush_group(&mut self) -> io::Result<()> {
        let group = std::mem::take(&mut self.group);
        let Some(first) = group.first() else {
            return Ok(());
        };
        let record = &first.record;
        let (name, component) = match first.weight {
            Some(weight) => (weight.name.as_str(), weight.component.as_str()),
            None => (UNKNOWN, UNKNOWN),
        };
        let bytes = group
            .iter()
            .filter_map(|access| access.bytes().size_bytes)
            .fold(0u64, u64::saturating_add);
        let slices: Vec<u32> = group
            .iter()
            .map(|access| access.record.slice)
            .filter(|&slice| slice != WHOLE)
            .collect();
        let mut args = json!({
            "token": first.token.map(|token| token.index),
            "step": record.step,
            "ubatch": record.ubatch,
            "node": record.node,
            "phase": phase(record),
            "bytes": bytes,
        });
        if !slices.is_empty() {
            args["slice_kind"] = first.weight.map(|weight| weight.slice_kind(record)).into();
            args["slices"] = slices.into();
        }
        let tid = self.tids[component];
        let times = (record.time_ns, u64::from(record.duration_ns));
        self.complete(name, &op_name(record.op), tid, times, &args)?;
        self.group = group;
        self.group.clear();
        Ok(())
    }

    fn mark(&mut self, record: &Record, token: Option<Token>) -> io::Result<()> {
        match record.op {
            Op::STEP_BEGIN => {
                self.flush_group()?;
                self.cut_step()?;
                self.step = Some(OpenStep {
                    begin: *record,
                    token,
                    last_ns: record.time_ns,
                });
            }
            Op::STEP_END => {
                self.flush_group()?;
                let open = self.step.take_if(|open| open.begin.step == record.step);
                let mut duration_ns = u64::from(record.duration_ns);
                if record.duration_ns == u32::MAX
                    && let Some(open) = &open
                {
                    // It took longer than the field can say; at least until its last access.
                    duration_ns = duration_ns.max(open.last_ns.saturating_sub(record.time_ns));
                }
                let n_tokens = open.map(|open| open.begin.tensor);
                self.step(record, n_tokens, token, duration_ns, true)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Writes a step that has no end, as far as it came.
    fn cut_step(&mut self) -> io::Result<()> {
        let Some(open) = self.step.take() else {
            return Ok(());
        };
        let duration_ns = open.last_ns - open.begin.time_ns.min(open.last_ns);
        let n_tokens = Some(open.begin.tensor);
        self.step(&open.begin, n_tokens, open.token, duration_ns, false)
    }

    fn step(
        &mut self,
        record: &Record,
        n_tokens: Option<u32>,
        token: Option<Token>,
        duration_ns: u64,
        is_complete: bool,
    ) -> io::Result<()> {
        let phase = phase(record);
        let name = match (n_tokens, token) {
            (Some(1), Some(token)) => format!("{phase}, token {}", token.index),
            (Some(n), _) => format!("{phase}, {n} tokens"),
            _ => phase.to_owned(),
        };
        let args = json!({
            "step": record.step,
            "token": token.map(|token| token.index),
            "n_tokens": n_tokens,
            "token_id": token.and_then(|token| token.id),
            "is_complete": is_complete,
        });
        let times = (record.time_ns, duration_ns);
        self.complete(&name, "step", STEPS_TID, times, &args)
    }

    fn end(&mut self) -> io::Result<()> {
        self.flush_group()?;
        self.cut_step()?;
        writeln!(self.sink, "\n]}}")
    }
}
