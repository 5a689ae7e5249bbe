//! The columns of a row, llama-bench's first.
//!
//! llama-bench's fields keep their names, order, types and meanings, so that scripts that compare its results also read
//! ours: `avg_*` and `stddev_*` are mean and standard deviation. Our own figures are medians, with `_lo` and `_hi` for the
//! ends of the 95 % interval and `_ratio` for the paired ratio to the first row of equal conditions.

use serde_json::{Value, json};

use super::against;
use crate::protocol::BuildFacts;
use crate::record::{Figures, RunRecord};
use crate::results::{Report, Test, test_ns};
use crate::spec::{CacheState, Engine, LoadMode};
use crate::stats::{self, Summary};

/// Name and value of a column; a figure that was not measured is null.
pub(crate) type Column = (&'static str, Value);

/// The columns of one row and test.
pub(crate) fn columns(report: &Report, index: usize, test: Test) -> Vec<Column> {
    let mut columns = upstream(report, index, test);
    columns.extend(rates(report, index, test));
    columns.extend(own(report, index));
    columns.extend(intervals(report, index, test));
    columns.extend(place(report, index));
    columns.extend(counted(report, index));
    columns
}

/// llama-bench's list, with the values that it writes for a CPU build.
fn upstream(report: &Report, index: usize, test: Test) -> Vec<Column> {
    let setup = &report.setup;
    let row = &report.rows[index].row;
    let facts = report.facts();
    let model = |value: fn(&crate::protocol::ModelFacts) -> Value| {
        facts.map_or(Value::Null, |(model, _)| value(model))
    };
    let build = facts.map(|(_, build)| build);
    let (n_prompt, n_gen, n_depth) = match test {
        Test::Prompt => (setup.n_prompt, 0, 0),
        Test::Decode => (0, setup.n_gen, report.depth()),
    };
    // The row's own build, where it was measured: stock llama.cpp has no patches.
    let own_build = report.rows[index]
        .good()
        .find_map(|run| run.outcome.as_ref())
        .map_or(build, |outcome| Some(&outcome.build));
    let load_mode = match &row.engine {
        Engine::Faultline => Some(LoadMode::Mmap),
        Engine::Stock(load_mode) => Some(*load_mode),
        Engine::Command(_) => None,
    }
    .map(LoadMode::as_str);
    vec![
        ("build_commit", json!(own_build.map(BuildFacts::commit))),
        (
            "build_number",
            json!(build.and_then(|build| {
                build
                    .llama_build
                    .trim_start_matches('b')
                    .parse::<u64>()
                    .ok()
            })),
        ),
        ("cpu_info", json!(setup.host.cpu)),
        ("gpu_info", json!("")),
        ("backends", json!("CPU")),
        ("model_filename", json!(setup.model.filename)),
        ("model_type", model(|model| json!(model.description))),
        ("model_size", model(|model| json!(model.size_bytes))),
        ("model_n_params", model(|model| json!(model.n_params))),
        ("n_batch", json!(setup.n_batch)),
        ("n_ubatch", json!(setup.n_ubatch)),
        ("n_threads", json!(setup.n_threads)),
        ("cpu_mask", json!("0x0")),
        ("cpu_strict", json!(false)),
        ("poll", json!(50)),
        ("type_k", json!("f16")),
        ("type_v", json!("f16")),
        ("n_gpu_layers", json!(-1)),
        ("n_cpu_moe", json!(0)),
        ("split_mode", json!("layer")),
        ("main_gpu", json!(0)),
        ("no_kv_offload", json!(false)),
        ("flash_attn", json!(setup.flash_attn.upstream_value())),
        ("devices", json!("auto")),
        ("tensor_split", json!("0.00")),
        ("tensor_buft_overrides", json!("none")),
        ("load_mode", json!(load_mode)),
        ("lazy_mode", json!(row.mode.lazy_mode())),
        ("embeddings", json!(false)),
        ("no_op_offload", json!(0)),
        ("no_host", json!(false)),
        ("repack", json!(row.repack)),
        ("fit_target", json!(0)),
        ("fit_min_ctx", json!(0)),
        ("n_prompt", json!(n_prompt)),
        ("n_gen", json!(n_gen)),
        ("n_depth", json!(n_depth)),
        ("test_time", json!(setup.started)),
    ]
}

fn rates(report: &Report, index: usize, test: Test) -> Vec<Column> {
    let row = &report.rows[index];
    let ns: Vec<f64> = row
        .series(|f| test_ns(f, test).map(|ns| ns as f64))
        .into_iter()
        .flatten()
        .collect();
    let ts: Vec<f64> = row
        .series(report.tokens_per_s(test))
        .into_iter()
        .flatten()
        .collect();
    let measured = |value: Value| if ns.is_empty() { Value::Null } else { value };
    let whole: Vec<u64> = ns.iter().map(|ns| *ns as u64).collect();
    vec![
        ("avg_ns", measured(json!(stats::mean(&ns) as u64))),
        ("stddev_ns", measured(json!(stats::stddev(&ns) as u64))),
        ("avg_ts", measured(json!(stats::mean(&ts)))),
        ("stddev_ts", measured(json!(stats::stddev(&ts)))),
        ("samples_ns", json!(whole)),
        ("samples_ts", json!(ts)),
    ]
}

/// A figure of a run.
type Figure = fn(&Figures) -> Option<f64>;

fn load_ms(figures: &Figures) -> Option<f64> {
    figures.load_ms
}

fn first_token_ms(figures: &Figures) -> Option<f64> {
    figures.first_token_ms
}

fn token16_ms(figures: &Figures) -> Option<f64> {
    figures.token16_ms
}

/// Our own figures, in the order that the documentation lists them.
fn own(report: &Report, index: usize) -> Vec<Column> {
    let result = &report.rows[index];
    let row = &result.row;
    let median = |figure: Figure| result.summary(figure).map(|summary| summary.median);
    let count = |figure: Figure| json!(median(figure).map(|median| median.round() as u64));
    let samples = |figure: Figure| {
        json!(
            result
                .series(figure)
                .into_iter()
                .flatten()
                .collect::<Vec<f64>>()
        )
    };
    vec![
        ("prefetch", json!(row.mode.as_str())),
        ("cold", json!(row.cache == CacheState::Cold)),
        ("budget_bytes", json!(row.budget_bytes)),
        ("load_ms", json!(median(load_ms))),
        ("first_token_ms", json!(median(first_token_ms))),
        ("token16_ms", json!(median(token16_ms))),
        ("dense_bytes", json!(report.setup.model.dense_bytes)),
        ("sparse_bytes", json!(report.setup.model.sparse_bytes)),
        (
            "resident_after_load_bytes",
            count(|f| f.resident_after_load_bytes.map(|n| n as f64)),
        ),
        (
            "load_device_bytes",
            count(|f| f.load_device_bytes.map(|bytes| bytes as f64)),
        ),
        (
            "device_bytes",
            count(|f| f.device_bytes.map(|bytes| bytes as f64)),
        ),
        (
            "rss_anon_peak_bytes",
            count(|f| f.rss_anon_peak_bytes.map(|n| n as f64)),
        ),
        (
            "rss_file_peak_bytes",
            count(|f| f.rss_file_peak_bytes.map(|n| n as f64)),
        ),
        ("faults_major", count(|f| f.faults_major.map(|n| n as f64))),
        ("faults_minor", count(|f| f.faults_minor.map(|n| n as f64))),
        ("samples_load_ms", samples(load_ms)),
        ("samples_first_token_ms", samples(first_token_ms)),
        ("samples_token16_ms", samples(token16_ms)),
        (
            "resident_end_bytes",
            count(|f| f.resident_end_bytes.map(|n| n as f64)),
        ),
        (
            "cgroup_peak_bytes",
            count(|f| f.cgroup_peak_bytes.map(|bytes| bytes as f64)),
        ),
    ]
}

fn intervals(report: &Report, index: usize, test: Test) -> Vec<Column> {
    let result = &report.rows[index];
    let rate = result.summary(report.tokens_per_s(test));
    let rate_ratio = report.speed_ratio(index, test);
    let lo = |summary: &Option<Summary>| json!(summary.map(|s| s.lo));
    let hi = |summary: &Option<Summary>| json!(summary.map(|s| s.hi));
    let mid = |summary: &Option<Summary>| json!(summary.map(|s| s.median));
    let mut columns = vec![
        ("median_ts", mid(&rate)),
        ("median_ts_lo", lo(&rate)),
        ("median_ts_hi", hi(&rate)),
        ("mad_ts", json!(rate.map(|s| s.mad))),
        ("ts_ratio", mid(&rate_ratio)),
        ("ts_ratio_lo", lo(&rate_ratio)),
        ("ts_ratio_hi", hi(&rate_ratio)),
    ];
    let names: [(Figure, [&'static str; 6]); 3] = [
        (
            load_ms,
            [
                "load_ms_lo",
                "load_ms_hi",
                "load_ms_mad",
                "load_ratio",
                "load_ratio_lo",
                "load_ratio_hi",
            ],
        ),
        (
            first_token_ms,
            [
                "first_token_ms_lo",
                "first_token_ms_hi",
                "first_token_ms_mad",
                "first_token_ratio",
                "first_token_ratio_lo",
                "first_token_ratio_hi",
            ],
        ),
        (
            token16_ms,
            [
                "token16_ms_lo",
                "token16_ms_hi",
                "token16_ms_mad",
                "token16_ratio",
                "token16_ratio_lo",
                "token16_ratio_hi",
            ],
        ),
    ];
    for (figure, [name_lo, name_hi, name_mad, ratio, ratio_lo, ratio_hi]) in names {
        let summary = result.summary(figure);
        let against = report.ratio(index, figure);
        columns.extend([
            (name_lo, lo(&summary)),
            (name_hi, hi(&summary)),
            (name_mad, json!(summary.map(|s| s.mad))),
            (ratio, mid(&against)),
            (ratio_lo, lo(&against)),
            (ratio_hi, hi(&against)),
        ]);
    }
    columns
}

/// Conditions, and what identifies the run.
fn place(report: &Report, index: usize) -> Vec<Column> {
    let setup = &report.setup;
    let result = &report.rows[index];
    let first = result.good().next();
    let fingerprint = first.and_then(|run| run.outcome.as_ref()?.fingerprint.as_ref());
    let host = &setup.host;
    let steps_ms = result.steps_ms();
    let step = |share: f64| json!(stats::nearest_rank(&steps_ms, share));
    vec![
        ("status", json!(result.status())),
        ("reason", json!(result.missing())),
        ("n_samples", json!(result.good().count())),
        ("engine", json!(result.row.engine.as_str())),
        (
            "n_decoded",
            json!(
                result
                    .good()
                    .filter_map(|run| Some(run.figures.as_ref()?.n_decoded))
                    .collect::<Vec<_>>()
            ),
        ),
        ("step_ms_min", step(0.0)),
        ("step_ms_median", step(0.5)),
        ("step_ms_p99", step(0.99)),
        ("step_ms_max", step(1.0)),
        ("routing", json!(setup.routing.as_ref().map(|r| &r.name))),
        (
            "routing_skip",
            json!(setup.routing.as_ref().map(|r| r.skip)),
        ),
        ("advise", json!(result.row.advise)),
        ("use_extra_bufts", json!(result.row.repack)),
        (
            "readahead_bytes",
            json!(
                first
                    .and_then(|run| run.readahead_bytes)
                    .or(result.row.readahead_bytes)
            ),
        ),
        ("model_file_bytes", json!(setup.model.file_bytes)),
        ("fingerprint_tokens", json!(fingerprint.map(|f| &f.tokens))),
        ("fingerprint_logits", json!(fingerprint.map(|f| &f.logits))),
        ("kernel", json!(host.kernel)),
        ("file_system", json!(host.file_system)),
        ("device", json!(host.device.as_ref().ok())),
        ("memory_bytes", json!(host.memory_bytes)),
        ("bench_version", json!(setup.bench_version)),
    ]
}

/// What was counted for the tokens that count, and ratios to rows under other conditions.
fn counted(report: &Report, index: usize) -> Vec<Column> {
    let result = &report.rows[index];
    let median = |value: &dyn Fn(&RunRecord) -> Option<f64>| {
        json!(result.summary_of_runs(value).map(|summary| summary.median))
    };
    let warmed_up = |run: &RunRecord| run.figures.as_ref().map(|figures| figures.n_warmed_up);
    let n_warmed_up: Vec<usize> = result.good().filter_map(warmed_up).collect();
    let pager = result
        .good()
        .find_map(|run| run.outcome.as_ref()?.pager.as_ref());
    let bound_ts = |run: &RunRecord| report.bound_ts(run);
    let others = report.set_against(index);
    let ratios: Vec<(String, Summary)> = others
        .into_iter()
        .filter_map(|other| {
            let label = report.rows[other].row.label();
            Some((label, report.ratio_against(index, other)?))
        })
        .collect();
    let of_ratios = |value: fn(&Summary) -> f64| -> Value {
        ratios.iter().map(|(_, ratio)| value(ratio)).collect()
    };
    vec![
        ("n_warm_up", json!(report.setup.n_warm_up)),
        ("n_warmed_up", json!(n_warmed_up)),
        ("faults_major_per_token", median(&against::faults_per_token)),
        ("read_bytes_per_token", median(&against::read_per_token)),
        ("is_reference", json!(result.row.is_reference)),
        (
            "against",
            ratios.iter().map(|(label, _)| label.as_str()).collect(),
        ),
        ("against_ratio", of_ratios(|ratio| ratio.median)),
        ("against_ratio_lo", of_ratios(|ratio| ratio.lo)),
        ("against_ratio_hi", of_ratios(|ratio| ratio.hi)),
        ("bound_ts", median(&bound_ts)),
        (
            "share_of_bound",
            json!(report.share_of_bound(index).map(|share| share.median)),
        ),
        (
            "bound_slot_bytes",
            median(&|run| Some(run.bound?.slot_bytes? as f64)),
        ),
        ("pager_policy", json!(pager.map(|facts| &facts.policy))),
        (
            "pager_replay",
            json!(pager.map(|_| report.rows[index].row.replay)),
        ),
        ("pager_reads", json!(pager.map(|facts| &facts.reads))),
        ("pager_slots", median(&against::n_slots)),
        ("pager_slices", median(&against::n_slices)),
        ("pager_slot_bytes", median(&against::slot_bytes)),
        ("pager_hit_percent", median(&against::hit_percent)),
        (
            "pager_miss_bytes_per_token",
            median(&against::per_token(|counted| counted.miss_bytes)),
        ),
        (
            "pager_predicted_miss_bytes_per_token",
            median(&against::predicted_per_token),
        ),
        (
            "pager_prediction_error_percent",
            median(&against::prediction_error_percent),
        ),
        ("pager_delivered_ratio", median(&against::delivered_ratio)),
        (
            "pager_wasted_bytes_per_token",
            median(&against::per_token(|counted| counted.wasted_bytes)),
        ),
        (
            "pager_stall_ms_per_token",
            median(&against::stall_ms(report.setup.n_threads)),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::report;

    /// From `test::get_fields` of llama-bench b12032.
    const LLAMA_BENCH: [&str; 42] = [
        "build_commit",
        "build_number",
        "cpu_info",
        "gpu_info",
        "backends",
        "model_filename",
        "model_type",
        "model_size",
        "model_n_params",
        "n_batch",
        "n_ubatch",
        "n_threads",
        "cpu_mask",
        "cpu_strict",
        "poll",
        "type_k",
        "type_v",
        "n_gpu_layers",
        "n_cpu_moe",
        "split_mode",
        "main_gpu",
        "no_kv_offload",
        "flash_attn",
        "devices",
        "tensor_split",
        "tensor_buft_overrides",
        "load_mode",
        "lazy_mode",
        "embeddings",
        "no_op_offload",
        "no_host",
        "repack",
        "fit_target",
        "fit_min_ctx",
        "n_prompt",
        "n_gen",
        "n_depth",
        "test_time",
        "avg_ns",
        "stddev_ns",
        "avg_ts",
        "stddev_ts",
    ];
    const OURS: [&str; 17] = [
        "prefetch",
        "cold",
        "budget_bytes",
        "load_ms",
        "first_token_ms",
        "token16_ms",
        "dense_bytes",
        "sparse_bytes",
        "resident_after_load_bytes",
        "load_device_bytes",
        "device_bytes",
        "rss_anon_peak_bytes",
        "rss_file_peak_bytes",
        "faults_major",
        "faults_minor",
        "samples_load_ms",
        "samples_first_token_ms",
    ];

    fn value<'a>(columns: &'a [Column], name: &str) -> &'a Value {
        &columns.iter().find(|(found, _)| *found == name).unwrap().1
    }

    #[test]
    fn names_and_their_order() {
        let columns = columns(&report(), 1, Test::Decode);
        let names: Vec<_> = columns.iter().map(|(name, _)| *name).collect();
        assert_eq!(names[..42], LLAMA_BENCH);
        assert_eq!(names[42..44], ["samples_ns", "samples_ts"]);
        assert_eq!(names[44..61], OURS);
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), names.len());
    }

    #[test]
    fn values() {
        let report = report();
        let decode = columns(&report, 1, Test::Decode);
        assert_eq!(value(&decode, "n_prompt"), &json!(0));
        assert_eq!(
            (value(&decode, "n_gen"), value(&decode, "n_depth")),
            (&json!(4), &json!(16))
        );
        assert_eq!(value(&decode, "avg_ns"), &json!(4_000_000));
        assert_eq!(
            value(&decode, "samples_ts"),
            &json!([1000.0, 1000.0, 1000.0])
        );
        assert_eq!(value(&decode, "lazy_mode"), &json!("sparse"));
        assert_eq!(value(&decode, "load_ms"), &json!(55.0));
        assert_eq!(value(&decode, "load_ratio"), &json!(0.5));
        assert_eq!(value(&decode, "cold"), &json!(true));
        assert_eq!(value(&decode, "load_device_bytes"), &json!(500));
        assert_eq!(value(&decode, "build_number"), &json!(12032));
        let prompt = columns(&report, 0, Test::Prompt);
        assert_eq!(
            (value(&prompt, "n_prompt"), value(&prompt, "n_depth")),
            (&json!(16), &json!(0))
        );
        assert_eq!(value(&prompt, "avg_ts"), &json!(8000.0));
        assert_eq!(value(&prompt, "load_ratio"), &Value::Null);
    }

    #[test]
    fn what_counted_and_what_it_is_related_to() {
        let report = against::tests::paged();
        let row = columns(&report, 1, Test::Decode);
        for (name, expected) in [
            ("pager_slots", json!(7.0)),
            ("pager_hit_percent", json!(75.0)),
            ("pager_miss_bytes_per_token", json!(101.0)),
            ("pager_predicted_miss_bytes_per_token", json!(100.0)),
            ("pager_stall_ms_per_token", json!(0.5)),
            ("faults_major_per_token", json!(0.5)),
            ("read_bytes_per_token", json!(200.0)),
            ("against", json!(["eager cold"])),
            ("against_ratio", json!([0.5])),
            ("pager_policy", json!("lru")),
        ] {
            assert_eq!(value(&row, name), &expected, "{name}");
        }
        let reference = columns(&report, 0, Test::Decode);
        assert_eq!(value(&reference, "against"), &json!([]));
        assert_eq!(value(&reference, "pager_slots"), &Value::Null);
    }

    #[test]
    fn a_row_without_runs_has_nulls_and_a_reason() {
        let mut report = report();
        report.rows[1].runs.clear();
        report.rows[1].refused = Some("no memory group can be made here".into());
        let columns = columns(&report, 1, Test::Decode);
        for name in ["avg_ns", "avg_ts", "load_ms", "device_bytes", "median_ts"] {
            assert_eq!(value(&columns, name), &Value::Null, "{name}");
        }
        assert_eq!(value(&columns, "status"), &json!("refused"));
        assert_eq!(
            value(&columns, "reason"),
            &json!("no memory group can be made here")
        );
    }
}
