//! The published values of two real traces; skipped where the shared data is absent.

mod common;

use analysis::simulate::{Cache, PolicyName, Usage, Window, Workload, simulate};
use common::shared_trace;

/// Slots per layer and hit rates in per cent: LRU, LFU, LFU with a decay of 0.99, Belady.
type Rates = (u64, [f64; 4]);

/// By trace.
const HIT_RATES: [(&str, [Rates; 4]); 2] = [
    (
        "gpqa_main",
        [
            (8, [67.11, 65.12, 69.66, 78.34]),
            (12, [81.15, 79.06, 82.86, 89.57]),
            (16, [89.83, 88.17, 90.81, 94.99]),
            (24, [97.91, 97.55, 98.11, 99.08]),
        ],
    ),
    (
        "sorry_bench_base",
        [
            (8, [66.38, 68.50, 70.86, 78.46]),
            (12, [81.67, 83.05, 85.32, 90.34]),
            (16, [91.22, 91.49, 93.17, 95.89]),
            (24, [98.75, 98.65, 98.99, 99.47]),
        ],
    ),
];

#[test]
fn hit_rates() {
    let policies = [
        PolicyName::LRU,
        PolicyName::LFU,
        PolicyName::lfu_decay(0.99),
        PolicyName::Belady,
    ];
    for (name, rows) in HIT_RATES {
        let Some(trace) = shared_trace(name) else {
            return;
        };
        let workload = Workload::from_routing(&trace, Window::default(), None).unwrap();
        for (slots, expected) in rows {
            for (policy, expected) in policies.iter().zip(expected) {
                let outcome = simulate(&workload, Cache::per_layer(slots), policy).unwrap();
                let found = 100.0 * outcome.total.hit_rate();
                // The published values have two digits.
                assert!(
                    (found - expected).abs() < 0.0051,
                    "{name}, {slots} slots, {policy}: {found:.4} instead of {expected}"
                );
            }
        }
    }
}

#[test]
fn usage() {
    for (name, repeat, gini, top_quarter) in [
        ("gpqa_main", 0.4581, 0.4769, 0.5676),
        ("sorry_bench_base", 0.4465, 0.5587, 0.6448),
    ] {
        let Some(trace) = shared_trace(name) else {
            return;
        };
        let workload = Workload::from_routing(&trace, Window::default(), None).unwrap();
        let usage = Usage::of(&workload);
        let near = |found: f64, expected: f64| (found - expected).abs() < 0.000_051;
        assert!(near(usage.gini, gini), "{usage:?}");
        assert!(near(usage.top_quarter, top_quarter), "{usage:?}");
        assert_eq!(usage.repeat[0].0, 1);
        assert!(near(usage.repeat[0].1, repeat), "{usage:?}");
    }
}
