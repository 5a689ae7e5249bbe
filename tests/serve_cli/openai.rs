//! Requests and answers as the types of `async-openai` see them, with real models.

use async_openai::error::WrappedError;
use async_openai::types::chat::{
    ChatCompletionRequestUserMessage, ChatCompletionStreamOptions, CreateChatCompletionRequest,
    CreateChatCompletionResponse, CreateChatCompletionStreamResponse, FinishReason,
    StopConfiguration,
};
use async_openai::types::completions::{CreateCompletionRequest, CreateCompletionResponse};
use async_openai::types::models::ListModelResponse;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;

impl Server {
    #[track_caller]
    fn typed<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> T {
        let answer = self.call(path, &serde_json::to_value(body).unwrap());
        serde_json::from_value(answer.clone()).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }
}

fn chat(model: &str, question: &str) -> CreateChatCompletionRequest {
    CreateChatCompletionRequest {
        model: model.to_owned(),
        messages: vec![ChatCompletionRequestUserMessage::from(question).into()],
        temperature: Some(0.0),
        max_completion_tokens: Some(24),
        ..CreateChatCompletionRequest::default()
    }
}

#[test]
fn typed_requests_get_typed_answers() {
    let Some((server, models)) = serve_reals("", "") else {
        return;
    };
    let list: ListModelResponse = server.typed("/v1/models", &Value::Null);
    assert_eq!(list.data.len(), 2);
    for (name, _) in models {
        let path = "/v1/chat/completions";
        let request = chat(name, "Name three colours.");
        let answer: CreateChatCompletionResponse = server.typed(path, &request);
        let choice = &answer.choices[0];
        let text = choice.message.content.clone().unwrap();
        let usage = answer.usage.unwrap();
        assert_eq!(
            usage.prompt_tokens + usage.completion_tokens,
            usage.total_tokens
        );
        assert!(matches!(
            (choice.finish_reason.unwrap(), usage.completion_tokens),
            (FinishReason::Length, 24) | (FinishReason::Stop, 1..=24)
        ));

        // A stream has the same text, and the usage at its end.
        let mut streamed = request.clone();
        streamed.stream = Some(true);
        streamed.stream_options = Some(ChatCompletionStreamOptions {
            include_usage: Some(true),
            include_obfuscation: None,
        });
        let chunks = server.stream(path, &serde_json::to_value(&streamed).unwrap());
        let chunks: Vec<CreateChatCompletionStreamResponse> = chunks
            .map(|chunk| serde_json::from_value(chunk).unwrap())
            .collect();
        let pieces = chunks.iter().flat_map(|chunk| &chunk.choices);
        let pieces = pieces.filter_map(|choice| choice.delta.content.as_deref());
        assert_eq!(pieces.collect::<String>(), text);
        assert_eq!(
            chunks.last().unwrap().usage.as_ref().unwrap().total_tokens,
            usage.total_tokens
        );

        // A stop string, and the same seed twice.
        let word = text.split_whitespace().nth(1).unwrap();
        let mut stopped = request.clone();
        stopped.stop = Some(StopConfiguration::StringArray(vec![word.to_owned()]));
        let answer: CreateChatCompletionResponse = server.typed(path, &stopped);
        let found = answer.choices[0].message.content.as_deref();
        assert_eq!(found, text.split(word).next());
        assert_eq!(answer.choices[0].finish_reason, Some(FinishReason::Stop));
        let seeded = || {
            // OpenAI has deprecated seeds, and with them the field.
            let mut request = serde_json::to_value(&request).unwrap();
            (request["temperature"], request["seed"]) = (json!(1.5), json!(7));
            let answer: CreateChatCompletionResponse = server.typed(path, &request);
            answer.choices[0].message.content.clone()
        };
        assert_eq!(seeded(), seeded());

        // Probabilities: the most probable token was taken.
        let mut with_probabilities = request.clone();
        (with_probabilities.logprobs, with_probabilities.top_logprobs) = (Some(true), Some(3));
        let answer: CreateChatCompletionResponse = server.typed(path, &with_probabilities);
        let choice = &answer.choices[0];
        assert_eq!(choice.message.content.as_ref(), Some(&text));
        let tokens = choice.logprobs.as_ref().unwrap().content.as_ref().unwrap();
        let shown: Vec<u8> = tokens
            .iter()
            .flat_map(|token| token.bytes.clone().unwrap())
            .collect();
        assert_eq!(String::from_utf8(shown).unwrap(), text);
        for token in tokens {
            assert_eq!(token.top_logprobs.len(), 3);
            assert_eq!(token.top_logprobs[0].logprob, token.logprob);
            let sum: f32 = token
                .top_logprobs
                .iter()
                .map(|other| other.logprob.exp())
                .sum();
            assert!(
                token.logprob <= 0.0 && (0.0..=1.001).contains(&sum),
                "{token:?}"
            );
        }

        let completion = CreateCompletionRequest {
            model: name.to_owned(),
            prompt: PROMPT.into(),
            max_tokens: Some(8),
            temperature: Some(0.0),
            logprobs: Some(2),
            ..CreateCompletionRequest::default()
        };
        let answer: CreateCompletionResponse = server.typed("/v1/completions", &completion);
        let choice = &answer.choices[0];
        assert!(choice.text.contains("Berlin"), "{}", choice.text);
        let logprobs = choice.logprobs.as_ref().unwrap();
        assert_eq!(logprobs.tokens.concat(), choice.text);
        assert_eq!(
            logprobs.text_offset[1] as usize,
            logprobs.tokens[0].chars().count()
        );

        let mut wrong = request.clone();
        wrong.temperature = Some(-1.0);
        let (status, body) = server.refused(path, &wrong);
        assert_eq!(
            (status, body.error.param.as_deref()),
            (400, Some("temperature"))
        );
    }
    let (status, body) = server.refused("/v1/chat/completions", &chat("nobody", "a"));
    assert_eq!(
        (status, body.error.code.as_deref()),
        (404, Some("model_not_found"))
    );
}

impl Server {
    /// An error as the types read it.
    #[track_caller]
    fn refused(&self, path: &str, body: &impl Serialize) -> (u16, WrappedError) {
        let body = serde_json::to_string(body).unwrap();
        let mut stream = TcpStream::connect(self.address).unwrap();
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (
            head[9..12].parse().unwrap(),
            serde_json::from_str(body).unwrap(),
        )
    }
}

/// The second turn of a conversation computes only what is new, and begins as with nothing kept.
#[test]
fn a_conversation_goes_on_where_it_was() {
    let Some(path) = small() else { return };
    let server = serve(&format!("port = 0\n{}", model("small", &path, "")));
    let ask = |messages: &Value, keeps: bool| {
        let body = json!({"model": "small", "messages": messages, "temperature": 0, "max_tokens": 16,
            "cache_prompt": keeps});
        let answer = server.call("/v1/chat/completions", &body);
        let text = answer["choices"][0]["message"]["content"].clone();
        let usage = &answer["usage"];
        let count = |value: &Value| value.as_u64().unwrap();
        (
            text,
            count(&usage["prompt_tokens"]),
            count(&usage["prompt_tokens_details"]["cached_tokens"]),
        )
    };
    let mut messages =
        json!([{"role": "user", "content": "Tell me about the sea in a few words."}]);
    let (first, n_first, cached) = ask(&messages, true);
    assert_eq!(cached, 0);
    let more = [
        json!({"role": "assistant", "content": first}),
        json!({"role": "user", "content": "And the mountains?"}),
    ];
    messages.as_array_mut().unwrap().extend(more);
    let (second, n_second, cached) = ask(&messages, true);
    assert!(cached > n_first, "{cached} of {n_second} tokens were there");
    // Without it nothing is taken from there.
    let (alone, _, cached) = ask(&messages, false);
    assert_eq!(cached, 0);
    // The last bits may differ, and with them words further on.
    let beginning = |text: &Value| text.as_str().unwrap().chars().take(12).collect::<String>();
    assert_eq!(beginning(&second), beginning(&alone));
}
