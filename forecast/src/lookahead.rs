//! What the next layer will use.

use crate::rates::{Rates, Regression, logit};

/// Decay per token of what counts as lately, as long, and as the last few tokens.
const LATELY: f64 = 0.95;
const LONG: f64 = 0.999;
const LAST: f64 = 0.6;
/// How fast the regression learns.
const LEARNING_RATE: f64 = 0.002;
const N_FEATURES: usize = 5;
type Features = [f64; N_FEATURES];

/// An expert and the probability that the next layer uses it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guess {
    /// The expert.
    pub expert: u32,
    /// 0 to 1.
    pub probability: f64,
}

/// What is known of one layer's experts.
#[derive(Clone, Debug)]
struct Layer {
    lately: Rates,
    long: Rates,
    last: Rates,
    /// By expert of the layer before: over tokens that used that one.
    together: Vec<Rates>,
}

impl Layer {
    fn new(n_experts: usize, n_before: usize, n_used: usize) -> Layer {
        // As if nothing but the number of experts were known.
        let rate = n_used as f64 / n_experts.max(1) as f64;
        let rates = |decay| Rates::new(n_experts, rate, decay);
        Layer {
            lately: rates(LATELY),
            long: rates(LONG),
            last: rates(LAST),
            together: vec![rates(LONG); n_before],
        }
    }

    fn features(&self, expert: usize, picks_before: &[u32]) -> Features {
        let long = self.long.of(expert);
        let more_often: f64 = (picks_before.iter())
            .map(|&before| self.together[before as usize].of(expert) / long)
            .product();
        [
            1.0,
            logit(self.lately.of(expert)),
            logit(long),
            more_often.ln(),
            self.last.of(expert),
        ]
    }

    fn observe(&mut self, picks: &[u32], picks_before: &[u32]) {
        self.lately.observe(picks);
        self.long.observe(picks);
        self.last.observe(picks);
        for &before in picks_before {
            self.together[before as usize].observe(picks);
        }
    }
}

/// Guesses which experts the next layer will use, from what its routers picked so far.
///
/// A router's picks say something about those of the next layer: some experts go together, far more often than their
/// frequencies alone would have it. The guess is a probability for each expert, from four observations: how often tokens have used it
/// lately, over a long time, and in the last few tokens, and how much more often than that together with the picks of the
/// layer before. A logistic regression weighs them and learns from every token whether it was right, so the probabilities
/// are calibrated for the text at hand: of the experts given 0.4, four in ten are used.
///
/// Nothing but picks goes in: no weight is read and no router is computed in advance.
#[derive(Clone, Debug)]
pub struct Lookahead {
    layers: Vec<Layer>,
    regression: Regression<N_FEATURES>,
    /// The last layer that was observed and its picks.
    layer: Option<usize>,
    picks: Vec<u32>,
    /// Guesses for the layer after it, which its picks will judge.
    open: Vec<(Guess, Features)>,
}

impl Lookahead {
    /// Layers with experts, in the order of use, by their number of experts. A token uses `n_used` of each.
    pub fn new(n_experts: &[usize], n_used: usize) -> Lookahead {
        let before = |index: usize| match index {
            0 => n_experts.last(),
            _ => n_experts.get(index - 1),
        };
        let layers = n_experts.iter().enumerate().map(|(index, &n_experts)| {
            Layer::new(n_experts, before(index).copied().unwrap_or(0), n_used)
        });
        Lookahead {
            layers: layers.collect(),
            // What the shared traces end at, roughly: a start from which few tokens are needed.
            regression: Regression::new([0.2, 0.3, 0.7, 0.6, 0.7], LEARNING_RATE),
            layer: None,
            picks: Vec::new(),
            open: Vec::new(),
        }
    }

    /// A token uses these experts, all different, in the layer of this index.
    ///
    /// # Panics
    ///
    /// If there is no such layer or expert.
    pub fn observe(&mut self, layer: usize, picks: &[u32]) {
        let n_layers = self.layers.len();
        let follows = self
            .layer
            .is_some_and(|last| (last + 1) % n_layers == layer);
        for (guess, features) in self.open.drain(..).filter(|_| follows) {
            let was_used = f64::from(u8::from(picks.contains(&guess.expert)));
            self.regression
                .learn(&features, guess.probability, was_used);
        }
        let picks_before = if follows { &self.picks[..] } else { &[] };
        self.layers[layer].observe(picks, picks_before);
        self.layer = Some(layer);
        self.picks.clear();
        self.picks.extend_from_slice(picks);
    }

    /// The layer after the one that was observed last; the first after the last one. `None` before the first observation.
    pub fn next_layer(&self) -> Option<usize> {
        Some((self.layer? + 1) % self.layers.len())
    }

    /// Probabilities of all experts of the next layer.
    pub fn guess(&mut self, guesses: &mut Vec<Guess>) {
        guesses.clear();
        self.open.clear();
        let Some(layer) = self.next_layer() else {
            return;
        };
        let layer = &self.layers[layer];
        for expert in 0..layer.long.len() {
            let features = layer.features(expert, &self.picks);
            let guess = Guess {
                expert: expert as u32,
                probability: self.regression.probability(&features),
            };
            self.open.push((guess, features));
            guesses.push(guess);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Layer 1 uses what layer 0 used, shifted by one; layer 0 goes round.
    fn token(index: usize) -> [[u32; 2]; 2] {
        let first = (index * 5 % 8) as u32;
        let picks = [first, (first + 3) % 8];
        [picks, picks.map(|pick| (pick + 1) % 8)]
    }

    #[test]
    fn experts_that_go_together_are_learned() {
        let mut lookahead = Lookahead::new(&[8, 8], 2);
        let mut guesses = Vec::new();
        lookahead.guess(&mut guesses);
        assert!(guesses.is_empty() && lookahead.next_layer().is_none());
        for index in 0..4000 {
            let [first, second] = token(index);
            lookahead.observe(0, &first);
            assert_eq!(lookahead.next_layer(), Some(1));
            lookahead.guess(&mut guesses);
            assert_eq!(guesses.len(), 8);
            if index > 3900 {
                for guess in &guesses {
                    let is_used = second.contains(&guess.expert);
                    assert_eq!(guess.probability > 0.5, is_used, "{guess:?}");
                }
            }
            lookahead.observe(1, &second);
            assert_eq!(lookahead.next_layer(), Some(0));
        }
    }

    #[test]
    fn probabilities_are_those_of_the_picks() {
        let mut lookahead = Lookahead::new(&[4; 3], 1);
        let mut state = 7u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 24
        };
        let mut guesses = Vec::new();
        let (mut expected, mut found, mut n) = (0.0, 0.0, 0.0);
        for index in 0..6000 {
            for layer in 0..3 {
                // Expert 0 seven times of eight, the others rarely, and nothing that goes together.
                let pick = if random() % 8 > 0 {
                    0
                } else {
                    1 + random() % 3
                };
                let zero = guesses.first().copied();
                if let Some(Guess { probability, .. }) = zero.filter(|_| index > 3000) {
                    expected += probability;
                    found += f64::from(u8::from(pick == 0));
                    n += 1.0;
                }
                lookahead.observe(layer, &[pick]);
                lookahead.guess(&mut guesses);
            }
        }
        assert!(
            (expected - found).abs() / n < 0.03,
            "{expected} {found} {n}"
        );
    }
}
