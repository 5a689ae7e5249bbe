//! What a decision of the pool costs, at the numbers of slots that real models have in memory.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pager::policy::policy_for;
use pager::{Fetch, Pool, PoolMode, PoolSlice, SliceId};

const N_LAYERS: u32 = 48;
const TOP_K: u32 = 8;

/// Experts of a request: some are used again and again, the others are spread.
fn experts(token: u32, layer: u32, n_experts: u32, ids: &mut Vec<SliceId>) {
    let mut state = u64::from(token * N_LAYERS + layer).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ids.clear();
    while ids.len() < TOP_K as usize {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let expert = (state >> 40) as u32 % n_experts;
        let id = SliceId(layer * n_experts + expert);
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
}

fn pool(n_slots: u32, policy: &str) -> (Pool, u32) {
    // Twice as many slices as slots, so that half of the requests miss.
    let n_experts = 2 * n_slots / N_LAYERS;
    let slices: Vec<PoolSlice> = (0..N_LAYERS * n_experts)
        .map(|index| PoolSlice {
            layer: index / n_experts,
            expert: index % n_experts,
            class: 0,
            size_bytes: 1 << 20,
        })
        .collect();
    let policy = policy_for(policy.parse().unwrap(), &slices);
    (Pool::new(slices, &[n_slots], policy), n_experts)
}

fn token(
    pool: &mut Pool,
    n_experts: u32,
    number: u32,
    ids: &mut Vec<SliceId>,
    fetches: &mut Vec<Fetch>,
) {
    pool.begin_step(PoolMode::Decode);
    for layer in 0..N_LAYERS {
        experts(number, layer, n_experts, ids);
        fetches.clear();
        pool.request(ids, fetches).unwrap();
        for fetch in fetches.iter() {
            pool.complete(fetch.slice, 1 << 20);
        }
        pool.unpin(ids);
    }
}

/// A token of 384 requests, half of them misses, with the ends of their reads.
fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request");
    group.sample_size(20);
    group.throughput(Throughput::Elements(u64::from(N_LAYERS * TOP_K)));
    for policy in ["lfu-decay:0.95", "lfu-mix"] {
        for n_slots in [2_000, 10_000] {
            let (mut pool, n_experts) = pool(n_slots, policy);
            let (mut ids, mut fetches) = (Vec::new(), Vec::new());
            let mut number = 0;
            for _ in 0..200 {
                token(&mut pool, n_experts, number, &mut ids, &mut fetches);
                number += 1;
            }
            let before = pool.counters().snapshot().total;
            group.bench_function(format!("{policy}, {n_slots} slots"), |bencher| {
                bencher.iter(|| {
                    number += 1;
                    token(&mut pool, n_experts, number, &mut ids, &mut fetches);
                });
            });
            let after = pool.counters().snapshot().total;
            let miss_rate = (after.n_misses - before.n_misses) as f64
                / (after.n_requests() - before.n_requests()) as f64;
            assert!((0.3..0.7).contains(&miss_rate), "{miss_rate}");
        }
    }
    group.finish();
}

/// What a compute thread does to find a slice that is there.
fn lookup(criterion: &mut Criterion) {
    let (mut pool, _) = pool(2_000, "lfu-decay:0.95");
    let mut fetches = Vec::new();
    pool.request(&[SliceId(7)], &mut fetches).unwrap();
    pool.complete(SliceId(7), 0);
    let residency = pool.residency();
    assert_eq!(residency.slot(SliceId(7)), Some(fetches[0].slot));
    criterion.bench_function("slot of a resident slice", |bencher| {
        bencher.iter(|| residency.slot(black_box(SliceId(7))));
    });
}

criterion_group!(benches, requests, lookup);
criterion_main!(benches);
