//! What the kernel does while a model is loaded and runs: page faults, block reads, residency.
//!
//! Events come from the kernel in one ring for each CPU. A thread empties the rings every few milliseconds into a queue; the
//! recorder, who alone writes the log, moves them from there between two nodes or steps. Rings and queue have fixed sizes;
//! what does not fit is counted as lost.

mod block;
mod device;
mod error;
mod faults;
pub(crate) mod maps;
mod perf;
mod residency;
mod steps;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::{Clock, FaultsElsewhere, KernelMark, LogWriter, Tables};

use block::Blocks;
pub use error::KernelError;
use faults::Faults;
use residency::Residency;
pub use residency::page_cache_bytes;
pub(crate) use steps::Steps;

/// Marks that wait for the recorder: at most 3 MiB.
const QUEUE_MAX: usize = 1 << 16;

/// With this many waiting, the recorder takes them between two nodes.
const QUEUE_LONG: usize = 1 << 12;

/// How often the rings are emptied. A ring of page faults holds 16,000 of them.
const INTERVAL: Duration = Duration::from_millis(4);

/// What to watch besides the accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KernelOptions {
    /// Page faults of this process, by perf events. Threads that run already when watching begins are not seen, except the
    /// one that begins it.
    pub faults: bool,
    /// Requests to the device that holds the model's files, by block tracepoints; needs root or CAP_PERFMON.
    pub block: bool,
    /// How much of each tensor is in the page cache: at the beginning, after loading, and after every so many steps.
    /// 0 counts as 1.
    pub residency_steps: Option<u32>,
}

impl KernelOptions {
    /// Whether nothing is to be watched.
    pub fn is_empty(&self) -> bool {
        *self == KernelOptions::default()
    }

    /// Whether the kernel permits all of it for these model files, so that a refusal comes before a log is created.
    ///
    /// # Errors
    ///
    /// As [`Recorder::watch_kernel`](crate::Recorder::watch_kernel).
    pub fn check(&self, files: &gguf::ModelFiles) -> Result<(), KernelError> {
        let paths = paths(files);
        Watch::start(self, &crate::tables(files), &paths, Clock::start()).map(drop)
    }
}

/// The paths of a model's files, which tables have as text only.
pub(crate) fn paths(files: &gguf::ModelFiles) -> Vec<PathBuf> {
    let parts = files.parts.iter();
    parts.map(|part| part.path().to_owned()).collect()
}

/// What the kernel's events came to, apart from their marks in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KernelCounts {
    /// Minor faults in memory that is no mapping of a model file.
    pub minor_elsewhere: u64,
    /// Major faults in such memory.
    pub major_elsewhere: u64,
    /// Events that were lost because a ring or the queue was full.
    pub n_lost: u64,
}

/// Watches the kernel for one recorder.
#[derive(Debug)]
pub(crate) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    residency: Option<Residency>,
    residency_steps: u32,
    steps: Steps,
    /// Marks on their way to the log.
    batch: Vec<KernelMark>,
    /// What the log has been told already.
    told: KernelCounts,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    n_queued: AtomicUsize,
    is_stopping: AtomicBool,
}

#[derive(Debug)]
struct State {
    faults: Option<Faults>,
    blocks: Option<Blocks>,
    queue: Queue,
}

/// Where marks wait for the recorder.
#[derive(Debug, Default)]
struct Queue {
    marks: Vec<KernelMark>,
    counts: KernelCounts,
}

impl Queue {
    fn push(&mut self, mark: KernelMark) {
        if self.marks.len() < QUEUE_MAX {
            self.marks.push(mark);
        } else {
            self.counts.n_lost += 1;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in a state is ever half changed: counts and lists stay usable after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves what the rings hold to the queue. `is_last`: nothing follows, so nothing is held back.
    fn drain(&self, state: &mut State, is_last: bool) {
        let State {
            faults,
            blocks,
            queue,
        } = state;
        if let Some(faults) = faults {
            faults.drain(queue);
        }
        if let Some(blocks) = blocks {
            blocks.drain(queue, is_last);
        }
        self.n_queued.store(queue.marks.len(), Ordering::Relaxed);
    }

    fn run(&self) {
        while !self.is_stopping.load(Ordering::Relaxed) {
            std::thread::park_timeout(INTERVAL);
            self.drain(&mut self.lock(), false);
        }
    }
}

impl Watch {
    /// Begins to watch. Called before the model is loaded, on the thread that will load it and decode.
    pub(crate) fn start(
        options: &KernelOptions,
        tables: &Tables,
        paths: &[PathBuf],
        clock: Clock,
    ) -> Result<Watch, KernelError> {
        let residency = match options.residency_steps {
            Some(_) => Some(Residency::open(tables, paths)?),
            None => None,
        };
        let mut watch = Watch {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    faults: None,
                    blocks: None,
                    queue: Queue::default(),
                }),
                n_queued: AtomicUsize::new(0),
                is_stopping: AtomicBool::new(false),
            }),
            thread: None,
            residency,
            residency_steps: options.residency_steps.unwrap_or(0).max(1),
            steps: Steps::default(),
            batch: Vec::new(),
            told: KernelCounts::default(),
        };
        if !options.faults && !options.block {
            return Ok(watch);
        }
        // Before the events: a thread that is there already does not inherit them, so it does not watch itself.
        let shared = Arc::clone(&watch.shared);
        let thread = std::thread::Builder::new().name("kernel-events".to_owned());
        watch.thread = Some(thread.spawn(move || shared.run()).map_err(|error| {
            KernelError::system("watching the kernel", "start a thread", &error)
        })?);
        let blocks = match options.block {
            true => Some(Blocks::open(paths, clock)?),
            false => None,
        };
        let faults = match options.faults {
            true => Some(Faults::open(paths, clock)?),
            false => None,
        };
        let mut state = watch.shared.lock();
        state.blocks = blocks;
        state.faults = faults;
        drop(state);
        Ok(watch)
    }

    /// Whether marks should go to the log even in the middle of a step.
    #[inline]
    pub(crate) fn is_long(&self) -> bool {
        self.shared.n_queued.load(Ordering::Relaxed) >= QUEUE_LONG
    }

    /// What happens from now on belongs to this step.
    pub(crate) fn begin_step(&mut self, begin_ns: u64, step: u32, flags: crate::Flags) {
        self.steps.begin(begin_ns, step, flags);
    }

    /// Moves what has happened so far to the log.
    pub(crate) fn collect(&mut self, log: &mut LogWriter) {
        if self.thread.is_some() {
            let shared = Arc::clone(&self.shared);
            let mut state = shared.lock();
            shared.drain(&mut state, false);
            self.push_all(log, state);
        }
    }

    /// Moves what happened until a time to the log, as far as the rings have been emptied. Does not wait.
    pub(crate) fn collect_until(&mut self, log: &mut LogWriter, until_ns: u64) {
        let shared = Arc::clone(&self.shared);
        let Ok(mut state) = shared.state.try_lock() else {
            return;
        };
        let is_early = |mark: &mut KernelMark| mark.time_ns() <= until_ns;
        self.batch
            .extend(state.queue.marks.extract_if(.., is_early));
        shared
            .n_queued
            .store(state.queue.marks.len(), Ordering::Relaxed);
        drop(state);
        self.push_batch(log);
    }

    fn push_all(&mut self, log: &mut LogWriter, mut state: MutexGuard<'_, State>) {
        self.batch.append(&mut state.queue.marks);
        self.shared.n_queued.store(0, Ordering::Relaxed);
        let counts = state.queue.counts;
        drop(state);
        self.push_batch(log);
        let since = |now: u64, before: u64| u32::try_from(now - before).unwrap_or(u32::MAX);
        let time_ns = log.now_ns();
        let elsewhere = FaultsElsewhere {
            time_ns,
            n_minor: since(counts.minor_elsewhere, self.told.minor_elsewhere),
            n_major: since(counts.major_elsewhere, self.told.major_elsewhere),
            n_lost: since(counts.n_lost, self.told.n_lost),
        };
        if counts != self.told {
            let (step, flags) = self.steps.at(time_ns);
            log.push_mark(KernelMark::FaultsElsewhere(elsewhere).record(step, flags));
            self.told = counts;
        }
    }

    fn push_batch(&mut self, log: &mut LogWriter) {
        self.batch.sort_by_key(KernelMark::time_ns);
        for mark in self.batch.drain(..) {
            let (step, flags) = self.steps.at(mark.time_ns());
            log.push_mark(mark.record(step, flags));
        }
    }

    /// Writes what is in the page cache now to the log.
    pub(crate) fn snapshot(&mut self, log: &mut LogWriter) {
        if let Some(residency) = &mut self.residency {
            let time_ns = log.now_ns();
            let (step, flags) = self.steps.at(time_ns);
            residency.snapshot(time_ns, |resident| {
                log.push_mark(KernelMark::Resident(resident).record(step, flags));
            });
        }
    }

    /// As [`Watch::snapshot`], if it is due after this step.
    pub(crate) fn snapshot_after(&mut self, log: &mut LogWriter, step: u32) {
        if step.wrapping_add(1).is_multiple_of(self.residency_steps) {
            self.snapshot(log);
        }
    }

    /// Ends watching, and moves the last marks to the log.
    pub(crate) fn stop(mut self, log: &mut LogWriter) -> KernelCounts {
        self.stop_thread();
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        shared.drain(&mut state, true);
        self.push_all(log, state);
        self.told
    }

    fn stop_thread(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.shared.is_stopping.store(true, Ordering::Relaxed);
            thread.thread().unpark();
            // A panic of the thread was printed; what it collected until then is there.
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop_thread();
    }
}
