//! The threads of models, and the one that watches their time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::{Arc, MutexGuard};
use std::thread;
use std::time::Instant;

use super::{Lease, Link, Model, Shared, State};
use crate::config::shown_bytes;
use crate::engine::{Ended, Holding, Session};
use crate::lifecycle::{Action, Fleet, ModelId};
use crate::memory;

impl Shared {
    /// The state is valid after every call of the fleet, also one that panicked.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn change(self: &Arc<Self>, change: impl FnOnce(&mut Fleet, Instant)) {
        let mut state = self.lock();
        change(&mut state.fleet, Instant::now());
        let unwanted = self.perform(&mut state);
        drop(state);
        // Each one changes the state again.
        drop(unwanted);
    }

    /// Does what the fleet asks for. Gives back the leases that nobody wants any more, to be dropped without the lock.
    #[must_use]
    pub(super) fn perform(self: &Arc<Self>, state: &mut State) -> Vec<Lease> {
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
                shown_bytes(holding.weights_bytes),
                shown_bytes(holding.kv_bytes),
                shown_bytes(holding.compute_bytes),
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
        if state.links.iter().all(Option::is_none) {
            memory::release_program();
        }
        let was_loaded = link.as_ref().is_some_and(|link| link.holding.is_some());
        let was_told = link.as_ref().is_some_and(|link| link.jobs.is_none());
        let failure = match result {
            Ok(Ok(())) if was_loaded || was_told => None,
            Ok(Ok(())) => Some("the engine ended without loading it".to_owned()),
            Ok(Err(Ended::Failed(reason))) => Some(reason),
            Ok(Err(Ended::Gone(reason))) => {
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
    pub(super) fn watch_deadlines(self: &Arc<Self>) {
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
