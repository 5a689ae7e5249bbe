//! Routing traces that are read, and those that are refused with the file and the number named.

mod common;

use std::fs;
use std::path::Path;

use analysis::routing::RoutingTrace;
use common::shared_trace;

/// A trace of 3 tokens, 2 layers, 4 experts, top-2, in 2 sequences.
const DESCRIPTION: &str = r#"{
    "model": "tiny", "n_layer": 2, "n_expert": 4, "n_expert_used": 2, "tokens": 3, "sequence_lengths": [1, 2],
    "layout": "u8 [tokens][layer][rank], C order" }"#;
const EXPERTS: [u8; 12] = [0, 1, 3, 2, 1, 0, 0, 3, 2, 3, 1, 2];

fn write(folder: &Path, description: &str, experts: &[u8]) -> std::path::PathBuf {
    fs::write(folder.join("t.routes.json"), description).unwrap();
    let path = folder.join("t.routes.u8");
    fs::write(&path, experts).unwrap();
    path
}

#[test]
fn a_small_trace() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), DESCRIPTION, &EXPERTS);
    for path in [&path, &path.with_extension("json")] {
        let trace = RoutingTrace::open(path).unwrap();
        assert_eq!((trace.n_layers(), trace.n_experts()), (2, 4));
        assert_eq!((trace.top_k(), trace.n_tokens()), (2, 3));
        assert_eq!(trace.model(), Some("tiny"));
        assert_eq!(trace.sequences().collect::<Vec<_>>(), [0..1, 1..3]);
        assert_eq!(trace.token(1).layer(0), [1, 0]);
        assert_eq!(trace.token(2).layer(1), [1, 2]);
        assert_eq!(
            trace.token(0).layers().collect::<Vec<_>>(),
            [[0, 1], [3, 2]]
        );
    }
}

#[test]
fn the_shared_traces() {
    for (name, n_tokens, n_sequences) in
        [("gpqa_main", 12_186, 29), ("sorry_bench_base", 25_462, 88)]
    {
        let Some(trace) = shared_trace(name) else {
            return;
        };
        assert_eq!(
            (trace.n_layers(), trace.n_experts(), trace.top_k()),
            (24, 32, 4)
        );
        assert_eq!(trace.n_tokens(), n_tokens);
        assert_eq!(trace.sequences().len(), n_sequences);
        assert_eq!(trace.sequences().last().unwrap().end, n_tokens);
    }
}

#[test]
fn wrong_descriptions() {
    let folder = tempfile::tempdir().unwrap();
    for (from, to, expected) in [
        (
            "\"n_layer\": 2",
            "\"n_layer\": 3",
            "12 bytes, where 3 tokens x 3 layers x 2 experts need 18",
        ),
        ("\"n_layer\": 2", "\"n_layer\": 0", "n_layer is 0"),
        (
            "\"n_expert\": 4",
            "\"n_expert\": 3",
            "token 0, layer 1, rank 0: expert 3, where there are 3",
        ),
        ("\"n_expert\": 4", "\"n_expert\": 257", "n_expert is 257"),
        (
            "\"n_expert_used\": 2",
            "\"n_expert_used\": 5",
            "n_expert_used is 5",
        ),
        (
            "\"n_expert_used\": 2",
            "\"n_expert_used\": 0",
            "n_expert_used is 0",
        ),
        (
            "\"tokens\": 3",
            "\"tokens\": 4",
            "sequence_lengths has 3 tokens in all, tokens is 4",
        ),
        ("\"tokens\": 3", "\"tokens\": 0", "tokens is 0"),
        ("\"tokens\": 3", "\"tokens\": -1", "invalid value"),
        ("[1, 2]", "[1, 0, 2]", "sequence_lengths[1] is 0"),
        ("[1, 2]", "[18446744073709551615, 2]", "too many"),
        ("u8 [tokens]", "u16 [tokens]", "layout"),
        ("\"n_layer\": 2,", "", "missing field `n_layer`"),
        ("{", "", "not the description of a routing trace"),
    ] {
        let path = write(folder.path(), &DESCRIPTION.replace(from, to), &EXPERTS);
        let message = RoutingTrace::open(&path).unwrap_err().to_string();
        assert!(message.contains(expected), "{to}: {message}");
        assert!(message.contains("t.routes."), "{message}");
    }
    let large = DESCRIPTION.replace("\"tokens\": 3", "\"tokens\": 4611686018427387905");
    let path = write(
        folder.path(),
        &large.replace("[1, 2]", "[4611686018427387905]"),
        &EXPERTS,
    );
    let message = RoutingTrace::open(&path).unwrap_err().to_string();
    assert!(message.contains("at most 1073741824 bytes"), "{message}");
}

#[test]
fn wrong_experts() {
    let folder = tempfile::tempdir().unwrap();
    let mut twice = EXPERTS;
    twice[9] = 2;
    let path = write(folder.path(), DESCRIPTION, &twice);
    let message = RoutingTrace::open(&path).unwrap_err().to_string();
    assert!(
        message.contains("token 2, layer 0, rank 1: expert 2 a second time"),
        "{message}"
    );

    let path = write(folder.path(), DESCRIPTION, &EXPERTS[..11]);
    let message = RoutingTrace::open(&path).unwrap_err().to_string();
    assert!(
        message.contains("11 bytes") && message.contains("cut short"),
        "{message}"
    );
}

#[test]
fn files_that_are_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), DESCRIPTION, &EXPERTS);
    let message = |path: &Path| RoutingTrace::open(path).unwrap_err().to_string();
    assert!(message(Path::new("trace.csv")).contains("trace.csv: a routing trace is"));
    assert!(message(&folder.path().join("absent.u8")).contains("absent.json"));
    fs::remove_file(&path).unwrap();
    assert!(message(&path).contains("t.routes.u8: cannot open it"));
    fs::create_dir(&path).unwrap();
    assert!(message(&path).contains("not a regular file"));
}
