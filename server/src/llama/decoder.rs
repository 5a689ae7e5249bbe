//! A context as a [`Decoder`].

use llama_rs::{Batch, Context, Error, Sampler, Token};

use crate::config::Sampling;
use crate::generate::{DecodeError, Decoder, Failure, Prompt, Row};

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
    type Sampler = Sampler;

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

    fn sampler(&self, sampling: &Sampling) -> Result<Sampler, Failure> {
        let builder = Sampler::builder()
            .temperature(sampling.temperature)
            .top_k(sampling.top_k)
            .top_p(sampling.top_p)
            .min_p(sampling.min_p)
            .seed(sampling.seed.unwrap_or(0));
        builder.build().map_err(|error| match error {
            Error::InvalidParameter { name, reason } => Failure::BadRequest {
                param: name,
                message: format!("{name}: {reason}"),
            },
            error => Failure::Internal(error.to_string()),
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
            // Which of the tokens are in the cache is not known now; nobody uses them.
            self.context.clear_kv();
            DecodeError::Failed(error.to_string())
        })
    }

    fn sample(&mut self, sampler: &mut Sampler, row: usize) -> Result<Token, String> {
        sampler
            .sample(&self.context, row as i32)
            .map_err(|error| error.to_string())
    }

    fn forget(&mut self, slot: u32) {
        // A whole sequence can be removed from every kind of cache, and the slot exists.
        let removed = self.context.memory_seq_rm(slot, 0, None);
        debug_assert!(matches!(removed, Ok(true)), "{removed:?}");
    }

    fn is_end(&self, token: Token) -> bool {
        self.context.model().vocab().is_eog(token)
    }

    fn piece(&self, token: Token) -> Vec<u8> {
        self.context.model().vocab().piece(token, false)
    }
}
