//! From a model's events to an answer: as a whole, or as a stream of server-sent events.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use axum::response::sse::{self, KeepAlive, Sse};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::error::ApiError;
use super::options::random_seed;
use super::{App, json_response};
use crate::generate::{Event, Failure, Finished};

/// How the objects of one kind of request look.
pub(super) trait Shape: Send + Sync + 'static {
    /// The choice of a whole answer.
    fn choice(&self, text: &str, finish_reason: &str) -> Value;

    /// The choice of a chunk that comes before any text; `None` if there is no such chunk.
    fn first(&self) -> Option<Value>;

    /// The choice of a chunk with text.
    fn text(&self, text: &str) -> Value;

    /// The choice of the chunk after the last text.
    fn last(&self, finish_reason: &str) -> Value;

    fn id_prefix(&self) -> &'static str;

    fn object(&self) -> &'static str;

    fn chunk_object(&self) -> &'static str;
}

/// What all objects of an answer share.
pub(super) struct Reply<S> {
    shape: S,
    id: String,
    created: u64,
    model: String,
}

/// A finished text.
pub(super) struct Whole {
    pub(super) text: String,
    pub(super) finished: Finished,
}

impl<S: Shape> Reply<S> {
    /// An answer in the name of `model`.
    pub(super) fn new(shape: S, model: &str) -> Reply<S> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        Reply {
            id: format!("{}-{:08x}{count:012x}", shape.id_prefix(), random_seed()),
            shape,
            created,
            model: model.to_owned(),
        }
    }

    /// The answer as one object.
    pub(super) async fn whole(
        self,
        events: UnboundedReceiver<Event>,
    ) -> Result<Response<Body>, ApiError> {
        let Whole { text, finished } = collect(events).await?;
        let choice = self.shape.choice(&text, finished.reason.as_str());
        let mut object = self.object(self.shape.object(), vec![choice]);
        object["usage"] = usage(&finished);
        object["timings"] = timings(&finished);
        Ok(json_response(StatusCode::OK, &object))
    }

    /// The answer as a stream, once the prompt was accepted.
    pub(super) async fn stream(
        self,
        app: &App,
        mut events: UnboundedReceiver<Event>,
        includes_usage: bool,
    ) -> Result<Response<Body>, ApiError> {
        match events.recv().await {
            Some(Event::Started { .. }) => {}
            Some(Event::Failed(failure)) => return Err(failure.into()),
            Some(Event::Text(_) | Event::Done(_)) | None => return Err(gone().into()),
        }
        let streaming = Streaming {
            first: self.shape.first(),
            reply: self,
            events,
            includes_usage,
            queue: Vec::new(),
            is_over: false,
        };
        let messages = stream::unfold(streaming, |mut streaming| async move {
            let message = streaming.next().await?;
            Some((
                Ok::<_, Infallible>(sse::Event::default().data(message)),
                streaming,
            ))
        });
        let pings = KeepAlive::new()
            .interval(app.config.ping_interval)
            .text("ping");
        let mut response = Sse::new(messages).keep_alive(pings).into_response();
        // Proxies that collect answers would hold tokens back.
        let no = axum::http::HeaderValue::from_static("no");
        response.headers_mut().insert("x-accel-buffering", no);
        Ok(response)
    }

    fn object(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    fn chunk(&self, choice: Value) -> Value {
        self.object(self.shape.chunk_object(), vec![choice])
    }
}

/// The state of a stream between two messages.
struct Streaming<S> {
    reply: Reply<S>,
    events: UnboundedReceiver<Event>,
    includes_usage: bool,
    /// A chunk that comes before any text.
    first: Option<Value>,
    /// Messages that are ready, the next one last.
    queue: Vec<String>,
    is_over: bool,
}

impl<S: Shape> Streaming<S> {
    async fn next(&mut self) -> Option<String> {
        if let Some(first) = self.first.take() {
            return Some(self.reply.chunk(first).to_string());
        }
        if let Some(message) = self.queue.pop() {
            return Some(message);
        }
        if self.is_over {
            return None;
        }
        match self.events.recv().await {
            Some(Event::Text(text)) => {
                let choice = self.reply.shape.text(&text);
                Some(self.reply.chunk(choice).to_string())
            }
            Some(Event::Done(finished)) => {
                self.is_over = true;
                self.queue.push("[DONE]".to_owned());
                if self.includes_usage {
                    let mut chunk = self
                        .reply
                        .object(self.reply.shape.chunk_object(), Vec::new());
                    chunk["usage"] = usage(&finished);
                    self.queue.push(chunk.to_string());
                }
                let mut last = self
                    .reply
                    .chunk(self.reply.shape.last(finished.reason.as_str()));
                last["timings"] = timings(&finished);
                Some(last.to_string())
            }
            Some(Event::Failed(failure)) => Some(self.fail(failure)),
            Some(Event::Started { .. }) | None => Some(self.fail(gone())),
        }
    }

    /// The status was sent long ago, so the error is a message.
    fn fail(&mut self, failure: Failure) -> String {
        self.is_over = true;
        ApiError::from(failure).body().to_string()
    }
}

/// Waits for the end of a text.
pub(super) async fn collect(mut events: UnboundedReceiver<Event>) -> Result<Whole, ApiError> {
    let mut text = String::new();
    loop {
        match events.recv().await {
            Some(Event::Started { .. }) => {}
            Some(Event::Text(piece)) => text.push_str(&piece),
            Some(Event::Done(finished)) => return Ok(Whole { text, finished }),
            Some(Event::Failed(failure)) => return Err(failure.into()),
            None => return Err(gone().into()),
        }
    }
}

fn gone() -> Failure {
    Failure::Unavailable("the model was unloaded before the request began; try again".to_owned())
}

pub(super) fn usage(finished: &Finished) -> Value {
    json!({
        "prompt_tokens": finished.n_prompt,
        "completion_tokens": finished.n_generated,
        "total_tokens": finished.n_prompt + finished.n_generated,
        "prompt_tokens_details": {"cached_tokens": 0},
    })
}

/// As llama-server.
fn timings(finished: &Finished) -> Value {
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    let per_second = |count: u32, time: std::time::Duration| match time.is_zero() {
        true => 0.0,
        false => f64::from(count) / time.as_secs_f64(),
    };
    // The first token belongs to the prompt.
    let n_predicted = finished.n_generated.saturating_sub(1);
    json!({
        "cache_n": 0,
        "prompt_n": finished.n_prompt,
        "prompt_ms": ms(finished.prompt_time),
        "prompt_per_second": per_second(finished.n_prompt, finished.prompt_time),
        "predicted_n": finished.n_generated,
        "predicted_ms": ms(finished.generate_time),
        "predicted_per_second": per_second(n_predicted, finished.generate_time),
    })
}
