//! Tables of rows that are related to others under other conditions, and of what the pager did.

use super::Table;
use super::md::{by_row, ratio};
use crate::protocol::{PagerCounts, PagerFacts};
use crate::record::RunRecord;
use crate::results::{Report, RowResult, Test};
use crate::size::format_bytes;
use crate::spec::Row;

/// A value of a run that has a pager, by the number of tokens that counted.
pub(super) fn per_token(value: fn(&PagerCounts) -> u64) -> impl Fn(&RunRecord) -> Option<f64> {
    move |run| {
        let counted = &facts(run)?.counted;
        Some(value(counted) as f64 / n_decoded(run)?)
    }
}

fn facts(run: &RunRecord) -> Option<&PagerFacts> {
    run.outcome.as_ref()?.pager.as_ref()
}

/// `None` where there are none.
fn n_decoded(run: &RunRecord) -> Option<f64> {
    let n_decoded = run.figures.as_ref()?.n_decoded;
    (n_decoded > 0).then_some(n_decoded as f64)
}

pub(super) fn n_slots(run: &RunRecord) -> Option<f64> {
    let slots = facts(run)?.class_slots.iter();
    Some(slots.map(|&n_slots| f64::from(n_slots)).sum())
}

pub(super) fn n_slices(run: &RunRecord) -> Option<f64> {
    let tensors = facts(run)?.tensors.iter();
    Some(tensors.map(|tensor| f64::from(tensor.n_slices)).sum())
}

pub(super) fn slot_bytes(run: &RunRecord) -> Option<f64> {
    Some(facts(run)?.slot_bytes as f64)
}

pub(super) fn hit_percent(run: &RunRecord) -> Option<f64> {
    let PagerCounts {
        n_hits,
        n_late,
        n_misses,
        ..
    } = facts(run)?.counted;
    let n_requests = n_hits + n_late + n_misses;
    (n_requests > 0).then(|| 100.0 * n_hits as f64 / n_requests as f64)
}

/// What reads brought in for each byte that was missed.
pub(super) fn delivered_ratio(run: &RunRecord) -> Option<f64> {
    let counted = &facts(run)?.counted;
    let missed = (counted.miss_bytes > 0).then_some(counted.miss_bytes)?;
    Some(counted.delivered_bytes as f64 / missed as f64)
}

/// Time that a thread waited for reads, for each token: the mean of all threads.
pub(super) fn stall_ms(n_threads: u32) -> impl Fn(&RunRecord) -> Option<f64> {
    move |run| {
        let stall_ns = per_token(|counted| counted.stall_ns)(run)?;
        Some(stall_ns / f64::from(n_threads.max(1)) / 1e6)
    }
}

/// Time that a thread spent on repacking slices that it waited for, for each token: the mean of all threads.
fn repack_ms(n_threads: u32) -> impl Fn(&RunRecord) -> Option<f64> {
    move |run| {
        let repack_ns = per_token(|counted| counted.repack_ns)(run)?;
        Some(repack_ns / f64::from(n_threads.max(1)) / 1e6)
    }
}

pub(super) fn predicted_per_token(run: &RunRecord) -> Option<f64> {
    Some(run.predicted_miss_bytes? as f64 / n_decoded(run)?)
}

/// How much more was missed than predicted, in per cent of that.
pub(super) fn prediction_error_percent(run: &RunRecord) -> Option<f64> {
    let predicted = run.predicted_miss_bytes.filter(|bytes| *bytes > 0)? as f64;
    Some(100.0 * (facts(run)?.counted.miss_bytes as f64 - predicted) / predicted)
}

/// Highest charge of the group in per cent of the budget.
fn peak_percent(run: &RunRecord) -> Option<f64> {
    let budget_bytes = run.row.budget_bytes.filter(|bytes| *bytes > 0)?;
    Some(100.0 * run.cgroup_peak_bytes? as f64 / budget_bytes as f64)
}

fn step_ms(run: &RunRecord) -> Option<f64> {
    Some(run.figures.as_ref()?.decode_ns? as f64 / 1e6 / n_decoded(run)?)
}

/// Page faults that waited for the device, of each token that counted.
pub(super) fn faults_per_token(run: &RunRecord) -> Option<f64> {
    Some(run.figures.as_ref()?.counted_faults_major? as f64 / n_decoded(run)?)
}

/// What the process had fetched from storage for each token that counted.
pub(super) fn read_per_token(run: &RunRecord) -> Option<f64> {
    Some(run.figures.as_ref()?.counted_read_bytes? as f64 / n_decoded(run)?)
}

/// What a row is called as the other side of a ratio.
fn name(row: &Row) -> String {
    let repack = if row.repack { " repack" } else { "" };
    let readahead = match row.readahead_bytes {
        Some(bytes) if !row.is_reference => format!(" ra {}", format_bytes(bytes)),
        _ => String::new(),
    };
    let place = match (row.is_reference, row.is_all_in_memory()) {
        (true, true) => " in RAM",
        (true, false) => " without a limit",
        _ => "",
    };
    format!("vs {}{repack}{readahead}{place} [95 %]", row.name())
}

/// The speed of decoding beside that of rows under other conditions; `None` where there are none.
pub(super) fn references(report: &Report) -> Option<Table> {
    let mut names: Vec<String> = Vec::new();
    for index in 0..report.rows.len() {
        for other in report.set_against(index) {
            let name = name(&report.rows[other].row);
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    if names.is_empty() {
        return None;
    }
    let columns: Vec<&str> = ["median t/s"]
        .into_iter()
        .chain(names.iter().map(String::as_str))
        .collect();
    Some(by_row(report, &columns, |index, result| {
        let rate = result.summary(report.tokens_per_s(Test::Decode));
        let mut cells = vec![rate.map_or("-".into(), |rate| format!("{:.2}", rate.median))];
        let others = report.set_against(index);
        cells.extend(names.iter().map(|wanted| {
            let mut others = others.iter().copied();
            let found = others.find(|other| name(&report.rows[*other].row) == *wanted);
            ratio(found.and_then(|other| report.ratio_against(index, other)))
        }));
        cells
    }))
}

fn has_pager(result: &RowResult) -> bool {
    result.good().any(|run| facts(run).is_some())
}

/// What the pager did for the tokens that counted; `None` without such rows.
pub(super) fn pager(report: &Report) -> Option<Table> {
    if !report.rows.iter().any(has_pager) {
        return None;
    }
    let mut rows = report.rows.iter();
    let is_predicted = rows.any(|row| row.summary_of_runs(predicted_per_token).is_some());
    let mut names = vec!["slots", "hits", "missed / token"];
    if is_predicted {
        names.extend(["predicted", "difference"]);
    }
    names.extend([
        "delivered / missed",
        "stall ms / token",
        "group peak / budget",
        "in page cache after load",
        "at end",
    ]);
    let n_threads = report.setup.n_threads;
    Some(by_row(report, &names, |_, result| {
        if !has_pager(result) {
            return vec![String::new(); names.len()];
        }
        let cell = |value: &dyn Fn(&RunRecord) -> Option<f64>, text: &dyn Fn(f64) -> String| {
            let summary = result.summary_of_runs(value);
            summary.map_or("-".to_owned(), |summary| text(summary.median))
        };
        let bytes = |value: f64| format_bytes(value.round() as u64);
        let percent = |value: f64| format!("{value:.1} %");
        let slots = cell(&n_slots, &|n| format!("{n:.0}"));
        let of = cell(&n_slices, &|n| format!("{n:.0}"));
        let missed = per_token(|counted| counted.miss_bytes);
        let mut cells = vec![
            format!("{slots} of {of} ({})", cell(&slot_bytes, &bytes)),
            cell(&hit_percent, &percent),
            cell(&missed, &bytes),
        ];
        if is_predicted {
            cells.push(cell(&predicted_per_token, &bytes));
            cells.push(cell(&prediction_error_percent, &|error| {
                format!("{error:+.1} %")
            }));
        }
        let figure = |value: fn(&crate::record::Figures) -> Option<u64>| {
            cell(&|run| Some(value(run.figures.as_ref()?)? as f64), &bytes)
        };
        cells.extend([
            cell(&delivered_ratio, &|ratio| format!("{ratio:.3}")),
            cell(&stall_ms(n_threads), &|ms| format!("{ms:.1}")),
            cell(&peak_percent, &percent),
            figure(|figures| figures.resident_after_load_bytes),
            figure(|figures| figures.resident_end_bytes),
        ]);
        cells
    }))
}

/// What was read ahead by a guess, and how good the guesses were; `None` without such rows.
pub(super) fn ahead(report: &Report) -> Option<Table> {
    let reads_ahead = |result: &RowResult| {
        let name = result.row.lookahead.as_deref();
        has_pager(result) && name.is_some_and(|name| name != "off")
    };
    if !report.rows.iter().any(reads_ahead) {
        return None;
    }
    let names = [
        "slices read ahead / token",
        "of these used",
        "of the misses",
        "given up unused / token",
        "picks foreseen by the router",
    ];
    Some(by_row(report, &names, |_, result| {
        if !reads_ahead(result) {
            return vec![String::new(); names.len()];
        }
        let cell = |value: &dyn Fn(&RunRecord) -> Option<f64>, text: &dyn Fn(f64) -> String| {
            let summary = result.summary_of_runs(value);
            summary.map_or("-".to_owned(), |summary| text(summary.median))
        };
        let percent = |part: fn(&PagerCounts) -> u64, all: fn(&PagerCounts) -> u64| {
            let share = move |run: &RunRecord| {
                let counted = &facts(run)?.counted;
                let all = all(counted);
                (all > 0).then(|| 100.0 * part(counted) as f64 / all as f64)
            };
            cell(&share, &|value| format!("{value:.1} %"))
        };
        vec![
            cell(&per_token(|counted| counted.n_prefetches), &|n| {
                format!("{n:.1}")
            }),
            percent(
                |counted| counted.n_prefetches_used,
                |counted| counted.n_prefetches,
            ),
            percent(
                |counted| counted.n_prefetches_used,
                |counted| counted.n_prefetches_used + counted.n_misses,
            ),
            cell(&per_token(|counted| counted.wasted_bytes), &|bytes| {
                format_bytes(bytes.round() as u64)
            }),
            percent(
                |counted| counted.n_foreseen,
                |counted| counted.n_foreseeable,
            ),
        ]
    }))
}

/// What a token's time is spent on in rows with a pager; `None` without such rows, and where the step in memory is not known.
pub(super) fn time_of_a_token(report: &Report) -> Option<Table> {
    if !report.rows.iter().any(has_pager) {
        return None;
    }
    let in_ram_ms = |repack: bool| {
        let is_like = |result: &&RowResult| result.row.is_reference && result.row.repack == repack;
        let reference = report.rows.iter().find(is_like);
        let measured = reference.and_then(|result| result.summary_of_runs(step_ms));
        let median = measured.map(|summary| summary.median);
        median.or(report.setup.step_ms)
    };
    if !(report.rows.iter())
        .any(|result| has_pager(result) && in_ram_ms(result.row.repack).is_some())
    {
        return None;
    }
    let n_threads = report.setup.n_threads;
    let names = [
        "mean step ms",
        "in RAM",
        "stall",
        "repacking",
        "computing above in RAM",
    ];
    Some(by_row(report, &names, |_, result| {
        let median = |value: &dyn Fn(&RunRecord) -> Option<f64>| {
            result.summary_of_runs(value).map(|summary| summary.median)
        };
        let times = (
            median(&step_ms),
            in_ram_ms(result.row.repack),
            median(&stall_ms(n_threads)),
            median(&repack_ms(n_threads)),
        );
        let (Some(step), Some(in_ram), Some(stall), Some(repacking)) = times else {
            return vec![String::new(); names.len()];
        };
        [
            step,
            in_ram,
            stall,
            repacking,
            step - in_ram - stall - repacking,
        ]
        .map(|ms| format!("{ms:.1}"))
        .to_vec()
    }))
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::PagedTensor;
    use crate::results::tests::report;
    use crate::spec::Mode;

    /// The second row has a pager, and is related to the first one.
    pub(crate) fn paged() -> Report {
        let mut report = report();
        report.rows[0].row.is_reference = true;
        report.rows[1].row.mode = Mode::Pager;
        report.rows[1].row.budget_bytes = Some(1000);
        for run in report.rows[1].runs.iter_mut().flatten() {
            run.row.budget_bytes = Some(1000);
            run.cgroup_peak_bytes = Some(990);
            run.predicted_miss_bytes = Some(400);
            let figures = run.figures.as_mut().unwrap();
            figures.decode_ns = Some(8_000_000);
            (figures.counted_faults_major, figures.counted_read_bytes) = (Some(2), Some(800));
            run.outcome.as_mut().unwrap().pager = Some(PagerFacts {
                plan: json!({}),
                reads: "reads: threads".into(),
                policy: "lru".into(),
                class_slots: vec![3, 4],
                slot_bytes: 700,
                tensors: vec![
                    PagedTensor {
                        layer: 0,
                        class: 0,
                        n_slices: 10,
                        slice_bytes: 100
                    };
                    2
                ],
                counters: json!({}),
                counted: PagerCounts {
                    n_hits: 30,
                    n_late: 6,
                    n_misses: 4,
                    miss_bytes: 404,
                    delivered_bytes: 808,
                    wasted_bytes: 0,
                    stall_ns: 4_000_000,
                    repack_ns: 800_000,
                    n_prefetches: 8,
                    n_prefetches_used: 6,
                    n_foreseeable: 40,
                    n_foreseen: 30,
                },
            });
        }
        report
    }

    fn words(table: &Table) -> String {
        let text = table.markdown();
        let words: Vec<_> = text.split_ascii_whitespace().collect();
        words.join(" ")
    }

    #[test]
    fn what_the_pager_did() {
        let text = words(&pager(&paged()).unwrap());
        let expected = "7 of 20 (700 B) | 75.0 % | 101 B | 100 B | +1.0 % | 2.000 | 0.5 | 99.0 % | 600 B | 800 B |";
        assert!(text.contains(expected), "{text}");
        assert!(pager(&report()).is_none());
    }

    #[test]
    fn what_was_read_ahead() {
        let mut report = paged();
        assert!(ahead(&report).is_none());
        report.rows[1].row.lookahead = Some("off".into());
        assert!(ahead(&report).is_none());
        report.rows[1].row.lookahead = Some("router:0.3".into());
        let text = words(&ahead(&report).unwrap());
        assert!(
            text.contains("| 2.0 | 75.0 % | 60.0 % | 0 B | 75.0 % |"),
            "{text}"
        );
    }

    #[test]
    fn what_the_time_is_spent_on() {
        // 2 ms of which half a millisecond is waiting, against 1 ms in memory.
        let text = words(&time_of_a_token(&paged()).unwrap());
        assert!(text.contains("| 2.0 | 1.0 | 0.5 | 0.1 | 0.4 |"), "{text}");
        let mut alone = paged();
        alone.rows[0].row.is_reference = false;
        assert!(time_of_a_token(&alone).is_none());
        alone.setup.step_ms = Some(1.25);
        let text = words(&time_of_a_token(&alone).unwrap());
        assert!(text.contains("| 2.0 | 1.2 | 0.5 | 0.1 |"), "{text}");
    }

    #[test]
    fn a_column_for_each_reference() {
        let table = references(&paged()).unwrap();
        let text = words(&table);
        assert!(
            text.contains("| vs eager without a limit [95 %] |")
                && text.contains("| 500.00 | 0.500 [0.500, 0.500] |"),
            "{text}"
        );
        assert!(references(&report()).is_none());
    }
}
