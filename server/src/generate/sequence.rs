//! One request while it is computed.

use std::collections::VecDeque;
use std::time::Instant;

use llama_rs::Token;

use super::kept::Place;
use super::stop::TextStream;
use super::{ChosenToken, Event, Failure, FinishReason, Finished, Job, TextPiece};
use crate::counters::{ModelCounters, RunningSlot};

/// What a token is.
#[derive(Debug)]
pub(super) enum Piece {
    /// The end of the text.
    End,
    /// These bytes of it.
    Text(Vec<u8>),
}

/// A request with its tokens.
#[derive(Debug)]
pub(super) struct Sequence<S> {
    job: Job,
    pub(super) sampler: S,
    /// Its sequence in the KV cache, which no other request has.
    pub(super) slot: u32,
    /// The prompt and what was generated.
    pub(super) tokens: Vec<Token>,
    /// Tokens that are in the KV cache.
    pub(super) n_past: usize,
    /// Whether it has room in the KV cache. It loses that when others need it, and begins again later.
    pub(super) is_admitted: bool,
    n_prompt: usize,
    /// Tokens of the prompt that were in the KV cache before.
    n_cached: usize,
    n_max: usize,
    text: TextStream,
    /// Bytes of text that were generated.
    n_bytes: usize,
    /// Tokens with probabilities whose text is not certain yet, and where each one ends.
    uncertain: VecDeque<(usize, ChosenToken)>,
    /// Text that is certain and was not sent yet.
    unsent: Vec<TextPiece>,
    /// When text was sent last.
    sent: Option<Instant>,
    started: Instant,
    first_token: Option<Instant>,
}

impl<S> Sequence<S> {
    /// Tells the listener that the prompt was accepted.
    pub(super) fn new(
        mut job: Job,
        sampler: S,
        place: Place,
        prompt: Vec<Token>,
        n_ctx: usize,
    ) -> Self {
        let n_max = job
            .request
            .sampling
            .max_tokens
            .map_or(n_ctx, |count| count as usize);
        let sequence = Sequence {
            text: TextStream::new(std::mem::take(&mut job.request.stop)),
            n_prompt: prompt.len(),
            tokens: prompt,
            job,
            sampler,
            slot: place.slot,
            n_past: place.n_cached,
            n_cached: place.n_cached,
            is_admitted: false,
            n_max,
            n_bytes: 0,
            uncertain: VecDeque::new(),
            unsent: Vec::new(),
            sent: None,
            started: Instant::now(),
            first_token: None,
        };
        sequence.send(Event::Started {
            n_prompt: sequence.n_prompt as u32,
        });
        sequence
    }

    /// Whether nobody listens any more.
    pub(super) fn is_cancelled(&self) -> bool {
        self.job.events.is_closed()
    }

    /// Tokens that are not in the KV cache yet. At least one.
    pub(super) fn pending(&self) -> &[Token] {
        &self.tokens[self.n_past..]
    }

    /// How far it is.
    pub(super) fn running(&self) -> RunningSlot {
        RunningSlot {
            id: self.slot,
            n_prompt: self.n_prompt,
            n_cached: self.n_cached,
            n_past: self.n_past,
            n_generated: self.n_generated(),
        }
    }

    /// Its tokens are not in the KV cache any more.
    pub(super) fn begin_anew(&mut self) {
        self.n_past = 0;
        if self.first_token.is_none() {
            self.n_cached = 0;
        }
    }

    /// Whether it computes its prompt rather than a single token.
    pub(super) fn is_prompt(&self) -> bool {
        self.tokens.len() - self.n_past > 1
    }

    /// Tokens of the prompt; at least one.
    pub(super) fn n_prompt(&self) -> usize {
        self.n_prompt
    }

    /// Whether it may go on from what others left, and leave something for others.
    pub(super) fn reuses(&self) -> bool {
        self.job.request.reuses
    }

    pub(super) fn n_generated(&self) -> usize {
        self.tokens.len() - self.n_prompt
    }

    /// With how many others the request wants to see each token, if it does.
    pub(super) fn probabilities(&self) -> Option<u32> {
        self.job.request.probabilities
    }

    /// Takes a token that was chosen; the reason if it was the last one.
    pub(super) fn accept(
        &mut self,
        token: Token,
        piece: Piece,
        chosen: Option<ChosenToken>,
    ) -> Option<FinishReason> {
        self.first_token.get_or_insert_with(Instant::now);
        self.tokens.push(token);
        let Piece::Text(bytes) = piece else {
            return Some(FinishReason::Stop);
        };
        self.n_bytes += bytes.len();
        if let Some(chosen) = chosen {
            self.uncertain.push_back((self.n_bytes, chosen));
        }
        let text = self.text.push(&bytes);
        self.send_text(text);
        if self.text.is_stopped() {
            return Some(FinishReason::Stop);
        }
        (self.n_generated() >= self.n_max).then_some(FinishReason::Length)
    }

    /// Counts the end, gives the model back, and tells the listener: whoever has an answer finds everything as it is after it.
    pub(super) fn finish(mut self, reason: FinishReason, counters: &ModelCounters) {
        let rest = self.text.finish();
        self.send_text(rest);
        self.send_unsent();
        let now = Instant::now();
        let first = self.first_token.unwrap_or(now);
        let finished = Finished {
            reason,
            n_prompt: self.n_prompt as u32,
            n_cached: self.n_cached as u32,
            n_generated: self.n_generated() as u32,
            prompt_time: first - self.started,
            generate_time: now - first,
        };
        counters.finished(&finished);
        self.end(Event::Done(finished));
    }

    pub(super) fn fail(mut self, failure: Failure) {
        self.send_unsent();
        self.end(Event::Failed(failure));
    }

    fn end(self, event: Event) {
        let Job { events, lease, .. } = self.job;
        drop(lease);
        let _ = events.send(event);
    }

    /// Sends what is certain, unless that was done just now.
    fn send_text(&mut self, text: String) {
        if !text.is_empty() {
            let certain = self.n_bytes.saturating_sub(self.text.held_bytes());
            let count = self
                .uncertain
                .iter()
                .take_while(|(end, _)| *end <= certain)
                .count();
            let tokens = self.uncertain.drain(..count).map(|(_, token)| token);
            let tokens = tokens.collect();
            self.unsent.push(TextPiece { text, tokens });
        }
        if self
            .sent
            .is_none_or(|sent| sent.elapsed() >= self.job.request.text_interval)
        {
            self.send_unsent();
        }
    }

    /// Sends text that waits for more of it.
    pub(super) fn send_unsent(&mut self) {
        if !self.unsent.is_empty() {
            self.sent = Some(Instant::now());
            let pieces = std::mem::take(&mut self.unsent);
            self.send(Event::Text(pieces));
        }
    }

    /// A listener that went away is noticed before the next step.
    fn send(&self, event: Event) {
        let _ = self.job.events.send(event);
    }
}
