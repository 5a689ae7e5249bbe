//! The API as clients see it, over real sockets, with an engine that answers without a model.

mod extras;
mod hostile;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::*;
use crate::client::Client;
use crate::config::Config;
use crate::testing::{FakeEngine, FakeState, MODEL_BYTES, config_of, model_config};

struct Server {
    address: SocketAddr,
    client: Client,
    state: Arc<FakeState>,
    runtime: tokio::runtime::Runtime,
    shutdown: Option<oneshot::Sender<()>>,
    task: Option<tokio::task::JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

/// A server with the models `alpha` and `beta` (also called `gpt-4o`), of which one has room.
fn server(change: impl FnOnce(&mut Config)) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let mut models = ["alpha", "beta"]
        .map(|name| model_config(name, folder.path()))
        .to_vec();
    models[1].aliases = vec!["gpt-4o".to_owned()];
    let mut config = config_of(models);
    config.receive_timeout = Duration::from_millis(300);
    config.shutdown_timeout = Duration::from_millis(300);
    change(&mut config);
    let engine = FakeEngine::default();
    let state = Arc::clone(&engine.state);
    let host = Arc::new(Host::new(&config, MODEL_BYTES, engine).unwrap());
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().worker_threads(2).build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let key = config.api_keys.first().cloned();
    let (shutdown, ended) = oneshot::channel();
    let task = runtime.spawn(serve(listener, config, host, async {
        let _ = ended.await;
    }));
    Server {
        address,
        client: Client::new(address, key),
        state,
        runtime,
        shutdown: Some(shutdown),
        task: Some(task),
        _folder: folder,
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        assert_eq!(
            self.state.loaded.load(Ordering::SeqCst),
            0,
            "a model outlives its server"
        );
    }
}

impl Server {
    fn stop(&mut self) {
        self.shutdown.take();
        if let Some(task) = self.task.take() {
            self.runtime.block_on(task).unwrap();
        }
    }

    fn get(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.runtime.block_on(self.client.get(path)).unwrap();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, body) = self.runtime.block_on(self.client.post(path, body)).unwrap();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    fn chat(&self, extra: &Value) -> (u16, Value) {
        self.post("/v1/chat/completions", &chat("alpha", extra))
    }

    /// The data of a stream's messages, parsed; `[DONE]` is `null`.
    fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let (status, body) = self.runtime.block_on(self.client.post(path, body)).unwrap();
        let text = String::from_utf8(body).unwrap();
        assert_eq!(status, 200, "{text}");
        let messages = text
            .split("\n\n")
            .filter(|message| !message.is_empty() && !message.starts_with(':'));
        messages
            .map(|message| {
                let data = message.strip_prefix("data: ").unwrap();
                if data == "[DONE]" {
                    Value::Null
                } else {
                    serde_json::from_str(data).unwrap()
                }
            })
            .collect()
    }

    /// Sends bytes as they are; what comes back until the server closes, or for a second.
    fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(3)))
            .unwrap();
        // A server that has seen enough closes early.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[track_caller]
    fn still_works(&self) {
        let (status, answer) = self.chat(&json!({}));
        assert_eq!(status, 200, "{answer}");
    }
}

fn chat(model: &str, extra: &Value) -> Value {
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": "hi there"}]});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn request(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}").into_bytes()
}

const JSON: &str = "Content-Type: application/json\r\n";

/// An error in OpenAI's shape.
#[track_caller]
fn assert_error(status: u16, body: &Value, expected: u16, word: &str) {
    assert_eq!(status, expected, "{body}");
    let error = body["error"]
        .as_object()
        .unwrap_or_else(|| panic!("{body}"));
    let keys: Vec<&String> = error.keys().collect();
    assert_eq!(keys, ["code", "message", "param", "type"]);
    assert!(error["type"].is_string());
    assert!(
        error["message"].as_str().unwrap().contains(word),
        "{word:?} is not in {body}"
    );
}

#[test]
fn a_chat_is_answered_as_openai_answers() {
    let server = server(|_| {});
    let (status, answer) = server.chat(&json!({"user": "me", "no_such_key": [1]}));
    assert_eq!(status, 200, "{answer}");
    let parsed: async_openai::types::chat::CreateChatCompletionResponse =
        serde_json::from_value(answer.clone()).unwrap();
    assert_eq!(
        parsed.choices[0].message.content.as_deref(),
        Some("alpha says user: hi there")
    );
    assert_eq!(parsed.usage.unwrap().total_tokens, 12);
    assert!(parsed.id.starts_with("chatcmpl-") && parsed.object == "chat.completion");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert!(answer["timings"]["predicted_per_second"].as_f64().unwrap() > 0.0);
    assert_ne!(server.chat(&json!({})).1["id"], answer["id"]);

    let parts = json!({"messages": [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": null},
    ]});
    let text = server.chat(&parts).1["choices"][0]["message"]["content"].clone();
    assert_eq!(text, "alpha says system: be kind; user: ab; assistant: ");
}

#[test]
fn a_chat_is_streamed_as_openai_streams() {
    let server = server(|_| {});
    let body = chat(
        "gpt-4o",
        &json!({"stream": true, "stream_options": {"include_usage": true}}),
    );
    let messages = server.stream("/v1/chat/completions", &body);
    assert_eq!(messages.last(), Some(&Value::Null));
    let chunks = &messages[..messages.len() - 1];
    let mut text = String::new();
    for chunk in chunks {
        let parsed: async_openai::types::chat::CreateChatCompletionStreamResponse =
            serde_json::from_value(chunk.clone()).unwrap();
        assert_eq!(
            (parsed.model.as_str(), &chunk["id"]),
            ("gpt-4o", &chunks[0]["id"])
        );
        assert_eq!(chunk["created"], chunks[0]["created"]);
        text.extend(
            parsed
                .choices
                .iter()
                .filter_map(|choice| choice.delta.content.clone()),
        );
    }
    assert_eq!(text, "beta says user: hi there");
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let [.., last, usage] = chunks else {
        panic!("{chunks:?}")
    };
    assert_eq!(
        last["choices"][0],
        json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop"})
    );
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 5);
    let without = server.stream(
        "/v1/chat/completions",
        &chat("alpha", &json!({"stream": true})),
    );
    assert!(without.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[test]
fn completions_take_text_and_tokens() {
    let server = server(|_| {});
    for (prompt, expected) in [
        (json!("one"), "alpha says one"),
        (json!(["one"]), "alpha says one"),
        (json!([1, 2]), "alpha says [Token(1), Token(2)]"),
        (json!([[1, 2]]), "alpha says [Token(1), Token(2)]"),
    ] {
        let body = json!({"model": "alpha", "prompt": prompt});
        let (status, answer) = server.post("/v1/completions", &body);
        assert_eq!(
            (status, answer["choices"][0]["text"].as_str()),
            (200, Some(expected)),
            "{answer}"
        );
        serde_json::from_value::<async_openai::types::completions::CreateCompletionResponse>(
            answer,
        )
        .unwrap();
    }
    let body = json!({"model": "alpha", "prompt": "one", "stream": true});
    let messages = server.stream("/v1/completions", &body);
    let texts = messages
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["text"].as_str());
    assert_eq!(texts.collect::<String>(), "alpha says one");
    let (status, body) = server.post(
        "/v1/completions",
        &json!({"model": "alpha", "prompt": ["a", "b"]}),
    );
    assert_error(status, &body, 400, "prompt");
    let (status, body) = server.post(
        "/generate",
        &json!({"model": "alpha", "prompt": "one", "max_tokens": 5, "temperature": 0}),
    );
    assert_eq!(
        (status, body),
        (200, json!({"generated": "alpha says one"}))
    );
}

#[test]
fn models_are_listed_loaded_and_unloaded() {
    let server = server(|_| {});
    let (_, list) = server.get("/v1/models");
    serde_json::from_value::<async_openai::types::models::ListModelResponse>(list.clone()).unwrap();
    let ids: Vec<&Value> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| &model["id"])
        .collect();
    assert_eq!(ids, ["alpha", "beta", "gpt-4o"]);
    assert_eq!(server.get("/v1/models/gpt-4o").1["id"], "gpt-4o");
    let state = |model: usize| server.get("/models").1["data"][model]["status"]["state"].clone();
    assert_eq!(state(0), "unloaded");
    assert_eq!(
        server.post("/models/load", &json!({"model": "alpha"})),
        (200, json!({"success": true}))
    );
    let wait = |expected: &str| {
        let started = Instant::now();
        while state(0) != expected {
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "it stays {}",
                state(0)
            );
            thread::sleep(Duration::from_millis(2));
        }
    };
    wait("idle");
    let (_, list) = server.get("/models");
    let alpha = &list["data"][0];
    assert_eq!(alpha["status"]["value"], "loaded");
    assert_eq!(
        (&alpha["held_bytes"], &alpha["resident_bytes"]),
        (&json!(MODEL_BYTES), &json!(MODEL_BYTES))
    );
    assert_eq!(alpha["file"], "present");
    assert_eq!(
        (&list["held_bytes"], &list["budget_bytes"]),
        (&json!(MODEL_BYTES), &json!(MODEL_BYTES))
    );
    assert!(list["process"]["resident_bytes"].as_u64().unwrap() > 0);
    server.post("/models/unload", &json!({"model": "alpha"}));
    wait("unloaded");
    assert_eq!(
        server.state.loads.load(Ordering::SeqCst),
        1,
        "listings load nothing"
    );
    for path in ["/models/load", "/models/unload"] {
        let (status, body) = server.post(path, &json!({"model": "gamma"}));
        assert_error(status, &body, 404, "gamma");
    }
}

#[test]
fn health_metrics_and_page_need_no_model() {
    let server = server(|_| {});
    server.still_works();
    assert_eq!(server.get("/health"), (200, json!({"status": "ok"})));
    assert_eq!(server.get("/v1/health").0, 200);
    let (status, body) = server
        .runtime
        .block_on(server.client.get("/metrics"))
        .unwrap();
    let text = String::from_utf8(body).unwrap();
    assert_eq!(status, 200);
    for line in [
        "llamacpp:prompt_tokens_total 7",
        "llamacpp:requests_processing 0",
        "llamacpp:n_decode_total 0",
        "faultline_model_loads_total{model=\"alpha\"} 1",
        "faultline_model_loads_total{model=\"beta\"} 0",
        "faultline_model_held_bytes{model=\"alpha\"} 10485760",
        "faultline_model_delivered_bytes_total{model=\"alpha\"} 0",
        "# TYPE faultline_model_hits_total counter",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in\n{text}"
        );
    }
    // Every sample is below the head of its metric.
    let mut name = String::new();
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("# TYPE ") {
            name = head.split(' ').next().unwrap().to_owned();
        } else if !line.starts_with('#') {
            assert!(line.starts_with(&name), "{line} is below {name}");
            assert!(
                line.rsplit(' ')
                    .next()
                    .unwrap()
                    .parse::<f64>()
                    .unwrap()
                    .is_finite(),
                "{line}"
            );
        }
    }
    let page = server.raw(&request("GET", "/", "", ""));
    assert!(
        page.starts_with("HTTP/1.1 200")
            && page.contains("content-security-policy: default-src 'none'")
    );
    assert!(
        !page.contains("http://") && !page.contains("https://"),
        "the page needs nothing else"
    );
}

#[test]
fn bad_values_are_named() {
    let server = server(|_| {});
    for (extra, word) in [
        (json!({"messages": []}), "empty"),
        (
            json!({"messages": [{"role": "wizard", "content": "x"}]}),
            "wizard",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "image_url",
        ),
        (json!({"messages": "hello"}), "sequence"),
        (json!({"temperature": -1}), "temperature"),
        (json!({"top_p": 1.1}), "top_p"),
        (json!({"top_k": -1}), "top_k"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (
            json!({"max_completion_tokens": -7}),
            "max_completion_tokens",
        ),
        (json!({"stop": vec!["x"; 17]}), "stop"),
        (json!({"stop": 5}), "stop"),
        (json!({"seed": "seven"}), "string"),
        (json!({"keep_alive": "soon"}), "soon"),
        (json!({"n": 2}), "`n`"),
        (json!({"tools": [{"type": "function"}]}), "tools"),
        (json!({"logprobs": "yes"}), "boolean"),
        (
            json!({"logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
        ),
        (json!({"logit_bias": {"5": 1}}), "logit_bias"),
        (json!({"frequency_penalty": 0.5}), "frequency_penalty"),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
        ),
        (
            json!({"messages": [{"role": "user", "content": "too long"}]}),
            "200 tokens",
        ),
    ] {
        let (status, body) = server.chat(&extra);
        assert_error(status, &body, 400, word);
    }
    let neutral = json!({"n": 1, "tools": [], "logprobs": false, "logit_bias": {}, "presence_penalty": 0,
        "response_format": {"type": "text"}, "stop": null, "seed": -1, "max_tokens": -1, "tool_choice": "none"});
    assert_eq!(server.chat(&neutral).0, 200);
    assert_eq!(server.chat(&json!({"n": 2})).1["error"]["param"], "n");
    let missing = server.post("/v1/chat/completions", &json!({"messages": []}));
    assert_error(missing.0, &missing.1, 400, "model");
    assert_eq!(missing.1["error"]["param"], "model");
}

#[test]
fn an_error_in_a_stream_is_a_message() {
    let server = server(|_| {});
    let body = json!({"model": "alpha", "prompt": "break it", "stream": true});
    let messages = server.stream("/v1/completions", &body);
    assert_eq!(messages.last().unwrap()["error"]["message"], "it broke");
    let (status, body) = server.post(
        "/v1/completions",
        &json!({"model": "alpha", "prompt": "break it"}),
    );
    assert_error(status, &body, 500, "it broke");
    let too_long = json!({"model": "alpha", "prompt": "too long", "stream": true});
    let (status, body) = server.post("/v1/completions", &too_long);
    assert_error(status, &body, 400, "200 tokens");
    assert_eq!(body["error"]["code"], "context_length_exceeded");
}

#[test]
fn keys_are_asked_for() {
    let server = server(|config| config.api_keys = vec!["right".to_owned(), "other".to_owned()]);
    server.still_works();
    let stranger = Client::new(server.address, None);
    for path in ["/v1/models", "/models", "/metrics"] {
        let (status, body) = server.runtime.block_on(stranger.get(path)).unwrap();
        assert_error(
            status,
            &serde_json::from_slice(&body).unwrap(),
            401,
            "Invalid API Key",
        );
    }
    for path in ["/", "/health"] {
        assert_eq!(server.runtime.block_on(stranger.get(path)).unwrap().0, 200);
    }
    let (status, _) = server
        .runtime
        .block_on(stranger.post("/models/load", &json!({"model": "alpha"})))
        .unwrap();
    assert_eq!(status, 401);
}

#[test]
fn a_model_that_cannot_be_loaded_says_why() {
    let server = server(|_| {});
    *server.state.fails.lock().unwrap() = Some("the disk is on fire".to_owned());
    for _ in 0..2 {
        let (status, body) = server.chat(&json!({}));
        assert_error(status, &body, 503, "the disk is on fire");
    }
    let status = server.get("/models").1["data"][0]["status"].clone();
    assert_eq!(
        (&status["value"], &status["failed"]),
        (&json!("unloaded"), &json!(true))
    );
    assert_eq!(status["reason"], "the disk is on fire");
}
