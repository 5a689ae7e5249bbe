//! Reading ahead: experts that the next layer will probably use are read while this one is computed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use forecast::Guess;
use llama_rs::{Begin, LoadedWeight};

use super::routers::Routers;
use super::{Inner, Provider};
use crate::engine::Class;
use crate::lookahead::{Foresight, Lookahead};
use crate::slices::{SliceId, Slices};

/// Experts of one layer that are read ahead at the most.
const EXPERTS_MAX: usize = 4;

/// Who guesses, and what of it is on its way.
#[derive(Debug)]
pub(crate) struct Ahead {
    guesser: Guesser,
    /// Layers with experts, ascending, and how many experts they have.
    layers: Vec<(u32, usize)>,
    n_used: usize,
    guesses: Vec<Guess>,
    picks: Vec<u32>,
    /// Experts that are to be read, the most urgent first.
    experts: Vec<u32>,
    /// The layer whose router was computed in advance, and the best by its scores.
    foreseen: Option<(u32, Vec<u32>)>,
    /// Slices that were asked for and are not needed yet.
    asked: Vec<SliceId>,
    /// Time that threads had waited when this step began.
    stall_ns: u64,
}

#[derive(Debug)]
enum Guesser {
    Learned {
        lookahead: Box<forecast::Lookahead>,
        probability_min: f64,
        has_routers: bool,
    },
    Told(Arc<dyn Foresight>),
}

impl Ahead {
    pub(crate) fn new(slices: &Slices, lookahead: &Lookahead) -> Option<Ahead> {
        let mut layers: Vec<(u32, usize)> = Vec::new();
        for stack in slices.sparse_tensors() {
            match layers.last_mut() {
                Some((layer, n)) if *layer == stack.layer => *n = (*n).max(stack.n_slices as usize),
                _ => layers.push((stack.layer, stack.n_slices as usize)),
            }
        }
        let n_used = slices.n_experts_used() as usize;
        let learned = |probability_min, has_routers| {
            let n_experts: Vec<usize> = layers.iter().map(|&(_, n)| n).collect();
            Guesser::Learned {
                lookahead: Box::new(forecast::Lookahead::new(&n_experts, n_used)),
                probability_min,
                has_routers,
            }
        };
        let guesser = match lookahead {
            Lookahead::Off => return None,
            Lookahead::Picks(probability_min) => learned(*probability_min, false),
            // Routers that are read anew for each token are not there in advance.
            Lookahead::Router(probability_min) => {
                learned(*probability_min, !slices.is_dense_on_demand())
            }
            Lookahead::Told(foresight) => Guesser::Told(Arc::clone(foresight)),
        };
        Some(Ahead {
            guesser,
            layers,
            n_used,
            guesses: Vec::new(),
            picks: Vec::new(),
            experts: Vec::new(),
            foreseen: None,
            asked: Vec::new(),
            stall_ns: 0,
        })
    }

    /// The routers, if they are asked.
    pub(super) fn routers(&self, weights: &[LoadedWeight], n_embd: usize) -> Option<Routers> {
        match self.guesser {
            Guesser::Learned {
                has_routers: true, ..
            } => Some(Routers::new(weights, &self.layers, n_embd)),
            _ => None,
        }
    }

    /// Index of a layer among those with experts.
    fn index(&self, layer: u32) -> Option<usize> {
        let index = self
            .layers
            .binary_search_by_key(&layer, |&(layer, _)| layer);
        index.ok()
    }

    /// The layer after one, in which the experts to be read are. With scores of its router, if somebody has computed it.
    fn guess(&mut self, layer: u32, scores: Option<&[f32]>) -> Option<u32> {
        let next = (self.index(layer)? + 1) % self.layers.len();
        let (next_layer, n_experts) = self.layers[next];
        self.experts.clear();
        match &mut self.guesser {
            Guesser::Told(foresight) => foresight.experts(next_layer, next == 0, &mut self.experts),
            Guesser::Learned {
                lookahead,
                probability_min,
                ..
            } => {
                let scores = scores.filter(|scores| scores.len() == n_experts);
                match scores {
                    Some(scores) => lookahead.guess_with(scores, &mut self.guesses),
                    None => lookahead.guess(&mut self.guesses),
                }
                self.foreseen = scores.map(|scores| (next_layer, best(scores, self.n_used)));
                let min = *probability_min;
                self.guesses.retain(|guess| guess.probability >= min);
                self.guesses
                    .sort_by(|left, right| right.probability.total_cmp(&left.probability));
                self.experts
                    .extend(self.guesses.iter().map(|guess| guess.expert));
            }
        }
        self.experts.retain(|&expert| (expert as usize) < n_experts);
        Some(next_layer)
    }
}

/// The experts with the highest scores.
fn best(scores: &[f32], n: usize) -> Vec<u32> {
    let mut experts: Vec<u32> = (0..scores.len() as u32).collect();
    experts
        .sort_unstable_by(|&left, &right| scores[right as usize].total_cmp(&scores[left as usize]));
    experts.truncate(n);
    experts
}

impl Provider {
    /// A step begins.
    pub(super) fn begin_ahead(&self, state: &mut Inner) {
        if let (Some(ahead), Some(routers)) = (&mut state.ahead, &self.routers) {
            let stall_ns = self.counters.stall_ns();
            routers.earn(stall_ns.saturating_sub(ahead.stall_ns));
            ahead.stall_ns = stall_ns;
        }
    }

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

    /// A token's picks are known: asks for what the next layer will probably need and does not have, now or when its router
    /// was computed.
    pub(super) fn look_ahead(&self, state: &mut Inner, index: usize, access: &Begin<'_>) {
        let Some(ahead) = &mut state.ahead else {
            return;
        };
        let stack = &self.slices.sparse_tensors()[index];
        let Some(place) = ahead.index(stack.layer) else {
            return;
        };
        ahead.picks.clear();
        ahead
            .picks
            .extend(access.ids.iter().map(|pick| pick.cast_unsigned()));
        if let Some((_, best)) = ahead
            .foreseen
            .take()
            .filter(|(layer, _)| *layer == stack.layer)
        {
            let right = best.iter().filter(|expert| ahead.picks.contains(expert));
            self.counters.foreseen(ahead.picks.len(), right.count());
        }
        if let Guesser::Learned { lookahead, .. } = &mut ahead.guesser {
            lookahead.observe(place, &ahead.picks);
        }
        let waits_for_router = (self.routers.as_ref())
            .is_some_and(|routers| routers.begin_layer(place, stack, access.input()));
        if !waits_for_router {
            self.read_ahead(state, stack.layer, None);
        }
    }

    /// Computes the next layer's router if that is to be done and nobody does it, and asks for what it says.
    pub(super) fn guess_ahead(&self) {
        let Some(routers) = &self.routers else {
            return;
        };
        // SAFETY: an operation asks for a slice, so its model is alive. Routers are computed only when all dense weights have arrived.
        let is_new =
            routers.is_wanted() && self.dense.is_complete() && unsafe { routers.compute() };
        if is_new || routers.has_scores() {
            // Whoever has the lock looks again before it gives it back, or soon after.
            if let Ok(mut state) = self.state.try_lock() {
                self.read_guessed(&mut state);
                self.n_in_flight
                    .store(state.engine.in_flight(), Ordering::Relaxed);
            }
        }
    }

    /// Asks for what a router that was computed says.
    pub(super) fn read_guessed(&self, state: &mut Inner) {
        let (Some(routers), Some(layer)) = (&self.routers, state.layer) else {
            return;
        };
        if routers.has_scores() {
            routers.take(|scores| self.read_ahead(state, layer, Some(scores)));
        }
    }

    /// Asks for what the layer after this one will probably need and does not have.
    fn read_ahead(&self, state: &mut Inner, layer: u32, scores: Option<&[f32]>) {
        let Inner {
            ahead: Some(ahead),
            pool,
            fetches,
            ..
        } = state
        else {
            return;
        };
        let Some(next_layer) = ahead.guess(layer, scores) else {
            return;
        };
        let first = self.slices.layer(next_layer)[0].first;
        let mut n_experts = 0;
        for expert in &ahead.experts {
            let n_before = fetches.len();
            for slice in self.slices.expert(SliceId(first.0 + expert)) {
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
