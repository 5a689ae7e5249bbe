//! Reading ahead: experts that the next layer will probably use are read while this one is computed.

use forecast::{Guess, Lookahead};

use super::{Inner, Provider};
use crate::engine::Class;
use crate::slices::{SliceId, Slices};

/// Experts of one layer that are read ahead at the most.
const EXPERTS_MAX: usize = 2;

/// Who guesses, and what of it is on its way.
#[derive(Debug)]
pub(crate) struct Ahead {
    lookahead: Lookahead,
    probability_min: f64,
    /// Layers with experts, ascending.
    layers: Vec<u32>,
    guesses: Vec<Guess>,
    picks: Vec<u32>,
    /// Slices that were asked for and are not needed yet.
    asked: Vec<SliceId>,
}

impl Ahead {
    pub(crate) fn new(slices: &Slices, probability_min: f64) -> Ahead {
        let mut layers: Vec<(u32, usize)> = Vec::new();
        for stack in slices.sparse_tensors() {
            match layers.last_mut() {
                Some((layer, n)) if *layer == stack.layer => *n = (*n).max(stack.n_slices as usize),
                _ => layers.push((stack.layer, stack.n_slices as usize)),
            }
        }
        let n_experts: Vec<usize> = layers.iter().map(|&(_, n)| n).collect();
        Ahead {
            lookahead: Lookahead::new(&n_experts, slices.n_experts_used() as usize),
            probability_min,
            layers: layers.into_iter().map(|(layer, _)| layer).collect(),
            guesses: Vec::new(),
            picks: Vec::new(),
            asked: Vec::new(),
        }
    }

    /// The experts that probably follow these, the likeliest first, with the layer.
    fn next(&mut self, layer: u32, picks: impl Iterator<Item = u32>) -> Option<(u32, &[Guess])> {
        let index = self.layers.binary_search(&layer).ok()?;
        self.picks.clear();
        self.picks.extend(picks);
        self.lookahead.observe(index, &self.picks);
        self.lookahead.guess(&mut self.guesses);
        let min = self.probability_min;
        self.guesses.retain(|guess| guess.probability >= min);
        self.guesses
            .sort_by(|left, right| right.probability.total_cmp(&left.probability));
        Some((self.layers[self.lookahead.next_layer()?], &self.guesses))
    }
}

impl Provider {
    /// A layer's experts are known: what was read ahead for it is needed now, or not at all.
    pub(super) fn settle_ahead(&self, state: &mut Inner, layer: u32) {
        let Inner {
            ahead: Some(ahead),
            engine,
            wanted,
            ..
        } = state
        else {
            return;
        };
        ahead.asked.retain(|&slice| {
            if self.slices.slice(slice).layer != layer {
                return true;
            }
            match wanted.contains(&slice) {
                true => engine.promote(slice.0.into()),
                false => engine.cancel(slice.0.into()),
            };
            false
        });
    }

    /// Asks for what the next layer will probably need and does not have.
    pub(super) fn read_ahead(&self, state: &mut Inner, layer: u32, picks: &[i32]) {
        let Inner {
            ahead: Some(ahead),
            pool,
            fetches,
            ..
        } = state
        else {
            return;
        };
        let picks = picks.iter().map(|pick| pick.cast_unsigned());
        let Some((next_layer, guesses)) = ahead.next(layer, picks) else {
            return;
        };
        let mut n_experts = 0;
        for guess in guesses {
            let first = self.slices.layer(next_layer)[0].first;
            let n_before = fetches.len();
            for slice in self.slices.expert(SliceId(first.0 + guess.expert)) {
                fetches.extend(pool.prefetch(slice));
            }
            n_experts += usize::from(fetches.len() > n_before);
            if n_experts == EXPERTS_MAX {
                break;
            }
        }
        let asked = fetches.iter().map(|fetch| fetch.slice);
        ahead.asked.extend(asked);
        self.submit(state, Class::Prefetch);
    }
}
