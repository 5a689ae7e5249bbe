//! `--steps FILE`: a line for each single-token decode of each run.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::record::RunRecord;
use crate::results::{Report, RowResult};

const NAMES: &str =
    "row,repetition,status,step,wall_us,cpu_us,off_cpu_us,read_bytes,faults_major,faults_minor";

/// The file, made before the first measurement: a path that cannot be written must not cost an hour.
#[derive(Debug)]
pub(crate) struct StepsFile(PathBuf);

impl StepsFile {
    pub(crate) fn create(path: &Path) -> Result<StepsFile> {
        fs::write(path, "").with_context(|| format!("{}: cannot be written", path.display()))?;
        Ok(StepsFile(path.to_path_buf()))
    }

    pub(crate) fn finish(&self, report: &Report) -> Result<()> {
        fs::write(&self.0, render(report))
            .with_context(|| format!("{}: cannot be written", self.0.display()))
    }
}

fn render(report: &Report) -> String {
    let mut text = format!("{NAMES}\n");
    for result in &report.rows {
        for run in result.runs.iter().flatten() {
            add(&mut text, result, run, report.setup.n_threads);
        }
    }
    text
}

fn add(text: &mut String, result: &RowResult, run: &RunRecord, n_threads: u32) {
    let Some(outcome) = &run.outcome else {
        return;
    };
    let cell = |value: Option<u64>| value.map_or(String::new(), |value| value.to_string());
    let steps = &outcome.steps;
    let status = serde_json::to_value(run.status).unwrap_or_default();
    for (step, wall_ns) in outcome.step_ns.iter().enumerate() {
        let cpu_ns = steps.cpu_ns.get(step).copied();
        let off_ns = cpu_ns.map(|cpu_ns| (wall_ns * u64::from(n_threads)).saturating_sub(cpu_ns));
        let us = |ns: Option<u64>| cell(ns.map(|ns| ns / 1000));
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "\"{}\",{},{},{step},{},{},{},{},{},{}",
            result.row.label().replace('"', "\"\""),
            run.repetition,
            status.as_str().unwrap_or_default(),
            wall_ns / 1000,
            us(cpu_ns),
            us(off_ns),
            cell(steps.read_bytes.get(step).copied()),
            cell(steps.faults_major.get(step).copied()),
            cell(steps.faults_minor.get(step).copied()),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::report;

    #[test]
    fn a_line_for_each_step_of_each_run() {
        let mut report = report();
        let run = report.rows[1].runs[0].as_mut().unwrap();
        run.outcome.as_mut().unwrap().steps = Default::default();
        let text = render(&report);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 1 + 6 * 4);
        let names = lines[0].split(',').count();
        assert!(lines.iter().all(|line| line.split(',').count() == names));
        // 2 threads for 1000 us, of which 1500 us on a CPU.
        assert_eq!(lines[1], "\"eager cold\",0,ok,0,1000,1500,500,4096,1,2");
        assert_eq!(lines[13], "\"selective cold\",0,ok,0,1000,,,,,");
    }
}
