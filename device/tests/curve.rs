//! Rates between measured points.

use device_curve::{CurveError, DeviceCurve, Point, Target};
use proptest::prelude::*;

fn point(request_bytes: u64, depth: u32, bytes_per_s: f64) -> Point {
    Point {
        request_bytes,
        depth,
        bytes_per_s,
        bytes_per_s_min: bytes_per_s,
        bytes_per_s_max: bytes_per_s,
        latency_median_ns: 1,
        latency_p99_ns: 1,
        n_requests: 1,
        samples_bytes_per_s: vec![bytes_per_s],
    }
}

fn curve(points: &[(u64, u32, f64)]) -> Result<DeviceCurve, CurveError> {
    let points = points
        .iter()
        .map(|&(bytes, depth, rate)| point(bytes, depth, rate))
        .collect();
    DeviceCurve::new(Target::default(), points)
}

fn assert_near(left: f64, right: f64) {
    assert!((left / right - 1.0).abs() < 1e-12, "{left} {right}");
}

#[test]
fn by_hand() {
    let curve = curve(&[
        (65_536, 16, 8e8),
        (4096, 1, 1e7),
        (65_536, 1, 1e8),
        (4096, 16, 1.6e8),
    ])
    .unwrap();
    // Measured.
    assert_near(curve.rate_bytes_per_s(4096, 16), 1.6e8);
    // Half way between two depths, two sizes, and in the middle of all four, on scales of logarithms.
    assert_near(curve.rate_bytes_per_s(4096, 4), 4e7);
    assert_near(curve.rate_bytes_per_s(16_384, 1), 1e15f64.sqrt());
    assert_near(
        curve.rate_bytes_per_s(16_384, 4),
        (1e7f64 * 1.6e8 * 1e8 * 8e8).powf(0.25),
    );
    // Outside: as many requests a second below, as many bytes a second above.
    assert_near(curve.rate_bytes_per_s(1024, 1), 1e7 / 4.0);
    assert_near(curve.rate_bytes_per_s(1 << 30, 1000), 8e8);
    assert_near(curve.rate_bytes_per_s(0, 0), 1e7 / 4096.0);

    let fastest = curve.fastest(1 << 20);
    assert_eq!((fastest.bytes_per_s, fastest.depth), (8e8, 16));
    assert_near(curve.fastest(16_384).bytes_per_s, (1.6e8f64 * 8e8).sqrt());
}

#[test]
fn smaller_requests_can_be_the_fastest() {
    let curve = curve(&[(4096, 1, 5e8), (8192, 1, 2e8)]).unwrap();
    let fastest = curve.fastest(8192);
    assert_eq!((fastest.request_bytes, fastest.bytes_per_s), (4096, 5e8));
}

#[test]
fn what_is_no_curve_is_refused_with_the_reason() {
    let message = |points: &[(u64, u32, f64)]| curve(points).unwrap_err().to_string();
    assert!(message(&[]).contains("without points"));
    assert!(message(&[(4096, 0, 1.0)]).contains("depth 0"));
    assert!(message(&[(0, 1, 1.0)]).contains("0 bytes"));
    assert!(message(&[(4096, 1, 0.0)]).contains("0 bytes/s"));
    assert!(message(&[(4096, 1, f64::NAN)]).contains("NaN"));
    assert!(message(&[(4096, 1, 1.0), (4096, 1, 2.0)]).contains("two points"));

    let json = |text: &str| DeviceCurve::from_json(text).unwrap_err().to_string();
    assert!(json("[]").contains("bench device"));
    assert!(json("{\"version\": 9}").contains("version 9"));
}

proptest! {
    #[test]
    fn rates_lie_between_their_neighbours_and_survive_json(
        rates in prop::collection::vec(1e6f64..1e10, 9),
        bytes in 1u64..1 << 24,
        depth in 1u32..100,
    ) {
        let places = [4096u64, 131_072, 4 << 20]
            .into_iter()
            .flat_map(|bytes| [1u32, 8, 64].map(|depth| (bytes, depth)));
        let points: Vec<_> = places
            .zip(&rates)
            .map(|((bytes, depth), &rate)| (bytes, depth, rate))
            .collect();
        let curve = curve(&points).unwrap();
        for &(bytes, depth, rate) in &points {
            prop_assert!((curve.rate_bytes_per_s(bytes, depth) / rate - 1.0).abs() < 1e-12);
        }
        let (low, high) = rates
            .iter()
            .fold((f64::MAX, 0f64), |(low, high), &rate| (low.min(rate), high.max(rate)));
        let rate = curve.rate_bytes_per_s(bytes, depth);
        prop_assert!(rate <= high * 1.000_001);
        prop_assert!(bytes < 4096 || rate >= low * 0.999_999);
        prop_assert!(curve.fastest(bytes).bytes_per_s >= rate * 0.999_999);
        // No jumps: a byte more changes little.
        let next = curve.rate_bytes_per_s(bytes + 1, depth);
        prop_assert!((next / rate).ln().abs() <= 8.0 / bytes as f64 + 1e-9);
        let text = serde_json::to_string(&curve).unwrap();
        let read = DeviceCurve::from_json(&text).unwrap().rate_bytes_per_s(bytes, depth);
        prop_assert!((read / rate - 1.0).abs() < 1e-9);
    }
}
