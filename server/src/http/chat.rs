//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use llama_rs::ChatMessage;
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::body;
use super::error::ApiError;
use super::options::Options;
use super::reply::{Reply, Shape};
use crate::generate::Prompt;

#[derive(Debug, Deserialize)]
struct ChatRequest {
    messages: Vec<Message>,
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
    let ChatRequest { messages, options } = body::json(&app, request).await?;
    let model = options.find(&app)?;
    let request = options.request(&app, model, Prompt::Chat(chat(messages)?))?;
    let lease = options.acquire(&app, model).await?;
    let reply = Reply::new(Chat, &options.model);
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

struct Chat;

impl Shape for Chat {
    fn choice(&self, text: &str, finish_reason: &str) -> Value {
        json!({
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": null},
            "logprobs": null,
            "finish_reason": finish_reason,
        })
    }

    fn first(&self) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        Some(json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": null}))
    }

    fn text(&self, text: &str) -> Value {
        json!({"index": 0, "delta": {"content": text}, "logprobs": null, "finish_reason": null})
    }

    fn last(&self, finish_reason: &str) -> Value {
        json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": finish_reason})
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
