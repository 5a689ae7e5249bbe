//! Which model is loaded when.
//!
//! ```text
//! unloaded -> loading(fraction) -> ready (running or idle) -> unloading -> unloaded
//! ```
//!
//! [`Fleet`] is the state of all models and decides; it starts no thread, reads no clock and touches no memory, so that every
//! decision can be tested. The host tells it what happened and does what it asks.
//!
//! Rules:
//!
//! - A model is loaded once for all requests that wait for it.
//! - What is loaded stays within the budget and within the number of models. Where room is missing, the models that were used
//!   least recently leave; of a group only one model is loaded.
//! - A model with a running request is never unloaded. One that is to leave still serves the requests that waited when that was
//!   decided, so that models which need each other's room change places once per batch of requests and not once per request.
//! - Models that wait for room get it in the order of their oldest requests.
//! - A model that failed to load is tried again when somebody asks for it after a pause, which doubles up to a minute.

mod fleet;
mod status;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::config::Ttl;

pub use fleet::Fleet;
pub use status::{ModelStatus, Status};

/// A model, by its place in the list that the [`Fleet`] was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelId(pub usize);

/// A request that was let in. Later ones are larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Limits that all models share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FleetLimits {
    /// Bytes that all loaded models may hold together.
    pub budget_bytes: u64,
    /// Most models loaded at a time.
    pub max_loaded: usize,
    /// Most requests that wait.
    pub queue_limit: usize,
}

/// What the fleet knows of a model beforehand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberSpec {
    /// Its name.
    pub name: String,
    /// How long it stays after its last request.
    pub ttl: Ttl,
    /// Of the models of a group one is loaded at a time.
    pub group: Option<String>,
    /// Most requests that run.
    pub concurrency_limit: usize,
    /// Most requests that wait.
    pub queue_limit: usize,
    /// Bytes that it will hold, at most, as far as that is known.
    pub need_bytes: u64,
}

/// What is to be done. The order matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Load the model, then call [`Fleet::ready`] or [`Fleet::ended`].
    Load(ModelId),
    /// Unload the model or end its load, then call [`Fleet::ended`].
    Unload(ModelId),
    /// The request may run. Call [`Fleet::release`] when it has ended.
    Grant(Ticket, ModelId),
    /// The request cannot run.
    Refuse(Ticket, Refusal),
}

/// Why a request does not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// As many requests wait for the model as may.
    #[error("{waiting} requests wait for model {model:?} already (queue_limit)")]
    ModelBusy {
        /// The model.
        model: String,
        /// Requests that wait.
        waiting: usize,
    },
    /// As many requests wait as may.
    #[error("{waiting} requests wait already (queue_limit of the server)")]
    ServerBusy {
        /// Requests that wait.
        waiting: usize,
    },
    /// The model could not be loaded.
    #[error("model {model:?} cannot be loaded: {reason}{}", retry_text(.retry_in))]
    LoadFailed {
        /// The model.
        model: String,
        /// Why.
        reason: String,
        /// When it will be tried again at the earliest.
        retry_in: Duration,
    },
    /// Somebody asked for the model to be unloaded while it was being loaded.
    #[error("model {model:?} was unloaded by request")]
    Unloaded {
        /// The model.
        model: String,
    },
    /// The server ends.
    #[error("the server is shutting down")]
    ShuttingDown,
}

fn retry_text(retry_in: &Duration) -> String {
    match retry_in.is_zero() {
        true => String::new(),
        false => format!(
            " (tried again in {:.0} s at the earliest)",
            retry_in.as_secs_f64().ceil()
        ),
    }
}
