//! A batch: the tokens of one decode.

use llama_sys as sys;

use crate::error::{Error, Result};
use crate::params::MAX_SEQUENCES;
use crate::vocab::Token;

/// Tokens for one [`Context::decode`](crate::Context::decode), each with a position, the sequences that it belongs to,
/// and whether its logits are wanted. Wraps `llama_batch`.
///
/// The capacity is fixed, so that filling a batch never allocates.
#[derive(Clone, Debug)]
pub struct Batch {
    capacity_tokens: usize,
    /// Stride of `seq_ids`.
    n_seq_max: usize,
    tokens: Vec<i32>,
    positions: Vec<i32>,
    seq_counts: Vec<i32>,
    /// `[capacity_tokens, n_seq_max]`, row-major; row `i` uses its first `seq_counts[i]` entries.
    seq_ids: Vec<i32>,
    outputs: Vec<i8>,
    output_count: usize,
}

impl Batch {
    /// An empty batch for at most `capacity_tokens` tokens, each in at most `n_seq_max` sequences.
    ///
    /// # Panics
    ///
    /// If either number is 0, or `n_seq_max` is above [`MAX_SEQUENCES`].
    pub fn new(capacity_tokens: usize, n_seq_max: u32) -> Batch {
        assert!(
            capacity_tokens > 0,
            "a batch needs room for at least one token"
        );
        assert!(
            (1..=MAX_SEQUENCES).contains(&n_seq_max),
            "n_seq_max {n_seq_max} is outside 1..={MAX_SEQUENCES}"
        );
        let n_seq_max = n_seq_max as usize;
        Batch {
            capacity_tokens,
            n_seq_max,
            tokens: Vec::with_capacity(capacity_tokens),
            positions: Vec::with_capacity(capacity_tokens),
            seq_counts: Vec::with_capacity(capacity_tokens),
            seq_ids: Vec::with_capacity(capacity_tokens * n_seq_max),
            outputs: Vec::with_capacity(capacity_tokens),
            output_count: 0,
        }
    }

    /// Appends `token` at `position` of each of `sequences`; `logits` asks for its row of logits.
    ///
    /// # Errors
    ///
    /// [`Error::Batch`] when the batch is full, `position` is negative, or `sequences` is empty, too long, or
    /// names one twice or one outside `0..n_seq_max`. The batch is unchanged then.
    pub fn add(
        &mut self,
        token: Token,
        position: i32,
        sequences: &[u32],
        logits: bool,
    ) -> Result<()> {
        if self.tokens.len() == self.capacity_tokens {
            return Err(Error::Batch(format!(
                "full: it holds {} tokens",
                self.capacity_tokens
            )));
        }
        if position < 0 {
            return Err(Error::Batch(format!("position {position} is negative")));
        }
        if sequences.is_empty() || sequences.len() > self.n_seq_max {
            return Err(Error::Batch(format!(
                "a token in {} sequences, but 1 to {} are possible",
                sequences.len(),
                self.n_seq_max
            )));
        }
        for (i, &sequence) in sequences.iter().enumerate() {
            if sequence as usize >= self.n_seq_max {
                return Err(Error::Batch(format!(
                    "sequence {sequence} is not below {}",
                    self.n_seq_max
                )));
            }
            if sequences[..i].contains(&sequence) {
                return Err(Error::Batch(format!("sequence {sequence} is named twice")));
            }
        }
        self.tokens.push(token.0);
        self.positions.push(position);
        self.seq_counts.push(sequences.len() as i32);
        self.seq_ids.extend(sequences.iter().map(|&s| s as i32));
        self.seq_ids.resize(self.tokens.len() * self.n_seq_max, 0);
        self.outputs.push(i8::from(logits));
        self.output_count += usize::from(logits);
        Ok(())
    }

    /// Removes all tokens; keeps the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.seq_counts.clear();
        self.seq_ids.clear();
        self.outputs.clear();
        self.output_count = 0;
    }

    /// Tokens in the batch.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether the batch has no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Tokens that fit.
    pub fn capacity(&self) -> usize {
        self.capacity_tokens
    }

    /// Rows that ask for logits.
    pub fn output_count(&self) -> usize {
        self.output_count
    }

    /// The token ids, in order.
    pub(crate) fn tokens(&self) -> &[i32] {
        &self.tokens
    }

    /// Position of each token, in order.
    pub(crate) fn positions(&self) -> &[i32] {
        &self.positions
    }

    /// The sequences of token `index`. Panics if there is no such token.
    pub(crate) fn sequences(&self, index: usize) -> &[i32] {
        let start = index * self.n_seq_max;
        &self.seq_ids[start..start + self.seq_counts[index] as usize]
    }

    /// One entry a row: 1 when its logits are wanted.
    pub(crate) fn outputs(&self) -> &[i8] {
        &self.outputs
    }

    /// Largest sequence id in the batch.
    pub(crate) fn max_sequence(&self) -> Option<u32> {
        let rows = self.seq_ids.chunks(self.n_seq_max).zip(&self.seq_counts);
        rows.flat_map(|(row, &count)| &row[..count as usize])
            .max()
            .map(|&s| s as u32)
    }

    /// The C struct, which borrows from `self` and from `rows`. It must not be used after either has changed, and only
    /// for reading: llama_decode copies it.
    pub(crate) fn raw(&self, rows: &mut RowPointers) -> sys::llama_batch {
        rows.0.clear();
        let starts = self.seq_ids.chunks(self.n_seq_max);
        rows.0.extend(starts.map(|row| row.as_ptr().cast_mut()));
        sys::llama_batch {
            n_tokens: self.tokens.len() as i32,
            token: self.tokens.as_ptr().cast_mut(),
            embd: std::ptr::null_mut(),
            pos: self.positions.as_ptr().cast_mut(),
            n_seq_id: self.seq_counts.as_ptr().cast_mut(),
            seq_id: rows.0.as_mut_ptr(),
            logits: self.outputs.as_ptr().cast_mut(),
        }
    }
}

/// Memory for the pointers to a batch's sequence ids; kept to avoid an allocation a token.
#[derive(Debug, Default)]
pub(crate) struct RowPointers(Vec<*mut i32>);

// SAFETY: the pointers are written by `Batch::raw`, which needs `&mut`, and read by C during one call; nobody looks at
// them otherwise.
unsafe impl Send for RowPointers {}
// SAFETY: as above; a shared reference gives no access to them.
unsafe impl Sync for RowPointers {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_checked() {
        let mut batch = Batch::new(2, 2);
        assert!(batch.add(Token(1), -1, &[0], false).is_err());
        assert!(batch.add(Token(1), 0, &[], false).is_err());
        assert!(batch.add(Token(1), 0, &[2], false).is_err());
        assert!(batch.add(Token(1), 0, &[1, 1], false).is_err());
        assert!(batch.add(Token(1), 0, &[0, 1, 0], false).is_err());
        assert!(batch.is_empty());
        batch.add(Token(1), 0, &[1], false).unwrap();
        batch.add(Token(2), 1, &[0, 1], true).unwrap();
        assert!(
            batch
                .add(Token(3), 2, &[0], true)
                .unwrap_err()
                .to_string()
                .contains("full")
        );
        assert_eq!(
            (batch.len(), batch.output_count(), batch.max_sequence()),
            (2, 1, Some(1))
        );
        batch.clear();
        assert_eq!(
            (batch.len(), batch.output_count(), batch.max_sequence()),
            (0, 0, None)
        );
    }

    #[test]
    fn raw_rows_point_at_their_sequences() {
        let mut batch = Batch::new(3, 2);
        batch.add(Token(7), 0, &[1], false).unwrap();
        batch.add(Token(8), 1, &[1, 0], true).unwrap();
        let mut rows = RowPointers::default();
        let raw = batch.raw(&mut rows);
        assert_eq!(raw.n_tokens, 2);
        // SAFETY: `rows` has two entries, each pointing at two initialised ids inside `batch`.
        unsafe {
            assert_eq!(**raw.seq_id, 1);
            let second = *raw.seq_id.add(1);
            assert_eq!((*second, *second.add(1)), (1, 0));
        }
    }

    #[test]
    #[should_panic(expected = "at least one token")]
    fn an_empty_capacity_is_a_bug() {
        Batch::new(0, 1);
    }
}
