//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use llama_rs::ChatMessage;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::App;
use super::body;
use super::error::ApiError;
use super::logprobs::ChatLogprobs;
use super::options::{Options, candidates};
use super::reply::{Reply, Shape};
use crate::generate::{ChosenToken, Prompt};

#[derive(Debug, Deserialize)]
struct ChatRequest {
    messages: Vec<Message>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
    #[serde(flatten)]
    options: Options,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    content: Option<Content>,
    tool_calls: Option<Vec<Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "`content` must be a text or a list of parts")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

pub(super) async fn post(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let ChatRequest {
        messages,
        logprobs,
        top_logprobs,
        options,
    } = body::json(&app, request).await?;
    let model = options.find(&app)?;
    let has_logprobs = logprobs == Some(true);
    let top = candidates("top_logprobs", top_logprobs.filter(|_| has_logprobs))?;
    let probabilities = has_logprobs.then_some(top.unwrap_or(0));
    let request = options.request(&app, model, Prompt::Chat(chat(messages)?), probabilities)?;
    let lease = options.acquire(&app, model).await?;
    let reply = Reply::new(Chat { has_logprobs }, &options.model);
    let events = lease.submit(request);
    match options.is_stream() {
        true => reply.stream(&app, events, options.includes_usage()).await,
        false => reply.whole(events).await,
    }
}

fn chat(messages: Vec<Message>) -> Result<Vec<ChatMessage>, ApiError> {
    let refused = |index: usize, problem: &str| {
        Err(ApiError::parameter(
            "messages",
            format!("`messages[{index}]`: {problem}"),
        ))
    };
    if messages.is_empty() {
        return Err(ApiError::parameter("messages", "`messages` is empty"));
    }
    let mut chat = Vec::with_capacity(messages.len());
    for (index, message) in messages.into_iter().enumerate() {
        let role = match message.role.as_str() {
            "system" | "developer" => "system",
            "user" => "user",
            "assistant" => "assistant",
            "tool" => "tool",
            other => {
                let shown: String = other.chars().take(40).collect();
                return refused(index, &format!("the role {shown:?} is not known"));
            }
        };
        if message.tool_calls.is_some_and(|calls| !calls.is_empty()) {
            return refused(index, "`tool_calls` are not supported");
        }
        let content = match message.content {
            None => String::new(),
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => {
                if let Some(part) = parts.iter().find(|part| part.kind != "text") {
                    let shown: String = part.kind.chars().take(40).collect();
                    return refused(index, &format!("parts of type {shown:?} are not supported"));
                }
                parts.into_iter().filter_map(|part| part.text).collect()
            }
        };
        chat.push(ChatMessage::new(role, content));
    }
    Ok(chat)
}

/// Whether the request asked for probabilities.
struct Chat {
    has_logprobs: bool,
}

/// The choice of a chunk.
#[derive(Serialize)]
struct ChatChunk<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

impl Chat {
    fn logprobs(&self, tokens: &[ChosenToken]) -> Option<ChatLogprobs> {
        self.has_logprobs.then(|| ChatLogprobs::new(tokens))
    }
}

impl Shape for Chat {
    fn whole(&mut self, text: &str, tokens: &[ChosenToken], finish_reason: &str) -> Value {
        json!({
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": null},
            "logprobs": self.logprobs(tokens),
            "finish_reason": finish_reason,
        })
    }

    fn first(&self) -> Option<impl Serialize> {
        Some(ChatChunk {
            index: 0,
            delta: Delta {
                role: Some("assistant"),
                content: Some(""),
            },
            logprobs: None,
            finish_reason: None,
        })
    }

    fn text(&mut self, text: &str, tokens: &[ChosenToken]) -> impl Serialize {
        ChatChunk {
            index: 0,
            delta: Delta {
                role: None,
                content: Some(text),
            },
            logprobs: self.logprobs(tokens),
            finish_reason: None,
        }
    }

    fn last(&self, finish_reason: &'static str) -> impl Serialize {
        ChatChunk {
            index: 0,
            delta: Delta::default(),
            logprobs: None,
            finish_reason: Some(finish_reason),
        }
    }

    fn id_prefix(&self) -> &'static str {
        "chatcmpl"
    }

    fn object(&self) -> &'static str {
        "chat.completion"
    }

    fn chunk_object(&self) -> &'static str {
        "chat.completion.chunk"
    }
}
