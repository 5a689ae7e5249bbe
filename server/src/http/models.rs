//! Which models there are, what they hold, and loading them by hand.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::{App, body, json_response};
use crate::generate::Failure;
use crate::host::Listed;
use crate::lifecycle::ModelId;
use crate::memory::{ProcessMemory, Smaps};

/// `GET /v1/models`: names and aliases, as OpenAI lists them.
pub(super) async fn openai_list(State(app): State<Arc<App>>) -> Response<Body> {
    let models = app.host.models().flat_map(|(_, config)| {
        let names = std::iter::once(&config.name).chain(&config.aliases);
        names
            .map(|name| openai_model(name, &config.path))
            .collect::<Vec<_>>()
    });
    let models: Vec<Value> = models.collect();
    json_response(StatusCode::OK, &json!({"object": "list", "data": models}))
}

/// `GET /v1/models/NAME`.
pub(super) async fn openai_one(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Response<Body>, ApiError> {
    let model = app
        .host
        .find(&name)
        .ok_or_else(|| ApiError::no_model(&name))?;
    let object = openai_model(&name, &app.host.config(model).path);
    Ok(json_response(StatusCode::OK, &object))
}

fn openai_model(name: &str, path: &std::path::Path) -> Value {
    let modified = std::fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok();
    let created = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    json!({
        "id": name,
        "object": "model",
        "created": created.map_or(0, |time| time.as_secs()),
        "owned_by": "faultline",
    })
}

/// `GET /models`: llama-server's list, with what each model holds. It neither loads a model nor keeps one.
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Response<Body>, ApiError> {
    // Reading smaps takes milliseconds.
    beside(move || listing(&app)).await
}

/// Runs what takes long for a thread that serves connections.
pub(super) async fn beside(
    work: impl FnOnce() -> Response<Body> + Send + 'static,
) -> Result<Response<Body>, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure::Internal(error.to_string()).into())
}

fn listing(app: &App) -> Response<Body> {
    let smaps = Smaps::read().ok();
    let models: Vec<Value> = app
        .host
        .models()
        .map(|(model, _)| describe(app, model, smaps.as_ref()))
        .collect();
    let (held_bytes, budget_bytes) = app.host.budget();
    let memory = ProcessMemory::read().unwrap_or_default();
    let object = json!({
        "object": "list",
        "data": models,
        "held_bytes": held_bytes,
        "budget_bytes": budget_bytes,
        "process": {
            "resident_bytes": memory.resident_bytes(),
            "anonymous_bytes": memory.anonymous_bytes,
            "file_bytes": memory.file_bytes,
            "peak_bytes": memory.peak_bytes,
        },
    });
    json_response(StatusCode::OK, &object)
}

fn describe(app: &App, model: ModelId, smaps: Option<&Smaps>) -> Value {
    let config = app.host.config(model);
    let listed = app.host.list(model);
    let counters = app.host.counters(model).snapshot();
    let status = &listed.status;
    let holding = listed.holding.as_deref();
    json!({
        "id": config.name,
        "object": "model",
        "aliases": config.aliases,
        "status": {
            "value": status.status.llama_server(),
            "state": status.status.as_str(),
            "progress": status.progress,
            "failed": status.failure.is_some(),
            "reason": status.failure,
            "retry_in_seconds": status.retry_in.map(|time| time.as_secs_f64()),
        },
        "path": config.path,
        "file": listed.file,
        "prefetch": config.prefetch.as_str(),
        "group": config.group,
        "description": holding.map(|holding| holding.description.clone()),
        "n_ctx": holding.map(|holding| holding.n_ctx),
        "n_ctx_train": holding.map(|holding| holding.n_ctx_train),
        "held_bytes": status.counted_bytes,
        "resident_bytes": resident_bytes(&listed, smaps),
        "weights_bytes": holding.map_or(0, |holding| holding.weights_bytes),
        "kv_bytes": holding.map_or(0, |holding| holding.kv_bytes),
        "compute_bytes": holding.map_or(0, |holding| holding.compute_bytes),
        "budget_bytes": holding.and_then(|holding| holding.budget_bytes),
        "hit_rate": counters.hit_rate(),
        "running": status.running,
        "waiting": status.waiting,
        "idle_seconds": status.idle.map(|time| time.as_secs_f64()),
        "expires_in_seconds": status.expires_in.map(|time| time.as_secs_f64()),
        "stays": status.stays,
        "counters": counters,
    })
}

/// Bytes of a model that are in memory: of mappings as the kernel says, everything else in full.
pub(super) fn resident_bytes(listed: &Listed, smaps: Option<&Smaps>) -> u64 {
    let Some(holding) = &listed.holding else {
        return 0;
    };
    let own =
        holding.weights_bytes + holding.kv_bytes + holding.compute_bytes - holding.mapped_bytes;
    match smaps {
        Some(smaps) if holding.mapped_bytes > 0 => {
            own + smaps.of_files(&holding.files).resident_bytes
        }
        _ => own + holding.mapped_bytes,
    }
}

#[derive(Debug, Deserialize)]
struct Named {
    model: String,
}

async fn named(app: &App, request: Request) -> Result<ModelId, ApiError> {
    let Named { model } = body::json(app, request).await?;
    app.host
        .find(&model)
        .ok_or_else(|| ApiError::no_model(&model))
}

/// `POST /models/load {"model"}`. It answers at once; `GET /models` shows the progress.
pub(super) async fn load(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let model = named(&app, request).await?;
    app.host.load(model);
    Ok(json_response(StatusCode::OK, &json!({"success": true})))
}

/// `POST /models/unload {"model"}`. Requests that run are not cut off.
pub(super) async fn unload(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let model = named(&app, request).await?;
    app.host.unload(model);
    Ok(json_response(StatusCode::OK, &json!({"success": true})))
}
