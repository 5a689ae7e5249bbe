//! Hits over the size of a cache.

use serde::{Deserialize, Serialize};

use crate::simulate::{Cache, Capacity, PolicyName, Workload, simulate};

/// Sizes of caches, as shares of all experts.
const SHARES: [f64; 12] = [
    0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0,
];
/// The name of LFU with decay, whose decay is the best of `docs/policies.md` for a shared cache.
pub(super) const DECAYED: &str = "lfu-decay:0.95";

/// Hits under one policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// A policy of `faultline simulate`, or `pinned`: the experts with most uses, known beforehand and kept.
    pub policy: String,
    /// By growing size. Caches that cannot hold what a token uses of one layer are left out.
    pub points: Vec<CurvePoint>,
}

/// One cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Share of all experts that it holds.
    pub capacity_share: f64,
    /// Experts that it holds.
    pub capacity_experts: u64,
    /// Their bytes, as those of an average expert.
    pub capacity_bytes: u64,
    /// Share of the uses that are in it.
    pub hit_share: f64,
    /// Bytes of experts that a token has to read.
    pub miss_bytes_per_token: f64,
}

/// All curves.
pub(super) fn curves(workload: &Workload) -> Vec<Curve> {
    let policies = [
        ("lru", PolicyName::LRU),
        (DECAYED, PolicyName::lfu_decay(0.95)),
        ("belady", PolicyName::Belady),
    ];
    let n_slices = workload.slices().len() as u64;
    let n_tokens = workload.n_tokens() as f64;
    let mean_bytes = workload.size_bytes() as f64 / n_slices as f64;
    let point = |n: u64, hit_share, miss_bytes: u64| CurvePoint {
        capacity_share: n as f64 / n_slices as f64,
        capacity_experts: n,
        capacity_bytes: (n as f64 * mean_bytes) as u64,
        hit_share,
        miss_bytes_per_token: miss_bytes as f64 / n_tokens,
    };
    let mut sizes = SHARES
        .map(|share| (n_slices as f64 * share).round() as u64)
        .to_vec();
    sizes.dedup();
    let mut curves: Vec<Curve> = policies
        .iter()
        .map(|(name, policy)| {
            let points = sizes.iter().filter_map(|&n| {
                let cache = Cache::global(Capacity::Slots(n));
                let total = simulate(workload, cache, policy).ok()?.total;
                Some(point(n, total.hit_rate(), total.miss_bytes))
            });
            Curve {
                policy: (*name).to_owned(),
                points: points.collect(),
            }
        })
        .collect();
    let mut uses = vec![0u64; workload.slices().len()];
    for &slice in workload.accesses() {
        uses[slice as usize] += 1;
    }
    let mut order: Vec<usize> = (0..uses.len()).collect();
    order.sort_by_key(|slice| std::cmp::Reverse(uses[*slice]));
    let n_uses: u64 = uses.iter().sum();
    let pinned = sizes.iter().map(|&n| {
        let (kept, others) = order.split_at(n as usize);
        let hits: u64 = kept.iter().map(|slice| uses[*slice]).sum();
        let missed = others
            .iter()
            .map(|slice| uses[*slice] * workload.slices()[*slice].size_bytes);
        point(n, hits as f64 / n_uses.max(1) as f64, missed.sum())
    });
    curves.push(Curve {
        policy: "pinned".to_owned(),
        points: pinned.collect(),
    });
    curves
}
