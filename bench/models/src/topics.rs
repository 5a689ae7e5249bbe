//! Topics: what makes a generated text stay with the same experts for a while.
//!
//! Real routing has a memory: within a text the same experts are used again and again, and another
//! text uses others. With random weights alone it has none. So each token belongs to one of
//! [`TOPICS`] topics: the second half of its embedding is the vector of its topic, which is what
//! the routers see of it beside the token itself, and the output leans towards tokens of the topic
//! that the hidden state still carries. A generated text then stays with a topic for some ten
//! tokens and changes to another, and so do the experts.

use half::f16;

use crate::rng::{BELL_ENTRIES, Rng, bell};

/// Number of topics. Neighbouring tokens are of different ones.
const TOPICS: u64 = 12;

/// Root mean square of the topic's half of an embedding; that of the token's own half is 1.
pub(crate) const VECTOR_RMS: f32 = 1.25;

/// How much the output leans towards the topic of the hidden state, in units of
/// [`crate::plan::unit`]. Twice as much, and a generated text hardly ever changes its topic.
pub(crate) const LEAN: f32 = 0.55;

/// The vectors of all topics, scaled, for rows of F16.
#[derive(Debug)]
pub(crate) struct Topics(Vec<Vec<f16>>);

impl Topics {
    /// The vectors of a model with `n_embd` channels, with this root mean square.
    pub(crate) fn new(seed: u64, n_embd: u64, rms: f32) -> Topics {
        let bell = bell();
        let vector = |topic| {
            let mut rng = Rng::new(seed, "topic", topic);
            let mut element = || rms * bell[rng.next() as usize % BELL_ENTRIES];
            (0..n_embd - n_embd / 2)
                .map(|_| f16::from_f32(element()))
                .collect()
        };
        Topics((0..TOPICS).map(vector).collect())
    }

    /// The elements of the second half of a token's row, each with that of the token's topic.
    fn half<'a>(
        &'a self,
        token: u64,
        row: &'a mut [u8],
    ) -> impl Iterator<Item = (&'a mut [u8], f16)> {
        let topic = &self.0[(token % TOPICS) as usize];
        let start = row.len() - 2 * topic.len();
        row[start..].chunks_exact_mut(2).zip(topic.iter().copied())
    }

    /// Makes the second half of a token's row the vector of its topic.
    pub(crate) fn replace_half(&self, token: u64, row: &mut [u8]) {
        for (place, element) in self.half(token, row) {
            place.copy_from_slice(&element.to_le_bytes());
        }
    }

    /// Adds the vector of its topic to the second half of a token's row.
    pub(crate) fn add_to_half(&self, token: u64, row: &mut [u8]) {
        for (place, element) in self.half(token, row) {
            let own = f16::from_le_bytes([place[0], place[1]]);
            let sum = f16::from_f32(own.to_f32() + element.to_f32());
            place.copy_from_slice(&sum.to_le_bytes());
        }
    }
}
