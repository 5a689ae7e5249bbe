//! `--bounds FILE`: the speeds that no engine exceeds, added to the runs of rows with the same budget.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::Run;

/// The part of a bound that is used here.
#[derive(Debug, Deserialize)]
struct Bound {
    budget_bytes: Option<u64>,
    tokens_per_s: f64,
}

/// Gives every run the bound for its budget.
pub(super) fn add(path: &Path, runs: &mut [Run]) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let bounds: Vec<Bound> = serde_json::from_str(&text)
        .with_context(|| format!("{}: is not a list of bounds", path.display()))?;
    let wrong = |bound: &&Bound| !(bound.tokens_per_s.is_finite() && bound.tokens_per_s > 0.0);
    if let Some(bound) = bounds.iter().find(wrong) {
        bail!(
            "{}: {} tokens/s is not a bound",
            path.display(),
            bound.tokens_per_s
        );
    }
    let mut added = false;
    let rows = runs.iter_mut().flat_map(|run| &mut run.report.rows);
    for result in rows {
        let budget_bytes = result.row.budget_bytes;
        let Some(bound) = bounds
            .iter()
            .find(|bound| bound.budget_bytes == budget_bytes)
        else {
            continue;
        };
        for run in result.runs.iter_mut().flatten() {
            run.bound_ts = Some(bound.tokens_per_s);
            added = true;
        }
    }
    if !added {
        let budgets: Vec<String> = bounds
            .iter()
            .map(|bound| {
                bound
                    .budget_bytes
                    .map_or("none".into(), |bytes| bytes.to_string())
            })
            .collect();
        bail!(
            "{}: no row has one of its budgets: {}",
            path.display(),
            budgets.join(", ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;
    use crate::results::tests::report;

    fn runs() -> [Run; 1] {
        [Run {
            name: "x".into(),
            report: report(),
            remarks: Vec::new(),
        }]
    }

    #[test]
    fn rows_state_their_share_of_the_bound_for_their_budget() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bounds.json");
        let mut runs = runs();
        assert!(
            !Format::Md
                .render(&runs[0].report)
                .contains("share of the bound")
        );
        let text = r#"[{"budget_bytes":1000,"tokens_per_s":5.0},{"budget_bytes":null,"tokens_per_s":4000.0,"more":1}]"#;
        fs::write(&path, text).unwrap();
        add(&path, &mut runs).unwrap();
        let text = Format::Md.render(&runs[0].report);
        assert!(
            text.contains("25.0 % [25.0, 25.0]") && text.contains("4000.00"),
            "{text}"
        );
    }

    #[test]
    fn what_is_no_bound_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bounds.json");
        for (text, word) in [
            ("{}", "not a list"),
            (r#"[{"budget_bytes":null,"tokens_per_s":0}]"#, "0 tokens/s"),
            (r#"[{"budget_bytes":7,"tokens_per_s":1}]"#, "budgets: 7"),
        ] {
            fs::write(&path, text).unwrap();
            let message = format!("{:#}", add(&path, &mut runs()).unwrap_err());
            assert!(message.contains(word), "{message}");
        }
    }
}
