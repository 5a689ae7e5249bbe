//! How unevenly slices are used.

use super::Workload;

/// How unevenly the slices of each layer are used, as means over the layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Usage {
    /// Gini coefficient of the number of uses: 0 for equal use, near 1 if one slice has all.
    pub gini: f64,
    /// Share of the uses that the most used quarter of a layer's slices has, 0 to 1.
    pub top_quarter: f64,
    /// By lag in tokens: the probability that a slice of a token is used again by the token that
    /// comes so much later in the same sequence. Lags that no sequence has are left out.
    pub repeat: Vec<(usize, f64)>,
}

impl Usage {
    /// The lags of [`Usage::repeat`], in tokens.
    pub const LAGS: [usize; 6] = [1, 2, 4, 8, 16, 64];

    /// Counts all tokens of the workload, those of the warm-up too.
    pub fn of(workload: &Workload) -> Usage {
        let mut counts = vec![0u64; workload.slices().len()];
        for &slice in workload.accesses() {
            counts[slice as usize] += 1;
        }
        let (mut gini, mut top_quarter) = (0.0, 0.0);
        let mut rest = &mut counts[..];
        for layer in workload
            .slices()
            .chunk_by(|left, right| left.layer == right.layer)
        {
            let (counts, behind) = std::mem::take(&mut rest).split_at_mut(layer.len());
            rest = behind;
            counts.sort_unstable();
            gini += gini_of(counts);
            top_quarter += top_quarter_of(counts);
        }
        let n_layers = workload.layers().len() as f64;
        Usage {
            gini: gini / n_layers,
            top_quarter: top_quarter / n_layers,
            repeat: repeat(workload),
        }
    }
}

/// Gini coefficient of ascending counts; 0 without any use.
pub(crate) fn gini_of(counts: &[u64]) -> f64 {
    let total: u64 = counts.iter().sum();
    let n = counts.len() as f64;
    let weighted: f64 = counts
        .iter()
        .zip(1..)
        .map(|(&count, rank)| count as f64 * (2.0 * f64::from(rank) - n - 1.0))
        .sum();
    if total == 0 {
        return 0.0;
    }
    weighted / (n * total as f64)
}

/// Share of the uses that the largest quarter of ascending counts has; 0 without any use.
pub(crate) fn top_quarter_of(counts: &[u64]) -> f64 {
    let total: u64 = counts.iter().sum();
    let n_top = counts.len().div_ceil(4);
    let top: u64 = counts[counts.len() - n_top..].iter().sum();
    if total == 0 {
        return 0.0;
    }
    top as f64 / total as f64
}

/// How often the slices of a token are used again later, for each lag.
fn repeat(workload: &Workload) -> Vec<(usize, f64)> {
    let longest = Usage::LAGS[Usage::LAGS.len() - 1];
    // The last token that used a slice is not enough: bit n of a slice's history is the token n tokens ago.
    let mut history = vec![0u128; workload.slices().len()];
    let mut repeats = [0u64; Usage::LAGS.len()];
    let mut pairs = [0u64; Usage::LAGS.len()];
    let mut sequence_begins = workload.sequence_begins.iter().peekable();
    let mut age = 0;
    for (token, (begin, groups)) in workload.tokens().enumerate() {
        for bits in &mut history {
            *bits <<= 1;
        }
        if sequence_begins.next_if_eq(&&token).is_some() {
            history.fill(0);
            age = 0;
        }
        let end = groups.last().map_or(begin, |group| group.end as usize);
        for &slice in &workload.accesses()[begin..end] {
            let bits = &mut history[slice as usize];
            for (index, lag) in Usage::LAGS.iter().enumerate() {
                repeats[index] += u64::from(*bits >> lag & 1 == 1);
                pairs[index] += u64::from(age >= *lag);
            }
            *bits |= 1;
        }
        age = (age + 1).min(longest);
    }
    (0..Usage::LAGS.len())
        .filter(|&index| pairs[index] > 0)
        .map(|index| {
            let share = repeats[index] as f64 / pairs[index] as f64;
            (Usage::LAGS[index], share)
        })
        .collect()
}
