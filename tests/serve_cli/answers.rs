//! What a server answers, with real models.

use super::*;

#[test]
fn greedy_text_is_that_of_run() {
    let Some((server, models)) = serve_reals("", "") else {
        return;
    };
    for (name, path) in &models {
        let expected = run(path, &["--raw", "-p", PROMPT, "-n", "24"]);
        assert!(expected.contains("Berlin"), "{expected}");
        assert_eq!(server.continued(name, PROMPT, 24), expected, "{name}");

        let body = json!({"model": name, "prompt": PROMPT, "max_tokens": 24, "temperature": 0});
        assert_eq!(
            server.call("/generate", &body),
            json!({"generated": expected})
        );
        let mut stream = body.clone();
        stream["stream"] = json!(true);
        let chunks: Vec<Value> = server.stream("/v1/completions", &stream).collect();
        let texts = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["text"].as_str());
        assert_eq!(texts.collect::<String>(), expected);
        assert!(chunks.len() > 20, "{} chunks", chunks.len());

        // A stop string ends it before its first place, and is not part of it.
        let mut stopped = body.clone();
        stopped["stop"] = json!(["never this", "Berlin"]);
        let answer = server.call("/v1/completions", &stopped);
        let text = answer["choices"][0]["text"].as_str().unwrap();
        assert_eq!(text, expected.split("Berlin").next().unwrap());
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");

        let expected = run(path, &["--chat", "-p", "Name a colour.", "-n", "16"]);
        let body = json!({"model": name, "messages": [{"role": "user", "content": "Name a colour."}],
            "max_tokens": 16, "temperature": 0});
        let answer = server.call("/v1/chat/completions", &body);
        assert_eq!(
            answer["choices"][0]["message"]["content"], expected,
            "{name}"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let Some(path) = small() else { return };
    let server = serve(&format!("port = 0\n{}", model("small", &path, "")));
    let text = |seed: u32| {
        let body = json!({"model": "small", "prompt": "Once upon a time", "max_tokens": 16, "temperature": 1.5,
            "seed": seed});
        server.call("/v1/completions", &body)["choices"][0]["text"].clone()
    };
    assert_eq!(text(7), text(7));
    assert_ne!(text(7), text(8));
}

/// Room for one model, and everybody wants another one: nobody fails, and nobody gets another model's text.
#[test]
fn models_change_places_under_load() {
    let Some((server, models)) = serve_reals("max_loaded = 1", "concurrency_limit = 4") else {
        return;
    };
    let question = "def fibonacci(n):";
    let names = models.map(|(name, _)| name);
    let expected = names.map(|name| server.continued(name, question, 8));
    assert_ne!(expected[0], expected[1]);
    thread::scope(|scope| {
        for client in 0..12 {
            let (server, expected) = (&server, &expected);
            scope.spawn(move || {
                for round in 0..2 {
                    let which = (client + round) % 2;
                    let name = names[which];
                    let body = json!({"model": name, "prompt": question, "max_tokens": 8,
                        "temperature": 0, "stream": true});
                    let chunks = server.stream("/v1/completions", &body);
                    let texts: Vec<String> = chunks
                        .filter_map(|chunk| Some(chunk["choices"][0]["text"].as_str()?.to_owned()))
                        .collect();
                    assert_eq!(texts.concat(), expected[which], "client {client}");
                }
            });
        }
    });
    let loads: u64 = (0..2)
        .map(|i| server.model(i)["counters"]["loads"].as_u64().unwrap())
        .sum();
    assert!((3..=20).contains(&loads), "{loads} loads for 24 requests");
    let shared = server.model(1)["counters"].clone();
    let (steps, sequences) = (&shared["steps"], &shared["decoding_sequences"]);
    assert!(
        sequences.as_u64() > steps.as_u64(),
        "requests did not share batches: {shared}"
    );
}

/// The pager's model keeps its budget, and gives what a mapped one gives.
#[test]
fn a_model_in_the_pager_keeps_its_budget() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = tiny_model(folder.path(), "tiny-gpt-oss");
    let paged = model("paged", &tiny, "prefetch = 'pager'\nbudget = '256MiB'");
    let config = format!(
        "port = 0\nbudget = '1GiB'\n{}{paged}",
        model("mapped", &tiny, "")
    );
    let server = serve(&config);
    for prompt in ["a", "some words more"] {
        assert_eq!(
            server.continued("paged", prompt, 12),
            server.continued("mapped", prompt, 12)
        );
    }
    let listed = server.model(1);
    assert_eq!(listed["budget_bytes"], 256 << 20);
    assert!(
        listed["held_bytes"].as_u64().unwrap() <= 256 << 20,
        "{listed}"
    );
    assert!(
        listed["hit_rate"].is_number() || listed["running"] == 1,
        "{listed}"
    );
    let small = serve_error(&format!("budget = '200MiB'\nport = 0\n{paged}"));
    assert!(
        small.contains("models.paged") && small.contains("256.0 MiB"),
        "{small}"
    );
}
