//! From a model's events to an answer: as a whole, or as a stream.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::error::ApiError;
use super::options::random_seed;
use super::{App, json_response, sse};
use crate::generate::{ChosenToken, Event, Failure, Finished, TextPiece};

/// How the choices of one kind of request look. Tokens have probabilities if the request asked for them.
pub(super) trait Shape: Send + Sync + 'static {
    /// The choice of a whole answer.
    fn whole(&mut self, text: &str, tokens: &[ChosenToken], finish_reason: &str) -> Value;

    /// The choice of a chunk that comes before any text; `None` if there is no such chunk.
    fn first(&self) -> Option<impl Serialize>;

    /// The choice of a chunk with text.
    fn text(&mut self, text: &str, tokens: &[ChosenToken]) -> impl Serialize;

    /// The choice of the chunk after the last text.
    fn last(&self, finish_reason: &'static str) -> impl Serialize;

    fn id_prefix(&self) -> &'static str;

    fn object(&self) -> &'static str;

    fn chunk_object(&self) -> &'static str;
}

/// An answer while it is made.
pub(super) struct Reply<S> {
    shape: S,
    head: Head,
}

/// What all objects of an answer begin with.
#[derive(Clone, Serialize)]
struct Head {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
}

/// An object of a stream.
#[derive(Serialize)]
struct Chunk<'a, C> {
    #[serde(flatten)]
    head: &'a Head,
    choices: C,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Value>,
}

/// A finished text.
pub(super) struct Whole {
    pub(super) text: String,
    pub(super) tokens: Vec<ChosenToken>,
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
        let head = Head {
            id: format!("{}-{:08x}{count:012x}", shape.id_prefix(), random_seed()),
            object: shape.chunk_object(),
            created,
            model: model.to_owned(),
        };
        Reply { shape, head }
    }

    /// The answer as one object.
    pub(super) async fn whole(
        mut self,
        events: UnboundedReceiver<Event>,
    ) -> Result<Response<Body>, ApiError> {
        let Whole {
            text,
            tokens,
            finished,
        } = collect(events).await?;
        self.head.object = self.shape.object();
        let choice = self.shape.whole(&text, &tokens, finished.reason.as_str());
        let object = Chunk {
            head: &self.head,
            choices: [choice],
            usage: Some(usage(&finished)),
            timings: Some(timings(&finished)),
        };
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
        let mut first = Vec::new();
        if let Some(choice) = self.shape.first() {
            self.head.message(&mut first, [choice]);
        }
        let chunks = Chunks {
            reply: self,
            includes_usage,
        };
        Ok(sse::response(
            chunks,
            first,
            events,
            app.config.ping_interval,
        ))
    }
}

impl Head {
    fn chunk<C>(&self, choices: C) -> Chunk<'_, C> {
        Chunk {
            head: self,
            choices,
            usage: None,
            timings: None,
        }
    }

    /// Appends a chunk with these choices.
    fn message(&self, out: &mut Vec<u8>, choices: impl Serialize) {
        sse::message(out, &self.chunk(choices));
    }
}

/// The chunks of a stream.
struct Chunks<S> {
    reply: Reply<S>,
    includes_usage: bool,
}

impl<S: Shape> sse::Messages for Chunks<S> {
    fn add(&mut self, event: Option<Event>, out: &mut Vec<u8>) -> bool {
        let Reply { shape, head } = &mut self.reply;
        let failure = match event {
            Some(Event::Text(pieces)) => {
                for TextPiece { text, tokens } in &pieces {
                    head.message(out, [shape.text(text, tokens)]);
                }
                return false;
            }
            Some(Event::Done(finished)) => {
                let mut last = head.chunk([shape.last(finished.reason.as_str())]);
                last.timings = Some(timings(&finished));
                sse::message(out, &last);
                if self.includes_usage {
                    let mut chunk = head.chunk([(); 0]);
                    chunk.usage = Some(usage(&finished));
                    sse::message(out, &chunk);
                }
                sse::done(out);
                return true;
            }
            Some(Event::Failed(failure)) => failure,
            Some(Event::Started { .. }) | None => gone(),
        };
        // The status was sent long ago, so the error is a message.
        sse::message(out, &ApiError::from(failure).body());
        true
    }
}

/// Waits for the end of a text.
pub(super) async fn collect(mut events: UnboundedReceiver<Event>) -> Result<Whole, ApiError> {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    loop {
        match events.recv().await {
            Some(Event::Started { .. }) => {}
            Some(Event::Text(pieces)) => {
                for piece in pieces {
                    text.push_str(&piece.text);
                    tokens.extend(piece.tokens);
                }
            }
            Some(Event::Done(finished)) => {
                return Ok(Whole {
                    text,
                    tokens,
                    finished,
                });
            }
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
        "prompt_tokens_details": {"cached_tokens": finished.n_cached},
    })
}

/// As llama-server.
fn timings(finished: &Finished) -> Value {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let per_second = |count: u32, time: Duration| match time.is_zero() {
        true => 0.0,
        false => f64::from(count) / time.as_secs_f64(),
    };
    let n_computed = finished.n_prompt - finished.n_cached;
    // The first token belongs to the prompt.
    let n_predicted = finished.n_generated.saturating_sub(1);
    json!({
        "cache_n": finished.n_cached,
        "prompt_n": n_computed,
        "prompt_ms": ms(finished.prompt_time),
        "prompt_per_second": per_second(n_computed, finished.prompt_time),
        "predicted_n": finished.n_generated,
        "predicted_ms": ms(finished.generate_time),
        "predicted_per_second": per_second(n_predicted, finished.generate_time),
    })
}
