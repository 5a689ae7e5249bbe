//! Runs models in threads, as the [`Fleet`] decides.

mod room;
mod threads;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;

use crate::config::{Config, ModelConfig, Ttl};
use crate::counters::ModelCounters;
use crate::engine::{Engine, Holding};
use crate::generate::{Event, Job, Request};
use crate::lifecycle::{
    Fleet, FleetLimits, MemberSpec, ModelId, ModelStatus, Refusal, Status, Ticket,
};
use crate::memory::FileState;

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
        room::check_room(config, &specs, budget_bytes)?;
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
