//! Several requests in one batch.
//!
//! Each step computes one token of every request that generates, and fills the rest of the batch with tokens of prompts. The KV
//! cache is shared: where it has no room left, the youngest request gives its part up and begins again, with what it has
//! generated as a part of its prompt, when there is room. So the oldest one always gets on, and one alone may use all of it.

use std::time::Instant;

use llama_rs::Token;

use super::kept::{Kept, Place};
use super::sequence::{Piece, Sequence};
use super::{ChosenToken, Event, Failure, FinishReason, Job, Prompt, Request};
use crate::config::Sampling;
use crate::counters::ModelCounters;
use crate::states::States;

/// Tokens of prompts in a step while others generate: those wait for them.
const PROMPT_TOKENS_BESIDE: usize = 128;

/// Room that a request needs beyond its tokens to be let in again, so that it does not lose it at once.
const READMIT_TOKENS: usize = 32;

/// One token of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) token: Token,
    pub(crate) position: usize,
    pub(crate) slot: u32,
    pub(crate) wants_logits: bool,
}

/// Why a step failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DecodeError {
    /// There is no room in the KV cache for the batch; nothing was computed.
    NoRoom,
    /// The model cannot be used any more.
    ModelGone(String),
    /// This step failed; the next one may not.
    Failed(String),
}

/// What computes: a model with a context.
pub(crate) trait Decoder {
    /// Chooses tokens for one request.
    type Sampler;

    /// Most tokens in a step.
    fn n_batch(&self) -> usize;

    /// Tokens that the KV cache holds.
    fn n_ctx(&self) -> usize;

    /// Requests at a time.
    fn n_slots(&self) -> u32;

    fn tokenize(&self, prompt: &Prompt) -> Result<Vec<Token>, Failure>;

    fn sampler(&self, sampling: &Sampling) -> Result<Self::Sampler, Failure>;

    /// Computes the rows, and puts them into the KV cache.
    fn decode(&mut self, rows: &[Row]) -> Result<(), DecodeError>;

    /// Chooses the token after a row of the last step.
    fn sample(&mut self, sampler: &mut Self::Sampler, row: usize) -> Result<Token, String>;

    /// Probabilities of a token after a row of the last step, and of the most probable `count`.
    fn chosen(&self, row: usize, token: Token, count: usize) -> ChosenToken;

    /// Bytes of what the KV cache has of a sequence.
    fn state_bytes(&mut self, slot: u32) -> u64;

    /// A copy of what the KV cache has of a sequence, to be restored later.
    fn state(&mut self, slot: u32) -> Option<Vec<u8>>;

    /// Puts the state of a sequence of `count` tokens into the KV cache. `false` if it is none, and the sequence is of no use then.
    fn restore(&mut self, slot: u32, state: &[u8], count: usize) -> bool;

    /// Whether a part of a sequence that was restored is of use.
    fn cuts_restored(&self) -> bool;

    /// Removes a sequence from the KV cache.
    fn forget(&mut self, slot: u32);

    /// Removes all but the first `count` tokens of a sequence; `false` if this kind of cache cannot go on from there.
    fn cut(&mut self, slot: u32, count: usize) -> bool;

    fn is_end(&self, token: Token) -> bool;

    fn piece(&self, token: Token) -> Vec<u8>;
}

/// The requests of a model that run.
pub(crate) struct Batcher<'a, D: Decoder> {
    decoder: D,
    counters: &'a ModelCounters,
    kept: Kept,
    /// The oldest first.
    sequences: Vec<Sequence<D::Sampler>>,
    rows: Vec<Row>,
}

impl<'a, D: Decoder> Batcher<'a, D> {
    /// `keeps`: sequences of requests that have ended stay in the KV cache while there is room, and in `states` after that.
    pub(crate) fn new(
        decoder: D,
        counters: &'a ModelCounters,
        keeps: bool,
        states: Option<States>,
    ) -> Self {
        Batcher {
            decoder,
            counters,
            kept: Kept::new(keeps, states),
            sequences: Vec::new(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.sequences.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn decoder(&self) -> &D {
        &self.decoder
    }

    #[cfg(test)]
    pub(crate) fn decoder_mut(&mut self) -> &mut D {
        &mut self.decoder
    }

    /// Takes a request. What is wrong with it is told to its listener.
    pub(crate) fn push(&mut self, job: Job) {
        match self.prepare(&job.request) {
            Ok((place, tokens, sampler)) => {
                let n_ctx = self.decoder.n_ctx();
                self.sequences
                    .push(Sequence::new(job, sampler, place, tokens, n_ctx));
            }
            Err(failure) => {
                let _ = job.events.send(Event::Failed(failure));
            }
        }
    }

    /// What a request needs to be computed.
    fn prepare(&mut self, request: &Request) -> Result<(Place, Vec<Token>, D::Sampler), Failure> {
        let tokens = self.decoder.tokenize(&request.prompt)?;
        let n_ctx = self.decoder.n_ctx();
        if tokens.len() > n_ctx {
            return Err(Failure::ContextLength {
                n_prompt: tokens.len(),
                n_ctx,
            });
        }
        let sampler = self.decoder.sampler(&request.sampling)?;
        if !request.reuses && self.sequences.is_empty() {
            // Alone in an empty cache, its numbers are those of a program that does nothing else.
            self.kept.clear(&mut self.decoder);
        }
        let taken: Vec<u32> = self.sequences.iter().map(|s| s.slot).collect();
        let wanted = request.reuses.then_some(tokens.as_slice());
        let held = self
            .sequences
            .iter()
            .map(|sequence| match sequence.is_admitted {
                true => sequence.tokens.len(),
                false => sequence.n_past,
            });
        let room = n_ctx.saturating_sub(held.sum());
        let place = self.kept.place(&mut self.decoder, &taken, wanted, room);
        let place = place.ok_or_else(|| {
            Failure::Internal(format!(
                "more than {} requests at a time",
                self.decoder.n_slots()
            ))
        })?;
        if place.is_restored {
            self.counters.restored();
        }
        Ok((place, tokens, sampler))
    }

    /// Computes one batch, and gives out the tokens.
    ///
    /// # Errors
    ///
    /// When the model cannot be used any more; every request has been told.
    pub(crate) fn step(&mut self) -> Result<(), String> {
        self.drop_cancelled();
        self.admit();
        self.plan();
        let running = self.sequences.iter().map(Sequence::running);
        self.counters.set_running(running);
        if self.rows.is_empty() {
            return Ok(());
        }
        if self.rows.iter().any(|row| !row.wants_logits) {
            // A prompt takes longer than a token, and text does not wait for it.
            self.sequences.iter_mut().for_each(Sequence::send_unsent);
        }
        let started = Instant::now();
        match self.decoder.decode(&self.rows) {
            Ok(()) => {
                let n_decoding = self
                    .sequences
                    .iter()
                    .filter(|s| s.is_admitted && !s.is_prompt());
                self.counters
                    .stepped(self.rows.len(), n_decoding.count(), started.elapsed());
                self.sample();
                self.make_room();
                Ok(())
            }
            Err(DecodeError::NoRoom) => {
                // Cells that are free for the batch as a whole may not be free for this model's kind of cache.
                if !self.kept.clear(&mut self.decoder) && !self.suspend_youngest() {
                    self.fail_all(&Failure::Internal(
                        "the KV cache has no room for one request".to_owned(),
                    ));
                }
                Ok(())
            }
            Err(DecodeError::Failed(reason)) => {
                self.fail_all(&Failure::Internal(reason));
                Ok(())
            }
            Err(DecodeError::ModelGone(reason)) => {
                self.fail_all(&Failure::Unavailable(reason.clone()));
                Err(reason)
            }
        }
    }

    /// To be called when there are no requests and the model leaves: keeps what can be of use after the next load, while `may_go_on`
    /// says yes.
    pub(crate) fn leave(mut self, may_go_on: &dyn Fn() -> bool) {
        let count = self.kept.save(&mut self.decoder, may_go_on);
        self.counters.saved(count);
    }

    /// Ends everything.
    pub(crate) fn fail_all(&mut self, failure: &Failure) {
        self.kept.clear(&mut self.decoder);
        for sequence in std::mem::take(&mut self.sequences) {
            self.decoder.forget(sequence.slot);
            sequence.fail(failure.clone());
        }
    }

    fn drop_cancelled(&mut self) {
        for index in (0..self.sequences.len()).rev() {
            if self.sequences[index].is_cancelled() {
                let sequence = self.sequences.remove(index);
                self.kept.keep(&mut self.decoder, &sequence);
                self.counters.cancelled();
            }
        }
    }

    /// Cells of the KV cache that are taken, or will be by what was let in.
    fn reserved(&self) -> usize {
        let admitted = self
            .sequences
            .iter()
            .filter(|sequence| sequence.is_admitted);
        admitted.map(|sequence| sequence.tokens.len()).sum()
    }

    /// Lets requests in, the oldest first, as far as the KV cache has room for them.
    fn admit(&mut self) {
        let n_ctx = self.decoder.n_ctx();
        let mut reserved = self.reserved();
        let mut is_full = false;
        for sequence in self
            .sequences
            .iter_mut()
            .filter(|sequence| !sequence.is_admitted)
        {
            let spare = if reserved == 0 { 0 } else { READMIT_TOKENS };
            is_full |= reserved + sequence.tokens.len() + spare > n_ctx;
            if !is_full {
                sequence.is_admitted = true;
                reserved += sequence.tokens.len();
            } else if sequence.n_past > 0 {
                // It waits for room, so it cannot hold any.
                sequence.begin_anew();
                self.decoder.forget(sequence.slot);
            }
        }
        self.kept
            .shrink(&mut self.decoder, n_ctx - reserved.min(n_ctx));
    }

    /// Chooses the rows of the next step.
    fn plan(&mut self) {
        self.rows.clear();
        let admitted = || {
            self.sequences
                .iter()
                .filter(|sequence| sequence.is_admitted)
        };
        for sequence in admitted().filter(|sequence| !sequence.is_prompt()) {
            add_rows(&mut self.rows, sequence, 1);
        }
        let room = self.decoder.n_batch().saturating_sub(self.rows.len());
        let mut room = if self.rows.is_empty() {
            room
        } else {
            room.min(PROMPT_TOKENS_BESIDE)
        };
        for sequence in admitted().filter(|sequence| sequence.is_prompt()) {
            let count = sequence.pending().len().min(room);
            add_rows(&mut self.rows, sequence, count);
            room -= count;
        }
    }

    /// Gives each request whose last token was computed its next one.
    fn sample(&mut self) {
        let mut ended = Vec::new();
        for (row_index, row) in self.rows.iter().enumerate() {
            let Some(index) = self
                .sequences
                .iter()
                .position(|sequence| sequence.slot == row.slot)
            else {
                continue;
            };
            let sequence = &mut self.sequences[index];
            sequence.n_past = row.position + 1;
            if !row.wants_logits {
                continue;
            }
            match self.decoder.sample(&mut sequence.sampler, row_index) {
                Ok(token) => {
                    let piece = match self.decoder.is_end(token) {
                        true => Piece::End,
                        false => Piece::Text(self.decoder.piece(token)),
                    };
                    let chosen = sequence
                        .probabilities()
                        .map(|count| self.decoder.chosen(row_index, token, count as usize));
                    if let Some(reason) = sequence.accept(token, piece, chosen) {
                        ended.push((row.slot, Ok(reason)));
                    }
                    self.counters.generated();
                }
                Err(reason) => ended.push((row.slot, Err(Failure::Internal(reason)))),
            }
        }
        for (slot, end) in ended {
            self.end(slot, end);
        }
    }

    fn end(&mut self, slot: u32, end: Result<FinishReason, Failure>) {
        let Some(index) = self
            .sequences
            .iter()
            .position(|sequence| sequence.slot == slot)
        else {
            return;
        };
        let sequence = self.sequences.remove(index);
        match end {
            Ok(reason) => {
                self.kept.keep(&mut self.decoder, &sequence);
                sequence.finish(reason, self.counters);
            }
            Err(failure) => {
                self.decoder.forget(slot);
                sequence.fail(failure);
            }
        }
    }

    /// Sees to it that the next token of every request that was let in fits.
    fn make_room(&mut self) {
        let spare = self.decoder.n_ctx().saturating_sub(self.reserved());
        self.kept.shrink(&mut self.decoder, spare);
        while self.reserved() > self.decoder.n_ctx() {
            if !self.suspend_youngest() {
                // It is alone and the context is full.
                let slot = self
                    .sequences
                    .iter()
                    .find(|s| s.is_admitted)
                    .map(|s| s.slot);
                let Some(slot) = slot else {
                    return;
                };
                self.end(slot, Ok(FinishReason::Length));
            }
        }
    }

    /// Takes the room of the youngest request. `false` if it is the only one that has some.
    fn suspend_youngest(&mut self) -> bool {
        let mut admitted = self
            .sequences
            .iter_mut()
            .filter(|sequence| sequence.is_admitted);
        let (Some(_), Some(youngest)) = (admitted.next(), admitted.next_back()) else {
            return false;
        };
        youngest.send_unsent();
        youngest.is_admitted = false;
        youngest.begin_anew();
        let slot = youngest.slot;
        self.decoder.forget(slot);
        self.counters.suspended();
        true
    }
}

/// Adds the next tokens of a request.
fn add_rows<S>(rows: &mut Vec<Row>, sequence: &Sequence<S>, count: usize) {
    let pending = sequence.pending();
    for (index, token) in pending.iter().enumerate().take(count) {
        rows.push(Row {
            token: *token,
            position: sequence.n_past + index,
            slot: sequence.slot,
            wants_logits: index + 1 == pending.len(),
        });
    }
}
