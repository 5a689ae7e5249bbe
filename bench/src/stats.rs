//! Medians, spread, intervals and paired ratios.
//!
//! Run times of this kind have long tails (a neighbour, a host that must read the file first), so the figures are
//! medians. The interval is that of the sign test: a sample lies below the median of its distribution as often as above,
//! whatever the distribution is, so the chance that fewer than k of n samples lie on one side is a binomial one. It is at least 95 %
//! for any number of samples; the percentile bootstrap of the median, which many benchmarks print, held the true value in
//! 88 % for 7 samples (the test below shows its figures).

/// The chance that an interval misses the true median.
const ALPHA: f64 = 0.05;

/// What is printed about one set of samples.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Summary {
    pub(crate) n: usize,
    pub(crate) median: f64,
    /// Lower end of the 95 % interval of the median.
    pub(crate) lo: f64,
    /// Upper end of the 95 % interval of the median.
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
        let (lo, hi) = median_interval(&sorted);
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

    /// Of a paired ratio: whether the interval says that the two differ. One pair says nothing.
    pub(crate) fn differs_from_one(&self) -> bool {
        self.n > 1 && (self.lo > 1.0 || self.hi < 1.0)
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

/// An interval that holds the median of the distribution that `sorted` was drawn from, in at least 95 % of all such draws.
///
/// From six samples on: the k-th smallest and the k-th largest, with the largest k that keeps the promise, for any distribution.
/// Fewer samples all lie on one side of the median too often, so the interval goes beyond the smallest and the largest by
/// a share of what lies between them. With a density that does not grow away from the median, all n on one side are nearest to it
/// in relation to their range when they are uniform there, and then an interval that is wider by `c` ranges at each end misses with
/// a chance of 2^(1-n) (1+c)^(1-n). That is 5 % for n = 5 with c = 0.057, and for n = 2 with c = 9. Durations are widened as
/// logarithms, so that no end is negative and the interval of a ratio is that of its reciprocal turned over.
fn median_interval(sorted: &[f64]) -> (f64, f64) {
    let n = sorted.len();
    let (min, max) = (sorted[0], sorted[n - 1]);
    if n == 1 {
        return (min, max);
    }
    if let Some(k) = order_statistic(n) {
        return (sorted[k - 1], sorted[n - k]);
    }
    let misses = 2f64.powi(1 - n as i32);
    let c = (misses / ALPHA).powf(1.0 / (n - 1) as f64) - 1.0;
    if min > 0.0 {
        let beyond = (max / min).powf(c);
        (min / beyond, max * beyond)
    } else {
        let beyond = (max - min) * c;
        (min - beyond, max + beyond)
    }
}

/// The largest k for which the k-th smallest and k-th largest of `n` samples enclose the median in at least 95 % of all draws; `None` below
/// six samples. The chance that they do not is twice that of fewer than k heads in n tosses of a coin.
fn order_statistic(n: usize) -> Option<usize> {
    // In logarithms: 2^-n is 0 for more than a thousand samples.
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut one_side = log_term.exp();
    let mut k = 0;
    while 2.0 * one_side <= ALPHA && k < n / 2 {
        k += 1;
        log_term += ((n - k + 1) as f64 / k as f64).ln();
        one_side += log_term.exp();
    }
    (k > 0).then_some(k)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steele, Lea and Flood's SplitMix64: eight bytes of state, enough for simulations.
    struct SplitMix64(u64);

    impl SplitMix64 {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }

        /// A duration as this machine has them: a floor, some noise, and in one of seven runs a neighbour.
        fn duration(&mut self) -> f64 {
            let noise = (0..4).map(|_| self.unit()).sum::<f64>() / 4.0;
            let neighbour = if self.unit() < 0.15 {
                -self.unit().ln() / 2.0
            } else {
                0.0
            };
            (1.0 + 0.2 * noise) * (1.0 + neighbour)
        }

        /// Above 0, at most 1.
        fn unit(&mut self) -> f64 {
            ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
        }

        /// A number in `0..n`; the bias of the multiplication is below n / 2^64.
        fn below(&mut self, n: usize) -> usize {
            ((u128::from(self.next()) * n as u128) >> 64) as usize
        }
    }

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
        assert_eq!((first.lo, first.hi), (10.0, 30.0));
        let mut reversed = samples;
        reversed.reverse();
        assert_eq!(Summary::of(&reversed).unwrap(), first);
    }

    #[test]
    fn the_order_statistics_of_the_tables() {
        // Conover, Practical Nonparametric Statistics, table of the quantile test at p = 1/2.
        for (n, k) in [
            (5, None),
            (6, Some(1)),
            (8, Some(1)),
            (9, Some(2)),
            (15, Some(4)),
            (100, Some(40)),
        ] {
            assert_eq!(order_statistic(n), k, "{n}");
        }
        assert_eq!(order_statistic(10_000), Some(4902));
        let samples: Vec<f64> = (1..=100).map(f64::from).collect();
        let summary = Summary::of(&samples).unwrap();
        assert_eq!((summary.lo, summary.hi), (40.0, 61.0));
    }

    #[test]
    fn a_ratio_and_its_reciprocal_have_the_same_interval() {
        let (a, b) = ([3.0, 4.0, 5.0].map(Some), [6.0, 5.0, 4.0].map(Some));
        let there = paired_ratio(&a, &b).unwrap();
        let back = paired_ratio(&b, &a).unwrap();
        assert!((there.lo * back.hi - 1.0).abs() < 1e-12);
        assert!((there.hi * back.lo - 1.0).abs() < 1e-12);
        assert!(!there.differs_from_one());
        assert!(
            !paired_ratio(&[Some(2.0)], &[Some(1.0)])
                .unwrap()
                .differs_from_one()
        );
        assert!(
            paired_ratio(&[Some(2.0); 5], &[Some(1.0); 5])
                .unwrap()
                .differs_from_one()
        );
    }

    /// How often an interval of `n` paired ratios of the same thing holds 1.
    fn coverage(
        n: usize,
        rounds: usize,
        interval: impl Fn(&[f64], &mut SplitMix64) -> (f64, f64),
    ) -> f64 {
        let mut rng = SplitMix64(n as u64);
        let held = (0..rounds)
            .filter(|_| {
                let ratios: Vec<f64> = (0..n).map(|_| rng.duration() / rng.duration()).collect();
                let (lo, hi) = interval(&sorted(&ratios), &mut rng);
                (lo..=hi).contains(&1.0)
            })
            .count();
        held as f64 / rounds as f64
    }

    /// The percentile bootstrap of the median with few resamples.
    fn bootstrap(samples: &[f64], rng: &mut SplitMix64) -> (f64, f64) {
        let mut medians: Vec<f64> = (0..200)
            .map(|_| {
                let resample: Vec<f64> = samples
                    .iter()
                    .map(|_| samples[rng.below(samples.len())])
                    .collect();
                quantile(&sorted(&resample), 0.5)
            })
            .collect();
        medians.sort_by(f64::total_cmp);
        (quantile(&medians, 0.025), quantile(&medians, 0.975))
    }

    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say() {
        // Two standard errors of 20 000 rounds are 0.003.
        for n in [2, 3, 4, 5, 6, 7, 8, 9, 15] {
            let share = coverage(n, 20_000, |ratios, _| median_interval(ratios));
            assert!(share >= 0.947, "{n} pairs: {share}");
        }
        // Why it is not the bootstrap.
        assert!(coverage(7, 1000, bootstrap) < 0.91);
        assert!(coverage(9, 1000, bootstrap) < 0.95);
    }

    /// The median of durations themselves, which are skewed: a floor, noise, and now and then a neighbour.
    #[test]
    fn intervals_of_skewed_durations_hold_their_median() {
        let mut rng = SplitMix64(1);
        let many: Vec<f64> = (0..200_001).map(|_| rng.duration()).collect();
        let truth = quantile(&sorted(&many), 0.5);
        for n in [5, 7, 9, 15] {
            let rounds = 20_000;
            let held = (0..rounds)
                .filter(|_| {
                    let samples: Vec<f64> = (0..n).map(|_| rng.duration()).collect();
                    let (lo, hi) = median_interval(&sorted(&samples));
                    (lo..=hi).contains(&truth)
                })
                .count();
            let share = held as f64 / f64::from(rounds);
            assert!(share >= 0.945, "{n} durations: {share}");
        }
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
