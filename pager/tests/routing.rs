//! The pool against the simulator, on real routing.

use analysis::routing::RoutingTrace;
use analysis::simulate::{Cache, Capacity, Counts, Window, Workload, simulate};
use model_shapes::local::shared_data;
use pager::policy::policy_for;
use pager::{Fetch, LayerCounts, PolicyName, Pool, PoolMode, PoolSlice, SliceId};

/// One of gpt-oss-20b's experts: gate, up and down.
const EXPERT_BYTES: u64 = 13_219_200;

/// A trace of gpt-oss-20b from the test data beside the project, or nothing, with the reason printed.
fn shared_trace(name: &str) -> Option<RoutingTrace> {
    let path = shared_data(format!("routing/gpt-oss-20b.{name}.routes.u8"))?;
    Some(RoutingTrace::open(path).unwrap())
}

/// Plays tokens of a trace through a pool in which every read ends at once. An expert is `n_tensors` slices. Layers take
/// turns in using the classes of slots.
fn replay(
    trace: &RoutingTrace,
    n_tokens: usize,
    n_tensors: u32,
    class_slots: &[u32],
    policy: &str,
) -> LayerCounts {
    let n_experts = trace.n_experts() as u32;
    let n_classes = class_slots.len() as u32;
    let slices: Vec<PoolSlice> = (0..trace.n_layers() as u32 * n_experts * n_tensors)
        .map(|index| PoolSlice {
            layer: index / (n_experts * n_tensors),
            expert: index % n_experts,
            class: index / (n_experts * n_tensors) % n_classes,
            size_bytes: EXPERT_BYTES / u64::from(n_tensors),
        })
        .collect();
    let policy = policy_for(policy.parse().unwrap(), &slices);
    let mut pool = Pool::new(slices, class_slots, policy);
    let (mut ids, mut fetches): (Vec<SliceId>, Vec<Fetch>) = (Vec::new(), Vec::new());
    for token in 0..n_tokens {
        pool.begin_step(PoolMode::Decode);
        for (layer, experts) in (0..).zip(trace.token(token).layers()) {
            ids.clear();
            for &expert in experts {
                let first = layer * n_tensors * n_experts + u32::from(expert);
                ids.extend((0..n_tensors).map(|tensor| SliceId(first + tensor * n_experts)));
            }
            fetches.clear();
            pool.request(&ids, &mut fetches).unwrap();
            for fetch in &fetches {
                pool.complete(fetch.slice, 0);
            }
            pool.unpin(&ids);
        }
    }
    pool.counters().snapshot().total
}

fn simulated(trace: &RoutingTrace, n_tokens: usize, n_slots: u64, policy: &str) -> Counts {
    let window = Window {
        n_tokens: Some(n_tokens),
        ..Window::default()
    };
    let workload = Workload::from_routing(trace, window, Some(EXPERT_BYTES)).unwrap();
    let cache = Cache::global(Capacity::Slots(n_slots));
    simulate(&workload, cache, &policy.parse().unwrap())
        .unwrap()
        .total
}

#[test]
fn the_pool_misses_what_the_simulator_says() {
    for (name, n_tokens) in [("gpqa_main", 12_186), ("sorry_bench_base", 8_000)] {
        let Some(trace) = shared_trace(name) else {
            return;
        };
        for (policy, n_slots) in [
            ("lfu-decay:0.95", 96),
            ("lfu-decay:0.95", 288),
            ("lfu-decay:0.95", 577),
            ("lfu-decay:0.99", 192),
            ("lfu", 288),
            ("lru", 288),
        ] {
            let expected = simulated(&trace, n_tokens, n_slots, policy);
            let found = replay(&trace, n_tokens, 1, &[n_slots as u32], policy);
            assert_eq!(
                found.miss_bytes, expected.miss_bytes,
                "{name} {policy} {n_slots}"
            );
            assert_eq!(found.n_hits, expected.n_hits, "{name} {policy} {n_slots}");
        }
        // Values of all slices change with each token.
        let expected = simulated(&trace, 1_000, 288, "lfu-mix");
        let found = replay(&trace, 1_000, 1, &[288], "lfu-mix");
        assert_eq!(found.miss_bytes, expected.miss_bytes, "{name}");
        // It learns from every token and remembers thousands.
        for n_slots in [96, 288] {
            let expected = simulated(&trace, 5_000, n_slots, "next-use");
            let found = replay(&trace, 5_000, 1, &[n_slots as u32], "next-use");
            assert_eq!(found.miss_bytes, expected.miss_bytes, "{name} {n_slots}");
        }
        // Gate, up and down of an expert are slices of their own and come and go together.
        for policy in ["lfu-decay:0.95", "next-use"] {
            let expected = simulated(&trace, 3_000, 288, policy);
            let found = replay(&trace, 3_000, 3, &[3 * 288], policy);
            assert_eq!(found.miss_bytes, expected.miss_bytes, "{name} {policy}");
        }
    }
}

/// Slots of two sizes are two pools: layers of one cannot take slots from layers of the other. On real routing that costs
/// little.
#[test]
fn classes_of_slots_miss_little_more_than_one_pool() {
    for name in ["gpqa_main", "sorry_bench_base"] {
        let Some(trace) = shared_trace(name) else {
            return;
        };
        for n_slots in [192, 288, 384] {
            let one = replay(&trace, 4_000, 1, &[n_slots], "lfu-decay:0.95");
            let two = replay(
                &trace,
                4_000,
                1,
                &[n_slots / 2, n_slots / 2],
                "lfu-decay:0.95",
            );
            let ratio = two.miss_bytes as f64 / one.miss_bytes as f64;
            eprintln!("{name}, {n_slots} slots: in two classes {ratio:.4} x the missed bytes");
            assert!((0.97..1.03).contains(&ratio), "{name} {n_slots}: {ratio}");
        }
    }
}

#[test]
fn halving_the_slots_never_drops_hits_to_zero() {
    for name in ["gpqa_main", "sorry_bench_base"] {
        let Some(trace) = shared_trace(name) else {
            return;
        };
        let n_all = (trace.n_layers() * trace.n_experts()) as u32;
        let mut more = replay(&trace, 2_000, 1, &[n_all], "lfu-decay:0.95").hit_rate();
        assert!(more > 0.95, "{more}");
        // Down to half of what one token uses.
        for n_slots in (1..)
            .map(|halvings| n_all >> halvings)
            .take_while(|slots| *slots >= 48)
        {
            let less = replay(&trace, 2_000, 1, &[n_slots], "lfu-decay:0.95").hit_rate();
            assert!(
                less > 0.05 && less > more / 3.0 && less < more,
                "{n_slots}: {less} after {more}"
            );
            more = less;
        }
    }
}

/// A prompt that uses every expert passes through and leaves what decoding needs.
#[test]
fn a_prompt_does_not_evict_the_decode_set() {
    const N_LAYERS: u32 = 8;
    const N_EXPERTS: u32 = 16;
    const N_SLOTS: u32 = 64;
    let slices: Vec<PoolSlice> = (0..N_LAYERS * N_EXPERTS)
        .map(|index| PoolSlice {
            layer: index / N_EXPERTS,
            expert: index % N_EXPERTS,
            class: 0,
            size_bytes: 1,
        })
        .collect();
    let policy = policy_for(PolicyName::default(), &slices);
    let mut pool = Pool::new(slices, &[N_SLOTS], policy);
    let mut fetches = Vec::new();
    let mut step = |pool: &mut Pool, mode, n_experts: u32| {
        pool.begin_step(mode);
        let before = pool.counters().snapshot().total;
        for layer in 0..N_LAYERS {
            let ids: Vec<_> = (0..n_experts)
                .map(|expert| SliceId(layer * N_EXPERTS + expert))
                .collect();
            fetches.clear();
            pool.request(&ids, &mut fetches).unwrap();
            fetches
                .iter()
                .for_each(|fetch| pool.complete(fetch.slice, 0));
            pool.unpin(&ids);
        }
        let after = pool.counters().snapshot().total;
        (
            after.n_hits - before.n_hits,
            after.n_misses - before.n_misses,
        )
    };
    let stream = PoolMode::Stream { slots_max: 16 };
    // A set of 4 experts in each layer, half of the slots.
    assert_eq!(step(&mut pool, PoolMode::Decode, 4), (0, 32));
    assert_eq!(step(&mut pool, PoolMode::Decode, 4), (32, 0));
    let (_, n_misses) = step(&mut pool, stream, N_EXPERTS);
    assert_eq!(n_misses, 128 - 32);
    assert_eq!(step(&mut pool, PoolMode::Decode, 4), (32, 0));
    // The slots that decoding does not need keep a part of the scan: no cliff there either.
    let (n_hits, _) = step(&mut pool, stream, N_EXPERTS);
    assert!((48..=64).contains(&n_hits), "{n_hits}");
    assert_eq!(step(&mut pool, PoolMode::Decode, 4), (32, 0));
}

/// Reading ahead for a prompt stops where it would take more from decoding than it may.
#[test]
fn streaming_ahead_has_a_limit() {
    let slice = |index: u32| PoolSlice {
        layer: index / 8,
        expert: index % 8,
        class: 0,
        size_bytes: 1,
    };
    let slices: Vec<_> = (0..24).map(slice).collect();
    let policy = policy_for(PolicyName::default(), &slices);
    let mut pool = Pool::new(slices, &[8], policy);
    let decode: Vec<_> = (0..8).map(SliceId).collect();
    let mut fetches = Vec::new();
    pool.begin_step(PoolMode::Decode);
    pool.request(&decode, &mut fetches).unwrap();
    fetches
        .iter()
        .for_each(|fetch| pool.complete(fetch.slice, 0));
    pool.unpin(&decode);
    pool.begin_step(PoolMode::Stream { slots_max: 3 });
    let ahead: Vec<_> = (8..16)
        .filter_map(|id| pool.prefetch(SliceId(id)))
        .collect();
    assert_eq!(ahead.len(), 3);
    ahead.iter().for_each(|fetch| pool.complete(fetch.slice, 0));
    // They wait for their layer: a miss of another one takes other slots.
    fetches.clear();
    pool.request(&[SliceId(16), SliceId(17)], &mut fetches)
        .unwrap();
    assert!(
        fetches
            .iter()
            .all(|fetch| ahead.iter().all(|held| held.slot != fetch.slot))
    );
    // An operation that needs all slots gets those, too.
    fetches
        .iter()
        .for_each(|fetch| pool.complete(fetch.slice, 0));
    pool.unpin(&[SliceId(16), SliceId(17)]);
    fetches.clear();
    let all: Vec<_> = (16..24).map(SliceId).collect();
    pool.request(&all, &mut fetches).unwrap();
    assert_eq!(fetches.len(), 6);
    assert_eq!(pool.counters().snapshot().wasted_bytes, 3);
    let message = pool
        .request(&[SliceId(0)], &mut fetches)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("layer 0: 1 slices are missing and only 0 slots"),
        "{message}"
    );
}
