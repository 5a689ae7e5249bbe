//! The tokenizer of a model.

use std::fmt;
use std::marker::PhantomData;

use llama_sys as sys;

use crate::assertions;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::shim;
use crate::stack;

/// A token id, an index into the model's vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub i32);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The vocabulary and tokenizer of a [`Model`]. Wraps `llama_vocab`.
#[derive(Clone, Copy, Debug)]
pub struct Vocab<'model> {
    raw: *const sys::llama_vocab,
    /// The vocabulary is a part of the model.
    _model: PhantomData<&'model Model>,
}

// SAFETY: as for the model: the vocabulary is not bound to a thread.
unsafe impl Send for Vocab<'_> {}
// SAFETY: the vocabulary is only read after loading; tokenizer sessions live on the caller's stack.
unsafe impl Sync for Vocab<'_> {}

impl<'model> Vocab<'model> {
    pub(crate) fn of(model: &'model Model) -> Self {
        // SAFETY: the model is alive for 'model, and its vocabulary with it.
        let raw = unsafe { sys::llama_model_get_vocab(model.raw()) };
        Vocab {
            raw,
            _model: PhantomData,
        }
    }

    /// Whether there is a tokenizer. Without one, only token ids can be used.
    pub fn has_tokenizer(&self) -> bool {
        // SAFETY: `raw` is valid for 'model.
        unsafe { sys::llama_vocab_type(self.raw) != sys::LLAMA_VOCAB_TYPE_NONE }
    }

    fn require_tokenizer(&self) -> Result<()> {
        if self.has_tokenizer() {
            Ok(())
        } else {
            Err(Error::NoTokenizer("none".to_owned()))
        }
    }

    /// Size of the vocabulary: ids are in `0..n_tokens()`, and a row of logits has this many values.
    pub fn n_tokens(&self) -> u32 {
        // SAFETY: `raw` is valid for 'model.
        let n = unsafe { sys::llama_vocab_n_tokens(self.raw) };
        u32::try_from(n).unwrap_or(0)
    }

    /// Whether `token` is in the vocabulary.
    pub fn contains(&self, token: Token) -> bool {
        u32::try_from(token.0).is_ok_and(|id| id < self.n_tokens())
    }

    /// Turns text into tokens. Wraps `llama_tokenize`.
    ///
    /// `add_special` adds the tokens that the model wants around a text (often one at its beginning);
    /// `parse_special` recognises the texts of special tokens, such as `<|im_start|>`, in `text`.
    ///
    /// # Errors
    ///
    /// [`Error::NoTokenizer`] when the model has none; [`Error::Tokenize`] when the text is longer than
    /// `i32::MAX` bytes, has more than 1,048,576 characters without white space in a row, or the tokenizer fails.
    pub fn tokenize(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<Token>> {
        self.require_tokenizer()?;
        let work = || self.tokenize_here(text, add_special, parse_special);
        match stack::with_enough(text, work) {
            Ok(result) => result,
            Err(reason) => Err(Error::Tokenize {
                bytes: text.len(),
                reason,
            }),
        }
    }

    /// [`tokenize`](Vocab::tokenize) on this thread's stack.
    fn tokenize_here(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<Token>> {
        let failed = |reason: &str| Error::Tokenize {
            bytes: text.len(),
            reason: reason.to_owned(),
        };
        let text_len =
            i32::try_from(text.len()).map_err(|_| failed("longer than 2147483647 bytes"))?;
        // A token covers at least one byte in nearly every vocabulary; llama.cpp says when that was too few.
        let mut ids: Vec<i32> = vec![0; text.len() + 8];
        for _ in 0..2 {
            let capacity = i32::try_from(ids.len()).unwrap_or(i32::MAX);
            let mut count = 0;
            // SAFETY: the vocabulary is valid for 'model; `text` is readable for `text_len` bytes and `ids` writable
            // for `capacity` ids.
            let status = assertions::as_errors(|| unsafe {
                sys::faultline_tokenize(
                    self.raw,
                    text.as_ptr().cast(),
                    text_len,
                    ids.as_mut_ptr(),
                    capacity,
                    add_special,
                    parse_special,
                    &mut count,
                )
            });
            shim::check("llama_tokenize", status)?;
            if count >= 0 {
                ids.truncate(count as usize);
                return Ok(ids.into_iter().map(Token).collect());
            }
            if count == i32::MIN {
                return Err(failed("more than 2147483647 tokens"));
            }
            ids.resize(count.unsigned_abs() as usize, 0);
        }
        Err(failed("the tokenizer gave two different lengths"))
    }

    /// The bytes of `token`, which may be a part of a character (see [`Utf8Stream`](crate::Utf8Stream)). With `special`,
    /// control tokens give their text; without, nothing. An id outside the vocabulary, or a model without a tokenizer,
    /// gives nothing. Wraps `llama_token_to_piece`.
    pub fn piece(&self, token: Token, special: bool) -> Vec<u8> {
        if !self.has_tokenizer() || !self.contains(token) {
            return Vec::new();
        }
        let mut bytes = vec![0u8; 32];
        for _ in 0..2 {
            let mut written = 0;
            // SAFETY: the vocabulary is valid for 'model and `bytes` is writable for its length.
            let status = assertions::as_errors(|| unsafe {
                sys::faultline_token_to_piece(
                    self.raw,
                    token.0,
                    bytes.as_mut_ptr().cast(),
                    bytes.len() as i32,
                    0,
                    special,
                    &mut written,
                )
            });
            if shim::check("llama_token_to_piece", status).is_err() {
                break;
            }
            if written >= 0 {
                bytes.truncate(written as usize);
                return bytes;
            }
            bytes.resize(written.unsigned_abs() as usize, 0);
        }
        Vec::new()
    }

    /// The token at the beginning of a text, when the vocabulary names one.
    pub fn bos(&self) -> Option<Token> {
        // SAFETY: `raw` is valid for 'model.
        self.named(unsafe { sys::llama_vocab_bos(self.raw) })
    }

    /// The token at the end of a text, when the vocabulary names one.
    pub fn eos(&self) -> Option<Token> {
        // SAFETY: `raw` is valid for 'model.
        self.named(unsafe { sys::llama_vocab_eos(self.raw) })
    }

    /// Whether a text begins with [`bos`](Vocab::bos) when `add_special` is set.
    pub fn adds_bos(&self) -> bool {
        // SAFETY: `raw` is valid for 'model.
        unsafe { sys::llama_vocab_get_add_bos(self.raw) }
    }

    /// Whether `token` ends a generation (end of text, of a turn, of a message).
    pub fn is_eog(&self, token: Token) -> bool {
        // SAFETY: `raw` is valid for 'model; the id is in range.
        self.has_tokenizer()
            && self.contains(token)
            && unsafe { sys::llama_vocab_is_eog(self.raw, token.0) }
    }

    fn named(&self, id: i32) -> Option<Token> {
        self.contains(Token(id)).then_some(Token(id))
    }
}
