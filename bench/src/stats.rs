//! Medians, spread, bootstrap intervals and paired ratios.
//!
//! Run times of this kind have long tails (a neighbour, a host that must read the file first), so the figures are
//! medians. The interval is the percentile bootstrap of the median with a fixed seed: the same samples always print the
//! same interval.

/// Resamples drawn for one interval.
const RESAMPLES: usize = 10_000;
/// Fixed, so that a report can be reproduced from its raw samples.
const SEED: u64 = 0x5eed_fa01_71e5_0001;

/// What is printed about one set of samples.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Summary {
    pub(crate) n: usize,
    pub(crate) median: f64,
    /// Lower end of the 95 % bootstrap interval of the median.
    pub(crate) lo: f64,
    /// Upper end of the 95 % bootstrap interval of the median.
    pub(crate) hi: f64,
    /// Median of the absolute deviations from the median, not scaled.
    pub(crate) mad: f64,
    pub(crate) q1: f64,
    pub(crate) q3: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// Summary of `samples`, `None` when there are none.
    pub(crate) fn of(samples: &[f64]) -> Option<Summary> {
        if samples.is_empty() {
            return None;
        }
        let sorted = sorted(samples);
        let median = quantile(&sorted, 0.5);
        let deviations: Vec<f64> = sorted.iter().map(|x| (x - median).abs()).collect();
        let (lo, hi) = bootstrap_median(&sorted, SEED);
        Some(Summary {
            n: sorted.len(),
            median,
            lo,
            hi,
            mad: quantile(&self::sorted(&deviations), 0.5),
            q1: quantile(&sorted, 0.25),
            q3: quantile(&sorted, 0.75),
            min: sorted[0],
            max: sorted[sorted.len() - 1],
        })
    }
}

/// Ratios `samples[i] / reference[i]` of the pairs in which both are present, with their summary. Pairs are runs of the
/// same repetition, so slow phases of the machine cancel.
pub(crate) fn paired_ratio(samples: &[Option<f64>], reference: &[Option<f64>]) -> Option<Summary> {
    let ratios: Vec<f64> = samples
        .iter()
        .zip(reference)
        .filter_map(|(sample, base)| match (sample, base) {
            (Some(sample), Some(base)) if *base > 0.0 => Some(sample / base),
            _ => None,
        })
        .collect();
    Summary::of(&ratios)
}

/// The smallest of ascending `sorted` that at least `share` of them do not exceed.
pub(crate) fn nearest_rank(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// Arithmetic mean; 0 for no samples, as llama-bench has it.
pub(crate) fn mean(samples: &[f64]) -> f64 {
    if samples.is_empty() {
        0.0
    } else {
        samples.iter().sum::<f64>() / samples.len() as f64
    }
}

/// Standard deviation of a sample (n - 1); 0 for fewer than two samples, as llama-bench has it.
pub(crate) fn stddev(samples: &[f64]) -> f64 {
    if samples.len() < 2 {
        return 0.0;
    }
    let mean = mean(samples);
    (samples.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (samples.len() - 1) as f64).sqrt()
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Quantile `q` in `0..=1` of sorted samples, linear between neighbours (R's type 7, numpy's default).
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let position = q * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = position.ceil() as usize;
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}

fn bootstrap_median(sorted_samples: &[f64], seed: u64) -> (f64, f64) {
    let n = sorted_samples.len();
    if n == 1 {
        return (sorted_samples[0], sorted_samples[0]);
    }
    let mut rng = SplitMix64(seed);
    let mut resample = vec![0.0; n];
    let mut medians = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        for slot in &mut resample {
            *slot = sorted_samples[rng.below(n)];
        }
        resample.sort_by(f64::total_cmp);
        medians.push(quantile(&resample, 0.5));
    }
    medians.sort_by(f64::total_cmp);
    (quantile(&medians, 0.025), quantile(&medians, 0.975))
}

/// Steele, Lea and Flood's SplitMix64: eight bytes of state, enough for resampling.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..n`; the bias of the multiplication is below n / 2^64.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_samples() {
        let sorted: Vec<f64> = (1..=200).map(f64::from).collect();
        let found = [0.0, 0.5, 0.99, 1.0].map(|share| nearest_rank(&sorted, share));
        assert_eq!(found, [Some(1.0), Some(100.0), Some(198.0), Some(200.0)]);
        assert_eq!(nearest_rank(&[7.0], 0.99), Some(7.0));
        assert_eq!(nearest_rank(&[], 0.5), None);
    }

    #[test]
    fn known_values() {
        // numpy: median 4, percentile 25 -> 2.5, 75 -> 6.5; MAD 2.
        let summary = Summary::of(&[7.0, 1.0, 4.0, 6.0, 3.0, 2.0, 9.0]).unwrap();
        assert_eq!((summary.median, summary.q1, summary.q3), (4.0, 2.5, 6.5));
        assert_eq!(
            (summary.mad, summary.min, summary.max, summary.n),
            (2.0, 1.0, 9.0, 7)
        );
        assert_eq!(Summary::of(&[1.0, 2.0, 3.0, 10.0]).unwrap().median, 2.5);
        assert_eq!(mean(&[1.0, 2.0, 3.0, 10.0]), 4.0);
        assert!((stddev(&[1.0, 2.0, 3.0, 10.0]) - 4.082_482_904_638_63).abs() < 1e-12);
        assert_eq!(stddev(&[3.0]), 0.0);
    }

    #[test]
    fn splitmix_reference_sequence() {
        // First outputs for seed 1234567 in the public reference implementation.
        let mut rng = SplitMix64(1_234_567);
        assert_eq!(rng.next(), 6_457_827_717_110_365_317);
        assert_eq!(rng.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn interval_holds_the_median_and_is_reproducible() {
        let samples = [10.0, 11.0, 10.5, 30.0, 10.2, 10.8, 10.1];
        let first = Summary::of(&samples).unwrap();
        assert!(first.lo <= first.median && first.median <= first.hi);
        assert!(first.lo >= 10.0 && first.hi <= 30.0);
        let mut reversed = samples;
        reversed.reverse();
        assert_eq!(Summary::of(&reversed).unwrap(), first);
    }

    #[test]
    fn bootstrap_of_the_median_has_the_right_width() {
        // For 1..=100 the exact order-statistic interval of the median is about [40, 61].
        let samples: Vec<f64> = (1..=100).map(f64::from).collect();
        let summary = Summary::of(&samples).unwrap();
        assert!((summary.lo - 40.5).abs() < 2.5, "{summary:?}");
        assert!((summary.hi - 60.5).abs() < 2.5, "{summary:?}");
    }

    #[test]
    fn degenerate_sets() {
        assert!(Summary::of(&[]).is_none());
        let one = Summary::of(&[5.0]).unwrap();
        assert_eq!((one.lo, one.median, one.hi, one.mad), (5.0, 5.0, 5.0, 0.0));
        let equal = Summary::of(&[2.0; 5]).unwrap();
        assert_eq!((equal.lo, equal.hi, equal.mad), (2.0, 2.0, 0.0));
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        let reference = [Some(10.0), Some(100.0), None, Some(20.0)];
        let samples = [Some(5.0), Some(50.0), Some(1.0), None];
        let ratio = paired_ratio(&samples, &reference).unwrap();
        assert_eq!(
            (ratio.n, ratio.median, ratio.lo, ratio.hi),
            (2, 0.5, 0.5, 0.5)
        );
        assert!(paired_ratio(&[None], &[Some(1.0)]).is_none());
    }
}
