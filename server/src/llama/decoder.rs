//! A context as a [`Decoder`].

use llama_rs::{Batch, Context, Error, Sampler, Token};

use crate::config::Sampling;
use crate::generate::{Candidate, ChosenToken, DecodeError, Decoder, Failure, Prompt, Row};

use super::probabilities::LogProbabilities;

/// Temperatures below this one take the most probable token, as in [`llama_rs::SamplerBuilder::temperature`].
const GREEDY_BELOW: f32 = 1e-4;

/// Chooses the tokens of a request.
pub(super) enum Chooser {
    /// The most probable one, without the list of candidates that a chain makes for each token: with 150,000 of them that takes
    /// some percent of a step.
    Greedy,
    Chain(Sampler),
}

/// The first of the largest logits, as llama.cpp's greedy sampler; `None` where one is not a number, or none is finite.
fn most_probable(logits: &[f32]) -> Option<Token> {
    let mut largest = f32::NEG_INFINITY;
    let mut has_nan = false;
    // Without an early exit the loop compiles to vector instructions.
    for logit in logits {
        has_nan |= logit.is_nan();
        largest = largest.max(*logit);
    }
    let is_good = largest.is_finite() && !has_nan;
    let index = logits
        .iter()
        .position(|logit| *logit == largest)
        .filter(|_| is_good)?;
    i32::try_from(index).ok().map(Token)
}

/// A context with as many sequences as requests may run.
pub(super) struct LlamaDecoder<'model> {
    context: Context<'model>,
    batch: Batch,
    n_slots: u32,
}

impl<'model> LlamaDecoder<'model> {
    pub(super) fn new(context: Context<'model>, n_slots: u32) -> Self {
        LlamaDecoder {
            batch: Batch::new(context.n_batch() as usize, n_slots),
            context,
            n_slots,
        }
    }
}

impl Decoder for LlamaDecoder<'_> {
    type Sampler = Chooser;

    fn n_batch(&self) -> usize {
        self.context.n_batch() as usize
    }

    fn n_ctx(&self) -> usize {
        self.context.n_ctx_seq() as usize
    }

    fn n_slots(&self) -> u32 {
        self.n_slots
    }

    fn tokenize(&self, prompt: &Prompt) -> Result<Vec<Token>, Failure> {
        let model = self.context.model();
        let refused = |param: &'static str| {
            move |error: Error| Failure::BadRequest {
                param,
                message: error.to_string(),
            }
        };
        let (param, tokens) = match prompt {
            Prompt::Chat(messages) => {
                let text = model
                    .apply_chat_template(messages, true)
                    .map_err(refused("messages"))?;
                let tokens = model.vocab().tokenize(&text, true, true);
                ("messages", tokens.map_err(refused("messages"))?)
            }
            Prompt::Text(text) => (
                "prompt",
                model
                    .vocab()
                    .tokenize(text, true, true)
                    .map_err(refused("prompt"))?,
            ),
            Prompt::Tokens(tokens) => {
                if let Some(token) = tokens.iter().find(|token| !model.vocab().contains(**token)) {
                    let n_tokens = model.vocab().n_tokens();
                    let message =
                        format!("token {token} is outside the vocabulary of {n_tokens} tokens");
                    return Err(Failure::BadRequest {
                        param: "prompt",
                        message,
                    });
                }
                ("prompt", tokens.clone())
            }
        };
        if tokens.is_empty() {
            return Err(Failure::BadRequest {
                param,
                message: "it has no tokens".to_owned(),
            });
        }
        Ok(tokens)
    }

    fn sampler(&self, sampling: &Sampling) -> Result<Chooser, Failure> {
        let builder = Sampler::builder()
            .temperature(sampling.temperature)
            .top_k(sampling.top_k)
            .top_p(sampling.top_p)
            .min_p(sampling.min_p)
            .seed(sampling.seed.unwrap_or(0));
        let sampler = builder.build().map_err(|error| match error {
            Error::InvalidParameter { name, reason } => Failure::BadRequest {
                param: name,
                message: format!("{name}: {reason}"),
            },
            error => Failure::Internal(error.to_string()),
        })?;
        Ok(match sampling.temperature < GREEDY_BELOW {
            true => Chooser::Greedy,
            false => Chooser::Chain(sampler),
        })
    }

    fn decode(&mut self, rows: &[Row]) -> Result<(), DecodeError> {
        self.batch.clear();
        for row in rows {
            // Positions are below n_ctx, which is 2^27 at most.
            let position = row.position as i32;
            self.batch
                .add(row.token, position, &[row.slot], row.wants_logits)
                .map_err(|error| DecodeError::Failed(error.to_string()))?;
        }
        self.context.decode(&self.batch).map_err(|error| {
            if let Error::KvCacheFull { .. } = error {
                return DecodeError::NoRoom;
            }
            if let Error::ModelChanged { .. } = error {
                return DecodeError::ModelGone(error.to_string());
            }
            // Nothing else sets the flag.
            if let Error::Aborted = error {
                return DecodeError::ModelGone("the server is shutting down".to_owned());
            }
            // Which of the tokens are in the cache is not known now; nobody uses them.
            self.context.clear_kv();
            DecodeError::Failed(error.to_string())
        })
    }

    fn sample(&mut self, chooser: &mut Chooser, row: usize) -> Result<Token, String> {
        // Rows are at most n_batch.
        let row = row as i32;
        let token = match chooser {
            Chooser::Greedy => {
                let logits = self
                    .context
                    .logits(row)
                    .map_err(|error| error.to_string())?;
                return most_probable(logits)
                    .ok_or_else(|| format!("the logits of row {row} have no largest number"));
            }
            Chooser::Chain(sampler) => sampler.sample(&self.context, row),
        };
        token.map_err(|error| error.to_string())
    }

    fn chosen(&self, row: usize, token: Token, count: usize) -> ChosenToken {
        // The row has logits: a token was chosen from them.
        let logits = self.context.logits(row as i32).unwrap_or_default();
        let logarithms = LogProbabilities::new(logits);
        let candidate = |token: Token, special| Candidate {
            bytes: self.context.model().vocab().piece(token, special),
            log_probability: logarithms.of(token),
        };
        let top = logarithms.largest(count).into_iter();
        ChosenToken {
            chosen: candidate(token, false),
            // Also those that are never shown as text, such as the end of it.
            top: top.map(|token| candidate(token, true)).collect(),
        }
    }

    fn state_bytes(&mut self, slot: u32) -> u64 {
        // Without an answer it is not asked for.
        self.context
            .sequence_state_bytes(slot)
            .map_or(u64::MAX, |bytes| bytes as u64)
    }

    fn state(&mut self, slot: u32) -> Option<Vec<u8>> {
        let state = self.context.sequence_state(slot);
        state
            .inspect_err(|error| tracing::warn!("a conversation cannot be kept: {error}"))
            .ok()
            .filter(|state| !state.is_empty())
    }

    fn restore(&mut self, slot: u32, state: &[u8], count: usize) -> bool {
        let result = self.context.set_sequence_state(slot, state);
        if let Err(error) = &result {
            tracing::info!("a conversation cannot be gone on with: {error}");
        }
        let last = self.context.memory_seq_pos_max(slot);
        result.is_ok() && matches!(last, Ok(Some(last)) if last as usize + 1 == count)
    }

    fn cuts_restored(&self) -> bool {
        // Of a window only its last part is in a state.
        self.context.model().n_swa() == 0
    }

    fn forget(&mut self, slot: u32) {
        // A whole sequence can be removed from every kind of cache, and the slot exists.
        let removed = self.context.memory_seq_rm(slot, 0, None);
        debug_assert!(matches!(removed, Ok(true)), "{removed:?}");
    }

    fn cut(&mut self, slot: u32, count: usize) -> bool {
        // Positions are below n_ctx, which is 2^27 at most.
        let count = count as u32;
        // A cache for a window has only its last part.
        let window = self.context.model().n_swa();
        let first_needed = match window {
            0 => 0,
            window => count.saturating_sub(window),
        };
        let first = self.context.memory_seq_pos_min(slot);
        let has_all = matches!(first, Ok(Some(first)) if first <= first_needed);
        has_all && matches!(self.context.memory_seq_rm(slot, count, None), Ok(true))
    }

    fn is_end(&self, token: Token) -> bool {
        self.context.model().vocab().is_eog(token)
    }

    fn piece(&self, token: Token) -> Vec<u8> {
        self.context.model().vocab().piece(token, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_largest_is_taken() {
        let infinity = f32::INFINITY;
        for (logits, expected) in [
            (&[0.5, 2.0, -1.0, 2.0][..], Some(1)),
            (&[-infinity, -3.0], Some(1)),
            (&[-infinity, -infinity], None),
            (&[1.0, f32::NAN], None),
            (&[1.0, infinity], None),
            (&[], None),
        ] {
            assert_eq!(most_probable(logits), expected.map(Token), "{logits:?}");
        }
    }
}
