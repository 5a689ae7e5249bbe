//! The API over HTTP/1.1.
//!
//! | route | what |
//! |---|---|
//! | `POST /v1/chat/completions`, `/v1/completions`, `GET /v1/models` | OpenAI's |
//! | `POST /generate` | text for a prompt, in one plain object |
//! | `GET /models`, `POST /models/load`, `/models/unload` | what is loaded, and what it holds |
//! | `GET /props`, `/slots` | llama-server's: how a model is set up, and what it computes |
//! | `GET /health`, `/metrics` | for those who watch |
//! | `GET /` | a page |

mod auth;
mod body;
mod chat;
mod completions;
mod connections;
mod error;
mod logprobs;
mod metrics;
mod models;
mod options;
mod props;
mod reply;
mod sse;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::middleware;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpListener;

use crate::config::Config;
use crate::host::Host;

use auth::Keys;
use error::ApiError;

/// What every request sees.
#[derive(Debug)]
struct App {
    host: Arc<Host>,
    config: Config,
    keys: Keys,
}

/// Serves the host's models to whoever connects, until `shutdown` is ready. Then nothing new is accepted, what runs may go on for
/// the configured time, and all models are unloaded.
pub async fn serve(
    listener: TcpListener,
    config: Config,
    host: Arc<Host>,
    shutdown: impl Future<Output = ()>,
) {
    let app = Arc::new(App {
        keys: Keys::new(&config.api_keys),
        host,
        config,
    });
    connections::serve(listener, Arc::clone(&app), router(app), shutdown).await;
}

fn router(app: Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/v1/chat/completions", post(chat::post))
        .route("/chat/completions", post(chat::post))
        .route("/v1/completions", post(completions::post))
        .route("/completions", post(completions::post))
        .route("/generate", post(completions::generate))
        .route("/v1/models", get(models::openai_list))
        .route("/v1/models/{*name}", get(models::openai_one))
        .route("/models", get(models::list))
        .route("/models/load", post(models::load))
        .route("/models/unload", post(models::unload))
        .route("/props", get(props::props))
        .route("/slots", get(props::slots))
        .route("/metrics", get(metrics::get))
        .route_layer(middleware::from_fn_with_state(
            Arc::clone(&app),
            auth::check,
        ));
    let open = Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/v1/health", get(health));
    guarded
        .merge(open)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(app)
}

/// The models themselves load when they are needed, so a server that answers is healthy.
async fn health() -> Response<Body> {
    json_response(StatusCode::OK, &json!({"status": "ok"}))
}

async fn page() -> Response<Body> {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, include_str!("page.html")).into_response()
}

async fn not_found() -> ApiError {
    ApiError::client(
        StatusCode::NOT_FOUND,
        "there is nothing at this path; see docs/serve.md",
    )
}

async fn method_not_allowed() -> ApiError {
    ApiError::client(
        StatusCode::METHOD_NOT_ALLOWED,
        "this path does not know this method",
    )
}

fn json_response(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    // Maps with text as keys, and numbers that are finite, always become JSON.
    let text = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
