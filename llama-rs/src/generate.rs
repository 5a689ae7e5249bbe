//! The loop around decode and sample.

use std::ops::ControlFlow;

use crate::batch::Batch;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::sampler::Sampler;
use crate::vocab::Token;

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stop {
    /// The model chose a token that ends a text. It is not part of the result.
    EndOfText,
    /// The requested number of tokens was reached.
    Length,
    /// The KV cache is full.
    ContextFull,
    /// The callback asked to stop. The token that it was given is part of the result.
    Callback,
}

/// A finished generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The new tokens, without the prompt.
    pub tokens: Vec<Token>,
    /// Why it ended.
    pub stop: Stop,
}

/// How to continue a prompt. [`generate`] is the short form.
///
/// ```no_run
/// # fn main() -> llama_rs::Result<()> {
/// # use llama_rs::{Backend, Context, ContextParams, Generation, Model, ModelParams, Sampler};
/// # use std::ops::ControlFlow;
/// # let model = Model::load(&Backend::init(), "model.gguf", &ModelParams::default())?;
/// # let mut context = Context::new(&model, &ContextParams::default())?;
/// let prompt = model.vocab().tokenize("Once", true, false)?;
/// let mut generation = Generation::new(16);
/// generation.ignore_end = true;
/// let done = generation.run(&mut context, &prompt, &mut Sampler::greedy(), |_| ControlFlow::Continue(()))?;
/// assert_eq!(done.tokens.len(), 16);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Most new tokens.
    pub max_new: usize,
    /// Continue after tokens that end a text, as benchmarks do.
    pub ignore_end: bool,
    /// The sequence of the KV cache to continue. The prompt follows what is in it.
    pub sequence: u32,
}

impl Generation {
    /// At most `max_new` tokens in sequence 0, ending where the model ends.
    pub fn new(max_new: usize) -> Generation {
        Generation {
            max_new,
            ignore_end: false,
            sequence: 0,
        }
    }

    /// Decodes `prompt` in batches of at most `n_batch` tokens, then token by token. `on_token` is given each new token
    /// as soon as it is chosen, before the next one is computed.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] for an empty prompt, [`Error::KvCacheFull`] when the prompt does not fit, and what
    /// [`Context::decode`] and [`Sampler::sample`] give.
    pub fn run(
        &self,
        context: &mut Context<'_>,
        prompt: &[Token],
        sampler: &mut Sampler,
        mut on_token: impl FnMut(Token) -> ControlFlow<()>,
    ) -> Result<Generated> {
        if prompt.is_empty() {
            return Err(Error::parameter("prompt", "it has no tokens"));
        }
        let vocab = context.model().vocab();
        let n_ctx = context.n_ctx_seq() as usize;
        let mut position = context
            .memory_seq_pos_max(self.sequence)?
            .map_or(0, |last| last as usize + 1);
        if position + prompt.len() > n_ctx {
            return Err(Error::KvCacheFull {
                n_tokens: prompt.len(),
                n_ctx: context.n_ctx_seq(),
            });
        }

        let batch_tokens = (context.n_batch() as usize).min(prompt.len());
        let mut batch = Batch::new(batch_tokens, self.sequence + 1);
        let chunks = prompt.chunks(batch_tokens);
        let last_chunk = chunks.len() - 1;
        for (number, chunk) in chunks.enumerate() {
            batch.clear();
            for (i, &token) in chunk.iter().enumerate() {
                let wants_logits = number == last_chunk && i + 1 == chunk.len();
                batch.add(token, position as i32, &[self.sequence], wants_logits)?;
                position += 1;
            }
            context.decode(&batch)?;
        }

        let mut tokens = Vec::new();
        let stop = loop {
            if tokens.len() == self.max_new {
                break Stop::Length;
            }
            let token = sampler.sample(context, -1)?;
            if !self.ignore_end && vocab.is_eog(token) {
                break Stop::EndOfText;
            }
            tokens.push(token);
            if on_token(token).is_break() {
                break Stop::Callback;
            }
            if tokens.len() == self.max_new {
                break Stop::Length;
            }
            if position == n_ctx {
                break Stop::ContextFull;
            }
            batch.clear();
            batch.add(token, position as i32, &[self.sequence], true)?;
            position += 1;
            context.decode(&batch)?;
        };
        Ok(Generated { tokens, stop })
    }
}

/// Continues `prompt` in sequence 0 by at most `max_new` tokens; see [`Generation`].
///
/// # Errors
///
/// As for [`Generation::run`].
pub fn generate(
    context: &mut Context<'_>,
    prompt: &[Token],
    sampler: &mut Sampler,
    max_new: usize,
    on_token: impl FnMut(Token) -> ControlFlow<()>,
) -> Result<Generated> {
    Generation::new(max_new).run(context, prompt, sampler, on_token)
}
