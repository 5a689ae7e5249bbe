//! How often something is used.

/// The first guess counts as so many observations.
const PRIOR: f64 = 8.0;
/// Probabilities are kept this far from 0 and 1.
const PROBABILITY_MIN: f64 = 1e-4;

/// How often each expert of a layer is used, 0 to 1: first an average over all that was seen, then one that forgets.
#[derive(Clone, Debug)]
pub(crate) struct Rates {
    rates: Vec<f64>,
    /// Weight of the next observation.
    weight: f64,
    weight_min: f64,
}

impl Rates {
    /// `decay` per observation, once there were many.
    pub(crate) fn new(n_experts: usize, rate: f64, decay: f64) -> Rates {
        Rates {
            rates: vec![rate; n_experts],
            weight: (1.0 / PRIOR).max(1.0 - decay),
            weight_min: 1.0 - decay,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.rates.len()
    }

    /// These experts, all different, were used and the others were not.
    pub(crate) fn observe(&mut self, picks: &[u32]) {
        for rate in &mut self.rates {
            *rate *= 1.0 - self.weight;
        }
        for &pick in picks {
            self.rates[pick as usize] += self.weight;
        }
        self.weight = (1.0 / (1.0 / self.weight + 1.0)).max(self.weight_min);
    }

    pub(crate) fn of(&self, expert: usize) -> f64 {
        self.rates[expert].clamp(PROBABILITY_MIN, 1.0 - PROBABILITY_MIN)
    }
}

pub(crate) fn logit(probability: f64) -> f64 {
    (probability / (1.0 - probability)).ln()
}

/// A logistic regression that learns from each of its answers.
#[derive(Clone, Debug)]
pub(crate) struct Regression<const N: usize> {
    weights: [f64; N],
    rate: f64,
}

impl<const N: usize> Regression<N> {
    pub(crate) fn new(weights: [f64; N], rate: f64) -> Self {
        Regression { weights, rate }
    }

    pub(crate) fn probability(&self, features: &[f64; N]) -> f64 {
        let score: f64 = (features.iter().zip(&self.weights))
            .map(|(feature, weight)| feature * weight)
            .sum();
        1.0 / (1.0 + (-score).exp())
    }

    /// The answer was `probability`, and 1 if it happened, 0 if not, or what is between them, would have been right.
    pub(crate) fn learn(&mut self, features: &[f64; N], probability: f64, right: f64) {
        let error = right - probability;
        for (weight, feature) in self.weights.iter_mut().zip(features) {
            *weight += self.rate * error * feature;
        }
    }
}
