//! Clients that are wrong, slow, many, or gone.

use super::*;

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
