//! Rows that were measured twice (`--twice`): what the machine makes of no difference.

use super::Run;
use crate::record::Figures;
use crate::results::Test;
use crate::stats;

/// For each figure, in how many pairs of equal rows the interval of their ratio holds 1. Nothing where no row was measured twice.
pub(super) fn lines(runs: &[Run]) -> Vec<String> {
    let pairs: Vec<(&Run, usize, usize)> = runs
        .iter()
        .flat_map(|run| equal_rows(run).into_iter().map(move |(a, b)| (run, a, b)))
        .collect();
    if pairs.is_empty() {
        return Vec::new();
    }
    type Figure = Box<dyn Fn(&Run, &Figures) -> Option<f64>>;
    let speed = |test: Test| -> Figure {
        Box::new(move |run, figures| run.report.tokens_per_s(test)(figures))
    };
    let figures: [(&str, Figure); 4] = [
        ("speed of decoding", speed(Test::Decode)),
        ("speed of the prompt", speed(Test::Prompt)),
        ("time to load", Box::new(|_, figures| figures.load_ms)),
        (
            "time to the first token",
            Box::new(|_, figures| figures.first_token_ms),
        ),
    ];
    figures
        .iter()
        .filter_map(|(name, figure)| {
            let ratios: Vec<_> = pairs
                .iter()
                .filter_map(|(run, a, b)| {
                    let series = |row: usize| run.report.rows[row].series(|figures| figure(run, figures));
                    stats::paired_ratio(&series(*b), &series(*a))
                })
                .collect();
            let held = ratios.iter().filter(|ratio| !ratio.differs_from_one()).count();
            (!ratios.is_empty()).then(|| {
                format!(
                    "A/A, {name}: {held} of {} pairs of equal rows differ by less than their interval.",
                    ratios.len()
                )
            })
        })
        .collect()
}

/// Neighbours that are the same row.
fn equal_rows(run: &Run) -> Vec<(usize, usize)> {
    let rows = &run.report.rows;
    (1..rows.len())
        .filter(|index| rows[index - 1].row == rows[*index].row)
        .map(|index| (index - 1, index))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::report;

    fn twin() -> Run {
        let mut report = report();
        report.rows[1].row = report.rows[0].row.clone();
        Run {
            name: "x".into(),
            report,
            remarks: Vec::new(),
        }
    }

    #[test]
    fn equal_rows_that_differ_are_counted() {
        let mut same = twin();
        for (repetition, run) in same.report.rows[1].runs.iter_mut().enumerate() {
            let load_ms = [104.0, 109.0, 121.0][repetition];
            run.as_mut().unwrap().figures.as_mut().unwrap().load_ms = Some(load_ms);
        }
        // The other one's second row loads in half of the time.
        let lines = lines(&[same, twin()]);
        assert_eq!(lines.len(), 4);
        assert!(
            lines[0].starts_with("A/A, speed of decoding: 2 of 2"),
            "{}",
            lines[0]
        );
        assert!(
            lines[2].starts_with("A/A, time to load: 1 of 2"),
            "{}",
            lines[2]
        );
    }

    #[test]
    fn nothing_is_said_of_rows_that_are_there_once() {
        let run = Run {
            name: "x".into(),
            report: report(),
            remarks: Vec::new(),
        };
        assert!(lines(&[run]).is_empty());
    }
}
