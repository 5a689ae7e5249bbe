//! What beside text clients may ask for.

use super::*;

#[test]
fn a_chat_comes_with_probabilities() {
    use async_openai::types::chat::{
        CreateChatCompletionResponse, CreateChatCompletionStreamResponse,
    };
    let server = server(|_| {});
    let asked = json!({"logprobs": true, "top_logprobs": 2});
    let (_, answer) = server.chat(&asked);
    let parsed: CreateChatCompletionResponse = serde_json::from_value(answer).unwrap();
    let choice = &parsed.choices[0];
    let tokens = choice.logprobs.as_ref().unwrap().content.as_ref().unwrap();
    let text: String = tokens.iter().map(|token| token.token.as_str()).collect();
    assert_eq!(choice.message.content.as_ref(), Some(&text));
    assert_eq!((tokens[0].logprob, tokens[0].top_logprobs.len()), (-0.5, 2));
    assert_eq!(tokens[0].bytes.as_deref(), Some(&b"alpha "[..]));

    let mut body = chat("alpha", &asked);
    body["stream"] = json!(true);
    let mut streamed = String::new();
    for chunk in server.stream("/v1/chat/completions", &body) {
        let Some(chunk) = Some(chunk).filter(|chunk| !chunk.is_null()) else {
            break;
        };
        let parsed: CreateChatCompletionStreamResponse = serde_json::from_value(chunk).unwrap();
        let logprobs = parsed.choices[0].logprobs.as_ref();
        let tokens = logprobs.and_then(|logprobs| logprobs.content.as_ref());
        streamed.extend(
            tokens
                .into_iter()
                .flatten()
                .map(|token| token.token.clone()),
        );
    }
    assert_eq!(streamed, text);
    // Not asked for.
    assert_eq!(
        server.chat(&json!({})).1["choices"][0]["logprobs"],
        Value::Null
    );
}

#[test]
fn a_completion_comes_with_probabilities() {
    let server = server(|_| {});
    let body = json!({"model": "alpha", "prompt": "one", "logprobs": 1});
    let (_, answer) = server.post("/v1/completions", &body);
    let expected = json!({
        "tokens": ["alpha ", "says ", "one"],
        "token_logprobs": [-0.5, -0.5, -0.5],
        "top_logprobs": [{"alpha ": -0.5}, {"says ": -0.5}, {"one": -0.5}],
        "text_offset": [0, 6, 11],
    });
    assert_eq!(answer["choices"][0]["logprobs"], expected);
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let offsets = server.stream("/v1/completions", &streamed);
    let offsets = offsets.iter().filter_map(|chunk| {
        chunk["choices"][0]["logprobs"]["text_offset"]
            .as_array()
            .cloned()
    });
    assert_eq!(offsets.flatten().collect::<Vec<_>>(), [0, 6, 11]);
    let body = json!({"model": "alpha", "prompt": "one", "logprobs": 21});
    let (status, body) = server.post("/v1/completions", &body);
    assert_error(status, &body, 400, "logprobs");
}

#[test]
fn props_and_slots_load_nothing() {
    let server = server(|_| {});
    let (status, all) = server.get("/props");
    assert_eq!((status, &all["models"]), (200, &json!(["alpha", "beta"])));
    let (_, props) = server.get("/props?x=1&model=gpt%2D4o");
    assert_eq!(
        (&props["model_alias"], &props["is_sleeping"]),
        (&json!("beta"), &json!(true))
    );
    assert_eq!(props["total_slots"], 4);
    assert_eq!(server.get("/slots").1, json!([]));
    assert_eq!(server.state.loads.load(Ordering::SeqCst), 0);
    server.still_works();
    assert_eq!(
        server.get("/props?model=alpha").1["default_generation_settings"]["n_ctx"],
        100
    );
    let (_, slots) = server.get("/slots?model=alpha");
    assert_eq!(slots.as_array().unwrap().len(), 4);
    assert_eq!(slots[0]["is_processing"], false);
    for path in ["/props?model=gamma", "/slots?model=%ff%00"] {
        let (status, body) = server.get(path);
        assert_error(status, &body, 404, "not configured");
    }
}

/// However fast the text comes, each token is a message, and nothing is lost when they share a write.
#[test]
fn tokens_that_share_a_write_are_messages_of_their_own() {
    let server = server(|config| config.stream_interval = Duration::from_secs(3600));
    let prompt = "word ".repeat(300);
    let body = json!({"model": "alpha", "prompt": prompt, "stream": true});
    let messages = server.stream("/v1/completions", &body);
    let texts = messages
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["text"].as_str())
        .filter(|text| !text.is_empty());
    let texts: Vec<&str> = texts.collect();
    assert_eq!(texts.len(), 302);
    assert_eq!(texts.concat(), format!("alpha says {prompt}"));
}
