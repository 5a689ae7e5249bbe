//! Which experts go together: in a layer, and from one layer to the next.

use serde::{Deserialize, Serialize};

use crate::simulate::Workload;

/// Entries of a table of pairs: 64 MiB. Models with more experts have no answer.
const ENTRIES_MAX: usize = 16 << 20;
/// Pairs that are listed.
const LISTED: usize = 20;
/// Additions that predictions may take: about a second. Of longer logs, tokens at equal distances are predicted.
const WORK_MAX: usize = 1 << 30;

/// Two experts of a layer that are used together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The layer.
    pub layer: u32,
    /// One expert.
    pub a: u32,
    /// The other one, of a higher number.
    pub b: u32,
    /// Tokens that used both.
    pub n: u64,
    /// That number, divided by the one that independent use would give.
    pub lift: f64,
}

/// Whether the experts of a layer tell those of the next one.
///
/// For each token and layer, those experts of the next layer are guessed that were seen most often with this layer's, before
/// the token itself is counted; as many as the token then uses.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Uses that were predicted.
    pub n: u64,
    /// Share of them that was among the guessed experts.
    pub recall: f64,
    /// The same if the experts with most uses so far are guessed.
    pub popularity_recall: f64,
    /// The same for guessing blindly.
    pub chance: f64,
}

/// Where the experts of each layer begin, and the end of the last.
fn layer_begins(workload: &Workload) -> Vec<usize> {
    let mut begins = vec![0];
    for layer in workload.slices().chunk_by(|a, b| a.layer == b.layer) {
        begins.push(begins[begins.len() - 1] + layer.len());
    }
    begins
}

/// The pairs that are used together most often for what chance would give, among those with enough uses to tell.
pub(super) fn pairs(workload: &Workload) -> Vec<Pair> {
    let begins = layer_begins(workload);
    let mut bases = Vec::with_capacity(begins.len());
    let mut n_entries = 0;
    for layer in begins.windows(2) {
        bases.push(n_entries);
        n_entries += (layer[1] - layer[0]).pow(2);
    }
    if n_entries > ENTRIES_MAX {
        return Vec::new();
    }
    let mut together = vec![0u32; n_entries];
    let mut uses = vec![0u64; workload.slices().len()];
    let mut n_groups = vec![0u64; bases.len()];
    for (mut begin, groups) in workload.tokens() {
        for group in groups {
            let experts = &workload.accesses()[begin..group.end as usize];
            begin = group.end as usize;
            let layer = group.layer as usize;
            let (first, width) = (begins[layer], begins[layer + 1] - begins[layer]);
            n_groups[layer] += 1;
            for (index, &a) in experts.iter().enumerate() {
                uses[a as usize] += 1;
                for &b in &experts[..index] {
                    let (low, high) = (a.min(b) as usize - first, a.max(b) as usize - first);
                    together[bases[layer] + low * width + high] += 1;
                }
            }
        }
    }
    let mut pairs = Vec::new();
    for (layer, &base) in bases.iter().enumerate() {
        let (first, width) = (begins[layer], begins[layer + 1] - begins[layer]);
        let n_tokens = n_groups[layer] as f64;
        for a in 0..width {
            for b in a + 1..width {
                let n = u64::from(together[base + a * width + b]);
                let expected = uses[first + a] as f64 * uses[first + b] as f64 / n_tokens;
                // Fewer are as likely chance.
                if n >= 8 {
                    pairs.push(Pair {
                        layer: workload.layers()[layer],
                        a: a as u32,
                        b: b as u32,
                        n,
                        lift: n as f64 / expected,
                    });
                }
            }
        }
    }
    pairs.sort_by(|x, y| y.lift.total_cmp(&x.lift).then_with(|| y.n.cmp(&x.n)));
    pairs.truncate(LISTED);
    pairs
}

/// Guesses each layer's experts from those of the layer before.
pub(super) fn predict(workload: &Workload) -> Option<Prediction> {
    let begins = layer_begins(workload);
    let n_layers = begins.len() - 1;
    let width = |layer: usize| begins[layer + 1] - begins[layer];
    let mut bases = Vec::with_capacity(n_layers);
    let mut n_entries = 0;
    for layer in 0..n_layers.saturating_sub(1) {
        bases.push(n_entries);
        n_entries += width(layer) * width(layer + 1);
    }
    if bases.is_empty() || n_entries > ENTRIES_MAX {
        return None;
    }
    let widest = (0..n_layers).map(width).max().unwrap_or(0);
    let every = (workload.accesses().len() * widest)
        .div_ceil(WORK_MAX)
        .max(1);
    let mut seen = vec![0u32; n_entries];
    let mut uses = vec![0u32; workload.slices().len()];
    let mut scores: Vec<(u32, u32, u32)> = Vec::with_capacity(widest);
    let (mut n, mut hits, mut popular_hits, mut chance) = (0u64, 0u64, 0u64, 0.0);
    let mut first_access = 0;
    for (token, (mut begin, groups)) in workload.tokens().enumerate() {
        let mut before: Option<(usize, &[u32])> = None;
        for group in groups {
            let experts = &workload.accesses()[begin..group.end as usize];
            begin = group.end as usize;
            let layer = group.layer as usize;
            if let Some((last, chosen)) = before.filter(|(last, _)| last + 1 == layer) {
                let (from, to, wide) = (begins[last], begins[layer], width(layer));
                if token % every == 0 {
                    let mut guess = |score: &dyn Fn(usize) -> u32| {
                        scores.clear();
                        scores.extend((0..wide).map(|e| (score(e), uses[to + e], (to + e) as u32)));
                        scores.sort_unstable_by(|a, b| b.cmp(a));
                        let guessed = &scores[..experts.len().min(wide)];
                        let is_used = |guess: &&(u32, u32, u32)| experts.contains(&guess.2);
                        guessed.iter().filter(is_used).count() as u64
                    };
                    hits += guess(&|expert| {
                        let row = |e: &u32| bases[last] + (*e as usize - from) * wide + expert;
                        chosen.iter().map(|e| seen[row(e)]).sum()
                    });
                    popular_hits += guess(&|_| 0);
                    n += experts.len() as u64;
                    chance += (experts.len() * experts.len()) as f64 / wide as f64;
                }
                for a in chosen {
                    let row = bases[last] + (*a as usize - from) * wide;
                    for b in experts {
                        seen[row + *b as usize - to] += 1;
                    }
                }
            }
            before = Some((layer, experts));
        }
        let first = first_access;
        first_access = begin;
        for &expert in &workload.accesses()[first..begin] {
            uses[expert as usize] += 1;
        }
    }
    (n > 0).then(|| Prediction {
        n,
        recall: hits as f64 / n as f64,
        popularity_recall: popular_hits as f64 / n as f64,
        chance: chance / n as f64,
    })
}
