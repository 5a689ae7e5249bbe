use super::*;
use crate::generate::FinishReason;
use crate::memory::Mappings;
use crate::testing::{FakeEngine, config_of, host_of, model_config};

fn process(anonymous_bytes: u64, file_bytes: u64) -> ProcessMemory {
    ProcessMemory {
        anonymous_bytes,
        file_bytes,
        peak_bytes: 0,
    }
}

/// A mapped model of 400 MiB that keeps every limit below.
fn seen() -> Seen {
    const MIB: u64 = 1 << 20;
    Seen {
        before: process(10 * MIB, 5 * MIB),
        loaded: process(50 * MIB, 300 * MIB),
        mappings: Mappings {
            size_bytes: 400 * MIB,
            resident_bytes: 295 * MIB,
            ..Mappings::default()
        },
        holding: Arc::new(Holding {
            description: String::new(),
            files: Vec::new(),
            weights_bytes: 400 * MIB,
            kv_bytes: 30 * MIB,
            compute_bytes: 10 * MIB,
            state_bytes: 0,
            mapped_bytes: 400 * MIB,
            budget_bytes: None,
            n_ctx: 100,
            n_ctx_train: 100,
            chat_template: None,
        }),
        first_token: Duration::from_millis(900),
        finished: Finished {
            reason: FinishReason::Length,
            n_prompt: 10,
            n_cached: 0,
            n_generated: 11,
            prompt_time: Duration::from_millis(50),
            generate_time: Duration::from_millis(1000),
        },
        working_set_bytes: Some(100 * MIB),
        peak_bytes: 450 * MIB,
        after: process(12 * MIB, 5 * MIB),
    }
}

fn limits() -> Limits {
    Limits {
        rss_before_first_token_bytes: Some(350 << 20),
        first_token: Some(Duration::from_secs(1)),
        next_token: Some(Duration::from_millis(100)),
        working_set_bytes: Some(100 << 20),
        total_bytes: Some(450 << 20),
        zram_ratio: Some(2.0),
    }
}

fn model(prefetch: PrefetchMode) -> ModelConfig {
    let folder = tempfile::tempdir().unwrap();
    ModelConfig {
        prefetch,
        repack: false,
        ..model_config("m", folder.path())
    }
}

const MAPPED: PrefetchMode = PrefetchMode::Mapped(Prefetch::Eager);

fn failures(rows: &[Row]) -> Vec<&'static str> {
    rows.iter()
        .filter(|row| row.verdict == Verdict::Fail)
        .map(|row| row.what)
        .collect()
}

#[test]
fn what_is_at_its_limit_passes_and_what_is_beyond_fails() {
    let rows = judge(&model(MAPPED), &limits(), &seen());
    assert_eq!(failures(&rows), [""; 0], "{rows:?}");
    let worse = Seen {
        loaded: process(51 << 20, 300 << 20),
        first_token: Duration::from_millis(1001),
        working_set_bytes: None,
        peak_bytes: (450 << 20) + 1,
        ..seen()
    };
    let rows = judge(&model(MAPPED), &limits(), &worse);
    let expected = [
        "RSS before first token",
        "first token",
        "working set",
        "total",
    ];
    assert_eq!(failures(&rows), expected);
    let rows = judge(&model(MAPPED), &Limits::default(), &worse);
    assert_eq!(failures(&rows), [""; 0]);
}

#[test]
fn one_token_has_no_next_one() {
    let mut short = seen();
    short.finished.n_generated = 1;
    let rows = judge(&model(MAPPED), &limits(), &short);
    assert_eq!(failures(&rows), ["next token"]);
}

#[test]
fn copies_of_weights_are_found() {
    let verdict = |prefetch, change: fn(&mut Seen)| {
        let mut seen = seen();
        change(&mut seen);
        let row = mapping_row(&model(prefetch), &seen);
        (row.verdict, row.value.to_string())
    };
    let mib = "MiB";
    for (prefetch, change, expected, word) in [
        (
            MAPPED,
            (|_| {}) as fn(&mut Seen),
            Verdict::Pass,
            "295.0 MiB of it",
        ),
        (
            MAPPED,
            |seen| seen.mappings = Mappings::default(),
            Verdict::Fail,
            "not mapped",
        ),
        (
            MAPPED,
            |seen| seen.mappings.anonymous_bytes = 1 << 20,
            Verdict::Fail,
            "copies",
        ),
        (
            MAPPED,
            |seen| seen.loaded.anonymous_bytes += 300 << 20,
            Verdict::Fail,
            "explains",
        ),
        (
            MAPPED,
            |seen| Arc::get_mut(&mut seen.holding).unwrap().mapped_bytes -= 7 << 20,
            Verdict::Fail,
            "7.0 MiB of weights",
        ),
        (PrefetchMode::Pager, |_| {}, Verdict::Fail, "beside"),
        (
            PrefetchMode::Pager,
            |seen| seen.mappings.resident_bytes = 0,
            Verdict::Pass,
            "pager",
        ),
    ] {
        let (verdict, text) = verdict(prefetch, change);
        assert_eq!(verdict, expected, "{text} {mib}");
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn zram_is_judged_where_there_is_some() {
    let zram = |original_bytes| {
        Some(Zram {
            original_bytes,
            used_bytes: 1000,
        })
    };
    let verdict = |zram| zram_row(&limits(), zram).verdict;
    assert_eq!(verdict(None), Verdict::Measured);
    assert_eq!(verdict(zram(0)), Verdict::Measured);
    assert_eq!(verdict(zram(2000)), Verdict::Pass);
    assert_eq!(verdict(zram(1999)), Verdict::Fail);
    assert_eq!(
        zram_row(&Limits::default(), zram(1)).verdict,
        Verdict::Measured
    );
}

#[test]
fn a_model_is_measured_from_unloaded_to_unloaded() {
    let folder = tempfile::tempdir().unwrap();
    let models = ["a", "b"].map(|name| model_config(name, folder.path()));
    let config = config_of(models.to_vec());
    let host = host_of(models.to_vec(), FakeEngine::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let mut names = Vec::new();
    let report = runtime.block_on(run(&config, &host, |name| names.push(name.to_owned())));
    let report = report.unwrap();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(report.rows.len(), 2 * 7 + 1);
    // The engine of this test maps nothing.
    assert!(!report.passed());
    let text = report.to_string();
    assert!(text.contains("| a     | first token"), "{text}");
    assert!(text.lines().all(|line| line.starts_with('|')), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert!(json["rows"][1]["value"].as_f64().unwrap() > 0.0);
    assert!(host.models().all(|(id, _)| !host.list(id).is_loaded()));
    host.close(Duration::from_secs(1));
}
