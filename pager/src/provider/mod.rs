//! Slices for a context: experts in slots, rows of the embedding in a buffer, read when an operation announces them; dense
//! matrices in memory or in a ring, read ahead.

mod ahead;
mod dense;
mod experts;
mod matrices;
mod packing;
mod replay;
mod routers;
mod rows;

use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};
use std::time::{Duration, Instant};

use llama_rs::{
    Begin, Dim, LoadedWeight, NodeRef, Packing, SliceProvider, TensorKey, WeightRef, Which,
};

use crate::arrivals::Arrivals;
use crate::counters::Counters;
use crate::engine::{Cause, Class, Completion, Engine};
use crate::pinned::Pinned;
use crate::plan::{MemoryPlan, SlotClass};
use crate::pool::{Census, Fetch, Pool};
use crate::region::Region;
use crate::replay::Recorder;
use crate::residency::Residency;
use crate::slices::{SliceId, Slices};

pub(crate) use ahead::Ahead;
use dense::Dense;
use experts::Slots;
use matrices::{MATRIX, Matrices, Streaming};
use packing::Jobs;
pub(crate) use replay::{Program, Pump};
use routers::Routers;
use rows::{ROW, ROW_READY, Rows};

const PAGE_BYTES: u64 = 4096;
/// Longest time in the kernel before a waiting thread looks again.
const WAIT: Duration = Duration::from_millis(5);
/// Longest time that a slice is waited for without anything arriving.
const SILENCE: Duration = Duration::from_secs(120);
/// What a weight's slices are.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// Index into [`Slices::sparse_tensors`].
    Experts(usize),
    /// Of an embedding that is read row by row.
    Rows,
    /// Of a tensor that is in memory as a whole or on its way there: its index among the dense tensors. An embedding so small that
    /// reading its rows would not pay, and all matrices while they are still read when the first token is computed.
    Dense(usize),
    /// Of a dense matrix that stays in memory: its index among the dense tensors.
    Pinned(usize),
    /// Of a dense matrix that is streamed: its index among those.
    Streamed(usize),
}

/// Reads slices when operations announce them.
#[derive(Debug)]
pub(crate) struct Provider {
    /// First: dropping it waits for reads that go to the memory below.
    state: Mutex<Inner>,
    slices: Slices,
    targets: HashMap<TensorKey, Target>,
    residency: Arc<Residency>,
    counters: Arc<Counters>,
    slots: Slots,
    /// How slices are repacked, by index of their tensor among the sparse ones.
    packings: Vec<Option<Packing>>,
    jobs: Jobs,
    /// Routers that are computed before their layer, if they are asked what to read ahead.
    routers: Option<Routers>,
    rows: Option<Rows>,
    /// Reads that have not ended, for those who do not hold the lock.
    n_in_flight: AtomicUsize,
    pinned: Option<Arc<Pinned>>,
    dense: Dense,
    matrices: Matrices,
    /// Number and size of the slots of each class.
    classes: Vec<(usize, usize)>,
    /// Slots of each class that a replay leaves to what an operation needs.
    n_spare: usize,
    /// Why slices cannot be had: then no `get` gives an address.
    reason: Mutex<Option<String>>,
}

/// What was loaded with the model.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The weights that the model has.
    pub(crate) weights: Vec<LoadedWeight>,
    /// Which dense ones have arrived.
    pub(crate) arrivals: Arc<Arrivals>,
    /// Those that the plan keeps in memory, where it streams others.
    pub(crate) pinned: Option<Arc<Pinned>>,
}

/// What is read before it is needed.
#[derive(Debug, Default)]
pub(crate) struct Before {
    /// Experts of the next layer.
    pub(crate) ahead: Option<Ahead>,
    /// Numbers of a token's hidden state.
    pub(crate) n_embd: usize,
    /// What the last run needed.
    pub(crate) program: Option<Program>,
    /// Notes that for the next run.
    pub(crate) recorder: Option<Recorder>,
}

/// What one thread at a time changes.
#[derive(Debug)]
struct Inner {
    engine: Box<dyn Engine>,
    pool: Pool,
    /// Pinned slices, by index of their tensor among the sparse ones.
    pinned: Vec<Vec<SliceId>>,
    /// Layer of the last request.
    layer: Option<u32>,
    /// Steps that have begun.
    n_steps: u32,
    slots_streamed_max: u32,
    fetches: Vec<Fetch>,
    wanted: Vec<SliceId>,
    done: Vec<Completion>,
    rows_in_flight: usize,
    /// `None`: nothing is read ahead.
    ahead: Option<Ahead>,
    /// What is still to be read of what the last run needed.
    program: Option<Program>,
    recorder: Option<Recorder>,
    /// Why the last read of a slice, a row or a matrix failed, by its key. Whoever needs it gives this as the reason; a read that nobody
    /// waits for any more, since its step has ended, fails no later step.
    failures: HashMap<u64, String>,
    streaming: Streaming,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Provider {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(recorder) = &mut state.recorder {
            // What cannot be kept is not there at the next start, which works without.
            let _ = recorder.keep(state.pool.by_value().into_iter());
        }
    }
}

impl Provider {
    /// Slots as `plan` says.
    pub(crate) fn new(
        slices: Slices,
        plan: &MemoryPlan,
        pool: Pool,
        loaded: Loaded,
        engine: Box<dyn Engine>,
        before: Before,
    ) -> std::io::Result<Provider> {
        let Loaded {
            weights,
            arrivals,
            pinned,
        } = loaded;
        let packing_of = |tensor: usize| slices.packing(&weights, tensor);
        let mut offsets = Vec::new();
        let mut size_bytes = 0;
        for class in &plan.slots {
            for _ in 0..class.n_slots {
                offsets.push(size_bytes);
                size_bytes += class.slot_bytes as usize;
            }
        }
        let slots = Slots {
            region: Region::opened(size_bytes)?,
            offsets,
        };
        let rows = match slices.embedding() {
            Some(embedding) if plan.n_embedding_rows > 0 => {
                let place_bytes = embedding.row_slot_bytes(PAGE_BYTES) as usize;
                let n_places = plan.n_embedding_rows as usize;
                Some(Rows {
                    embedding: embedding.clone(),
                    region: Region::opened(place_bytes * n_places)?,
                    place_bytes,
                    states: (0..n_places).map(|_| AtomicU8::new(ROW_READY)).collect(),
                    places: RwLock::default(),
                })
            }
            _ => None,
        };
        let matrices = Matrices::new(&slices, plan.dense_stream.as_ref(), packing_of)?;
        let stacks = slices.sparse_tensors().iter();
        let packings = stacks.map(|stack| packing_of(stack.tensor)).collect();
        let target = |name: &str| {
            let tensor = slices.tensor(name)?;
            let mut dense = slices.dense_tensors().iter();
            if let Some(index) = dense.position(|dense| dense.tensor == tensor) {
                if let Some(streamed) = matrices.index_of(index) {
                    return Some(Target::Streamed(streamed));
                }
                if pinned.as_ref().is_some_and(|pinned| pinned.has(index)) {
                    return Some(Target::Pinned(index));
                }
                return Some(Target::Dense(index));
            }
            if slices.embedding().is_some_and(|rows| rows.tensor == tensor) {
                return Some(Target::Rows);
            }
            let stacks = slices.sparse_tensors();
            let index = stacks.iter().position(|stack| stack.tensor == tensor);
            index.map(Target::Experts)
        };
        let lazy = weights.iter().filter(|weight| weight.is_lazy);
        let targets = lazy.filter_map(|weight| Some((weight.key, target(&weight.name)?)));
        let n_slots_min = plan.slots.iter().map(|class| class.n_slots).min();
        let class = |class: &SlotClass| (class.n_slots as usize, class.slot_bytes as usize);
        // What a request may need at once, but not all that there is.
        let needed = plan.slots.iter().map(|class| class.n_slots_min).max();
        let n_spare = needed.unwrap_or(0).min(n_slots_min.unwrap_or(0) / 4);
        let ahead = before.ahead.as_ref();
        Ok(Provider {
            routers: ahead.and_then(|ahead| ahead.routers(&weights, before.n_embd)),
            dense: Dense::new(&slices, arrivals, packing_of),
            classes: plan.slots.iter().map(class).collect(),
            n_spare: n_spare as usize,
            targets: targets.collect(),
            residency: Arc::clone(pool.residency()),
            counters: Arc::clone(pool.counters()),
            state: Mutex::new(Inner {
                engine,
                pool,
                pinned: vec![Vec::new(); slices.sparse_tensors().len()],
                layer: None,
                n_steps: 0,
                slots_streamed_max: n_slots_min.unwrap_or(0) / 4,
                fetches: Vec::new(),
                wanted: Vec::new(),
                done: Vec::new(),
                rows_in_flight: 0,
                ahead: before.ahead,
                program: before.program,
                recorder: before.recorder,
                failures: HashMap::new(),
                streaming: matrices.streaming(),
            }),
            slices,
            slots,
            packings,
            jobs: Jobs::default(),
            rows,
            n_in_flight: AtomicUsize::new(0),
            pinned,
            matrices,
            reason: Mutex::new(None),
        })
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// What the engine has read.
    pub(crate) fn engine_counters(&self) -> crate::engine::Counters {
        lock(&self.state).engine.counters()
    }

    /// Waits for the reads under way, and says where the slots are.
    pub(crate) fn census(&self) -> Census {
        let mut state = lock(&self.state);
        let begin = Instant::now();
        while state.engine.in_flight() > 0 && begin.elapsed() < SILENCE {
            self.note(&mut state, Some(WAIT));
        }
        self.finish_jobs(&mut state);
        state.pool.census()
    }

    fn fail(&self, reason: String) {
        lock(&self.reason).get_or_insert(reason);
    }

    /// Notes what has been read; waits for something if `wait` says how long. Gives how many reads ended.
    fn note(&self, state: &mut Inner, wait: Option<Duration>) -> usize {
        let mut done = std::mem::take(&mut state.done);
        let mut keep = |completion| done.push(completion);
        let result = match wait {
            Some(timeout) => state.engine.wait(&mut keep, timeout),
            None => state.engine.reap(&mut keep),
        };
        if let Err(error) = result {
            self.fail(error.to_string());
        }
        let n_ended = done.len();
        for completion in done.drain(..) {
            if completion.key & MATRIX != 0 {
                self.note_matrix(&mut state.streaming, &mut state.failures, completion);
                continue;
            }
            // Before the failure is to be seen.
            if let Err(error) = &completion.result {
                state.failures.insert(completion.key, error.to_string());
            }
            if completion.key & ROW != 0 {
                state.rows_in_flight -= 1;
                self.note_row(&completion);
                continue;
            }
            let id = SliceId(completion.key as u32);
            match completion.result {
                Ok(()) => self.arrived(state, id),
                Err(error) if matches!(error.cause, Cause::Cancelled) => {
                    state.failures.remove(&completion.key);
                    state.fetches.extend(state.pool.cancel(id));
                }
                Err(_) => state.pool.fail(id),
            }
        }
        state.done = done;
        if !state.fetches.is_empty() {
            // Cancelled too late: somebody has come to need it.
            self.submit(state, Class::Demand);
        }
        self.stream(state);
        self.read_guessed(state);
        self.go_on(state);
        self.n_in_flight
            .store(state.engine.in_flight(), Ordering::Relaxed);
        n_ended
    }

    /// Notes what has been read, if somebody else does not do it just now, so that the device gets its next request.
    fn look_at_device(&self) {
        if self.n_in_flight.load(Ordering::Relaxed) > 0
            && let Ok(mut state) = self.state.try_lock()
        {
            self.note(&mut state, None);
        }
    }

    /// Waits until `look` finds what the read of this key brings, and counts the time for a layer.
    fn wait_for<T>(&self, key: u64, layer: Option<u32>, look: impl Fn() -> Look<T>) -> Option<T> {
        let begin = Instant::now();
        let mut repacking = Duration::ZERO;
        let found = self.wait_until(key, begin, &mut repacking, look);
        self.counters.add_repack(repacking.as_nanos() as u64);
        if let Some(layer) = layer {
            let time = begin.elapsed().saturating_sub(repacking);
            self.counters
                .add_stall(layer as usize, time.as_nanos() as u64);
        }
        found
    }

    fn wait_until<T>(
        &self,
        key: u64,
        begin: Instant,
        repacking: &mut Duration,
        look: impl Fn() -> Look<T>,
    ) -> Option<T> {
        loop {
            match look() {
                Look::Found(found) => return Some(found),
                Look::Failed => {
                    let reason = lock(&self.state).failures.get(&key).cloned();
                    self.fail(reason.unwrap_or_else(|| "its read failed".to_owned()));
                    return None;
                }
                Look::NotYet => {}
            }
            if lock(&self.reason).is_some() {
                return None;
            }
            let begin_repacking = Instant::now();
            if self.help() {
                *repacking += begin_repacking.elapsed();
                continue;
            }
            match self.state.try_lock() {
                // Something arrived meanwhile: no time to wait for the device.
                Ok(_) if !self.jobs.is_empty() => {}
                Ok(mut state) => {
                    let n_ended = self.note(&mut state, Some(WAIT));
                    if n_ended == 0 && begin.elapsed() > SILENCE {
                        self.fail(format!("nothing was read for {} s", SILENCE.as_secs()));
                    }
                }
                // Not asleep: after 50 us of that a token takes 14 % longer (5500 MB, docs/pager.md), for who wakes up late holds up the rest.
                Err(TryLockError::WouldBlock) => std::thread::yield_now(),
                Err(TryLockError::Poisoned(_)) => {
                    self.fail("a thread panicked while it noted what was read".to_owned());
                }
            }
        }
    }
}

/// The address of a slice of a weight that begins at `whole`.
fn part_of(weight: WeightRef<'_>, which: Which, whole: NonNull<u8>) -> Option<NonNull<u8>> {
    let mapped = |which| Some(weight.mapped(which)?.addr().get());
    let offset = mapped(which)?.checked_sub(mapped(Which::Whole)?)?;
    NonNull::new(whole.as_ptr().wrapping_add(offset))
}

/// What a look at a slice found.
enum Look<T> {
    Found(T),
    NotYet,
    Failed,
}

// SAFETY: between `begin` and `end` a slice that was announced is pinned: the pool does not give its slot to another one, and
// nothing is read into it. An address is given only when the read into it has ended well: the residency word, or the row's
// state, is published after that. The same holds for streamed matrices, whose place in the ring is nobody else's from `begin` to
// `end`. Slots, rows, ring and pinned matrices live as long as the provider. What is in memory as a whole lives as
// long as the model; its address is given when the reads that bring it have ended well, and nothing is read there again.
unsafe impl SliceProvider for Provider {
    fn begin(&self, access: &mut Begin<'_>) {
        match (self.targets.get(&access.weight.key()), access.dim) {
            (Some(Target::Pinned(_)), _) => {}
            (Some(&Target::Dense(index)), _) => self.begin_dense(index),
            (Some(&Target::Streamed(index)), _) => self.begin_matrix(index),
            (Some(&Target::Experts(index)), Dim::Matrices) => self.begin_experts(index, access),
            (Some(Target::Rows), Dim::Rows) => match &self.rows {
                Some(rows) => self.begin_rows(rows, access),
                None => self.fail("the plan has no room for rows of the embedding".to_owned()),
            },
            _ => self.fail(format!(
                "{} is read as a whole by {}, and only slices of it can be",
                access.weight.name(),
                access.node.op()
            )),
        }
    }

    fn get(&self, weight: WeightRef<'_>, which: Which) -> Option<NonNull<u8>> {
        match (self.targets.get(&weight.key())?, which) {
            (&Target::Dense(index), _) => self.dense(index, weight, which),
            (&Target::Experts(index), Which::Matrix(expert)) => self.expert(index, expert),
            (Target::Rows, Which::Row(row)) => self.row(self.rows.as_ref()?, row),
            (&Target::Pinned(index), _) => {
                part_of(weight, which, self.pinned.as_ref()?.address(index)?)
            }
            (&Target::Streamed(index), _) => part_of(weight, which, self.matrix(index)?),
            _ => None,
        }
    }

    fn end(&self, _: NodeRef<'_>, weight: WeightRef<'_>) {
        match self.targets.get(&weight.key()) {
            Some(&Target::Experts(index)) => {
                let mut state = lock(&self.state);
                let state = &mut *state;
                state.pool.unpin(&state.pinned[index]);
                state.pinned[index].clear();
            }
            Some(&Target::Streamed(index)) => self.end_matrix(index),
            _ => {}
        }
    }

    fn take_reason(&self) -> Option<String> {
        lock(&self.reason).take()
    }
}
