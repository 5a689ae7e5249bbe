//! When each expert will probably be used again.

use crate::rates::{Rates, Regression, logit};

/// Decays per token of what counts as lately, as long, and as the last few tokens.
const LATELY: f64 = 0.95;
const LONG: f64 = 0.995;
const LAST: f64 = 0.6;
/// How fast the regression learns.
const LEARNING_RATE: f64 = 0.003;
/// What is assumed before anything was seen: one expert of eight is used. After a few tokens it does not matter.
const RATE: f64 = 1.0 / 8.0;

type Features = [f64; 4];

#[derive(Clone, Debug)]
struct Layer {
    lately: Rates,
    long: Rates,
    last: Rates,
    /// When each expert is expected next, in layers since the beginning.
    next: Vec<f64>,
}

impl Layer {
    fn features(&self, expert: usize) -> Features {
        [
            1.0,
            logit(self.lately.of(expert)),
            logit(self.long.of(expert)),
            self.last.of(expert),
        ]
    }
}

/// Expects each expert's next use: Belady's policy gives up the one that is used again last, and this is that with an
/// estimate in place of the future.
///
/// An expert is used by a token with a probability that a logistic regression learns from how often tokens used it lately, over a
/// longer time, and in the last few tokens. With probability p it takes 1 / p tokens until it is used, counted from when its
/// layer was last computed: of two experts with the same p, the one whose layer comes sooner is expected sooner.
#[derive(Clone, Debug)]
pub struct NextUse {
    layers: Vec<Layer>,
    regression: Regression<4>,
    token: u64,
    layer: usize,
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
                next: vec![index as f64 + n_layers * (1.0 / RATE - 1.0); n_experts],
            });
        NextUse {
            layers: layers.collect(),
            // About what the shared traces end at: then few tokens are needed.
            regression: Regression::new([-0.3, 0.5, 0.4, 0.8], LEARNING_RATE),
            token: 0,
            layer: 0,
        }
    }

    /// A token uses these experts of the layer, all different.
    ///
    /// # Panics
    ///
    /// If there is no such layer or expert.
    pub fn observe(&mut self, layer: usize, picks: &[u32]) {
        if layer < self.layer || self.layers.len() == 1 {
            self.token += 1;
        }
        self.layer = layer;
        let n_layers = self.layers.len() as f64;
        let now = self.token as f64 * n_layers + layer as f64;
        let state = &mut self.layers[layer];
        for expert in 0..state.next.len() {
            let features = state.features(expert);
            let probability = self.regression.probability(&features);
            let was_used = picks.contains(&(expert as u32));
            self.regression.learn(&features, probability, was_used);
        }
        state.lately.observe(picks);
        state.long.observe(picks);
        state.last.observe(picks);
        for expert in 0..state.next.len() {
            let probability = self.regression.probability(&state.features(expert));
            state.next[expert] = now + n_layers / probability;
        }
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

    #[test]
    fn what_is_used_often_is_expected_soon() {
        let mut next = NextUse::new(&[4, 4]);
        for token in 0..200u32 {
            // Expert 0 always, 1 every fourth token, 2 never again after the start; 3 of layer 1 as often as 1 of layer 0.
            let rare = token.is_multiple_of(4);
            let first: &[u32] = if token < 8 {
                &[0, 2]
            } else if rare {
                &[0, 1]
            } else {
                &[0]
            };
            let second: &[u32] = if rare { &[0, 3] } else { &[0] };
            next.observe(0, first);
            next.observe(1, second);
        }
        assert!(next.of(0, 0) < next.of(0, 1));
        assert!(next.of(0, 1) < next.of(0, 2));
        // Both layers are over: layer 0 comes first.
        assert!(next.of(0, 1) < next.of(1, 3));
        let before = next.of(1, 3);
        next.observe(0, &[0]);
        assert_eq!(next.of(1, 3), before);
        assert!(next.of(1, 3) < next.of(0, 1), "now layer 1 comes first");
    }

    #[test]
    fn expected_times_are_those_that_come() {
        let mut next = NextUse::new(&[8]);
        let mut state = 3u32;
        let (mut expected, mut found, mut n) = (0.0, 0.0, 0.0);
        let mut asked: Vec<(u32, f64)> = Vec::new();
        for token in 0..8000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // One of eight by chance.
            let pick = state >> 29;
            if pick == 5 {
                for (at, time) in asked.drain(..) {
                    expected += time;
                    found += f64::from(token - at);
                    n += 1.0;
                }
            }
            next.observe(0, &[pick]);
            if token > 4000 && token % 16 == 0 {
                asked.push((token, next.of(0, 5) - f64::from(token)));
            }
        }
        // Eight tokens on average.
        assert!((found / n - 8.0).abs() < 1.5, "{}", found / n);
        assert!((expected / n - 8.0).abs() < 2.5, "{}", expected / n);
    }
}
