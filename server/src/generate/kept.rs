//! Sequences of requests that have ended: the next turn of a conversation begins where the last one ended.

use llama_rs::Token;

use super::batcher::Decoder;
use super::sequence::Sequence;

/// A sequence that a request gets, and how many tokens of its prompt are in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) slot: u32,
    pub(super) n_cached: usize,
}

/// Sequences in the KV cache that no request uses. They go when their room is needed.
#[derive(Debug)]
pub(super) struct Kept {
    is_on: bool,
    /// Slots and what is in them, the one that ended first first.
    sequences: Vec<(u32, Vec<Token>)>,
}

impl Kept {
    pub(super) fn new(is_on: bool) -> Kept {
        Kept {
            is_on,
            sequences: Vec::new(),
        }
    }

    /// Takes over what a request leaves.
    pub(super) fn keep<D: Decoder>(&mut self, decoder: &mut D, sequence: &Sequence<D::Sampler>) {
        match self.is_on && sequence.n_past > 0 {
            true => {
                let tokens = sequence.tokens[..sequence.n_past].to_vec();
                self.sequences.push((sequence.slot, tokens));
            }
            false => decoder.forget(sequence.slot),
        }
    }

    /// A sequence for a request: one that begins as `tokens` do, if the request wants that, else an empty one. `None` if all are
    /// taken.
    pub(super) fn place<D: Decoder>(
        &mut self,
        decoder: &mut D,
        taken: &[u32],
        tokens: Option<&[Token]>,
    ) -> Option<Place> {
        let empty = (0..decoder.n_slots()).find(|slot| {
            !taken.contains(slot) && self.sequences.iter().all(|(kept, _)| kept != slot)
        });
        if let Some(tokens) = tokens
            && let Some((index, shared)) = self.most_shared(tokens)
            // A long conversation is not given up for a few words that another one begins with.
            && (empty.is_none() || 2 * shared >= self.sequences[index].1.len())
        {
            let (slot, _) = self.sequences.remove(index);
            // The last token is computed again, since it gives the next one.
            let count = shared.min(tokens.len() - 1);
            if count > 0 && decoder.cut(slot, count) {
                return Some(Place {
                    slot,
                    n_cached: count,
                });
            }
            decoder.forget(slot);
            return Some(Place { slot, n_cached: 0 });
        }
        let slot = match empty {
            Some(slot) => slot,
            None => self.forget_first(decoder)?,
        };
        Some(Place { slot, n_cached: 0 })
    }

    /// The sequence that shares the longest beginning, and how long that is.
    fn most_shared(&self, tokens: &[Token]) -> Option<(usize, usize)> {
        let shared = |kept: &[Token]| kept.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let counts = self.sequences.iter().enumerate();
        counts
            .map(|(index, (_, kept))| (index, shared(kept)))
            .filter(|(_, count)| *count > 0)
            .max_by_key(|(_, count)| *count)
    }

    /// Forgets sequences until the others have `room` tokens at most.
    pub(super) fn shrink<D: Decoder>(&mut self, decoder: &mut D, room: usize) {
        let tokens = |kept: &Kept| {
            kept.sequences
                .iter()
                .map(|(_, kept)| kept.len())
                .sum::<usize>()
        };
        while tokens(self) > room && self.forget_first(decoder).is_some() {}
    }

    /// Forgets all; `false` if there was none.
    pub(super) fn clear<D: Decoder>(&mut self, decoder: &mut D) -> bool {
        let had_some = !self.sequences.is_empty();
        while self.forget_first(decoder).is_some() {}
        had_some
    }

    fn forget_first<D: Decoder>(&mut self, decoder: &mut D) -> Option<u32> {
        if self.sequences.is_empty() {
            return None;
        }
        let (slot, _) = self.sequences.remove(0);
        decoder.forget(slot);
        Some(slot)
    }
}
