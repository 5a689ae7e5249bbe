//! Probabilities of tokens, as OpenAI's two kinds of answers show them.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::generate::{Candidate, ChosenToken};

/// What OpenAI says for a probability of 0, which has no logarithm.
const LEAST: f32 = -9999.0;

/// `logprobs` of a chat.
#[derive(Debug, Serialize)]
pub(super) struct ChatLogprobs {
    content: Vec<ChatToken>,
    refusal: Option<()>,
}

#[derive(Debug, Serialize)]
struct ChatToken {
    #[serde(flatten)]
    token: TokenLogprob,
    top_logprobs: Vec<TokenLogprob>,
}

#[derive(Debug, Serialize)]
struct TokenLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl TokenLogprob {
    fn new(candidate: &Candidate) -> TokenLogprob {
        TokenLogprob {
            token: shown(candidate),
            logprob: candidate.log_probability.max(LEAST),
            bytes: candidate.bytes.clone(),
        }
    }
}

/// The bytes of a token may be a part of a character.
fn shown(candidate: &Candidate) -> String {
    String::from_utf8_lossy(&candidate.bytes).into_owned()
}

impl ChatLogprobs {
    pub(super) fn new(tokens: &[ChosenToken]) -> ChatLogprobs {
        let token = |token: &ChosenToken| ChatToken {
            token: TokenLogprob::new(&token.chosen),
            top_logprobs: token.top.iter().map(TokenLogprob::new).collect(),
        };
        ChatLogprobs {
            content: tokens.iter().map(token).collect(),
            refusal: None,
        }
    }
}

/// `logprobs` of a completion.
#[derive(Debug, Serialize)]
pub(super) struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<Map<String, Value>>,
    /// Characters of the text before each token.
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// `offset` counts the characters of all tokens so far.
    pub(super) fn new(tokens: &[ChosenToken], offset: &mut usize) -> CompletionLogprobs {
        let top = |token: &ChosenToken| {
            let pairs = token.top.iter().map(|candidate| {
                let logprob = f64::from(candidate.log_probability.max(LEAST));
                (shown(candidate), Value::from(logprob))
            });
            pairs.collect()
        };
        let names: Vec<String> = tokens.iter().map(|token| shown(&token.chosen)).collect();
        let offsets = names.iter().map(|name| {
            let start = *offset;
            *offset += name.chars().count();
            start
        });
        CompletionLogprobs {
            text_offset: offsets.collect(),
            token_logprobs: tokens
                .iter()
                .map(|token| token.chosen.log_probability.max(LEAST))
                .collect(),
            top_logprobs: tokens.iter().map(top).collect(),
            tokens: names,
        }
    }
}
