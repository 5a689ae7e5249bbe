//! How a model is, for listings and metrics.

use std::time::Duration;

use serde::Serialize;

/// The state of a model in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Not in memory.
    Unloaded,
    /// Not in memory, and the last load failed.
    Failed,
    /// On its way.
    Loading,
    /// In memory, with requests.
    Running,
    /// In memory, without requests.
    Idle,
    /// Leaving.
    Unloading,
}

impl Status {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Unloaded => "unloaded",
            Status::Failed => "failed",
            Status::Loading => "loading",
            Status::Running => "running",
            Status::Idle => "idle",
            Status::Unloading => "unloading",
        }
    }

    /// llama-server's word for it in `GET /models`.
    pub fn llama_server(self) -> &'static str {
        match self {
            Status::Unloaded | Status::Failed => "unloaded",
            Status::Loading => "loading",
            Status::Running | Status::Idle | Status::Unloading => "loaded",
        }
    }
}

/// How a model is at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelStatus {
    /// Its name.
    pub name: String,
    /// In one word.
    pub status: Status,
    /// Share that is loaded, 0 to 1, while it is being loaded.
    pub progress: Option<f32>,
    /// Requests that run.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Bytes that count in the budget.
    pub counted_bytes: u64,
    /// Time since its last request ended or it was loaded; `None` if it never was.
    pub idle: Option<Duration>,
    /// When it leaves, if nobody asks for it.
    pub expires_in: Option<Duration>,
    /// Whether it is loaded and stays until its room is needed.
    pub stays: bool,
    /// Why the last load failed.
    pub failure: Option<String>,
    /// How long requests are refused after that.
    pub retry_in: Option<Duration>,
}
