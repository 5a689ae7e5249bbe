//! An engine out of a device: queues, priorities, splitting, and every attempt that a read is worth.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use slab::Slab;

use super::device::{Device, Outcome, Request};
use super::{
    Cause, Class, Completion, Counters, Engine, EngineError, ModelFiles, Preference, Read,
    ReadError,
};

/// Attempts at a request that fails with an error which may pass, such as `EIO`, or that brings nothing.
const ATTEMPTS_AT_BROKEN: u32 = 4;
const BACK_OFF_AT_BROKEN: Duration = Duration::from_millis(1);
/// Attempts at a request for which the kernel has no room: a quarter of a second of them.
const ATTEMPTS_AT_BUSY: u32 = 16;
const BACK_OFF_AT_BUSY: Duration = Duration::from_micros(100);
const BACK_OFF_MAX: Duration = Duration::from_millis(20);
/// Requests that the device has at the least, so that it has the next one when it is done with one.
const REQUESTS_MIN: usize = 2;
/// How long to wait for a device that has no room although it has nothing to do.
const WAIT_FOR_ROOM: Duration = Duration::from_millis(1);
/// The longest wait, so that every sum of times is one.
const WAIT_MAX: Duration = Duration::from_secs(86_400);

/// A read that has not ended.
#[derive(Debug)]
struct Op {
    read: Read,
    submitted: Instant,
    /// Parts of it that have not ended.
    n_parts: u32,
    /// Attempts that fail are not repeated.
    cancelled: bool,
    /// Why not all of it will be read.
    cause: Option<Cause>,
}

/// A piece of a read: what one request can bring. It is in one of the queues, delayed, or in the device.
#[derive(Debug)]
struct Part {
    op: usize,
    /// From the beginning of the read.
    offset_bytes: u32,
    size_bytes: u32,
    /// The bytes that the file has of it.
    expected_bytes: u32,
    /// Bytes that arrived; a multiple of the alignment.
    done_bytes: u32,
    /// Attempts since the last that brought bytes.
    n_attempts: u32,
    /// The class that it had when it was last started.
    started_as: Class,
    /// What it was last started for.
    started_bytes: u32,
}

/// What to do about an attempt.
enum Verdict {
    Done,
    /// Bytes arrived, and more are to come.
    Resume,
    Retry(Duration),
    GiveUp(Cause),
}

#[derive(Debug)]
pub(super) struct Scheduler {
    /// Waits for what is under way when it is dropped.
    device: Box<dyn Device>,
    files: Arc<ModelFiles>,
    preference: Preference,
    ops: Slab<Op>,
    parts: Slab<Part>,
    demand: VecDeque<usize>,
    prefetch: VecDeque<usize>,
    /// Parts that wait for their next attempt, and since when they may have it.
    delayed: Vec<(Instant, usize)>,
    n_started_demand: usize,
    n_started_prefetch: usize,
    /// Bytes that the device was asked for and has not brought yet.
    started_bytes: u64,
    /// Ended and not yet reported.
    ended: VecDeque<Completion>,
    /// Empty between calls; kept for its memory.
    outcomes: Vec<Outcome>,
    counters: Counters,
}

impl Scheduler {
    pub(super) fn new(
        device: Box<dyn Device>,
        files: Arc<ModelFiles>,
        preference: Preference,
    ) -> Self {
        Scheduler {
            device,
            files,
            preference,
            ops: Slab::new(),
            parts: Slab::new(),
            demand: VecDeque::new(),
            prefetch: VecDeque::new(),
            delayed: Vec::new(),
            n_started_demand: 0,
            n_started_prefetch: 0,
            started_bytes: 0,
            ended: VecDeque::new(),
            outcomes: Vec::new(),
            counters: Counters::default(),
        }
    }

    fn check(&self, read: &Read) -> Result<(), EngineError> {
        let bad = |reason: String| {
            Err(EngineError::BadRead {
                key: read.key,
                file: read.file,
                offset_bytes: read.offset_bytes,
                size_bytes: read.size_bytes,
                reason,
            })
        };
        let Some(file) = self.files.files().get(read.file as usize) else {
            return bad(format!("the model has {} files", self.files.files().len()));
        };
        let alignment = file.alignment_bytes();
        let aligned = read.offset_bytes.is_multiple_of(u64::from(alignment))
            && read.size_bytes.is_multiple_of(alignment)
            && read.target.addr().get().is_multiple_of(alignment as usize);
        if !aligned {
            return bad(format!(
                "offset, size and target ({:p}) have to be multiples of {alignment}",
                read.target
            ));
        }
        if read.size_bytes == 0 || read.offset_bytes >= file.size_bytes() {
            return bad(format!(
                "nothing to read: the file has {} bytes",
                file.size_bytes()
            ));
        }
        Ok(())
    }

    fn enqueue(&mut self, read: &Read, now: Instant) {
        let file_bytes = self.files.files()[read.file as usize].size_bytes();
        let in_file = (file_bytes - read.offset_bytes).min(u64::from(read.size_bytes));
        // At most `size_bytes`, which has 32 bits.
        let in_file = in_file as u32;
        let request_bytes_max = match read.class {
            Class::Demand => self.preference.request_bytes_max,
            Class::Prefetch => {
                (self.preference.prefetch_request_bytes_max).min(self.preference.request_bytes_max)
            }
        };
        let op = self.ops.insert(Op {
            read: *read,
            submitted: now,
            n_parts: in_file.div_ceil(request_bytes_max),
            cancelled: false,
            cause: None,
        });
        let mut offset_bytes = 0;
        while offset_bytes < in_file {
            let size_bytes = (read.size_bytes - offset_bytes).min(request_bytes_max);
            let part = self.parts.insert(Part {
                op,
                offset_bytes,
                size_bytes,
                expected_bytes: size_bytes.min(in_file - offset_bytes),
                done_bytes: 0,
                n_attempts: 0,
                started_as: read.class,
                started_bytes: 0,
            });
            self.queue(read.class).push_back(part);
            offset_bytes += size_bytes;
        }
    }

    fn queue(&mut self, class: Class) -> &mut VecDeque<usize> {
        match class {
            Class::Demand => &mut self.demand,
            Class::Prefetch => &mut self.prefetch,
        }
    }

    fn class_of(&self, part: usize) -> Class {
        self.ops[self.parts[part].op].read.class
    }

    fn n_started(&mut self, class: Class) -> &mut usize {
        match class {
            Class::Demand => &mut self.n_started_demand,
            Class::Prefetch => &mut self.n_started_prefetch,
        }
    }

    /// The next part to start: demand reads first.
    fn next(&mut self) -> Option<usize> {
        let n_started = self.n_started_demand + self.n_started_prefetch;
        let is_busy = n_started >= REQUESTS_MIN
            && self.started_bytes >= u64::from(self.preference.in_flight_bytes);
        if n_started >= usize::from(self.preference.depth) || is_busy {
            None
        } else if let Some(part) = self.demand.pop_front() {
            Some(part)
        } else if self.n_started_prefetch < usize::from(self.preference.prefetch_depth) {
            self.prefetch.pop_front()
        } else {
            None
        }
    }

    fn request(&self, id: usize) -> Request {
        let part = &self.parts[id];
        let read = &self.ops[part.op].read;
        let skip = part.offset_bytes + part.done_bytes;
        // SAFETY: `submit`'s caller promises the target until the read is reported, and that is after the outcomes of all its
        // requests were collected. `skip` and the size are within the read. Parts of a read do not overlap, and a part has
        // one request at a time.
        unsafe {
            Request::new(
                id,
                read.file,
                read.offset_bytes + u64::from(skip),
                read.target.add(skip as usize),
                part.size_bytes - part.done_bytes,
            )
        }
    }

    /// Starts what the device has room for, with one call to the kernel.
    fn start(&mut self) -> Result<(), EngineError> {
        if !self.delayed.is_empty() {
            let now = Instant::now();
            let mut due = Vec::new();
            self.delayed.retain(|&(at, part)| {
                if at <= now {
                    due.push(part);
                }
                at > now
            });
            for part in due {
                let class = self.class_of(part);
                self.queue(class).push_front(part);
            }
        }
        while let Some(id) = self.next() {
            let class = self.class_of(id);
            if self.device.start(self.request(id)).is_err() {
                self.queue(class).push_front(id);
                break;
            }
            self.counters.n_requests += 1;
            *self.n_started(class) += 1;
            let part = &mut self.parts[id];
            part.n_attempts += 1;
            part.started_as = class;
            part.started_bytes = part.size_bytes - part.done_bytes;
            self.started_bytes += u64::from(part.started_bytes);
        }
        self.device.flush().map_err(|source| EngineError::Device {
            call: "handing reads to the kernel",
            source,
        })
    }

    /// Takes in what has ended and starts what can take its place.
    fn advance(&mut self) -> Result<(), EngineError> {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        let collected = self.device.collect(&mut outcomes);
        for outcome in outcomes.drain(..) {
            self.settle(outcome);
        }
        self.outcomes = outcomes;
        collected.map_err(|source| EngineError::Device {
            call: "collecting reads from the kernel",
            source,
        })?;
        self.start()
    }

    /// Decides what becomes of a part after an attempt.
    fn settle(&mut self, outcome: Outcome) {
        let id = outcome.id;
        let class = self.parts[id].started_as;
        *self.n_started(class) -= 1;
        self.started_bytes -= u64::from(self.parts[id].started_bytes);
        let op = self.parts[id].op;
        let verdict = self.judge(outcome);
        let stopped = self.ops[op].cancelled || self.ops[op].cause.is_some();
        match verdict {
            Verdict::Done => self.end_part(id),
            Verdict::GiveUp(cause) => {
                self.abandon(op, cause);
                self.end_part(id);
            }
            Verdict::Resume | Verdict::Retry(_) if stopped => {
                self.abandon(op, Cause::Cancelled);
                self.end_part(id);
            }
            Verdict::Resume => {
                let class = self.class_of(id);
                self.queue(class).push_front(id);
            }
            Verdict::Retry(back_off) => {
                self.counters.n_retries += 1;
                self.delayed.push((Instant::now() + back_off, id));
            }
        }
    }

    fn judge(&mut self, outcome: Outcome) -> Verdict {
        let part = &mut self.parts[outcome.id];
        let read = &self.ops[part.op].read;
        let file = &self.files.files()[read.file as usize];
        let n_attempts = part.n_attempts;
        let Ok(got_bytes) = u32::try_from(outcome.result) else {
            return judge_error(Errno::from_raw_os_error(-outcome.result), n_attempts);
        };
        self.counters.delivered_bytes += u64::from(got_bytes);
        let got_bytes = part.done_bytes + got_bytes;
        if got_bytes >= part.expected_bytes {
            return Verdict::Done;
        }
        // A direct read starts at a block, so a block that arrived in part is read again.
        let whole_bytes = got_bytes - got_bytes % file.alignment_bytes();
        if whole_bytes > part.done_bytes {
            part.done_bytes = whole_bytes;
            part.n_attempts = 0;
            self.counters.n_retries += 1;
            return Verdict::Resume;
        }
        let end = read.offset_bytes + u64::from(part.offset_bytes + part.expected_bytes);
        match file.size_now_bytes() {
            Ok(size_now_bytes) if size_now_bytes < end => Verdict::GiveUp(Cause::Truncated {
                size_opened_bytes: file.size_bytes(),
                size_now_bytes,
            }),
            _ if n_attempts < ATTEMPTS_AT_BROKEN => {
                Verdict::Retry(back_off(BACK_OFF_AT_BROKEN, n_attempts))
            }
            _ => Verdict::GiveUp(Cause::Short {
                got_bytes,
                n_attempts,
            }),
        }
    }

    fn end_part(&mut self, id: usize) {
        let part = self.parts.remove(id);
        let op = &mut self.ops[part.op];
        op.n_parts -= 1;
        let offset_bytes = op.read.offset_bytes + u64::from(part.offset_bytes);
        self.files.files()[op.read.file as usize].forget(offset_bytes, part.size_bytes);
        if op.n_parts == 0 {
            self.end_op(part.op);
        }
    }

    fn end_op(&mut self, id: usize) {
        let op = self.ops.remove(id);
        let result = match op.cause {
            None => Ok(()),
            Some(cause) => Err(Box::new(ReadError {
                file: op.read.file,
                path: self.files.files()[op.read.file as usize].path().to_owned(),
                offset_bytes: op.read.offset_bytes,
                size_bytes: op.read.size_bytes,
                cause,
            })),
        };
        match &result {
            Ok(()) => self.counters.n_reads += 1,
            Err(error) if error.is_cancelled() => self.counters.n_cancelled += 1,
            Err(_) => self.counters.n_failed += 1,
        }
        let latency_us = op.submitted.elapsed().as_micros() as u64;
        self.ended.push_back(Completion {
            key: op.read.key,
            result,
            latency_us,
        });
    }

    /// Notes why a read cannot be completed and drops those of its parts that are not in the device.
    fn abandon(&mut self, op: usize, cause: Cause) {
        self.ops[op].cause.get_or_insert(cause);
        let (parts, mut dropped) = (&self.parts, Vec::new());
        let mut keep = |part: usize| {
            let other = parts[part].op != op;
            if !other {
                dropped.push(part);
            }
            other
        };
        self.demand.retain(|&part| keep(part));
        self.prefetch.retain(|&part| keep(part));
        self.delayed.retain(|&(_, part)| keep(part));
        for &part in &dropped {
            self.parts.remove(part);
        }
        self.ops[op].n_parts -= dropped.len() as u32;
    }

    fn find(&self, key: u64) -> Option<usize> {
        let mut ops = self.ops.iter();
        ops.find(|(_, op)| op.read.key == key).map(|(id, _)| id)
    }

    fn report(&mut self, each: &mut dyn FnMut(Completion)) -> usize {
        let mut n_reported = 0;
        while let Some(completion) = self.ended.pop_front() {
            n_reported += 1;
            each(completion);
        }
        n_reported
    }
}

fn back_off(base: Duration, n_attempts: u32) -> Duration {
    let factor = 1 << n_attempts.saturating_sub(1).min(16);
    (base * factor).min(BACK_OFF_MAX)
}

fn judge_error(error: Errno, n_attempts: u32) -> Verdict {
    let (attempts_max, base) = match error {
        // `ECANCELED`: the kernel cancels what a thread has submitted when that thread ends.
        Errno::INTR
        | Errno::AGAIN
        | Errno::BUSY
        | Errno::CANCELED
        | Errno::NOMEM
        | Errno::NOBUFS => (ATTEMPTS_AT_BUSY, BACK_OFF_AT_BUSY),
        // The request is wrong or not allowed, and stays so.
        Errno::INVAL
        | Errno::FAULT
        | Errno::BADF
        | Errno::OVERFLOW
        | Errno::OPNOTSUPP
        | Errno::ISDIR
        | Errno::PERM
        | Errno::ACCESS
        | Errno::STALE => (1, BACK_OFF_AT_BROKEN),
        _ => (ATTEMPTS_AT_BROKEN, BACK_OFF_AT_BROKEN),
    };
    if n_attempts < attempts_max {
        Verdict::Retry(back_off(base, n_attempts))
    } else {
        Verdict::GiveUp(Cause::Os {
            source: io::Error::from(error),
            n_attempts,
        })
    }
}

impl Engine for Scheduler {
    unsafe fn submit(&mut self, reads: &[Read]) -> Result<(), EngineError> {
        reads.iter().try_for_each(|read| self.check(read))?;
        let now = Instant::now();
        for read in reads {
            self.enqueue(read, now);
        }
        self.start()
    }

    fn reap(&mut self, each: &mut dyn FnMut(Completion)) -> Result<usize, EngineError> {
        if !self.ops.is_empty() {
            self.advance()?;
        }
        Ok(self.report(each))
    }

    fn wait(
        &mut self,
        each: &mut dyn FnMut(Completion),
        timeout: Duration,
    ) -> Result<usize, EngineError> {
        let deadline = Instant::now() + timeout.min(WAIT_MAX);
        loop {
            let n_reported = self.reap(each)?;
            let now = Instant::now();
            if n_reported > 0 || self.ops.is_empty() || now >= deadline {
                return Ok(n_reported);
            }
            let retry = self.delayed.iter().map(|&(at, _)| at).min();
            let mut until = retry.map_or(deadline, |retry| deadline.min(retry));
            if self.n_started_demand + self.n_started_prefetch == 0 && retry.is_none() {
                until = until.min(now + WAIT_FOR_ROOM);
            }
            let timeout = until.saturating_duration_since(now);
            self.device
                .wait(timeout)
                .map_err(|source| EngineError::Device {
                    call: "waiting for reads",
                    source,
                })?;
        }
    }

    fn cancel(&mut self, key: u64) -> bool {
        let Some(op) = self.find(key) else {
            return false;
        };
        self.ops[op].cancelled = true;
        let waits = |&part: &usize| self.parts[part].op == op;
        let some_wait = self.demand.iter().any(waits)
            || self.prefetch.iter().any(waits)
            || self.delayed.iter().any(|(_, part)| waits(part));
        if some_wait {
            self.abandon(op, Cause::Cancelled);
            if self.ops[op].n_parts == 0 {
                self.end_op(op);
            }
        }
        true
    }

    fn promote(&mut self, key: u64) -> bool {
        let Some(op) = self.find(key) else {
            return false;
        };
        self.ops[op].read.class = Class::Demand;
        let (parts, demand) = (&self.parts, &mut self.demand);
        self.prefetch.retain(|&part| {
            let other = parts[part].op != op;
            if !other {
                demand.push_back(part);
            }
            other
        });
        true
    }

    fn in_flight(&self) -> usize {
        self.ops.len() + self.ended.len()
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}
