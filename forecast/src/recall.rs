//! What was used after tokens like the last one.

/// At least as many of the remembered tokens are asked, and at most twice as many: the newest.
const NEIGHBOURS: usize = 16;
/// So many tokens are looked at after each.
const AHEAD: usize = 16;
/// A token that shares this part of all picks more than another one counts e times as much.
const SIMILAR: f64 = 1.0 / 16.0;
/// What is expected without memory counts this much, where the least similar token counts 1.
const PRIOR: f64 = 0.5;
/// Experts of a word.
const BITS: usize = u32::BITS as usize;

#[derive(Clone, Debug)]
struct Layer {
    /// Which experts each token used, the newest token first, from `begin` on: for each 32 experts a plane of bit sets.
    planes: Vec<Vec<u32>>,
    begin: usize,
    /// How many picks the last token shares with the one before it, the one before that, and so on.
    shared: Vec<u16>,
    n_tokens: usize,
}

impl Layer {
    fn new(n_experts: usize, memory: usize) -> Layer {
        Layer {
            planes: vec![vec![0; 2 * memory]; n_experts.div_ceil(BITS)],
            begin: 2 * memory,
            shared: vec![0; memory],
            n_tokens: 0,
        }
    }

    /// Picks of the last token.
    fn n_picks(&self) -> usize {
        (self.planes.iter())
            .filter_map(|plane| plane.get(self.begin))
            .map(|bits| bits.count_ones() as usize)
            .sum()
    }

    /// Tokens before the last one that are remembered.
    fn n_before(&self) -> usize {
        self.n_tokens.saturating_sub(1).min(self.shared.len() - 1)
    }

    fn push(&mut self, picks: &[u32]) {
        if self.begin == 0 {
            let memory = self.shared.len();
            self.begin = memory;
            for plane in &mut self.planes {
                plane.copy_within(..memory, memory);
            }
        }
        self.begin -= 1;
        for plane in &mut self.planes {
            plane[self.begin] = 0;
        }
        for &pick in picks {
            self.planes[pick as usize / BITS][self.begin] |= 1 << (pick as usize % BITS);
        }
        self.n_tokens += 1;
    }
}

/// Remembers what the last tokens used and finds those that were like the last one.
///
/// Two tokens are the more alike the more picks they share, counted over one round of the layers that ends with the one
/// that was observed last: of those that the token at hand has not come to yet, the picks of the token before count.
#[derive(Clone, Debug)]
pub(crate) struct Recall {
    layers: Vec<Layer>,
    /// Sums of what the layers have as `shared`.
    shared: Vec<u16>,
    /// Picks of one round.
    n_picks: usize,
    /// What a token shares at least to be asked.
    limit: u16,
    /// What the layer at hand shares.
    fresh: Vec<u16>,
}

impl Recall {
    /// Layers by their number of experts, and how many tokens are remembered.
    pub(crate) fn new(n_experts: &[usize], memory: usize) -> Recall {
        let layer = |&n_experts: &usize| Layer::new(n_experts, memory);
        Recall {
            layers: n_experts.iter().map(layer).collect(),
            shared: vec![0; memory],
            n_picks: 0,
            limit: 0,
            fresh: vec![0; memory],
        }
    }

    /// A token uses these experts of the layer. Each token tells of all layers, in their order.
    pub(crate) fn observe(&mut self, layer: usize, picks: &[u32]) {
        let layer = &mut self.layers[layer];
        self.n_picks -= layer.n_picks();
        layer.push(picks);
        self.n_picks += layer.n_picks();
        let n = layer.n_before();
        let fresh = &mut self.fresh[..n];
        fresh.fill(0);
        for plane in &layer.planes {
            let last = plane[layer.begin];
            let before = &plane[layer.begin + 1..][..n];
            for (fresh, bits) in fresh.iter_mut().zip(before) {
                *fresh += (bits & last).count_ones() as u16;
            }
        }
        let sums = self.shared[..n].iter_mut().zip(&mut layer.shared[..n]);
        for ((sum, shared), &fresh) in sums.zip(&*fresh) {
            *sum = *sum + fresh - *shared;
            *shared = fresh;
        }
    }

    /// For each expert of the layer that was observed last: the mean of `gamma^(n - 1)`, where an expert was first used n tokens after
    /// one that was like the last one; 0 where it was not for long. `expected` is what stands for it without memory, and takes it.
    pub(crate) fn expect(&mut self, layer: usize, gamma: f64, expected: &mut [f64]) {
        let layer = &self.layers[layer];
        let all_shared = &self.shared[..layer.n_before()];
        let n_with = |limit: u16| all_shared.iter().filter(|&&shared| shared >= limit).count();
        // It changes little from layer to layer.
        while self.limit > 0 && n_with(self.limit) < NEIGHBOURS {
            self.limit -= 1;
        }
        while n_with(self.limit + 1) >= NEIGHBOURS {
            self.limit += 1;
        }
        let scale = 1.0 / (SIMILAR * self.n_picks.max(1) as f64);
        for expected in expected.iter_mut() {
            *expected *= PRIOR;
        }
        let mut total = PRIOR;
        let neighbours = (all_shared.iter().enumerate())
            .filter(|&(_, &shared)| shared >= self.limit)
            .take(2 * NEIGHBOURS);
        for (index, &shared) in neighbours {
            let weight = (f64::from(shared - self.limit) * scale).exp();
            total += weight;
            // The newest is first: what came after a token stands before it.
            let place = layer.begin + index + 1;
            let after = layer.begin.max(place.saturating_sub(AHEAD))..place;
            for (plane, expected) in layer.planes.iter().zip(expected.chunks_mut(BITS)) {
                let mut weight = weight;
                let mut seen = 0;
                for &used in plane[after.clone()].iter().rev() {
                    let mut first = used & !seen;
                    seen |= used;
                    while first != 0 {
                        expected[first.trailing_zeros() as usize] += weight;
                        first &= first - 1;
                    }
                    weight *= gamma;
                }
            }
        }
        for expected in expected.iter_mut() {
            *expected /= total;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: usize = 40;
    const N_EXPERTS: [usize; 3] = [5, 70, 33];
    const GAMMA: f64 = 0.7;

    /// Picks of all layers by token.
    type Tokens = Vec<[Vec<u32>; 3]>;

    fn random_tokens(n_tokens: usize) -> Tokens {
        let mut state = 11u32;
        let mut random = |n: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % n as u32
        };
        (0..n_tokens)
            .map(|_| {
                N_EXPERTS.map(|n_experts| {
                    // Low numbers more often, and none at times.
                    let mut picks: Vec<u32> = (0..random(4))
                        .map(|_| random(n_experts).min(random(n_experts)))
                        .collect();
                    picks.sort_unstable();
                    picks.dedup();
                    picks
                })
            })
            .collect()
    }

    /// What the round that ends at a layer of a token shares with the one so many tokens before, picked out one by one.
    fn shared(tokens: &Tokens, token: usize, layer: usize, lag: usize) -> u16 {
        let mut n_shared = 0;
        for (other, _) in N_EXPERTS.iter().enumerate() {
            let token = if other <= layer {
                Some(token)
            } else {
                token.checked_sub(1)
            };
            let before = token.and_then(|token| token.checked_sub(lag));
            if let (Some(token), Some(before)) = (token, before) {
                let picks = &tokens[before][other];
                n_shared += tokens[token][other]
                    .iter()
                    .filter(|pick| picks.contains(pick))
                    .count();
            }
        }
        n_shared as u16
    }

    #[test]
    fn memory_equals_a_slow_search() {
        let tokens = random_tokens(3 * MEMORY + 7);
        let mut recall = Recall::new(&N_EXPERTS, MEMORY);
        for token in 0..tokens.len() {
            for layer in 0..N_EXPERTS.len() {
                recall.observe(layer, &tokens[token][layer]);
                let lags = 1..=token.min(MEMORY - 1);
                let found: Vec<u16> = lags
                    .clone()
                    .map(|lag| shared(&tokens, token, layer, lag))
                    .collect();
                assert_eq!(
                    recall.shared[..found.len()],
                    found,
                    "token {token}, layer {layer}"
                );

                let mut most: Vec<u16> = found.clone();
                most.sort_unstable_by(|left, right| right.cmp(left));
                let limit = most.get(NEIGHBOURS - 1).copied().unwrap_or(0);
                let round = |other: usize| match token {
                    0 if other > layer => 0,
                    _ => tokens[token - usize::from(other > layer)][other].len(),
                };
                let n_picks: usize = (0..N_EXPERTS.len()).map(round).sum();
                let mut expected = vec![0.1; N_EXPERTS[layer]];
                recall.expect(layer, GAMMA, &mut expected);
                let like = lags.zip(&found).filter(|(_, found)| **found >= limit);
                let like: Vec<_> = like.take(2 * NEIGHBOURS).collect();
                for (expert, expected) in expected.iter().enumerate() {
                    let (mut sum, mut total) = (PRIOR * 0.1, PRIOR);
                    for &(lag, &found) in &like {
                        let scale = SIMILAR * n_picks.max(1) as f64;
                        let weight = (f64::from(found - limit) / scale).exp();
                        total += weight;
                        let first = (1..=lag.min(AHEAD)).find(|ahead| {
                            tokens[token - lag + ahead][layer].contains(&(expert as u32))
                        });
                        sum += first.map_or(0.0, |ahead| weight * GAMMA.powi(ahead as i32 - 1));
                    }
                    assert!(
                        (expected - sum / total).abs() < 1e-9,
                        "token {token}, layer {layer}, expert {expert}"
                    );
                }
            }
        }
    }
}
