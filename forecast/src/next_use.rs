//! When each expert will probably be used again.

use std::collections::VecDeque;

use crate::rates::{Rates, Regression, logit};
use crate::recall::Recall;

/// Decays per token of what counts as lately, as long, and as the last few tokens.
const LATELY: f64 = 0.95;
const LONG: f64 = 0.995;
const LAST: f64 = 0.6;
/// Tokens that are remembered.
const MEMORY: usize = 4096;
/// A use after n tokens is worth this to the power of n - 1.
const GAMMA: f64 = 0.7;
/// After so many tokens it is known what a use would have been worth: one that comes later is worth next to nothing.
const AHEAD: usize = 16;
/// How fast the regression learns.
const LEARNING_RATE: f64 = 0.0005;
/// What is assumed before anything was seen: one expert of eight is used. After a few tokens it does not matter.
const RATE: f64 = 1.0 / 8.0;
/// What memory says is kept this far from 0 and 1.
const RECALLED_MIN: f64 = 0.003;

const N_FEATURES: usize = 5;
type Features = [f64; N_FEATURES];

/// What was known of an expert after a token, until it is known what came of it.
#[derive(Clone, Copy, Debug)]
struct Guess {
    features: Features,
    /// What its next use is worth, as seen from that token; 0: it was not used yet.
    worth: f64,
}

#[derive(Clone, Debug)]
struct Layer {
    lately: Rates,
    long: Rates,
    last: Rates,
    /// What memory says the next use of each expert is worth.
    recalled: Vec<f64>,
    /// Of each of the last `AHEAD` tokens, the oldest first, all experts.
    guesses: VecDeque<Vec<Guess>>,
    /// When each expert is expected next, in layers since the beginning.
    next: Vec<f64>,
}

impl Layer {
    fn features(&self, expert: usize) -> Features {
        let recalled = self.recalled[expert].clamp(RECALLED_MIN, 1.0 - RECALLED_MIN);
        [
            1.0,
            logit(self.lately.of(expert)),
            logit(self.long.of(expert)),
            logit(self.last.of(expert)),
            logit(recalled),
        ]
    }

    /// Tells the guesses of the tokens before what came.
    fn settle(&mut self, picks: &[u32]) {
        let mut worth = 1.0;
        for guesses in self.guesses.iter_mut().rev() {
            for &pick in picks {
                let guess = &mut guesses[pick as usize];
                if guess.worth == 0.0 {
                    guess.worth = worth;
                }
            }
            worth *= GAMMA;
        }
    }
}

/// Expects each expert's next use: Belady's policy gives up the one that is used again last, and this is that with an
/// estimate in place of the future.
///
/// A use n tokens from now is worth 0.7^(n - 1). A logistic regression estimates what the next use of an expert is worth, from how often
/// tokens used it lately, over a longer time and in the last few tokens, and from memory: of the last 4,096 tokens those that
/// share most picks with the last one are looked up, and how soon the expert was used after them. It learns from each token what the
/// estimates of 16 tokens before should have been. The time that is given here is the one at which a use would be worth as much,
/// counted from when the expert's layer was last computed: of two experts with the same estimate, the one whose layer comes sooner
/// is expected sooner.
///
/// It takes 64 KiB for each layer of 32 experts.
#[derive(Clone, Debug)]
pub struct NextUse {
    layers: Vec<Layer>,
    recall: Recall,
    regression: Regression<N_FEATURES>,
    /// Layers that were computed since the beginning.
    n_computed: u64,
}

impl NextUse {
    /// Layers with experts, in the order of use, by their number of experts.
    pub fn new(n_experts: &[usize]) -> NextUse {
        let n_layers = n_experts.len() as f64;
        let layers = n_experts
            .iter()
            .enumerate()
            .map(|(index, &n_experts)| Layer {
                lately: Rates::new(n_experts, RATE, LATELY),
                long: Rates::new(n_experts, RATE, LONG),
                last: Rates::new(n_experts, RATE, LAST),
                recalled: vec![RATE; n_experts],
                guesses: VecDeque::with_capacity(AHEAD),
                next: vec![index as f64 + n_layers * (1.0 / RATE - 1.0); n_experts],
            });
        NextUse {
            layers: layers.collect(),
            recall: Recall::new(n_experts, MEMORY),
            // Memory gets more of it with the tokens that it has.
            regression: Regression::new([0.0, 0.3, 0.2, 0.1, 0.5], LEARNING_RATE),
            n_computed: 0,
        }
    }

    /// A token uses these experts of the layer, all different. Of a model with several layers, one that is told of twice in a row
    /// counts once; one that is left out counts as using none.
    ///
    /// # Panics
    ///
    /// If there is no such layer or expert.
    pub fn observe(&mut self, layer: usize, picks: &[u32]) {
        let n_layers = self.layers.len() as u64;
        assert!(layer < self.layers.len(), "layer {layer} of {n_layers}");
        let is_again = self.n_computed > 0 && (self.n_computed - 1) % n_layers == layer as u64;
        if is_again && n_layers > 1 {
            return;
        }
        while self.n_computed % n_layers != layer as u64 {
            self.compute((self.n_computed % n_layers) as usize, &[]);
        }
        self.compute(layer, picks);
    }

    fn compute(&mut self, layer: usize, picks: &[u32]) {
        let n_layers = self.layers.len() as f64;
        let now = self.n_computed as f64;
        self.n_computed += 1;
        let state = &mut self.layers[layer];
        state.settle(picks);
        let oldest = match state.guesses.len() {
            AHEAD => state.guesses.pop_front(),
            _ => None,
        };
        let mut guesses = oldest.unwrap_or_default();
        for guess in guesses.drain(..) {
            let value = self.regression.probability(&guess.features);
            self.regression.learn(&guess.features, value, guess.worth);
        }
        state.lately.observe(picks);
        state.long.observe(picks);
        state.last.observe(picks);
        self.recall.observe(layer, picks);
        for (expert, recalled) in state.recalled.iter_mut().enumerate() {
            *recalled = state.lately.of(expert);
        }
        self.recall.expect(layer, GAMMA, &mut state.recalled);
        for expert in 0..state.next.len() {
            let features = state.features(expert);
            let value = self.regression.probability(&features);
            state.next[expert] = now + n_layers * (1.0 + value.ln() / GAMMA.ln());
            guesses.push(Guess {
                features,
                worth: 0.0,
            });
        }
        state.guesses.push_back(guesses);
    }

    /// When the expert is expected next, in layers since the beginning. Changes only when its layer is observed.
    ///
    /// # Panics
    ///
    /// If there is no such layer or expert.
    pub fn of(&self, layer: usize, expert: usize) -> f64 {
        self.layers[layer].next[expert]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A linear congruential generator.
    fn random(state: &mut u32, n: u32) -> u32 {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*state >> 16) % n
    }

    #[test]
    fn what_is_used_often_is_expected_soon() {
        let mut next = NextUse::new(&[4, 4]);
        let mut state = 5;
        for token in 0..400 {
            // Expert 0 always, 1 by one token in four, 2 never again after the start.
            let mut picks = vec![0];
            if random(&mut state, 4) == 0 {
                picks.push(1);
            }
            if token < 8 {
                picks.push(2);
            }
            next.observe(0, &picks);
            next.observe(1, &picks);
        }
        for layer in 0..2 {
            assert!(next.of(layer, 0) < next.of(layer, 1));
            assert!(next.of(layer, 1) < next.of(layer, 2));
        }
    }

    #[test]
    fn of_equal_experts_that_of_the_next_layer_comes_first() {
        let mut next = NextUse::new(&[4, 4]);
        assert!(next.of(0, 1) < next.of(1, 1));
        let before = next.of(1, 1);
        next.observe(0, &[3]);
        assert_eq!(next.of(1, 1), before, "layer 1 was not computed");
        next.observe(1, &[3]);
        assert!(next.of(0, 1) < next.of(1, 1), "layer 0 comes next");
        next.observe(0, &[3]);
        assert!(next.of(1, 1) < next.of(0, 1), "layer 1 comes next");
    }

    #[test]
    fn expected_times_are_worth_what_comes() {
        let mut next = NextUse::new(&[8]);
        let mut state = 3;
        let (mut expected, mut found, mut n) = (0.0, 0.0, 0.0);
        let mut asked: Vec<(u32, f64)> = Vec::new();
        for token in 0..8000 {
            // One of eight by chance.
            let pick = random(&mut state, 8);
            if pick == 5 {
                for (at, time) in asked.drain(..) {
                    expected += GAMMA.powf(time - 1.0);
                    found += GAMMA.powi((token - at) as i32 - 1);
                    n += 1.0;
                }
            }
            next.observe(0, &[pick]);
            if token > 4000 {
                asked.push((token, next.of(0, 5) - f64::from(token)));
            }
        }
        // 1 / 8 / (1 - 0.7 * 7 / 8)
        assert!((found / n - 0.32_f64).abs() < 0.04, "{}", found / n);
        assert!(((expected - found) / n).abs() < 0.04, "{}", expected / n);
    }

    /// Experts that all are used equally often: only memory knows which come next.
    #[test]
    fn what_came_after_tokens_like_the_last_is_remembered() {
        const N_LAYERS: usize = 6;
        let mut state = 9;
        let mut token =
            || [(); N_LAYERS].map(|()| [0, 1].map(|half| 16 * half + random(&mut state, 16)));
        let phrase: Vec<_> = (0..12).map(|_| token()).collect();
        let mut next = NextUse::new(&[32; N_LAYERS]);
        let (mut sooner, mut n) = (0.0, 0.0);
        for round in 0..30 {
            for _ in 0..40 {
                let picks = token();
                (0..N_LAYERS).for_each(|layer| next.observe(layer, &picks[layer]));
            }
            for (index, picks) in phrase.iter().enumerate() {
                if round > 5 && index > 1 {
                    for (layer, picks) in picks.iter().enumerate() {
                        let mean = (0..32).map(|expert| next.of(layer, expert)).sum::<f64>() / 32.0;
                        for &pick in picks {
                            sooner += f64::from(u8::from(next.of(layer, pick as usize) < mean));
                            n += 1.0;
                        }
                    }
                }
                (0..N_LAYERS).for_each(|layer| next.observe(layer, &picks[layer]));
            }
        }
        // By chance it is about half.
        assert!(sooner / n > 0.95, "{}", sooner / n);
    }

    #[test]
    fn a_layer_told_of_twice_counts_once_and_one_left_out_uses_none() {
        let mut once = NextUse::new(&[8; 3]);
        let mut otherwise = once.clone();
        let mut state = 1;
        for token in 0..60 {
            for layer in 0..3 {
                let picks = [random(&mut state, 8)];
                if token % 7 == 3 && layer == 1 {
                    once.observe(layer, &[]);
                    continue;
                }
                once.observe(layer, &picks);
                otherwise.observe(layer, &picks);
                if token % 5 == 0 {
                    otherwise.observe(layer, &picks);
                }
            }
        }
        for layer in 0..3 {
            for expert in 0..8 {
                assert_eq!(once.of(layer, expert), otherwise.of(layer, expert));
            }
        }
    }
}
