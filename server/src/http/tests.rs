//! The API as clients see it, over real sockets, with an engine that answers without a model.

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
        (json!({"logprobs": true}), "logprobs"),
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
fn names_are_names_and_not_paths() {
    let server = server(|_| {});
    for name in [
        "gamma",
        "",
        "../alpha",
        "/etc/passwd",
        "alpha.gguf",
        "alpha\0",
        "ALPHA",
        &"x".repeat(5000),
    ] {
        let (status, body) = server.post("/v1/chat/completions", &chat(name, &json!({})));
        assert_error(status, &body, 404, "not configured");
        assert_eq!(body["error"]["code"], "model_not_found");
        assert!(body.to_string().len() < 1000);
    }
    for path in [
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/models/%00",
        "/no/such",
        "/../../etc/passwd",
        "/models/",
    ] {
        let (status, body) = server.get(path);
        assert_eq!(status, 404, "{path}: {body}");
        assert!(body["error"]["message"].is_string(), "{path}: {body}");
    }
    server.still_works();
}

#[test]
fn hostile_requests_are_refused_and_the_next_one_works() {
    let server = server(|config| config.body_limit_bytes = 10_000);
    let path = "/v1/chat/completions";
    let deep = format!(
        "{{\"model\":\"alpha\",\"messages\":{}{}}}",
        "[".repeat(4000),
        "]".repeat(4000)
    );
    let deep_unknown = format!(
        "{{\"model\":\"alpha\",\"messages\":[],\"x\":{}{}}}",
        "[".repeat(4000),
        "]".repeat(4000)
    );
    let large = format!("{{\"x\":\"{}\"}}", "a".repeat(20_000));
    let chunked = format!(
        "{}4000\r\n{}\r\n0\r\n\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n",
        "a".repeat(0x4000)
    );
    let cases: Vec<(Vec<u8>, u16)> = vec![
        (request("POST", path, JSON, "{"), 400),
        (request("POST", path, JSON, ""), 400),
        (request("POST", path, JSON, "null"), 400),
        (request("POST", path, JSON, "[]"), 400),
        (
            request(
                "POST",
                path,
                JSON,
                "{\"model\": \"alpha\", \"model\": \"beta\"}",
            ),
            400,
        ),
        (request("POST", path, JSON, "{\"model\": \"\\ud800\"}"), 400),
        (request("POST", path, JSON, &deep), 400),
        (request("POST", path, JSON, &deep_unknown), 400),
        (request("POST", path, JSON, &large), 413),
        (chunked.into_bytes(), 413),
        (request("POST", path, "", "{}"), 415),
        (
            request("POST", path, "Content-Type: text/plain\r\n", "{}"),
            415,
        ),
        (request("GET", path, "", ""), 405),
        (request("DELETE", "/models", "", ""), 405),
        (request("BREW", "/", "", ""), 405),
        (b"GARBAGE\r\n\r\n".to_vec(), 400),
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
            400,
        ),
        (
            format!("GET /health HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(5000)).into_bytes(),
            431,
        ),
        (
            format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000)).into_bytes(),
            414,
        ),
        (
            b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n".to_vec(),
            400,
        ),
    ];
    for (bytes, expected) in cases {
        let answer = server.raw(&bytes);
        let shown: String = answer.chars().take(300).collect();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {expected}")),
            "{expected}: {shown}"
        );
        // hyper answers what is no HTTP by itself, without a body.
        if let Some((_, body)) = answer
            .split_once("\r\n\r\n")
            .filter(|(_, body)| !body.is_empty())
        {
            let body: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{shown}"));
            assert!(body["error"]["message"].is_string(), "{shown}");
        }
    }
    server.still_works();
}

#[test]
fn random_bodies_are_refused() {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let server = server(|_| {});
    let seed = RandomState::new().build_hasher().finish();
    println!("seed {seed}");
    let mut state = seed | 1;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let valid = chat("alpha", &json!({"stop": ["x"], "temperature": 0.5})).to_string();
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream.set_nodelay(true).unwrap();
    let mut refused = 0;
    for round in 0..10_000u64 {
        let mut body = valid.clone().into_bytes();
        if round % 3 == 0 {
            body = (0..random() % 200).map(|_| random() as u8).collect();
        } else {
            for _ in 0..=random() % 4 {
                let at = random() as usize % body.len();
                body[at] = if round % 3 == 1 {
                    random() as u8
                } else {
                    b"{}[]\",:0-e"[random() as usize % 10]
                };
            }
        }
        let path =
            ["/v1/chat/completions", "/generate", "/models/unload"][(round % 7 % 3) as usize];
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n{JSON}\r\n",
            body.len()
        );
        stream
            .write_all(&[head.as_bytes(), &body].concat())
            .unwrap();
        let (status, answer) = read_answer(&mut stream);
        if status != 200 {
            assert!(
                (400..500).contains(&status),
                "{status}: {answer}, seed {seed}"
            );
            assert!(answer["error"]["message"].is_string(), "{answer}");
            refused += 1;
        }
    }
    assert!(refused > 5000, "only {refused} were refused");
    server.still_works();
}

/// One answer of a connection that stays.
fn read_answer(stream: &mut TcpStream) -> (u16, Value) {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes).unwrap().to_ascii_lowercase();
    let length = head
        .split("content-length: ")
        .nth(1)
        .unwrap()
        .split("\r\n")
        .next()
        .unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    (
        head[9..12].parse().unwrap(),
        serde_json::from_slice(&body).unwrap(),
    )
}

#[test]
fn slow_and_silent_clients_are_sent_away() {
    let server = server(|_| {});
    // Connected and silent, half a head, half a body.
    let heads = [
        String::new(),
        "POST /generate HTT".to_owned(),
        format!("POST /generate HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: 100\r\n\r\n{{\"mod"),
    ];
    let streams: Vec<TcpStream> = heads
        .iter()
        .cycle()
        .take(60)
        .map(|head| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    server.still_works();
    for (index, mut stream) in streams.into_iter().enumerate() {
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut answer = Vec::new();
        stream
            .read_to_end(&mut answer)
            .unwrap_or_else(|error| panic!("{index}: {error}"));
        if index % 3 == 2 {
            let answer = String::from_utf8(answer).unwrap();
            assert!(
                answer.starts_with("HTTP/1.1 408") && answer.contains("receive_timeout"),
                "{answer}"
            );
        }
    }
    server.still_works();
}

#[test]
fn a_client_that_leaves_cancels_its_request() {
    let server = server(|config| config.ping_interval = Duration::from_millis(20));
    for is_stream in [true, false] {
        server.state.is_held.store(true, Ordering::SeqCst);
        let body = chat("alpha", &json!({"stream": is_stream})).to_string();
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream
            .write_all(&request("POST", "/v1/chat/completions", JSON, &body))
            .unwrap();
        let running = || {
            server.get("/models").1["data"][0]["running"]
                .as_u64()
                .unwrap()
        };
        let wait = |expected: u64| {
            let started = Instant::now();
            while running() != expected {
                assert!(
                    started.elapsed() < Duration::from_secs(10),
                    "{} run",
                    running()
                );
                thread::sleep(Duration::from_millis(2));
            }
        };
        wait(1);
        if is_stream {
            // While the prompt is computed, comments come.
            let mut seen = String::new();
            let mut bytes = [0; 4096];
            while !seen.contains(": ping") {
                let count = stream.read(&mut bytes).unwrap();
                assert!(count > 0, "{seen}");
                seen += &String::from_utf8_lossy(&bytes[..count]);
            }
            assert!(seen.contains("text/event-stream"), "{seen}");
        }
        drop(stream);
        wait(0);
        server.state.is_held.store(false, Ordering::SeqCst);
        server.still_works();
    }
    assert_eq!(
        server.get("/models").1["data"][0]["counters"]["cancelled"],
        2
    );
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
fn queues_are_bounded() {
    let server = server(|config| {
        config.queue_limit = 3;
        for model in config.models.values_mut() {
            (model.concurrency_limit, model.queue_limit) = (1, 2);
        }
    });
    server.state.is_held.store(true, Ordering::SeqCst);
    let ask = |model: &str| {
        let (client, body) = (server.client.clone(), chat(model, &json!({})));
        server
            .runtime
            .spawn(async move { client.post("/v1/chat/completions", &body).await.unwrap().0 })
    };
    let mut asked = Vec::new();
    // One runs and two wait for alpha; one waits for beta.
    for (model, alpha) in [
        ("alpha", (1, 0)),
        ("alpha", (1, 1)),
        ("alpha", (1, 2)),
        ("beta", (1, 2)),
    ] {
        asked.push(ask(model));
        let expected = (
            json!(alpha.0),
            json!(alpha.1),
            json!(u8::from(model == "beta")),
        );
        let started = Instant::now();
        loop {
            let list = server.get("/models").1;
            let (a, b) = (&list["data"][0], &list["data"][1]);
            if (
                a["running"].clone(),
                a["waiting"].clone(),
                b["waiting"].clone(),
            ) == expected
            {
                break;
            }
            assert!(started.elapsed() < Duration::from_secs(10), "{list}");
            thread::sleep(Duration::from_millis(2));
        }
    }
    let (status, body) = server.chat(&json!({}));
    assert_error(status, &body, 429, "alpha");
    let (status, body) = server.post("/v1/chat/completions", &chat("beta", &json!({})));
    assert_error(status, &body, 503, "wait");
    let head = server.raw(&request(
        "POST",
        "/v1/chat/completions",
        JSON,
        &chat("beta", &json!({})).to_string(),
    ));
    assert!(head.contains("retry-after: 1\r\n"), "{head}");
    server.state.is_held.store(false, Ordering::SeqCst);
    for answer in asked {
        assert_eq!(server.runtime.block_on(answer).unwrap(), 200);
    }
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

#[test]
fn shutting_down_lets_requests_end() {
    let mut server = server(|config| config.shutdown_timeout = Duration::from_secs(20));
    server.state.is_held.store(true, Ordering::SeqCst);
    let (client, body) = (server.client.clone(), chat("alpha", &json!({})));
    let asked = server
        .runtime
        .spawn(async move { client.post("/v1/chat/completions", &body).await.unwrap().0 });
    while server.get("/models").1["data"][0]["running"] != 1 {
        thread::sleep(Duration::from_millis(2));
    }
    server.shutdown.take();
    // Nobody new gets in once the socket is closed.
    while TcpStream::connect(server.address).is_ok() {
        thread::sleep(Duration::from_millis(2));
    }
    server.state.is_held.store(false, Ordering::SeqCst);
    assert_eq!(server.runtime.block_on(asked).unwrap(), 200);
    server.stop();
}
