//! Reading what the last run needed, before anybody asks for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Inner, Provider, lock};
use crate::engine::Class;
use crate::pool::Fill;
use crate::residency::State;
use crate::slices::SliceId;

/// Reads of the program that have not ended, while it reads what the first token needed.
const READS_MAX: usize = 4;
/// The same for what comes after: one at a time, and only when nothing else is read.
const READS_LATER_MAX: usize = 1;
/// How often the thread looks at the device: less than one read takes.
const PAUSE: Duration = Duration::from_micros(500);
/// The same while nothing of the program is on its way.
const LONG_PAUSE: Duration = Duration::from_millis(10);
/// Slots whose memory is cleared before a read goes there.
const CLEARED_SLOTS: usize = 6;

/// The rest of what is to be read, and what of it is on its way.
#[derive(Debug)]
pub(crate) struct Program {
    slices: std::vec::IntoIter<SliceId>,
    /// Of these, what only later tokens needed.
    n_later: usize,
    asked: Vec<SliceId>,
}

impl Program {
    /// Slices in the order of reading; the first token needed the first `n_first`.
    pub(crate) fn new(slices: Vec<SliceId>, n_first: usize) -> Program {
        Program {
            n_later: slices.len().saturating_sub(n_first),
            slices: slices.into_iter(),
            asked: Vec::new(),
        }
    }

    /// Reads that may be under way at a time. What later tokens needed waits until nothing else is read, and while the first step is
    /// computed.
    fn n_reads_max(&self, n_in_flight: usize, n_steps: u32) -> usize {
        match self.slices.len() > self.n_later {
            true => READS_MAX,
            false if n_in_flight == self.asked.len() && n_steps != 1 => READS_LATER_MAX,
            false => 0,
        }
    }
}

/// The thread that sees to it that the program goes on while nobody waits for slices. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Pump {
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // After a panic in it the program goes on when somebody waits.
            let _ = thread.join();
        }
    }
}

impl Pump {
    /// Starts the thread, if there is a program. Without it the program goes on only while somebody waits.
    pub(crate) fn start(provider: &Arc<Provider>) -> Option<Pump> {
        lock(&provider.state).program.as_ref()?;
        let is_stopped = Arc::new(AtomicBool::new(false));
        let (stopped, provider) = (Arc::clone(&is_stopped), Arc::downgrade(provider));
        let thread = std::thread::Builder::new()
            .name("replay".to_owned())
            .spawn(move || run(&stopped, &provider));
        Some(Pump {
            is_stopped,
            thread: Some(thread.ok()?),
        })
    }
}

fn run(is_stopped: &AtomicBool, provider: &Weak<Provider>) {
    let mut clearing = None;
    while !is_stopped.load(Ordering::Relaxed) {
        let Some(provider) = provider.upgrade() else {
            return;
        };
        let (n_taken, pause) = {
            let mut state = lock(&provider.state);
            provider.note(&mut state, None);
            let Some(program) = &state.program else {
                return;
            };
            let pause = match program.asked.is_empty() {
                true => LONG_PAUSE,
                false => PAUSE,
            };
            (state.pool.n_taken(), pause)
        };
        let clearing = clearing.get_or_insert_with(|| vec![0; n_taken.len()]);
        if !provider.clear_slots(&n_taken, clearing) {
            // Not while it holds the provider: whoever drops it does not wait.
            drop(provider);
            std::thread::sleep(pause);
        }
    }
}

impl Provider {
    /// Starts reads of the program, as far as there are free slots.
    pub(super) fn go_on(&self, state: &mut Inner) {
        let Some(program) = &mut state.program else {
            return;
        };
        let is_in_flight = |slice: &SliceId| {
            let state = self.residency.state(*slice);
            matches!(state, State::InFlight(_))
        };
        program.asked.retain(is_in_flight);
        let n_in_flight = state.engine.in_flight();
        while program.asked.len() < program.n_reads_max(n_in_flight, state.n_steps) {
            let Some(slice) = program.slices.next() else {
                break;
            };
            match state.pool.fill(slice, self.n_spare) {
                Fill::Read(fetch) => {
                    state.fetches.push(fetch);
                    program.asked.push(slice);
                }
                Fill::Needless | Fill::Full => {}
            }
        }
        if program.slices.len() == 0 && program.asked.is_empty() {
            state.program = None;
        }
        self.submit(state, Class::Prefetch);
    }

    /// What was asked for and is wanted now comes first.
    pub(super) fn hurry(state: &mut Inner) {
        let Inner {
            program: Some(program),
            engine,
            wanted,
            ..
        } = state
        else {
            return;
        };
        for slice in program.asked.iter().filter(|slice| wanted.contains(slice)) {
            engine.promote(slice.0.into());
        }
    }

    /// Has the kernel clear the memory of the next slots of each class, one slot of each: otherwise it does that in the call that starts
    /// a read. False if there was nothing to do.
    fn clear_slots(&self, n_taken: &[usize], n_cleared: &mut [usize]) -> bool {
        let mut is_busy = false;
        let mut first = 0;
        for (class, n_cleared) in n_cleared.iter_mut().enumerate() {
            let (n_slots, slot_bytes) = self.classes[class];
            *n_cleared = (*n_cleared).max(n_taken[class]);
            if *n_cleared < n_slots.min(n_taken[class] + CLEARED_SLOTS) {
                let offset = self.slots.offsets[first + *n_cleared];
                self.slots.region.populate(offset..offset + slot_bytes);
                *n_cleared += 1;
                is_busy = true;
            }
            first += n_slots;
        }
        is_busy
    }
}
