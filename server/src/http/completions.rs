//! `POST /v1/completions`, and `POST /generate`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use llama_rs::Token;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::options::Options;
use super::reply::{Reply, Shape, collect};
use super::{App, body, json_response};
use crate::generate::Prompt;

#[derive(Debug, Deserialize)]
struct CompletionRequest {
    prompt: PromptValue,
    #[serde(flatten)]
    options: Options,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "`prompt` must be a text or a list of tokens")]
enum PromptValue {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<i32>),
    TokenLists(Vec<Vec<i32>>),
}

impl PromptValue {
    fn prompt(self) -> Result<Prompt, ApiError> {
        let tokens = |ids: Vec<i32>| Prompt::Tokens(ids.into_iter().map(Token).collect());
        match self {
            PromptValue::Text(text) => Ok(Prompt::Text(text)),
            PromptValue::Tokens(ids) => Ok(tokens(ids)),
            PromptValue::Texts(mut texts) if texts.len() == 1 => Ok(Prompt::Text(texts.remove(0))),
            PromptValue::TokenLists(mut lists) if lists.len() == 1 => Ok(tokens(lists.remove(0))),
            PromptValue::Texts(_) | PromptValue::TokenLists(_) => Err(ApiError::unsupported(
                "prompt",
                "more or less than one prompt in a request",
            )),
        }
    }
}

pub(super) async fn post(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let CompletionRequest { prompt, options } = body::json(&app, request).await?;
    let model = options.find(&app)?;
    let request = options.request(&app, model, prompt.prompt()?)?;
    let lease = options.acquire(&app, model).await?;
    let reply = Reply::new(Completion, &options.model);
    let events = lease.submit(request);
    match options.is_stream() {
        true => reply.stream(&app, events, options.includes_usage()).await,
        false => reply.whole(events).await,
    }
}

/// The plainest form: text in, text out.
pub(super) async fn generate(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let CompletionRequest { prompt, options } = body::json(&app, request).await?;
    if options.is_stream() {
        return Err(ApiError::unsupported("stream", "a stream from /generate"));
    }
    let model = options.find(&app)?;
    let request = options.request(&app, model, prompt.prompt()?)?;
    let lease = options.acquire(&app, model).await?;
    let whole = collect(lease.submit(request)).await?;
    Ok(json_response(
        StatusCode::OK,
        &json!({"generated": whole.text}),
    ))
}

struct Completion;

impl Shape for Completion {
    fn choice(&self, text: &str, finish_reason: &str) -> Value {
        json!({"index": 0, "text": text, "logprobs": null, "finish_reason": finish_reason})
    }

    fn first(&self) -> Option<Value> {
        None
    }

    fn text(&self, text: &str) -> Value {
        json!({"index": 0, "text": text, "logprobs": null, "finish_reason": null})
    }

    fn last(&self, finish_reason: &str) -> Value {
        json!({"index": 0, "text": "", "logprobs": null, "finish_reason": finish_reason})
    }

    fn id_prefix(&self) -> &'static str {
        "cmpl"
    }

    fn object(&self) -> &'static str {
        "text_completion"
    }

    fn chunk_object(&self) -> &'static str {
        "text_completion"
    }
}
