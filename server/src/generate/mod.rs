//! Text from a loaded model: what is asked for, what comes back, and the batch that several requests share.

mod batcher;
mod kept;
mod sequence;
mod stop;
#[cfg(test)]
mod tests;

use std::time::Duration;

use llama_rs::{ChatMessage, Token};
use tokio::sync::mpsc::UnboundedSender;

use crate::config::Sampling;
use crate::host::Lease;

pub(crate) use batcher::{Batcher, DecodeError, Decoder, Row};

/// What a model is to continue.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Messages, for the model's chat template.
    Chat(Vec<ChatMessage>),
    /// Text as it is.
    Text(String),
    /// Tokens as they are.
    Tokens(Vec<Token>),
}

/// One generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What comes before.
    pub prompt: Prompt,
    /// How tokens are chosen, and how many.
    pub sampling: Sampling,
    /// Texts that end it. They are not part of the result.
    pub stop: Vec<String>,
    /// Whether it may begin with what an earlier request left in the KV cache. Those numbers may differ in the last bits from the
    /// ones that it would compute, since they come from batches of other sizes.
    pub reuses: bool,
    /// Least time between two [`Event::Text`]; what is generated in between comes together. Text that would have to wait for a
    /// prompt of somebody else does not.
    pub text_interval: Duration,
    /// Whether tokens come with their probabilities, and with those of how many others.
    pub probabilities: Option<u32>,
}

/// A request on its way through a model's thread. It keeps the model until it is dropped.
#[derive(Debug)]
pub struct Job {
    /// What is asked for.
    pub request: Request,
    /// Who listens. At most one message for each token of the context is on its way, so the queue needs no bound. A listener that
    /// went away cancels the job.
    pub events: UnboundedSender<Event>,
    /// The right to use the model.
    pub lease: Lease,
}

/// What becomes of a request, in this order: `Started`, any number of `Text`, and `Done`; or `Failed` at any point.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The prompt was accepted.
    Started {
        /// Its tokens.
        n_prompt: u32,
    },
    /// More of the text: a piece for each token that completed some. Never empty.
    Text(Vec<TextPiece>),
    /// The end.
    Done(Finished),
    /// It could not be done, or not to the end.
    Failed(Failure),
}

/// A piece of the text.
#[derive(Clone, Debug, PartialEq)]
pub struct TextPiece {
    /// Whole characters, never empty.
    pub text: String,
    /// Its tokens, if the request asked for probabilities. One that ends in this piece may begin in an earlier one.
    pub tokens: Vec<ChosenToken>,
}

/// A token that was chosen, and those that could have been.
#[derive(Clone, Debug, PartialEq)]
pub struct ChosenToken {
    /// The one.
    pub chosen: Candidate,
    /// The most probable ones, the most probable first.
    pub top: Vec<Candidate>,
}

/// A token with its probability as the model gives it, before any sampling parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Its text, which may end inside a character.
    pub bytes: Vec<u8>,
    /// Natural logarithm of the probability; at most 0.
    pub log_probability: f32,
}

/// How a generation ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// Tokens of the prompt.
    pub n_prompt: u32,
    /// Those of them that an earlier request had left in the KV cache.
    pub n_cached: u32,
    /// Tokens that were generated; one that ends the text counts, as in llama-server.
    pub n_generated: u32,
    /// From the beginning of its computation to the first token.
    pub prompt_time: Duration,
    /// From there to the end.
    pub generate_time: Duration,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its text, or a stop string came.
    Stop,
    /// The requested number of tokens, or the end of the context.
    Length,
}

impl FinishReason {
    /// OpenAI's word.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// Why a generation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The request cannot be computed with this model.
    #[error("{message}")]
    BadRequest {
        /// The parameter.
        param: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// The prompt is longer than the context.
    #[error("the prompt has {n_prompt} tokens, but the context holds {n_ctx} (n_ctx)")]
    ContextLength {
        /// Tokens of the prompt.
        n_prompt: usize,
        /// Tokens of the context.
        n_ctx: usize,
    },
    /// The model went away: its file changed, or the server ends.
    #[error("{0}")]
    Unavailable(String),
    /// Something that should not happen.
    #[error("{0}")]
    Internal(String),
}
