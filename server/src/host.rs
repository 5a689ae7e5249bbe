//! Runs models in threads, as the [`Fleet`] decides.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;

use crate::config::{Config, ModelConfig, Ttl};
use crate::counters::ModelCounters;
use crate::engine::{Ended, Engine, Holding, Session};
use crate::generate::{Event, Job, Request};
use crate::lifecycle::{
    Action, Fleet, FleetLimits, MemberSpec, ModelId, ModelStatus, Refusal, Status, Ticket,
};
use crate::memory::{self, FileState};

/// The models of a configuration, and the threads that serve them. Dropping it does not end them; [`Host::close`] does.
#[derive(Debug)]
pub struct Host {
    shared: Arc<Shared>,
    /// Ends models whose time is over.
    timer: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    engine: Box<dyn Engine>,
    models: Vec<Model>,
    state: Mutex<State>,
    /// The next deadline may be another one, or nothing is loaded any more.
    changed: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("models", &self.models)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Model {
    config: ModelConfig,
    counters: Arc<ModelCounters>,
}

#[derive(Debug)]
struct State {
    fleet: Fleet,
    waiting: HashMap<Ticket, oneshot::Sender<Result<Lease, Refusal>>>,
    /// By model: its thread, from the beginning of a load to the end of the unloading.
    links: Vec<Option<Link>>,
    is_closing: bool,
}

/// A model's thread, seen from outside.
#[derive(Debug)]
struct Link {
    /// `None` once it is to leave.
    jobs: Option<Sender<Job>>,
    stop: Arc<AtomicBool>,
    abort: Arc<AtomicBool>,
    holding: Option<Arc<Holding>>,
    loading_since: Instant,
}

/// The right to use a model. While there is one, the model stays.
#[derive(Debug)]
pub struct Lease {
    shared: Arc<Shared>,
    model: ModelId,
    keep_alive: Option<Ttl>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (model, keep_alive) = (self.model, self.keep_alive);
        self.shared
            .change(|fleet, now| fleet.release(model, keep_alive, now));
    }
}

/// A model in a listing.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its state.
    pub status: ModelStatus,
    /// What it holds, if it is loaded.
    pub holding: Option<Arc<Holding>>,
    /// What became of its files' names since it was loaded.
    pub file: FileState,
}

/// A request that waits for its model. Dropping it takes the request back.
struct Waiting<'a> {
    shared: &'a Arc<Shared>,
    ticket: Ticket,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        // Without an entry the request was granted or refused.
        if state.waiting.remove(&self.ticket).is_some() {
            state.fleet.cancel(self.ticket, Instant::now());
            let unwanted = self.shared.perform(&mut state);
            drop(state);
            drop(unwanted);
        }
    }
}

impl Host {
    /// Takes the models of a configuration over, within `budget_bytes`. Nothing is loaded yet.
    ///
    /// # Errors
    ///
    /// A sentence that names the model, for one that cannot be loaded or does not fit into the budget; or the system's, if it
    /// has no more threads.
    pub fn new(config: &Config, budget_bytes: u64, engine: impl Engine) -> Result<Host, String> {
        let mut specs = Vec::new();
        for model in config.models.values() {
            let need_bytes = engine.need_bytes(model)?;
            specs.push(MemberSpec {
                name: model.name.clone(),
                ttl: model.ttl,
                group: model.group.clone(),
                concurrency_limit: model.concurrency_limit as usize,
                queue_limit: model.queue_limit,
                need_bytes,
            });
        }
        check_room(config, &specs, budget_bytes)?;
        let limits = FleetLimits {
            budget_bytes,
            max_loaded: config.max_loaded,
            queue_limit: config.queue_limit,
        };
        let models = config.models.values().map(|config| Model {
            config: config.clone(),
            counters: Arc::default(),
        });
        let models: Vec<Model> = models.collect();
        let shared = Arc::new(Shared {
            engine: Box::new(engine),
            state: Mutex::new(State {
                fleet: Fleet::new(limits, specs),
                waiting: HashMap::new(),
                links: models.iter().map(|_| None).collect(),
                is_closing: false,
            }),
            models,
            changed: Condvar::new(),
        });
        let timer = thread::Builder::new().name("lifecycle".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.watch_deadlines()
        });
        let timer = timer.map_err(|error| format!("cannot start a thread: {error}"))?;
        let host = Host {
            shared,
            timer: Mutex::new(Some(timer)),
        };
        for (index, model) in host.shared.models.iter().enumerate() {
            if model.config.preload {
                host.load(ModelId(index));
            }
        }
        Ok(host)
    }

    /// The model that is called `name`, by its name or an alias.
    pub fn find(&self, name: &str) -> Option<ModelId> {
        let is_called = |model: &Model| {
            model.config.name == name || model.config.aliases.iter().any(|alias| alias == name)
        };
        self.shared.models.iter().position(is_called).map(ModelId)
    }

    /// All models.
    pub fn models(&self) -> impl Iterator<Item = (ModelId, &ModelConfig)> {
        let models = self.shared.models.iter().enumerate();
        models.map(|(index, model)| (ModelId(index), &model.config))
    }

    /// What a model was configured with.
    pub fn config(&self, model: ModelId) -> &ModelConfig {
        &self.shared.models[model.0].config
    }

    /// What a model has done.
    pub fn counters(&self, model: ModelId) -> &ModelCounters {
        &self.shared.models[model.0].counters
    }

    /// Waits until the model is loaded and has a place in its batch for one more request. Dropping the future takes the request
    /// back.
    ///
    /// # Errors
    ///
    /// [`Refusal`].
    pub async fn acquire(&self, model: ModelId, keep_alive: Option<Ttl>) -> Result<Lease, Refusal> {
        let (sender, receiver) = oneshot::channel();
        let waiting = {
            let mut state = self.shared.lock();
            let now = Instant::now();
            if state.is_replaced(model) {
                state.fleet.unload(model, now);
            }
            let ticket = state.fleet.request(model, now);
            if let Ok(ticket) = ticket {
                state.waiting.insert(ticket, sender);
            }
            let unwanted = self.shared.perform(&mut state);
            drop(state);
            drop(unwanted);
            Waiting {
                shared: &self.shared,
                ticket: ticket?,
            }
        };
        let answer = receiver.await;
        drop(waiting);
        // The sender is only dropped unused when the host is.
        let mut lease = answer.unwrap_or(Err(Refusal::ShuttingDown))?;
        lease.keep_alive = keep_alive;
        Ok(lease)
    }

    /// Loads a model, if it is not.
    pub fn load(&self, model: ModelId) {
        self.shared.change(|fleet, now| fleet.load(model, now));
    }

    /// Unloads a model once the requests that run or wait for it have ended.
    pub fn unload(&self, model: ModelId) {
        self.shared.change(|fleet, now| fleet.unload(model, now));
    }

    /// How a model is.
    pub fn list(&self, model: ModelId) -> Listed {
        let state = self.shared.lock();
        let status = state.fleet.status(model, Instant::now());
        let holding = state.links[model.0]
            .as_ref()
            .and_then(|link| link.holding.clone());
        drop(state);
        let file = match &holding {
            Some(holding) => file_state(holding),
            None if self.config(model).path.exists() => FileState::Present,
            None => FileState::Missing,
        };
        Listed {
            status,
            holding,
            file,
        }
    }

    /// Bytes that all loaded models hold, and the budget.
    pub fn budget(&self) -> (u64, u64) {
        let state = self.shared.lock();
        (
            state.fleet.counted_bytes(),
            state.fleet.limits().budget_bytes,
        )
    }

    /// Refuses what waits and what is new, lets what runs go on for so long, and unloads everything. Blocks.
    pub fn close(&self, patience: Duration) {
        let mut state = self.shared.lock();
        state.is_closing = true;
        state.fleet.close(Instant::now());
        let unwanted = self.shared.perform(&mut state);
        drop(state);
        drop(unwanted);
        let deadline = Instant::now() + patience;
        let mut state = self.shared.lock();
        while !state.fleet.has_nothing_loaded() {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                for link in state.links.iter().flatten() {
                    link.abort.store(true, Ordering::Relaxed);
                }
            }
            // After the end of the patience every thread ends soon.
            let pause = if rest.is_zero() {
                Duration::from_millis(50)
            } else {
                rest
            };
            let waited = self.shared.changed.wait_timeout(state, pause);
            state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        drop(state);
        self.shared.changed.notify_all();
        let timer = self
            .timer
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .take();
        if let Some(timer) = timer {
            // A thread that panicked has said so.
            let _ = timer.join();
        }
    }
}

/// Whether every model fits alone, and those that are loaded at the start fit together.
fn check_room(config: &Config, specs: &[MemberSpec], budget_bytes: u64) -> Result<(), String> {
    use crate::config::shown_bytes as shown;
    for spec in specs.iter().filter(|spec| spec.need_bytes > budget_bytes) {
        return Err(format!(
            "models.{}: it needs up to {}, but the budget of all models is {} (budget); a smaller n_ctx, repack = false or \
             prefetch = \"pager\" with a budget of its own need less",
            spec.name,
            shown(spec.need_bytes),
            shown(budget_bytes)
        ));
    }
    let preloaded = || {
        specs
            .iter()
            .filter(|spec| config.models[&spec.name].preload)
    };
    let (count, bytes) = (
        preloaded().count(),
        preloaded().map(|spec| spec.need_bytes).sum(),
    );
    if count > config.max_loaded || bytes > budget_bytes {
        return Err(format!(
            "preload: {count} models that need up to {} together are to be loaded at the start, but max_loaded is {} and the budget \
             {}",
            shown(bytes),
            config.max_loaded,
            shown(budget_bytes)
        ));
    }
    let groups: Vec<&String> = preloaded().filter_map(|spec| spec.group.as_ref()).collect();
    if let Some(twice) = groups
        .iter()
        .enumerate()
        .find(|(i, group)| groups[..*i].contains(group))
    {
        return Err(format!(
            "preload: two models of group {:?}, which may have one",
            twice.1
        ));
    }
    Ok(())
}

fn file_state(holding: &Holding) -> FileState {
    let states = holding.files.iter().map(|file| file.state());
    let worst = states.max_by_key(|state| match state {
        FileState::Present => 0,
        FileState::Missing => 1,
        FileState::Replaced => 2,
    });
    worst.unwrap_or(FileState::Present)
}

impl State {
    /// Whether the model is loaded from files that have been replaced. Files that were removed serve on.
    fn is_replaced(&self, model: ModelId) -> bool {
        let link = self.links[model.0].as_ref();
        link.and_then(|link| link.holding.as_ref())
            .is_some_and(|holding| file_state(holding) == FileState::Replaced)
    }
}

impl Shared {
    /// The state is valid after every call of the fleet, also one that panicked.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn change(self: &Arc<Self>, change: impl FnOnce(&mut Fleet, Instant)) {
        let mut state = self.lock();
        change(&mut state.fleet, Instant::now());
        let unwanted = self.perform(&mut state);
        drop(state);
        // Each one changes the state again.
        drop(unwanted);
    }

    /// Does what the fleet asks for. Gives back the leases that nobody wants any more, to be dropped without the lock.
    #[must_use]
    fn perform(self: &Arc<Self>, state: &mut State) -> Vec<Lease> {
        let mut unwanted = Vec::new();
        while let Some(action) = state.fleet.next_action() {
            match action {
                Action::Load(model) => self.start(state, model),
                Action::Unload(model) => {
                    if let Some(link) = &mut state.links[model.0] {
                        link.stop.store(true, Ordering::Relaxed);
                        link.jobs = None;
                    }
                }
                Action::Grant(ticket, model) => {
                    let lease = Lease {
                        shared: Arc::clone(self),
                        model,
                        keep_alive: None,
                    };
                    match state.waiting.remove(&ticket) {
                        Some(sender) => {
                            if let Err(Ok(lease)) = sender.send(Ok(lease)) {
                                unwanted.push(lease);
                            }
                        }
                        None => unwanted.push(lease),
                    }
                }
                Action::Refuse(ticket, refusal) => {
                    if let Some(sender) = state.waiting.remove(&ticket) {
                        let _ = sender.send(Err(refusal));
                    }
                }
            }
        }
        self.changed.notify_all();
        unwanted
    }

    /// Starts the thread that loads and serves a model.
    fn start(self: &Arc<Self>, state: &mut State, model: ModelId) {
        let (sender, jobs) = mpsc::channel();
        let (stop, abort) = (Arc::default(), Arc::default());
        let session = Session {
            jobs,
            stop: Arc::clone(&stop),
            abort: Arc::clone(&abort),
            counters: Arc::clone(&self.models[model.0].counters),
            on_progress: {
                let shared = Arc::clone(self);
                Box::new(move |fraction| shared.lock().fleet.progress(model, fraction))
            },
            on_ready: {
                let shared = Arc::clone(self);
                Box::new(move |holding| shared.loaded(model, holding))
            },
        };
        let link = Link {
            jobs: Some(sender),
            stop,
            abort,
            holding: None,
            loading_since: Instant::now(),
        };
        state.links[model.0] = Some(link);
        let name = self.models[model.0].config.name.chars().take(15).collect();
        let shared = Arc::clone(self);
        let spawned = thread::Builder::new()
            .name(name)
            .spawn(move || shared.serve(model, session));
        if let Err(error) = spawned {
            state.links[model.0] = None;
            let reason = format!("cannot start a thread: {error}");
            state.fleet.ended(model, Some(reason), Instant::now());
        }
    }

    fn loaded(self: &Arc<Self>, model: ModelId, holding: Holding) {
        let held_bytes = holding.held_bytes();
        let mut state = self.lock();
        if let Some(link) = &mut state.links[model.0] {
            let time = link.loading_since.elapsed();
            self.models[model.0].counters.loaded(time);
            tracing::info!(
                model = self.models[model.0].config.name,
                "loaded in {:.1} s: {} of weights, {} of KV cache, {} for computing",
                time.as_secs_f64(),
                crate::config::shown_bytes(holding.weights_bytes),
                crate::config::shown_bytes(holding.kv_bytes),
                crate::config::shown_bytes(holding.compute_bytes),
            );
            link.holding = Some(Arc::new(holding));
        }
        state.fleet.ready(model, held_bytes, Instant::now());
        let unwanted = self.perform(&mut state);
        drop(state);
        drop(unwanted);
    }

    /// The thread of a model.
    fn serve(self: &Arc<Self>, model: ModelId, session: Session) {
        let Model { config, counters } = &self.models[model.0];
        let engine = &self.engine;
        let result = catch_unwind(AssertUnwindSafe(|| engine.run(config, &session)));
        // Jobs that nobody took end here, and give their leases back.
        drop(session);
        memory::trim_heap();
        let mut state = self.lock();
        let link = state.links[model.0].take();
        let was_loaded = link.as_ref().is_some_and(|link| link.holding.is_some());
        let was_told = link.as_ref().is_some_and(|link| link.jobs.is_none());
        let failure = match result {
            Ok(Ok(())) if was_loaded || was_told => None,
            Ok(Ok(())) => Some("the engine ended without loading it".to_owned()),
            Ok(Err(Ended::Failed(reason))) => Some(reason),
            Ok(Err(Ended::FileChanged(reason))) => {
                tracing::warn!(model = config.name, "{reason}");
                None
            }
            Err(_) => Some("its thread panicked".to_owned()),
        };
        if was_loaded {
            counters.unloaded();
            tracing::info!(model = config.name, "unloaded");
        }
        if let Some(reason) = failure.as_ref().filter(|_| !was_told) {
            tracing::warn!(model = config.name, "{reason}");
            if !was_loaded {
                counters.load_failed();
            }
        }
        state.fleet.ended(model, failure, Instant::now());
        let unwanted = self.perform(&mut state);
        drop(state);
        drop(unwanted);
    }

    /// The thread that notices that a model's time is over.
    fn watch_deadlines(self: &Arc<Self>) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            state.fleet.tick(now);
            let unwanted = self.perform(&mut state);
            if !unwanted.is_empty() {
                drop(state);
                drop(unwanted);
                state = self.lock();
                continue;
            }
            if state.is_closing && state.fleet.has_nothing_loaded() {
                return;
            }
            state = match state.fleet.next_deadline() {
                Some(deadline) => {
                    let pause = deadline.saturating_duration_since(now);
                    let waited = self.changed.wait_timeout(state, pause);
                    waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0
                }
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(|poisoned| poisoned.into_inner()),
            };
        }
    }
}

impl Lease {
    /// The model.
    pub fn model(&self) -> ModelId {
        self.model
    }

    /// Hands a request to the model's thread, which keeps the lease until the request has ended. The receiver is closed without a
    /// last event if the thread ended in between; dropping it cancels the request.
    pub fn submit(self, request: Request) -> UnboundedReceiver<Event> {
        let (events, receiver) = unbounded_channel();
        let shared = Arc::clone(&self.shared);
        let model = self.model;
        let job = Job {
            request,
            events,
            lease: self,
        };
        let state = shared.lock();
        let jobs = state.links[model.0]
            .as_ref()
            .and_then(|link| link.jobs.as_ref());
        let returned = match jobs {
            Some(jobs) => jobs.send(job).err().map(|error| error.0),
            None => Some(job),
        };
        drop(state);
        // Gives its lease back, which takes the lock.
        drop(returned);
        receiver
    }
}

impl Listed {
    /// Whether it is in memory.
    pub fn is_loaded(&self) -> bool {
        !matches!(self.status.status, Status::Unloaded | Status::Failed)
    }
}

#[cfg(test)]
mod tests;
