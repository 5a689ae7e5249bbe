//! Sequences of requests that have ended: the next turn of a conversation begins where the last one ended.

use llama_rs::Token;

use super::batcher::Decoder;
use super::sequence::Sequence;
use crate::states::{States, n_shared};

/// A sequence that a request gets, and how many tokens of its prompt are in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) slot: u32,
    pub(super) n_cached: usize,
    /// Those came from a file.
    pub(super) is_restored: bool,
}

impl Place {
    fn empty(slot: u32) -> Place {
        Place {
            slot,
            n_cached: 0,
            is_restored: false,
        }
    }
}

/// What a request that has ended left.
#[derive(Debug)]
struct KeptSequence {
    slot: u32,
    tokens: Vec<Token>,
    /// Where another answer to the same prompt begins.
    n_before_answer: usize,
    /// Whether it may be kept in a file.
    may_be_saved: bool,
}

/// Sequences in the KV cache that no request uses. They go when their room is needed. When the model leaves, they may go to files,
/// from where they come back when a request begins as they do.
#[derive(Debug)]
pub(super) struct Kept {
    is_on: bool,
    /// The one that ended first first.
    sequences: Vec<KeptSequence>,
    states: Option<States>,
}

impl Kept {
    pub(super) fn new(is_on: bool, states: Option<States>) -> Kept {
        Kept {
            is_on,
            sequences: Vec::new(),
            states,
        }
    }

    /// Takes over what a request leaves.
    pub(super) fn keep<D: Decoder>(&mut self, decoder: &mut D, sequence: &Sequence<D::Sampler>) {
        match self.is_on && sequence.n_past > 0 {
            true => self.sequences.push(KeptSequence {
                slot: sequence.slot,
                tokens: sequence.tokens[..sequence.n_past].to_vec(),
                n_before_answer: sequence.n_prompt() - 1,
                may_be_saved: sequence.reuses(),
            }),
            false => decoder.forget(sequence.slot),
        }
    }

    /// A sequence for a request: one that begins as `tokens` do, if the request wants that, else an empty one. `room`: tokens
    /// beside those of requests that run. `None` if all are taken.
    pub(super) fn place<D: Decoder>(
        &mut self,
        decoder: &mut D,
        taken: &[u32],
        tokens: Option<&[Token]>,
        room: usize,
    ) -> Option<Place> {
        let is_free = |kept: &Kept, slot: &u32| {
            !taken.contains(slot) && kept.sequences.iter().all(|kept| kept.slot != *slot)
        };
        let empty = (0..decoder.n_slots()).find(|slot| is_free(self, slot));
        if let Some(tokens) = tokens {
            let most_shared = self.most_shared(tokens).filter(|(index, shared)| {
                // A long conversation is not given up for a few words that another one begins with.
                empty.is_none() || 2 * shared >= self.sequences[*index].tokens.len()
            });
            let n_shared = most_shared.map_or(0, |(_, shared)| shared);
            if let Some(place) = self.restore(decoder, empty, tokens, n_shared, room) {
                return Some(place);
            }
            if let Some((index, shared)) = most_shared {
                let slot = self.sequences.remove(index).slot;
                // The last token is computed again, since it gives the next one.
                let count = shared.min(tokens.len() - 1);
                let n_cached = match count > 0 && decoder.cut(slot, count) {
                    true => count,
                    false => {
                        decoder.forget(slot);
                        0
                    }
                };
                return Some(Place {
                    slot,
                    n_cached,
                    is_restored: false,
                });
            }
        }
        let slot = match empty {
            Some(slot) => slot,
            None => self.forget_first(decoder)?,
        };
        Some(Place::empty(slot))
    }

    /// A sequence from a file that has more than `n_shared` of the tokens. `None`, and nothing has changed, if there is none.
    fn restore<D: Decoder>(
        &mut self,
        decoder: &mut D,
        empty: Option<u32>,
        tokens: &[Token],
        n_shared: usize,
        room: usize,
    ) -> Option<Place> {
        if tokens.len() > room {
            // It has to wait, and what waits has no part of the KV cache.
            return None;
        }
        let cuts = decoder.cuts_restored();
        let (index, count) = self.states.as_ref()?.best(tokens, n_shared, room, cuts)?;
        let n_stored = self.states.as_ref()?.tokens(index).len();
        let state = self.states.as_mut()?.read(index)?;
        let slot = match empty {
            Some(slot) => slot,
            None => self.forget_first(decoder)?,
        };
        self.shrink(decoder, room - n_stored);
        if decoder.restore(slot, &state, n_stored) && decoder.cut(slot, count) {
            return Some(Place {
                slot,
                n_cached: count,
                is_restored: true,
            });
        }
        decoder.forget(slot);
        self.states
            .as_mut()?
            .forget(index, "this model cannot go on from it");
        Some(Place::empty(slot))
    }

    /// Keeps in files what is in the KV cache, what ended last first, as far as that is wanted and `may_go_on` says yes. Gives
    /// the number of states that were written. What is left in the cache afterwards is of no use.
    pub(super) fn save<D: Decoder>(
        &mut self,
        decoder: &mut D,
        may_go_on: &dyn Fn() -> bool,
    ) -> u64 {
        let Some(states) = &mut self.states else {
            return 0;
        };
        let (mut room_bytes, mut written, mut count) = (states.limit_bytes(), Vec::new(), 0);
        let saved = self.sequences.iter().rev().filter(|kept| kept.may_be_saved);
        for KeptSequence {
            slot,
            tokens,
            n_before_answer,
            ..
        } in saved
        {
            let mut ends = vec![tokens.len()];
            // A state that cannot be cut is of use only for what goes on from its end: the next turn, or another answer.
            if !decoder.cuts_restored() && (1..tokens.len()).contains(n_before_answer) {
                ends.push(*n_before_answer);
            }
            for end in ends {
                let tokens = &tokens[..end];
                if let Some(bytes) = states.renew(tokens) {
                    room_bytes = room_bytes.saturating_sub(bytes);
                    written.push(tokens.to_vec());
                    continue;
                }
                if !decoder.cut(*slot, end) || decoder.state_bytes(*slot) > room_bytes {
                    continue;
                }
                let result = match decoder.state(*slot) {
                    Some(state) if may_go_on() => states.write(tokens, &state, may_go_on),
                    _ => continue,
                };
                match result {
                    Ok(Some(bytes)) => {
                        room_bytes = room_bytes.saturating_sub(bytes);
                        written.push(tokens.to_vec());
                        count += 1;
                    }
                    Ok(None) => {}
                    Err(error) => tracing::warn!("a conversation cannot be kept: {error}"),
                }
            }
        }
        states.tidy(&written);
        count
    }

    /// The sequence that shares the longest beginning, and how long that is.
    fn most_shared(&self, tokens: &[Token]) -> Option<(usize, usize)> {
        let counts = self.sequences.iter().enumerate();
        counts
            .map(|(index, kept)| (index, n_shared(&kept.tokens, tokens)))
            .filter(|(_, count)| *count > 0)
            .max_by_key(|(_, count)| *count)
    }

    /// Forgets sequences until the others have `room` tokens at most.
    pub(super) fn shrink<D: Decoder>(&mut self, decoder: &mut D, room: usize) {
        let tokens = |kept: &Kept| {
            let lengths = kept.sequences.iter().map(|kept| kept.tokens.len());
            lengths.sum::<usize>()
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
        let slot = self.sequences.remove(0).slot;
        decoder.forget(slot);
        Some(slot)
    }
}
