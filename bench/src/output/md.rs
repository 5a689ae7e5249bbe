//! Markdown: the set-up, llama-bench's table, and tables of what loading cost in time, memory and device bytes.

use super::{Table, against};
use crate::protocol::BuildFacts;
use crate::record::RunRecord;
use crate::results::{Report, RowResult, Setup, Test};
use crate::size::{GIB, MIB, format_bytes};
use crate::spec::{CacheState, Engine, Row};
use crate::stats::{self, Summary};

pub(super) fn render(report: &Report) -> String {
    let mut text = header(report);
    text.push('\n');
    for (_, table) in tables(report) {
        text.push_str(&table.markdown());
        text.push('\n');
    }
    for note in notes(report) {
        text.push_str(&note);
        text.push('\n');
    }
    text
}

/// Every table of a report with what it is about.
pub(crate) fn tables(report: &Report) -> Vec<(&'static str, Table)> {
    let mut tables = vec![("Speed", speed(report))];
    let mut add = |name, table: Option<Table>| tables.extend(table.map(|table| (name, table)));
    add("Against references", against::references(report));
    add("Pager", against::pager(report));
    add("Read ahead", against::ahead(report));
    add("Time of a token", against::time_of_a_token(report));
    if report.setup.n_gen > 0 {
        tables.push(("Single tokens", steps(report)));
    }
    if (0..report.rows.len()).any(|index| report.share_of_bound(index).is_some()) {
        tables.push(("Share of the bound", bound(report)));
    }
    tables.push(("Times", times(report)));
    tables.push(("Memory and device", memory(report)));
    tables
}

/// The resolved set-up, a line for each fact.
pub(crate) fn header(report: &Report) -> String {
    let Setup { host, model, .. } = &report.setup;
    let setup = &report.setup;
    let mut lines = Vec::new();
    let (kind, build) = match report.facts() {
        Some((facts, build)) => (
            format!(
                "{}, {:.2} B parameters, ",
                facts.description,
                facts.n_params as f64 / 1e9
            ),
            format!(
                "llama.cpp {} (ggml {}), {}, {}",
                build.llama_build,
                build.ggml_version,
                patches(report, build),
                short_features(&build.cpu_features)
            ),
        ),
        None => (String::new(), "unknown, no run was completed".to_string()),
    };
    let parts = if model.parts > 1 {
        format!(" in {} files", model.parts)
    } else {
        String::new()
    };
    lines.push(format!(
        "model: {}: {kind}{}{parts}: dense {}, sparse {}, other {}",
        model.filename,
        format_bytes(model.file_bytes),
        format_bytes(model.dense_bytes),
        format_bytes(model.sparse_bytes),
        format_bytes(model.other_bytes)
    ));
    lines.push(format!("build: bench {}, {build}", setup.bench_version));
    lines.push(format!(
        "run: {} repetitions interleaved, {} threads, n_batch {}, n_ubatch {}, flash_attn {}, {}",
        setup.repetitions,
        setup.n_threads,
        setup.n_batch,
        setup.n_ubatch,
        setup.flash_attn.as_str(),
        setup.started
    ));
    lines.push(format!(
        "repacking (use_extra_bufts): {}",
        distinct(report, |row| on_off(row.repack).to_string())
    ));
    if setup.n_prompts > 1 {
        lines.push(format!(
            "prompts: {} one after the other, each with an emptied KV cache; the last counts, and the first token is the one after it",
            setup.n_prompts
        ));
    }
    if setup.n_warm_up > 0 {
        lines.push(format!(
            "warm-up: {} tokens after the prompt that do not count",
            setup.n_warm_up
        ));
    }
    if let Some(reads) = pager_reads(report) {
        lines.push(format!("pager: {reads}"));
    }
    if let Some(routing) = &setup.routing {
        let of = routing
            .model
            .as_ref()
            .map_or(String::new(), |model| format!(" of {model}"));
        lines.push(format!(
            "routing: {}{of}, {} tokens from token {}; {} expert reads compared with it",
            routing.name, routing.tokens, routing.skip, routing.checked
        ));
    }
    lines.push(format!(
        "machine: {}, {} cores, {} of memory, {}, transparent huge pages {}, load average {}",
        host.cpu,
        host.cores,
        format_bytes(host.memory_bytes),
        host.kernel,
        host.transparent_hugepages,
        host.load_average
            .map_or("unknown".into(), |load| format!("{load:.2}"))
    ));
    if setup.touches_memory {
        lines.push("memory: what a run can use was touched before it, since the host takes free memory back".to_string());
    }
    let device = match &host.device {
        Ok(name) => format!("device {name}, readahead {}", readaheads(report)),
        Err(reason) => format!("no block device ({reason})"),
    };
    let preread = setup.preread_bytes_per_s.map_or(String::new(), |rate| {
        format!(", read once before at {}/s", format_bytes(rate as u64))
    });
    lines.push(format!("storage: {}, {device}{preread}", host.file_system));
    let group = setup
        .cgroup
        .as_ref()
        .map_or(String::new(), |how| format!(" ({how})"));
    lines.push(format!(
        "budget: {}{group}",
        distinct(report, |row| row
            .budget_bytes
            .map_or("none".into(), format_bytes))
    ));
    lines.iter().map(|line| format!("- {line}\n")).collect()
}

/// How the pager read, in its own words.
fn pager_reads(report: &Report) -> Option<String> {
    let mut runs = report.rows.iter().flat_map(RowResult::good);
    let facts = runs.find_map(|run| run.outcome.as_ref()?.pager.as_ref())?;
    Some(facts.reads.replace('\n', ", "))
}

/// What was patched: ours always, stock never.
fn patches(report: &Report, build: &BuildFacts) -> String {
    let digest = report
        .rows
        .iter()
        .flat_map(RowResult::good)
        .filter_map(|run| Some(&run.outcome.as_ref()?.build.patch_set_digest))
        .find(|digest| !digest.is_empty());
    match digest {
        Some(digest) if build.patch_set_digest.is_empty() => {
            format!("patches {digest}, in stock rows none")
        }
        Some(digest) => format!("patches {digest}"),
        None => "no patches".to_string(),
    }
}

/// `AVX2 FMA` of llama.cpp's `CPU : AVX2 = 1 | FMA = 1 | `.
fn short_features(text: &str) -> String {
    let names: Vec<_> = text
        .split([':', '|'])
        .filter_map(|part| part.trim().strip_suffix(" = 1"))
        .collect();
    if names.is_empty() {
        text.trim().to_string()
    } else {
        names.join(" ")
    }
}

/// The distinct values of a property of the rows, in their order.
pub(crate) fn distinct(report: &Report, value: impl Fn(&Row) -> String) -> String {
    let mut values: Vec<String> = Vec::new();
    for result in &report.rows {
        let value = value(&result.row);
        if !values.contains(&value) {
            values.push(value);
        }
    }
    values.join(", ")
}

/// The readaheads of the rows, the device's own where none is set.
pub(crate) fn readaheads(report: &Report) -> String {
    let unchanged = report.setup.host.readahead_bytes;
    distinct(report, |row| {
        row.readahead_bytes
            .or(unchanged)
            .map_or("unknown".into(), format_bytes)
    })
}

fn on_off(flag: bool) -> &'static str {
    if flag { "on" } else { "off" }
}

/// The columns that tell rows apart, those with one value only left out.
fn conditions(report: &Report) -> Vec<(&'static str, Vec<String>)> {
    let of = |value: &dyn Fn(&Row) -> String| {
        report
            .rows
            .iter()
            .map(|result| value(&result.row))
            .collect::<Vec<_>>()
    };
    let varying = |name: &'static str, values: Vec<String>| {
        values
            .iter()
            .any(|value| *value != values[0])
            .then_some((name, values))
    };
    let always = [
        ("prefetch", of(&Row::name)),
        ("cache", of(&|row| row.cache.as_str().to_string())),
    ];
    let sometimes = [
        ("rpk", of(&|row| u8::from(row.repack).to_string())),
        // Nothing where it is what the mode brings along.
        (
            "advise",
            of(&|row| {
                if row.default_advise() {
                    ""
                } else {
                    on_off(row.advise)
                }
                .to_string()
            }),
        ),
        ("policy", of(&|row| row.policy.clone().unwrap_or_default())),
        (
            "lookahead",
            of(&|row| row.lookahead.clone().unwrap_or_default()),
        ),
        ("replay", of(&|row| on_off(row.replay).to_string())),
        (
            "budget",
            of(&|row| row.budget_bytes.map_or("none".into(), format_bytes)),
        ),
        (
            "readahead",
            of(&|row| row.readahead_bytes.map_or("as is".into(), format_bytes)),
        ),
    ];
    always
        .into_iter()
        .chain(
            sometimes
                .into_iter()
                .filter_map(|(name, values)| varying(name, values)),
        )
        .collect()
}

/// llama-bench's table, with the conditions between threads and test, and the median with its interval at the end.
fn speed(report: &Report) -> Table {
    let conditions = conditions(report);
    let mut table = Table::default();
    for name in ["model", "size", "params", "backend", "threads"] {
        table.column(name, !matches!(name, "model" | "backend"));
    }
    for (name, _) in &conditions {
        table.column(name, false);
    }
    for name in ["test", "t/s", "median t/s [95 %]", "vs first [95 %]"] {
        table.column(name, true);
    }
    let (kind, size, params) = report.facts().map_or_else(
        || {
            (
                report.setup.model.filename.clone(),
                String::new(),
                String::new(),
            )
        },
        |(model, _)| {
            (
                model.description.clone(),
                upstream_size(model.size_bytes),
                upstream_params(model.n_params),
            )
        },
    );
    for (index, result) in report.rows.iter().enumerate() {
        for test in report.tests() {
            let mut cells = vec![
                kind.clone(),
                size.clone(),
                params.clone(),
                "CPU".into(),
                report.setup.n_threads.to_string(),
            ];
            cells.extend(conditions.iter().map(|(_, values)| values[index].clone()));
            cells.push(report.test_name(test));
            cells.extend(rate_cells(report, index, result, test));
            table.row(cells);
        }
    }
    table
}

fn rate_cells(report: &Report, index: usize, result: &RowResult, test: Test) -> [String; 3] {
    let ts: Vec<f64> = result
        .series(report.tokens_per_s(test))
        .into_iter()
        .flatten()
        .collect();
    let Some(summary) = Summary::of(&ts) else {
        return [result.status().to_string(), String::new(), String::new()];
    };
    [
        format!("{:.2} ± {:.2}", stats::mean(&ts), stats::stddev(&ts)),
        format!(
            "{:.2} [{:.2}, {:.2}]",
            summary.median, summary.lo, summary.hi
        ),
        ratio(report.speed_ratio(index, test)),
    ]
}

/// Sizes as llama-bench prints them.
fn upstream_size(bytes: u64) -> String {
    if bytes < GIB {
        format!("{:.2} MiB", bytes as f64 / MIB as f64)
    } else {
        format!("{:.2} GiB", bytes as f64 / GIB as f64)
    }
}

fn upstream_params(count: u64) -> String {
    if count < 1_000_000_000 {
        format!("{:.2} M", count as f64 / 1e6)
    } else {
        format!("{:.2} B", count as f64 / 1e9)
    }
}

/// How even the single tokens were: a row for each row of the report.
fn steps(report: &Report) -> Table {
    let mut names = vec!["step ms min", "median", "p99", "max"];
    if report.was_cut() {
        names.push("tokens");
    }
    // Not of samples of an older bench.
    let mut rows = report.rows.iter();
    let is_counted = rows.any(|result| result.summary_of_runs(against::faults_per_token).is_some());
    if is_counted {
        names.extend(["read / token", "major faults / token"]);
    }
    by_row(report, &names, |_, result| {
        let steps_ms = result.steps_ms();
        let mut cells: Vec<String> = [0.0, 0.5, 0.99, 1.0]
            .into_iter()
            .map(|share| {
                stats::nearest_rank(&steps_ms, share).map_or("-".into(), |ms| format!("{ms:.1}"))
            })
            .collect();
        if report.was_cut() {
            let decoded: Vec<_> = result
                .good()
                .filter_map(|run| Some(run.figures.as_ref()?.n_decoded.to_string()))
                .collect();
            cells.push(decoded.join(", "));
        }
        if is_counted {
            let median = |value: fn(&RunRecord) -> Option<f64>| result.summary_of_runs(value);
            cells.extend([
                median(against::read_per_token)
                    .map_or("-".into(), |s| format_bytes(s.median.round() as u64)),
                median(against::faults_per_token)
                    .map_or("-".into(), |s| format!("{:.1}", s.median)),
            ]);
        }
        cells
    })
}

/// The speed of decoding beside the one that no engine exceeds.
fn bound(report: &Report) -> Table {
    let slots = |result: &RowResult| result.good().find_map(|run| run.bound);
    let has_slots = report.rows.iter().any(|result| slots(result).is_some());
    let mut names = vec!["bound t/s", "share of the bound [95 %]"];
    if has_slots {
        names.extend(["slots of the bound", "missed / token", "device ms"]);
    }
    by_row(report, &names, |index, result| {
        let bound_ts = result.good().find_map(|run| report.bound_ts(run));
        let share = report.share_of_bound(index);
        let mut cells = vec![
            bound_ts.map_or("-".into(), |ts| format!("{ts:.2}")),
            share.map_or("-".into(), |s| {
                let [median, lo, hi] = [s.median, s.lo, s.hi].map(|share| share * 100.0);
                format!("{median:.1} % [{lo:.1}, {hi:.1}]")
            }),
        ];
        if has_slots {
            cells.extend(slots(result).map_or([(); 3].map(|()| "-".into()), |bound| {
                [
                    bound.slot_bytes.map_or("all".into(), format_bytes),
                    format_bytes(bound.miss_bytes_per_token.round() as u64),
                    format!("{:.1}", bound.device_ms),
                ]
            }));
        }
        cells
    })
}

/// What loading cost in time: a row for each row of the report.
fn times(report: &Report) -> Table {
    let names = [
        "load ms [95 %]",
        "vs first",
        "first token ms",
        "vs first",
        "16th token ms",
        "vs first",
    ];
    by_row(report, &names, |index, result| {
        let ms = |summary: Option<Summary>| {
            summary.map_or("-".into(), |s| {
                format!("{:.0} [{:.0}, {:.0}]", s.median, s.lo, s.hi)
            })
        };
        vec![
            ms(result.summary(|f| f.load_ms)),
            ratio(report.ratio(index, |f| f.load_ms)),
            ms(result.summary(|f| f.first_token_ms)),
            ratio(report.ratio(index, |f| f.first_token_ms)),
            ms(result.summary(|f| f.token16_ms)),
            ratio(report.ratio(index, |f| f.token16_ms)),
        ]
    })
}

/// What loading and computing cost in memory and device bytes: a row for each row of the report.
fn memory(report: &Report) -> Table {
    let names = [
        "resident after load",
        "resident at end",
        "read at load",
        "read in all",
        "RSS file peak",
        "RSS anon peak",
        "faults major",
        "faults minor",
        "group peak",
    ];
    by_row(report, &names, |_, result| {
        let bytes = |summary: Option<Summary>| {
            summary.map_or("-".into(), |s| format_bytes(s.median.round() as u64))
        };
        let count =
            |summary: Option<Summary>| summary.map_or("-".into(), |s| format!("{:.0}", s.median));
        vec![
            bytes(result.summary(|f| f.resident_after_load_bytes.map(|n| n as f64))),
            bytes(result.summary(|f| f.resident_end_bytes.map(|n| n as f64))),
            bytes(result.summary(|f| f.load_device_bytes.map(|n| n as f64))),
            bytes(result.summary(|f| f.device_bytes.map(|n| n as f64))),
            bytes(result.summary(|f| f.rss_file_peak_bytes.map(|n| n as f64))),
            bytes(result.summary(|f| f.rss_anon_peak_bytes.map(|n| n as f64))),
            count(result.summary(|f| f.faults_major.map(|n| n as f64))),
            count(result.summary(|f| f.faults_minor.map(|n| n as f64))),
            bytes(result.summary(|f| f.cgroup_peak_bytes.map(|n| n as f64))),
        ]
    })
}

/// A table with the conditions, and `cells` for every row that has figures.
pub(super) fn by_row(
    report: &Report,
    names: &[&str],
    cells: impl Fn(usize, &RowResult) -> Vec<String>,
) -> Table {
    let conditions = conditions(report);
    let mut table = Table::default();
    for (name, _) in &conditions {
        table.column(name, false);
    }
    for name in names {
        table.column(name, true);
    }
    for (index, result) in report.rows.iter().enumerate() {
        let mut row: Vec<String> = conditions
            .iter()
            .map(|(_, values)| values[index].clone())
            .collect();
        if result.missing().is_none() {
            row.extend(cells(index, result));
        } else {
            row.push(result.status().to_string());
            row.resize(table.width(), String::new());
        }
        table.row(row);
    }
    table
}

pub(super) fn ratio(summary: Option<Summary>) -> String {
    summary.map_or(String::new(), |s| {
        format!("{:.3} [{:.3}, {:.3}]", s.median, s.lo, s.hi)
    })
}

/// What the tables do not say, a sentence or two each.
pub(crate) fn notes(report: &Report) -> Vec<String> {
    let mut notes = vec![
        "Medians with intervals of at least 95 %; ratios are paired within a repetition and against the first row of equal \
         conditions. Times from process start; `read` is what the process itself had fetched from storage."
            .to_string(),
    ];
    let fingerprinted = report.rows.iter().flat_map(RowResult::good).any(|run| {
        run.outcome
            .as_ref()
            .is_some_and(|outcome| outcome.fingerprint.is_some())
    });
    if fingerprinted {
        notes.push(
            "Token ids and logits of all rows with equal repacking were equal, byte by byte."
                .to_string(),
        );
    }
    notes.extend(cut_short(report));
    if report.rows.iter().any(|result| result.row.is_reference) {
        notes.push(
            "References run without a limit. Ratios to them are of the rows' own speeds, over as many tokens as each decoded."
                .to_string(),
        );
    }
    let peers = report
        .rows
        .iter()
        .filter(|result| matches!(result.row.engine, Engine::Command(_)));
    if report.setup.routing.is_some() {
        for result in peers {
            notes.push(format!(
                "{}: chooses experts by itself, not by the routing trace.",
                result.row.label()
            ));
        }
    }
    for result in &report.rows {
        let label = result.row.label();
        if let Some(reason) = result.missing() {
            notes.push(format!(
                "{label}: not measured ({}): {reason}",
                result.status()
            ));
            continue;
        }
        let left_out: Vec<_> = result
            .runs
            .iter()
            .flatten()
            .filter_map(|run| run.reason.as_deref())
            .collect();
        if let Some(first) = left_out.first() {
            notes.push(format!(
                "{label}: {} of {} runs left out: {first}",
                left_out.len(),
                result.runs.len()
            ));
        }
        if result.row.cache == CacheState::Cold
            && result
                .good()
                .any(|run| run.page_cache.method == "drop_caches")
        {
            notes.push(format!("{label}: some pages went only with drop_caches"));
        }
    }
    notes.extend(too_noisy(report));
    notes
}

/// What time limits ended early.
fn cut_short(report: &Report) -> Vec<String> {
    let setup = &report.setup;
    let seconds = |limit_ns: Option<u64>| limit_ns.map(|limit_ns| limit_ns as f64 / 1e9);
    let limits = match (
        seconds(setup.decode_limit_ns),
        seconds(setup.baseline_limit_ns),
    ) {
        (None, None) => return Vec::new(),
        (Some(limit), None) => format!("{limit} s"),
        (None, Some(baselines)) => format!("{baselines} s of baselines and references"),
        (Some(limit), Some(baselines)) => {
            format!("{limit} s, of baselines and references {baselines} s,")
        }
    };
    let mut notes = Vec::new();
    if report.was_cut() {
        notes.push(format!(
            "Decoding was ended after {limits} in the rows with fewer than {} tokens: they say nothing about a longer run, and are compared over \
             the tokens that both rows computed.",
            setup.n_gen
        ));
    }
    let n_warm_up = setup.n_warm_up as usize;
    let short: Vec<String> = report
        .rows
        .iter()
        .filter_map(|result| {
            let of_run = |run: &RunRecord| run.figures.as_ref().map(|figures| figures.n_warmed_up);
            let warmed_up = || result.good().filter_map(of_run);
            let (least, most) = (warmed_up().min()?, warmed_up().max()?);
            (least < n_warm_up).then(|| match least == most {
                true => format!("{} ({least})", result.row.label()),
                false => format!("{} ({least} to {most})", result.row.label()),
            })
        })
        .collect();
    if !short.is_empty() {
        notes.push(format!(
            "The warm-up was ended after {limits} as well, before its {n_warm_up} tokens, in: {}. Tokens that count begin earlier there.",
            short.join("; ")
        ));
    }
    notes
}

/// A line for each test in which rows of equal conditions cannot be told apart.
fn too_noisy(report: &Report) -> impl Iterator<Item = String> {
    report.tests().into_iter().filter_map(|test| {
        let pairs = report.not_told_apart(test);
        let named: Vec<String> = pairs
            .iter()
            .map(|(first, second, ratio)| {
                format!(
                    "{} and {} ({:.3} [{:.3}, {:.3}])",
                    report.rows[*first].row.label(),
                    report.rows[*second].row.label(),
                    ratio.median,
                    ratio.lo,
                    ratio.hi
                )
            })
            .collect();
        (!named.is_empty()).then(|| {
            format!(
                "{}: the machine was too noisy to tell these apart, the interval of their ratio holds 1: {}.",
                report.test_name(test),
                named.join("; ")
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::report;

    #[test]
    fn tables_have_a_line_for_each_row() {
        let report = report();
        let text = render(&report);
        let speed: Vec<_> = text
            .lines()
            .filter(|line| line.contains("| CPU "))
            .collect();
        assert_eq!(speed.len(), 4, "{text}");
        assert!(
            speed[3].contains("tg4 @ d16") && speed[3].contains("1000.00 ± 0.00"),
            "{}",
            speed[3]
        );
        let words = |line: &str| line.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        let expected = "| selective | cold | 55 [40, 75] | 0.500 [0.500, 0.500] |";
        assert!(
            text.lines().any(|line| words(line).starts_with(expected)),
            "{text}"
        );
        assert!(text.contains("equal, byte by byte"));
        // All lines of a table are equally wide.
        let tables: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|l| l.chars().count())
            .collect();
        assert!(tables[..6].iter().all(|width| *width == tables[0]));
    }

    #[test]
    fn the_header_states_the_setup() {
        let text = header(&report());
        for fact in [
            "b12032",
            "0123456789ab",
            "2 threads",
            "readahead 128 KiB",
            "use_extra_bufts): off",
            "Linux 6.18",
            "CPU <&>",
            "ext4",
            "budget: none",
            "2026-11-21",
            "dense 500 B",
        ] {
            assert!(text.contains(fact), "{fact}: {text}");
        }
    }

    #[test]
    fn a_warm_up_that_was_cut_short_is_said() {
        let mut report = report();
        report.setup.n_warm_up = 8;
        report.setup.decode_limit_ns = Some(2_500_000_000);
        let mut n_warmed_up = [8, 8, 8, 8, 3, 5].into_iter();
        for run in report.rows.iter_mut().flat_map(|row| row.runs.iter_mut()) {
            run.as_mut().unwrap().figures.as_mut().unwrap().n_warmed_up =
                n_warmed_up.next().unwrap();
        }
        let text = render(&report);
        let expected =
            "ended after 2.5 s as well, before its 8 tokens, in: selective cold (3 to 8).";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("warm-up: 8 tokens") && text.contains("tg4 @ d24"));
        report.setup.decode_limit_ns = None;
        assert!(!render(&report).contains("as well"));
    }

    #[test]
    fn what_the_machine_cannot_tell_apart_is_said() {
        let mut report = report();
        let apart = "tg4 @ d16: the machine was too noisy to tell these apart";
        // The two rows' tokens take the same time.
        assert!(render(&report).contains(&format!(
            "{apart}, the interval of their ratio holds 1: eager cold and selective cold (1.000 [1.000, 1.000])."
        )));
        for run in report.rows[1].runs.iter_mut().flatten() {
            run.outcome.as_mut().unwrap().step_ns = vec![500_000; 4];
        }
        let text = render(&report);
        assert!(
            !text.contains(apart) && text.contains("pp16: the machine"),
            "{text}"
        );
    }

    #[test]
    fn cpu_features_are_named_once() {
        assert_eq!(
            short_features("CPU : AVX2 = 1 | FMA = 1 | OPENMP = 1 | "),
            "AVX2 FMA OPENMP"
        );
        assert_eq!(short_features("AVX2"), "AVX2");
    }

    #[test]
    fn rows_without_figures_say_why() {
        let mut report = report();
        report.rows[1].runs.clear();
        report.rows[1].refused = Some("no memory group can be made here".into());
        let text = render(&report);
        assert!(
            text.contains(
                "selective cold: not measured (refused): no memory group can be made here"
            ),
            "{text}"
        );
    }
}
