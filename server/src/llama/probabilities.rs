//! Probabilities of tokens, from a row of logits.

use llama_rs::Token;

/// A row of logits, and what makes probabilities of them.
#[derive(Debug)]
pub(super) struct LogProbabilities<'a> {
    logits: &'a [f32],
    /// Logarithm of the sum of their exponentials.
    log_sum: f64,
}

impl<'a> LogProbabilities<'a> {
    /// Logits of which at least one is finite.
    pub(super) fn new(logits: &'a [f32]) -> Self {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // The largest one is a summand of 1, so the sum is neither 0 nor too large.
        let exponentials = logits.iter().map(|logit| f64::from(logit - largest).exp());
        let log_sum = f64::from(largest) + exponentials.sum::<f64>().ln();
        LogProbabilities { logits, log_sum }
    }

    /// Natural logarithm of a token's probability; minus infinity for one that is not in the row.
    pub(super) fn of(&self, token: Token) -> f32 {
        let index = usize::try_from(token.0).ok();
        let logit = index.and_then(|index| self.logits.get(index));
        logit.map_or(f32::NEG_INFINITY, |logit| {
            (f64::from(*logit) - self.log_sum).min(0.0) as f32
        })
    }

    /// The most probable tokens, the most probable first; of equal ones the first.
    pub(super) fn largest(&self, count: usize) -> Vec<Token> {
        let mut largest: Vec<(f32, usize)> = Vec::with_capacity(count + 1);
        for (index, logit) in self.logits.iter().enumerate() {
            let is_full = largest.len() == count;
            if is_full && largest.last().is_none_or(|(least, _)| logit <= least) {
                continue;
            }
            let at = largest.partition_point(|(other, _)| other >= logit);
            largest.insert(at, (*logit, index));
            largest.truncate(count);
        }
        // A vocabulary is smaller than 2^31.
        largest
            .into_iter()
            .map(|(_, index)| Token(index as i32))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_softmax() {
        let logits = [1.0f32, 3.0, -2.0, 3.0, f32::NEG_INFINITY];
        let row = LogProbabilities::new(&logits);
        let of = |index| f64::from(row.of(Token(index))).exp();
        let sum: f64 = (0..5).map(of).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        assert!((of(1) / of(0) - 2f64.exp()).abs() < 1e-4);
        assert_eq!(row.of(Token(4)), f32::NEG_INFINITY);
        assert_eq!(row.of(Token(5)), f32::NEG_INFINITY);
        assert_eq!(row.of(Token(-1)), f32::NEG_INFINITY);
        assert_eq!(row.largest(3), [1, 3, 0].map(Token));
        assert_eq!(row.largest(9).len(), 5);
        assert!(row.largest(0).is_empty());
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let row = [1e30f32, -1e30];
        let row = LogProbabilities::new(&row);
        assert_eq!(row.of(Token(0)), 0.0);
        assert!(row.of(Token(1)) < -1e29);
    }
}
