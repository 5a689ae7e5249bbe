//! A device that fails as devices do, to test what has to stand it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::device::{Device, Outcome, Request};

/// Something that happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It ends as usual, and this is told later, after requests that were started later.
    Delay(Duration),
    /// Half of it is read, or nothing of a single block; sometimes the last byte of that is not counted.
    Short,
    /// It fails with `EIO`.
    Eio,
    /// It fails with `EAGAIN`.
    Eagain,
    /// It fails with `EINTR`.
    Eintr,
    /// It fails with `ECANCELED`, though nobody asked for that.
    Cancelled,
    /// There is no room for it now.
    Full,
}

/// Which requests meet which faults. Requests are counted as they are started, second attempts too.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    script: VecDeque<Option<Fault>>,
    random: Option<(u64, u32)>,
    broken: Vec<(u32, u64)>,
}

impl Faults {
    /// The first request meets the first entry and so on; those after the last entry meet none.
    pub fn script(faults: impl IntoIterator<Item = Option<Fault>>) -> Self {
        Faults {
            script: faults.into_iter().collect(),
            ..Faults::default()
        }
    }

    /// That many requests of a thousand meet a fault, any of them, and ends are told in any order. The same seed gives the same faults.
    pub fn random(seed: u64, per_mille: u32) -> Self {
        Faults {
            random: Some((seed, per_mille)),
            ..Faults::default()
        }
    }

    /// Makes every request that covers this byte of this file fail with `EIO`.
    #[must_use]
    pub fn with_broken_byte(mut self, file: u32, offset_bytes: u64) -> Self {
        self.broken.push((file, offset_bytes));
        self
    }

    /// The next number of the sequence that Steele, Lea and Flood call SplitMix64 (OOPSLA 2014), below `end`.
    fn draw(&mut self, end: u32) -> u32 {
        let Some((state, _)) = &mut self.random else {
            return 0;
        };
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = *state;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // Below `end`, so it has 32 bits.
        ((value ^ (value >> 31)) % u64::from(end)) as u32
    }

    fn next(&mut self, request: &Request) -> Option<Fault> {
        let end = request.offset_bytes + u64::from(request.size_bytes);
        let is_in = |&(file, byte): &(u32, u64)| {
            file == request.file && (request.offset_bytes..end).contains(&byte)
        };
        if self.broken.iter().any(is_in) {
            return Some(Fault::Eio);
        }
        if let Some(fault) = self.script.pop_front() {
            return fault;
        }
        let (_, per_mille) = self.random?;
        if self.draw(1000) >= per_mille {
            return None;
        }
        Some(match self.draw(7) {
            0 => Fault::Delay(Duration::from_micros(u64::from(self.draw(3000)))),
            1 => Fault::Short,
            2 => Fault::Eio,
            3 => Fault::Eagain,
            4 => Fault::Eintr,
            5 => Fault::Cancelled,
            _ => Fault::Full,
        })
    }
}

#[derive(Debug)]
pub(super) struct Faulty {
    inner: Box<dyn Device>,
    faults: Faults,
    /// Requests under way whose end is told later, or not in full.
    altered: HashMap<usize, Fault>,
    /// Ends that are told at their time.
    held: Vec<(Instant, Outcome)>,
    /// Empty between calls.
    raw: Vec<Outcome>,
}

impl Faulty {
    pub(super) fn new(inner: Box<dyn Device>, faults: Faults) -> Self {
        Faulty {
            inner,
            faults,
            altered: HashMap::new(),
            held: Vec::new(),
            raw: Vec::new(),
        }
    }

    /// The request fails, and nothing is read.
    fn fail(&mut self, request: &Request, result: i32) {
        let outcome = Outcome {
            id: request.id,
            result,
        };
        self.held.push((Instant::now(), outcome));
    }
}

impl Device for Faulty {
    fn start(&mut self, request: Request) -> Result<(), Request> {
        let Some(fault) = self.faults.next(&request) else {
            return self.inner.start(request);
        };
        let id = request.id;
        match fault {
            Fault::Full => return Err(request),
            Fault::Delay(_) => self.inner.start(request)?,
            Fault::Short => {
                let half = request.size_bytes / 2 / 4096 * 4096;
                if half == 0 {
                    self.fail(&request, 0);
                    return Ok(());
                }
                self.inner.start(request.shortened(half))?;
            }
            Fault::Eio => self.fail(&request, -Errno::IO.raw_os_error()),
            Fault::Eagain => self.fail(&request, -Errno::AGAIN.raw_os_error()),
            Fault::Eintr => self.fail(&request, -Errno::INTR.raw_os_error()),
            Fault::Cancelled => self.fail(&request, -Errno::CANCELED.raw_os_error()),
        }
        if matches!(fault, Fault::Delay(_) | Fault::Short) {
            self.altered.insert(id, fault);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }

    fn collect(&mut self, outcomes: &mut Vec<Outcome>) -> io::Result<()> {
        let now = Instant::now();
        let mut raw = std::mem::take(&mut self.raw);
        let collected = self.inner.collect(&mut raw);
        for mut outcome in raw.drain(..) {
            let at = match self.altered.remove(&outcome.id) {
                Some(Fault::Delay(delay)) => now + delay,
                Some(Fault::Short) if outcome.result > 0 => {
                    outcome.result -= i32::from(self.faults.draw(2) == 1);
                    now
                }
                _ => now,
            };
            self.held.push((at, outcome));
        }
        self.raw = raw;
        let before = outcomes.len();
        self.held.retain(|&(at, outcome)| {
            if at <= now {
                outcomes.push(outcome);
            }
            at > now
        });
        let told = &mut outcomes[before..];
        for index in 1..told.len() {
            let other = if self.faults.random.is_some() {
                self.faults.draw(index as u32 + 1) as usize
            } else {
                index
            };
            told.swap(index, other);
        }
        collected
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let now = Instant::now();
        let held = self
            .held
            .iter()
            .map(|&(at, _)| at.saturating_duration_since(now));
        let timeout = held.fold(timeout, Duration::min);
        if timeout.is_zero() {
            return Ok(());
        }
        self.inner.wait(timeout)
    }
}
