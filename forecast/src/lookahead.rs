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
/// The same, and what a router computed in advance says.
type RoutedFeatures = [f64; N_FEATURES + 1];
/// Standard deviations that a router's score may be away from the limit of what it picks.
const MARGIN_MAX: f64 = 4.0;

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
/// A fifth observation may be the next layer's router, computed in advance from a state that is not quite the one that it will be given
/// ([`guess_with`](Lookahead::guess_with)). How far it is to be believed is learned, too.
#[derive(Clone, Debug)]
pub struct Lookahead {
    layers: Vec<Layer>,
    n_used: usize,
    regression: Regression<N_FEATURES>,
    routed: Regression<{ N_FEATURES + 1 }>,
    /// The last layer that was observed and its picks.
    layer: Option<usize>,
    picks: Vec<u32>,
    /// Guesses for the layer after it, which its picks will judge.
    open: Vec<(Guess, Features)>,
    open_routed: Vec<(Guess, RoutedFeatures)>,
    sorted: Vec<f32>,
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
            n_used,
            // What the shared traces end at, roughly: a start from which few tokens are needed.
            regression: Regression::new([0.2, 0.3, 0.7, 0.6, 0.7], LEARNING_RATE),
            // A router that is right more often than not, beside half of what picks say.
            routed: Regression::new([0.0, 0.15, 0.35, 0.3, 0.35, 1.5], LEARNING_RATE),
            layer: None,
            picks: Vec::new(),
            open: Vec::new(),
            open_routed: Vec::new(),
            sorted: Vec::new(),
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
        let was_used = |guess: &Guess| f64::from(u8::from(picks.contains(&guess.expert)));
        for (guess, features) in self.open.drain(..).filter(|_| follows) {
            let right = was_used(&guess);
            self.regression.learn(&features, guess.probability, right);
        }
        for (guess, features) in self.open_routed.drain(..).filter(|_| follows) {
            let right = was_used(&guess);
            self.routed.learn(&features, guess.probability, right);
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
        let Some(layer) = self.open(guesses) else {
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

    /// The same, knowing how the next layer's router would score its experts: it picks those with the highest scores.
    ///
    /// # Panics
    ///
    /// If there is not a score for each expert of the layer.
    pub fn guess_with(&mut self, scores: &[f32], guesses: &mut Vec<Guess>) {
        let Some(layer) = self.open(guesses) else {
            return;
        };
        let (limit, deviation) = self.spread(scores);
        let layer = &self.layers[layer];
        assert_eq!(scores.len(), layer.long.len(), "a score for each expert");
        for (expert, &score) in scores.iter().enumerate() {
            let margin = (f64::from(score) - limit) / deviation;
            let margin = match margin.is_nan() {
                true => 0.0,
                false => margin.clamp(-MARGIN_MAX, MARGIN_MAX),
            };
            let [one, lately, long, more_often, last] = layer.features(expert, &self.picks);
            let features = [one, lately, long, more_often, last, margin];
            let guess = Guess {
                expert: expert as u32,
                probability: self.routed.probability(&features),
            };
            self.open_routed.push((guess, features));
            guesses.push(guess);
        }
    }

    /// Forgets the guesses before, and says which layer the next ones are about.
    fn open(&mut self, guesses: &mut Vec<Guess>) -> Option<usize> {
        guesses.clear();
        self.open.clear();
        self.open_routed.clear();
        self.next_layer()
    }

    /// Between the scores of what is picked and of what is not, and the scores' standard deviation.
    fn spread(&mut self, scores: &[f32]) -> (f64, f64) {
        self.sorted.clear();
        self.sorted.extend_from_slice(scores);
        self.sorted
            .sort_unstable_by(|left, right| right.total_cmp(left));
        let at = |index: usize| self.sorted.get(index).copied().map_or(0.0, f64::from);
        let limit = (at(self.n_used.saturating_sub(1)) + at(self.n_used)) / 2.0;
        let n = scores.len().max(1) as f64;
        let mean = scores.iter().copied().map(f64::from).sum::<f64>() / n;
        let squares = scores
            .iter()
            .map(|&score| (f64::from(score) - mean).powi(2));
        (limit, (squares.sum::<f64>() / n).sqrt())
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

    #[test]
    fn a_router_is_believed_as_far_as_it_is_right() {
        let mut state = 5u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 24
        };
        for is_right in [true, false] {
            let mut lookahead = Lookahead::new(&[8, 8], 2);
            let mut guesses = Vec::new();
            let (mut of_used, mut of_others) = (0.0, 0.0);
            for index in 0..3000 {
                let mut next = [[0u32; 2]; 2];
                for picks in &mut next {
                    picks[0] = random() % 8;
                    picks[1] = (picks[0] + 1 + random() % 7) % 8;
                }
                for (layer, picks) in next.iter().enumerate() {
                    lookahead.observe(layer, picks);
                    let following = next[1];
                    let mut scores = [0.0f32; 8].map(|_| random() as f32 / 256.0);
                    if is_right {
                        following
                            .iter()
                            .for_each(|&pick| scores[pick as usize] += 2.0);
                    }
                    match layer {
                        0 => lookahead.guess_with(&scores, &mut guesses),
                        _ => lookahead.guess(&mut guesses),
                    }
                    if layer == 0 && index > 2800 {
                        for guess in &guesses {
                            match following.contains(&guess.expert) {
                                true => of_used += guess.probability / 2.0,
                                false => of_others += guess.probability / 6.0,
                            }
                        }
                    }
                }
            }
            let (of_used, of_others) = (of_used / 199.0, of_others / 199.0);
            match is_right {
                true => assert!(of_used > 0.9 && of_others < 0.1, "{of_used} {of_others}"),
                // Two of eight, whatever it says.
                false => assert!((of_used - 0.25).abs() < 0.05, "{of_used} {of_others}"),
            }
        }
    }

    #[test]
    fn scores_without_a_spread_say_nothing() {
        let mut lookahead = Lookahead::new(&[4], 2);
        let mut guesses = Vec::new();
        lookahead.guess_with(&[0.0; 4], &mut guesses);
        assert!(guesses.is_empty());
        lookahead.observe(0, &[1, 2]);
        for scores in [[1.0f32; 4], [f32::NAN; 4], [f32::INFINITY, 0.0, 1.0, 2.0]] {
            lookahead.guess_with(&scores, &mut guesses);
            assert!(
                guesses.len() == 4 && guesses.iter().all(|guess| guess.probability.is_finite())
            );
        }
    }
}
