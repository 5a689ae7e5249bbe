//! What an observer is told about a decode.

use crate::batch::Batch;
use crate::params::MAX_SEQUENCES;
use crate::vocab::Token;

/// Whether a decode works on a prompt or generates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Some sequence gets more than one token.
    Prompt,
    /// Every sequence gets at most one token. A prompt of one token looks the same.
    Decode,
}

/// One decode: its batch, as given to [`Context::decode`](crate::Context::decode).
///
/// llama.cpp cuts a batch into ubatches of at most [`n_ubatch`](crate::Context::n_ubatch) tokens. With one sequence these
/// are its tokens in order.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    batch: &'a Batch,
}

impl<'a> Step<'a> {
    pub(crate) fn new(batch: &'a Batch) -> Step<'a> {
        Step { batch }
    }

    /// Number of tokens; at least 1.
    pub fn n_tokens(&self) -> usize {
        self.batch.len()
    }

    /// The tokens, in the order of the batch.
    pub fn tokens(&self) -> impl ExactSizeIterator<Item = Token> + use<'a> {
        self.batch.tokens().iter().map(|&id| Token(id))
    }

    /// Position of each token in its sequences, from 0.
    pub fn positions(&self) -> &'a [i32] {
        self.batch.positions()
    }

    /// The sequences that token `index` belongs to.
    ///
    /// # Panics
    ///
    /// If there is no such token.
    pub fn sequences(&self, index: usize) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.batch.sequences(index).iter().map(|&id| id as u32)
    }

    /// Whether the logits of token `index` are wanted.
    ///
    /// # Panics
    ///
    /// If there is no such token.
    pub fn wants_logits(&self, index: usize) -> bool {
        self.batch.outputs()[index] != 0
    }

    /// Prompt or decode.
    pub fn phase(&self) -> Phase {
        let mut seen = [false; MAX_SEQUENCES as usize];
        for index in 0..self.n_tokens() {
            for sequence in self.sequences(index) {
                if std::mem::replace(&mut seen[sequence as usize], true) {
                    return Phase::Prompt;
                }
            }
        }
        Phase::Decode
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_its_batch() {
        let mut batch = Batch::new(3, 2);
        batch.add(Token(5), 7, &[1], true).unwrap();
        assert_eq!(Step::new(&batch).phase(), Phase::Decode);
        batch.add(Token(6), 3, &[0], false).unwrap();
        assert_eq!(Step::new(&batch).phase(), Phase::Decode);
        batch.add(Token(7), 8, &[1, 0], false).unwrap();
        let step = Step::new(&batch);
        assert_eq!(step.phase(), Phase::Prompt);
        assert_eq!(step.n_tokens(), 3);
        assert!(step.tokens().eq([Token(5), Token(6), Token(7)]));
        assert_eq!(step.positions(), [7, 3, 8]);
        assert!(step.sequences(2).eq([1, 0]));
        assert!(step.wants_logits(0) && !step.wants_logits(1));
    }
}
