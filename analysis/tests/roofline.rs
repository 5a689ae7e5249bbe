//! Bounds against cases worked out by hand.

use analysis::roofline::{
    Bound, Conditions, ExpertSizes, Limit, Roofline, RooflineError, RowInputs, share_of_bound,
};
use analysis::routing::{RoutingTrace, Shape};
use analysis::simulate::{Window, Workload};
use device_curve::{DeviceCurve, Point, Target};

const MB: u64 = 1_000_000;

/// 100 MB/s for requests of 4 KiB, 1 GB/s for those of 1 MB and 16 at once.
fn curve() -> DeviceCurve {
    let point = |request_bytes, depth, bytes_per_s| Point {
        request_bytes,
        depth,
        bytes_per_s,
        bytes_per_s_min: bytes_per_s,
        bytes_per_s_max: bytes_per_s,
        latency_median_ns: 0,
        latency_p99_ns: 0,
        n_requests: 1,
        samples_bytes_per_s: vec![bytes_per_s],
    };
    let points = vec![
        point(4096, 1, 1e7),
        point(4096, 16, 1e8),
        point(MB, 1, 5e8),
        point(MB, 16, 1e9),
    ];
    DeviceCurve::new(Target::default(), points).unwrap()
}

/// One layer of 4 experts, one of them for a token.
fn trace(experts: &[u8]) -> RoutingTrace {
    let shape = Shape {
        n_tokens: experts.len(),
        n_layers: 1,
        n_experts: 4,
        top_k: 1,
    };
    RoutingTrace::from_parts("hand", shape, vec![experts.len()], experts.to_vec()).unwrap()
}

fn conditions(in_ram_step_ms: f64) -> Conditions {
    Conditions {
        other_bytes: 100 * MB,
        request_bytes: MB,
        in_ram_step_ms,
    }
}

fn bound(workload: &Workload, step_ms: f64, budget_bytes: Option<u64>) -> Bound {
    let roofline = Roofline::new(workload, &curve(), conditions(step_ms)).unwrap();
    roofline.bound(budget_bytes).unwrap()
}

fn near(left: f64, right: f64) {
    assert!((left - right).abs() < 1e-9 * right.abs(), "{left} {right}");
}

#[test]
fn by_hand() {
    // Two slots of 10 MB: 0 and 1 miss, 2 misses and takes the place of 1, 0 and 2 hit, 1 misses and takes the place of 0,
    // which is not used again, 2 hits.
    let trace = trace(&[0, 1, 2, 0, 2, 1, 2]);
    let workload = Workload::from_routing(&trace, Window::default(), Some(10 * MB)).unwrap();
    // 40 MB for 7 tokens at 1 GB/s are 40/7 ms.
    let device_ms = 40.0 / 7.0;
    let budget = Some(120 * MB);

    let slow_device = bound(&workload, 2.0, budget);
    assert_eq!(slow_device.slot_bytes, Some(20 * MB));
    near(slow_device.miss_bytes_per_token, 4e7 / 7.0);
    near(slow_device.hit_percent, 300.0 / 7.0);
    near(slow_device.device_ms, device_ms);
    near(slow_device.tokens_per_s, 1e3 / device_ms);
    near(slow_device.tokens_per_s_serial, 1e3 / (device_ms + 2.0));
    assert_eq!(slow_device.limit, Limit::Device);

    let slow_compute = bound(&workload, 8.0, budget);
    near(slow_compute.tokens_per_s, 125.0);
    near(slow_compute.tokens_per_s_serial, 1e3 / (device_ms + 8.0));
    assert_eq!(slow_compute.limit, Limit::Compute);

    // Everything fits: each of three experts is read once. No budget: nothing is.
    near(
        bound(&workload, 2.0, Some(1000 * MB)).miss_bytes_per_token,
        3e7 / 7.0,
    );
    let in_ram = bound(&workload, 2.0, None);
    assert_eq!(
        (in_ram.miss_bytes_per_token, in_ram.tokens_per_s),
        (0.0, 500.0)
    );

    // After a warm-up of three tokens one miss is left for four.
    let window = Window {
        warmup: 3,
        ..Window::default()
    };
    let warm = Workload::from_routing(&trace, window, Some(10 * MB)).unwrap();
    near(bound(&warm, 2.0, budget).miss_bytes_per_token, 1e7 / 4.0);
}

#[test]
fn slower_requests_lower_the_bound() {
    let workload =
        Workload::from_routing(&trace(&[0, 1, 2, 3]), Window::default(), Some(10 * MB)).unwrap();
    let small = Conditions {
        request_bytes: 4096,
        ..conditions(1.0)
    };
    let roofline = Roofline::new(&workload, &curve(), small).unwrap();
    near(roofline.device().bytes_per_s, 1e8);
    near(roofline.bound(Some(120 * MB)).unwrap().tokens_per_s, 10.0);
}

#[test]
fn the_share_of_a_row() {
    let workload =
        Workload::from_routing(&trace(&[0, 1, 2, 3]), Window::default(), Some(10 * MB)).unwrap();
    let roofline = Roofline::new(&workload, &curve(), conditions(4.0)).unwrap();
    let share = |budget_bytes, tokens_per_s| {
        share_of_bound(
            &roofline,
            &RowInputs {
                budget_bytes,
                tokens_per_s,
            },
        )
    };
    // Each token misses 10 MB: 10 ms, 100 tokens/s.
    near(share(Some(120 * MB), Some(80.0)).unwrap().share, 0.8);
    near(share(None, Some(200.0)).unwrap().share, 0.8);
    assert_eq!(share(Some(120 * MB), None), None);
    assert_eq!(share(Some(120 * MB), Some(0.0)), None);
    assert_eq!(share(Some(120 * MB), Some(f64::NAN)), None);
    // Not one expert fits.
    assert_eq!(share(Some(105 * MB), Some(1.0)), None);
}

#[test]
fn what_has_no_bound_says_why() {
    let trace = trace(&[0, 1]);
    let sized = Workload::from_routing(&trace, Window::default(), Some(10 * MB)).unwrap();
    let unsized_ = Workload::from_routing(&trace, Window::default(), None).unwrap();
    let error = Roofline::new(&unsized_, &curve(), conditions(1.0)).unwrap_err();
    assert!(matches!(error, RooflineError::NoSizes));
    for step in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = Roofline::new(&sized, &curve(), conditions(step)).unwrap_err();
        assert!(matches!(error, RooflineError::Conditions { .. }));
    }
    let roofline = Roofline::new(&sized, &curve(), conditions(1.0)).unwrap();
    let message = roofline.bound(Some(105 * MB)).unwrap_err().to_string();
    for word in ["105000000", "100000000", "10000000 bytes of layer 0"] {
        assert!(message.contains(word), "{message}");
    }
    assert!(roofline.bound(Some(1)).is_err());
}

#[test]
fn the_sizes_of_a_models_experts() {
    let folder = tempfile::tempdir().unwrap();
    let open = |shape: &str| {
        let path = folder.path().join(shape);
        let shape = model_shapes::Shape::by_name(shape).unwrap();
        model_shapes::generate(&shape, &path, 1, &mut |_, _| {}).unwrap();
        gguf::ModelFiles::open(&path).unwrap()
    };
    let model = open("tiny-gpt-oss");
    let sizes = ExpertSizes::of(&model).unwrap();
    let (n_layers, n_experts) = (sizes.layer_bytes.len(), sizes.n_experts as usize);
    let top_k = sizes.top_k.unwrap() as usize;
    // All experts together are what the file has of them.
    let experts_bytes: u64 = model
        .tensors()
        .filter(|(_, tensor)| gguf::is_expert_name(&tensor.name))
        .map(|(_, tensor)| tensor.size_bytes)
        .sum();
    let all = sizes.layer_bytes.iter().sum::<u64>() * sizes.n_experts;
    assert_eq!(all, experts_bytes);

    let trace = |n_layers: usize, n_experts: usize, top_k: usize| {
        let shape = Shape {
            n_tokens: 1,
            n_layers,
            n_experts,
            top_k,
        };
        let experts = (0..n_layers * top_k).map(|index| (index % top_k) as u8);
        RoutingTrace::from_parts("made", shape, vec![1], experts.collect()).unwrap()
    };
    let window = Window::default();
    let workload = sizes
        .workload(&trace(n_layers, n_experts, top_k), window)
        .unwrap();
    assert_eq!(workload.size_bytes(), experts_bytes);
    for (wrong, words) in [
        (trace(n_layers + 1, n_experts, top_k), "layers with experts"),
        (trace(n_layers, n_experts * 2, top_k), "experts in a layer"),
        (trace(n_layers, n_experts, top_k + 1), "experts for a token"),
    ] {
        let message = sizes.workload(&wrong, window).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
    let dense = ExpertSizes::of(&open("tiny-llama"))
        .unwrap_err()
        .to_string();
    assert!(dense.contains("no experts"), "{dense}");
}
