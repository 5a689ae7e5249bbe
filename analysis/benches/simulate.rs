//! What an access costs to simulate, on a real trace where the shared data is there, and otherwise on a random one of the
//! same shape. Each measurement first shows that what it measures is right.

use std::hint::black_box;

use analysis::routing::{RoutingTrace, Shape};
use analysis::simulate::{Cache, Capacity, PolicyName, Window, Workload, simulate};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const SLOTS: u64 = 12;

fn trace() -> RoutingTrace {
    if let Some(path) = model_shapes::local::shared_data("routing/gpt-oss-20b.gpqa_main.routes.u8")
    {
        return RoutingTrace::open(path).unwrap();
    }
    eprintln!("a random trace takes its place");
    let shape = Shape {
        n_tokens: 12_186,
        n_layers: 24,
        n_experts: 32,
        top_k: 4,
    };
    let mut state = 1u64;
    let mut experts = Vec::new();
    for _ in 0..shape.n_tokens * shape.n_layers {
        // Four different experts, from one number of a linear congruential generator.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        experts.extend((0..4).map(|rank| ((state >> 40) as u8 & 7) + 8 * rank));
    }
    RoutingTrace::from_parts("random", shape, vec![shape.n_tokens], experts).unwrap()
}

fn policies(criterion: &mut Criterion) {
    let workload = Workload::from_routing(&trace(), Window::default(), None).unwrap();
    let n_accesses = workload.accesses().len() as u64;
    let caches = [
        ("per layer", Cache::per_layer(SLOTS)),
        ("global", Cache::global(Capacity::SlotsPerLayer(SLOTS))),
    ];
    for (name, cache) in caches {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(20);
        group.throughput(Throughput::Elements(n_accesses));
        let best = simulate(&workload, cache, &PolicyName::Belady).unwrap();
        for policy in ["lru", "lfu", "lfu-decay:0.99", "lfu-mix", "belady"] {
            let policy: PolicyName = policy.parse().unwrap();
            let outcome = simulate(&workload, cache, &policy).unwrap();
            assert_eq!(outcome.total.n_accesses, n_accesses);
            assert!(outcome.total.n_hits <= best.total.n_hits);
            group.bench_function(policy.to_string(), |bencher| {
                bencher.iter(|| simulate(black_box(&workload), cache, &policy).unwrap());
            });
        }
        group.finish();
    }
}

/// The policy that learns. It costs most when it remembers as many tokens as it can.
fn learned(criterion: &mut Criterion) {
    let window = Window {
        n_tokens: Some(6_000),
        ..Window::default()
    };
    let workload = Workload::from_routing(&trace(), window, None).unwrap();
    let cache = Cache::global(Capacity::SlotsPerLayer(SLOTS));
    let n_misses = |policy| {
        simulate(&workload, cache, &policy)
            .unwrap()
            .total
            .n_misses()
    };
    assert!(n_misses(PolicyName::NEXT_USE) < n_misses(PolicyName::LRU));
    let mut group = criterion.benchmark_group("learned");
    group.sample_size(10);
    group.throughput(Throughput::Elements(workload.accesses().len() as u64));
    group.bench_function("next-use", |bencher| {
        bencher.iter(|| simulate(black_box(&workload), cache, &PolicyName::NEXT_USE).unwrap());
    });
    group.finish();
}

criterion_group!(benches, policies, learned);
criterion_main!(benches);
