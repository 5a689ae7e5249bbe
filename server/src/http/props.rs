//! `GET /props` and `GET /slots`, as llama-server has them. Neither loads a model nor keeps one.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode, Uri};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::error::ApiError;
use super::{App, json_response};
use crate::lifecycle::ModelId;

/// `GET /props?model=NAME`: how a model is set up. Without a name it is the only model, or the server with the names of all.
pub(super) async fn props(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Response<Body>, ApiError> {
    let mut models = app.host.models();
    let object = match (named(&app, &uri)?, models.next(), models.next()) {
        (Some(model), ..) | (None, Some((model, _)), None) => of_model(&app, model),
        _ => {
            let names = app.host.models().map(|(_, config)| config.name.as_str());
            json!({"role": "router", "models": names.collect::<Vec<_>>()})
        }
    };
    Ok(json_response(StatusCode::OK, &object))
}

fn of_model(app: &App, model: ModelId) -> Value {
    let config = app.host.config(model);
    let listed = app.host.list(model);
    let holding = listed.holding.as_deref();
    let sampling = &config.sampling;
    json!({
        "default_generation_settings": {
            "n_ctx": holding.map(|holding| holding.n_ctx),
            "params": {
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "min_p": sampling.min_p,
                "seed": sampling.seed,
                "max_tokens": sampling.max_tokens,
                "cache_prompt": config.cache_prompt,
            },
        },
        "total_slots": config.concurrency_limit,
        "model_alias": config.name,
        "model_path": config.path,
        "modalities": {"vision": false, "audio": false},
        "chat_template": holding.and_then(|holding| holding.chat_template.clone()),
        "is_sleeping": holding.is_none(),
    })
}

/// `GET /slots?model=NAME`: the requests that run, of one model or of all.
pub(super) async fn slots(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Response<Body>, ApiError> {
    let wanted = named(&app, &uri)?;
    let mut slots = Vec::new();
    for (model, config) in app.host.models() {
        if wanted.is_some_and(|wanted| wanted != model) {
            continue;
        }
        let listed = app.host.list(model);
        let Some(holding) = listed.holding.as_deref() else {
            continue;
        };
        let running = app.host.counters(model).running();
        slots.extend((0..config.concurrency_limit).map(|id| {
            let running = running.iter().find(|slot| slot.id == id);
            json!({
                "id": id,
                "model": config.name,
                "n_ctx": holding.n_ctx,
                "is_processing": running.is_some(),
                "n_prompt_tokens": running.map(|slot| slot.n_prompt),
                "n_prompt_tokens_cache": running.map(|slot| slot.n_cached),
                "n_past": running.map(|slot| slot.n_past),
                "n_decoded": running.map(|slot| slot.n_generated),
            })
        }));
    }
    Ok(json_response(StatusCode::OK, &slots))
}

/// The model that the query names, if it names one.
fn named(app: &App, uri: &Uri) -> Result<Option<ModelId>, ApiError> {
    let pairs = uri.query().unwrap_or_default().split('&');
    let Some(name) = pairs.filter_map(|pair| pair.strip_prefix("model=")).next() else {
        return Ok(None);
    };
    let name = percent_decode_str(name).decode_utf8_lossy();
    let model = app.host.find(&name);
    model.map(Some).ok_or_else(|| ApiError::no_model(&name))
}
