//! `POST /v1/completions`, and `POST /generate`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use llama_rs::Token;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::ApiError;
use super::logprobs::CompletionLogprobs;
use super::options::{Options, candidates};
use super::reply::{Reply, Shape, collect};
use super::{App, body, json_response};
use crate::generate::{ChosenToken, Prompt};

#[derive(Debug, Deserialize)]
struct CompletionRequest {
    prompt: PromptValue,
    logprobs: Option<i64>,
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
    let CompletionRequest {
        prompt,
        logprobs,
        options,
    } = body::json(&app, request).await?;
    let model = options.find(&app)?;
    let probabilities = candidates("logprobs", logprobs)?;
    let request = options.request(&app, model, prompt.prompt()?, probabilities)?;
    let lease = options.acquire(&app, model).await?;
    let shape = Completion {
        has_logprobs: probabilities.is_some(),
        offset: 0,
    };
    let reply = Reply::new(shape, &options.model);
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
    let CompletionRequest {
        prompt,
        logprobs,
        options,
    } = body::json(&app, request).await?;
    if options.is_stream() {
        return Err(ApiError::unsupported("stream", "a stream from /generate"));
    }
    if logprobs.is_some() {
        return Err(ApiError::unsupported(
            "logprobs",
            "probabilities from /generate",
        ));
    }
    let model = options.find(&app)?;
    let request = options.request(&app, model, prompt.prompt()?, None)?;
    let lease = options.acquire(&app, model).await?;
    let whole = collect(lease.submit(request)).await?;
    Ok(json_response(
        StatusCode::OK,
        &json!({"generated": whole.text}),
    ))
}

/// A completion while it is sent.
struct Completion {
    has_logprobs: bool,
    /// Characters of the tokens so far.
    offset: usize,
}

/// The choice of a chunk, and of a whole answer.
#[derive(Serialize)]
struct CompletionChoice<'a> {
    index: u32,
    text: &'a str,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'a str>,
}

impl Completion {
    fn choice<'a>(
        &mut self,
        text: &'a str,
        tokens: &[ChosenToken],
        finish_reason: Option<&'a str>,
    ) -> CompletionChoice<'a> {
        let offset = &mut self.offset;
        CompletionChoice {
            index: 0,
            text,
            logprobs: self
                .has_logprobs
                .then(|| CompletionLogprobs::new(tokens, offset)),
            finish_reason,
        }
    }
}

impl Shape for Completion {
    fn whole(&mut self, text: &str, tokens: &[ChosenToken], finish_reason: &str) -> Value {
        json!(self.choice(text, tokens, Some(finish_reason)))
    }

    fn first(&self) -> Option<impl Serialize> {
        None::<()>
    }

    fn text(&mut self, text: &str, tokens: &[ChosenToken]) -> impl Serialize {
        self.choice(text, tokens, None)
    }

    fn last(&self, finish_reason: &'static str) -> impl Serialize {
        CompletionChoice {
            index: 0,
            text: "",
            logprobs: None,
            finish_reason: Some(finish_reason),
        }
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
