//! How experts are used: skew, lags, pairs, guesses and what a cache would hold.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;
use tracer::Op;

use super::Naive;

/// The experts that a token uses of each layer, in the order of use, and its sequence.
struct Token {
    sequence: usize,
    layers: Vec<Vec<u32>>,
}

#[track_caller]
fn assert_close(found: &Value, expected: f64) {
    let found = found.as_f64().unwrap();
    assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
}

impl Naive {
    /// Numbers of the layers that have experts, with how many.
    fn expert_layers(&self) -> BTreeMap<i32, usize> {
        let experts = self
            .tensors
            .iter()
            .filter(|tensor| Naive::is_experts(tensor));
        experts
            .map(|tensor| (tensor.layer, tensor.n_slices as usize))
            .collect()
    }

    /// Generated tokens.
    fn tokens(&self) -> Vec<Token> {
        let layers: Vec<i32> = self.expert_layers().into_keys().collect();
        let decode = self.steps.iter().filter(|step| !step.is_prompt);
        let token = |step: &super::Step| {
            let mut token = Token {
                sequence: step.sequence,
                layers: vec![Vec::new(); layers.len()],
            };
            let picks = step.accesses.iter().filter(|a| a.op == Op::MUL_MAT_ID);
            for access in picks {
                let layer = self.tensors[access.tensor as usize].layer;
                let index = layers.iter().position(|known| *known == layer).unwrap();
                if !token.layers[index].contains(&access.slice) {
                    token.layers[index].push(access.slice);
                }
            }
            token
        };
        decode.map(token).collect()
    }

    pub(super) fn check_experts(&self, report: &Value) {
        let sizes = self.expert_layers();
        let experts = &report["experts"];
        if sizes.is_empty() {
            assert!(experts.is_null());
            return;
        }
        let tokens = self.tokens();
        let count = |sequence: Option<usize>| -> Vec<Vec<u64>> {
            let mut uses: Vec<Vec<u64>> = sizes.values().map(|n| vec![0; *n]).collect();
            for token in &tokens {
                if sequence.is_none_or(|sequence| sequence == token.sequence) {
                    for (uses, picked) in uses.iter_mut().zip(&token.layers) {
                        picked.iter().for_each(|e| uses[*e as usize] += 1);
                    }
                }
            }
            uses
        };
        let uses = count(None);
        let rows = experts["layers"].as_array().unwrap();
        assert_eq!(rows.len(), sizes.len());
        for ((row, layer), uses) in rows.iter().zip(sizes.keys()).zip(&uses) {
            assert_eq!(row["layer"], *layer);
            assert_eq!(row["uses"], serde_json::json!(uses), "layer {layer}");
            assert_eq!(row["n_cold"], uses.iter().filter(|n| **n == 0).count());
            assert_close(&row["gini"], gini(uses));
            assert_close(&row["top_quarter_share"], top_quarter(uses));
            check_hot(&row["hot"], uses);
        }
        let mean = |of: fn(&[u64]) -> f64, uses: &[Vec<u64>]| {
            uses.iter().map(|uses| of(uses)).sum::<f64>() / uses.len() as f64
        };
        assert_close(&experts["gini"], mean(gini, &uses));
        assert_close(&experts["top_quarter_share"], mean(top_quarter, &uses));
        let sequences: BTreeSet<usize> = tokens.iter().map(|token| token.sequence).collect();
        let per = &experts["per_sequence"];
        assert_eq!(per["n"], sequences.len());
        for (key, of) in [
            ("gini", gini as fn(&[u64]) -> f64),
            ("top_quarter_share", top_quarter),
        ] {
            let sum: f64 = sequences.iter().map(|s| mean(of, &count(Some(*s)))).sum();
            assert_close(&per[key], sum / sequences.len() as f64);
        }
        check_lags(&experts["lags"], &tokens);
        let layers: Vec<i32> = sizes.keys().copied().collect();
        check_pairs(&experts["pairs"], &tokens, &uses, &layers);
        check_prediction(&experts["prediction"], &tokens, &uses);
        check_curves(&experts["curves"], &uses);
    }
}

/// The hot experts have half of the uses, one less has not, and none that is left out is used more.
fn check_hot(hot: &Value, uses: &[u64]) {
    let hot: Vec<usize> = hot
        .as_array()
        .unwrap()
        .iter()
        .map(|expert| expert.as_u64().unwrap() as usize)
        .collect();
    let total: u64 = uses.iter().sum();
    let sum: u64 = hot.iter().map(|expert| uses[*expert]).sum();
    assert!(2 * sum >= total, "{hot:?}");
    if let Some(last) = hot.last() {
        assert!(2 * (sum - uses[*last]) < total, "{hot:?}");
        let is_out = |expert: &usize| !hot.contains(expert);
        let most = (0..uses.len()).filter(is_out).map(|e| uses[e]).max();
        assert!(most.is_none_or(|most| most <= uses[*last]), "{hot:?}");
    }
}

fn check_lags(lags: &Value, tokens: &[Token]) {
    let mut n_checked = 0;
    for distance in [1, 2, 4, 8, 16, 64] {
        let (mut again, mut all) = (0, 0);
        for at in distance..tokens.len() {
            let (token, before) = (&tokens[at], &tokens[at - distance]);
            if token.sequence != before.sequence {
                continue;
            }
            for (used, before) in token.layers.iter().zip(&before.layers) {
                again += used.iter().filter(|expert| before.contains(expert)).count();
                all += used.len();
            }
        }
        let mut rows = lags.as_array().unwrap().iter();
        match rows.find(|lag| lag["tokens"] == distance) {
            Some(lag) => assert_close(&lag["share"], again as f64 / all as f64),
            None => assert_eq!(all, 0, "{distance}"),
        }
        n_checked += usize::from(all > 0);
    }
    assert_eq!(lags.as_array().unwrap().len(), n_checked);
}

/// Those listed are right, and none that is not has more.
fn check_pairs(pairs: &Value, tokens: &[Token], uses: &[Vec<u64>], layers: &[i32]) {
    let mut all = BTreeMap::<(usize, u32, u32), u64>::new();
    for token in tokens {
        for (layer, picked) in token.layers.iter().enumerate() {
            for a in picked {
                for b in picked.iter().filter(|b| a < b) {
                    *all.entry((layer, *a, *b)).or_default() += 1;
                }
            }
        }
    }
    let lift = |(layer, a, b): (usize, u32, u32), n: u64| {
        let uses = &uses[layer];
        (n * tokens.len() as u64) as f64 / (uses[a as usize] * uses[b as usize]) as f64
    };
    let mut lifts: Vec<f64> = all
        .iter()
        .filter(|(_, n)| **n >= 8)
        .map(|(pair, n)| lift(*pair, *n))
        .collect();
    lifts.sort_by(|a, b| b.total_cmp(a));
    lifts.truncate(20);
    let rows = pairs.as_array().unwrap();
    assert_eq!(rows.len(), lifts.len());
    for (row, expected) in rows.iter().zip(lifts) {
        let number = |key: &str| row[key].as_u64().unwrap() as u32;
        let layer = layers.iter().position(|l| row["layer"] == *l).unwrap();
        let pair = (layer, number("a"), number("b"));
        assert_eq!(row["n"], all[&pair]);
        assert_close(&row["lift"], lift(pair, all[&pair]));
        assert_close(&row["lift"], expected);
    }
}

/// Guesses what was seen most often with the experts of the layer before, then what was used most, then the higher number.
fn check_prediction(prediction: &Value, tokens: &[Token], uses: &[Vec<u64>]) {
    let mut seen = HashMap::<(usize, u32, u32), u32>::new();
    let mut used: Vec<Vec<u32>> = uses.iter().map(|uses| vec![0; uses.len()]).collect();
    let (mut n, mut hits, mut popular, mut chance) = (0, 0, 0, 0.0);
    for token in tokens {
        let pairs = token.layers.windows(2).zip(used.iter().skip(1));
        for (layer, (pair, used)) in pairs.enumerate() {
            let (before, after) = (&pair[0], &pair[1]);
            let n_experts = used.len();
            let guess = |score: &dyn Fn(u32) -> u32| {
                let mut order: Vec<u32> = (0..n_experts as u32).collect();
                order.sort_by_key(|&e| Reverse((score(e), used[e as usize], e)));
                let guessed = &order[..after.len()];
                guessed
                    .iter()
                    .filter(|expert| after.contains(expert))
                    .count()
            };
            hits += guess(&|b| {
                let with = |a: &u32| seen.get(&(layer, *a, b)).copied().unwrap_or(0);
                before.iter().map(with).sum()
            });
            popular += guess(&|_| 0);
            n += after.len();
            chance += (after.len() * after.len()) as f64 / n_experts as f64;
            for a in before {
                for b in after {
                    *seen.entry((layer, *a, *b)).or_default() += 1;
                }
            }
        }
        for (used, picked) in used.iter_mut().zip(&token.layers) {
            picked.iter().for_each(|e| used[*e as usize] += 1);
        }
    }
    assert_eq!(prediction["n"], n);
    assert_close(&prediction["recall"], hits as f64 / n as f64);
    assert_close(&prediction["popularity_recall"], popular as f64 / n as f64);
    assert_close(&prediction["chance"], chance / n as f64);
}

/// Pinning by the uses. Of the other curves: nothing beats Belady, and what holds everything misses only first uses.
/// (`brute_force.rs` has each policy against a slow model.)
fn check_curves(curves: &Value, uses: &[Vec<u64>]) {
    let curve = |policy: &str| {
        let mut curves = curves.as_array().unwrap().iter();
        let found = curves.find(|curve| curve["policy"] == policy).unwrap();
        found["points"].as_array().unwrap()
    };
    let mut sorted: Vec<u64> = uses.iter().flatten().copied().collect();
    sorted.sort_unstable_by_key(|n| Reverse(*n));
    let n_uses: u64 = sorted.iter().sum();
    for point in curve("pinned") {
        let n = point["capacity_experts"].as_u64().unwrap() as usize;
        let kept: u64 = sorted[..n].iter().sum();
        assert_close(&point["hit_share"], kept as f64 / n_uses as f64);
    }
    let n_used = sorted.iter().filter(|n| **n > 0).count();
    for policy in ["lru", "lfu-decay:0.95", "belady"] {
        let points = curve(policy);
        for (point, best) in points.iter().zip(curve("belady")) {
            assert_eq!(point["capacity_experts"], best["capacity_experts"]);
            assert!(point["hit_share"].as_f64() <= best["hit_share"].as_f64());
        }
        let all = points.last().unwrap();
        assert_eq!(all["capacity_experts"], sorted.len());
        assert_close(&all["hit_share"], 1.0 - n_used as f64 / n_uses as f64);
    }
}

/// The mean difference of two, divided by twice the mean.
fn gini(uses: &[u64]) -> f64 {
    let mut differences = 0.0;
    for a in uses {
        for b in uses {
            differences += (*a as f64 - *b as f64).abs();
        }
    }
    let n = uses.len() as f64;
    let sum: u64 = uses.iter().sum();
    if sum == 0 {
        return 0.0;
    }
    differences / (2.0 * n * sum as f64)
}

fn top_quarter(uses: &[u64]) -> f64 {
    let mut sorted = uses.to_vec();
    sorted.sort_unstable_by_key(|n| Reverse(*n));
    let top: u64 = sorted[..uses.len().div_ceil(4)].iter().sum();
    top as f64 / uses.iter().sum::<u64>().max(1) as f64
}
