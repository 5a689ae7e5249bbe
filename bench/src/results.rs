//! From runs to rows: what is printed and written.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::protocol::{BuildFacts, Fingerprint, ModelFacts};
use crate::record::{Figures, RunRecord, RunStatus};
use crate::spec::{FlashAttn, Row};
use crate::stats::{self, Summary};

/// What was set and where it ran: the same for all rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) bench_version: Cow<'static, str>,
    pub(crate) host: Host,
    pub(crate) model: ModelSetup,
    pub(crate) n_prompt: u32,
    /// Prompts one after the other, of which the last counts.
    #[serde(default = "one")]
    pub(crate) n_prompts: u32,
    /// Tokens between the prompt and those that count, at most.
    #[serde(default)]
    pub(crate) n_warm_up: u32,
    pub(crate) n_gen: u32,
    pub(crate) n_batch: u32,
    pub(crate) n_ubatch: u32,
    pub(crate) n_threads: u32,
    pub(crate) flash_attn: FlashAttn,
    pub(crate) repetitions: usize,
    /// No token was begun after decoding for this long.
    pub(crate) decode_limit_ns: Option<u64>,
    /// The same of baselines, where it is another.
    #[serde(default)]
    pub(crate) baseline_limit_ns: Option<u64>,
    /// One token with all weights in memory, where that was given.
    #[serde(default)]
    pub(crate) step_ms: Option<f64>,
    /// Whose experts were used, if not the model's own.
    pub(crate) routing: Option<RoutingSetup>,
    /// UTC.
    pub(crate) started: String,
    /// How budgets are enforced, if a row has one.
    pub(crate) cgroup: Option<String>,
    /// Bytes per second of one sequential read of the model before the first run.
    pub(crate) preread_bytes_per_s: Option<f64>,
    /// Whether the free memory that a run can use was touched before it started.
    #[serde(default)]
    pub(crate) touches_memory: bool,
}

fn one() -> u32 {
    1
}

/// The part of a routing trace that the runs replay.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RoutingSetup {
    /// Without folders; `own` for the model's own choices with the replay's interruptions.
    pub(crate) name: String,
    /// The model that the trace is of.
    pub(crate) model: Option<String>,
    pub(crate) skip: usize,
    pub(crate) tokens: usize,
    /// Expert reads that were compared with the trace before the first run.
    pub(crate) checked: u64,
}

/// The model's files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ModelSetup {
    /// As given, without folders that say nothing about the model.
    pub(crate) filename: String,
    pub(crate) file_bytes: u64,
    pub(crate) dense_bytes: u64,
    pub(crate) sparse_bytes: u64,
    pub(crate) other_bytes: u64,
    pub(crate) parts: usize,
}

/// One row and the runs it consists of.
#[derive(Debug)]
pub(crate) struct RowResult {
    pub(crate) row: Row,
    /// By repetition; `None` where the run was not made.
    pub(crate) runs: Vec<Option<RunRecord>>,
    /// Why the row could not be measured at all.
    pub(crate) refused: Option<String>,
    /// The row that ratios are taken against: the first with the same conditions.
    pub(crate) reference: usize,
}

/// The whole result.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) setup: Setup,
    pub(crate) rows: Vec<RowResult>,
}

/// The two tests of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    /// The prompt.
    Prompt,
    /// Single tokens after the prompt.
    Decode,
}

impl RowResult {
    pub(crate) fn new(row: Row, reference: usize) -> RowResult {
        RowResult {
            row,
            runs: Vec::new(),
            refused: None,
            reference,
        }
    }

    /// Runs that count.
    pub(crate) fn good(&self) -> impl Iterator<Item = &RunRecord> {
        self.runs
            .iter()
            .flatten()
            .filter(|run| run.status == RunStatus::Ok)
    }

    /// One figure of the runs that count, by repetition.
    pub(crate) fn series(&self, figure: impl Fn(&Figures) -> Option<f64>) -> Vec<Option<f64>> {
        let of_run = |run: &RunRecord| {
            run.figures
                .as_ref()
                .filter(|_| run.status == RunStatus::Ok)
                .and_then(&figure)
        };
        self.runs
            .iter()
            .map(|run| run.as_ref().and_then(of_run))
            .collect()
    }

    /// Summary of one figure over the runs that count.
    pub(crate) fn summary(&self, figure: impl Fn(&Figures) -> Option<f64>) -> Option<Summary> {
        let present: Vec<f64> = self.series(figure).into_iter().flatten().collect();
        Summary::of(&present)
    }

    /// Summary of something that the runs that count have, over those that have it.
    pub(crate) fn summary_of_runs(
        &self,
        value: impl Fn(&RunRecord) -> Option<f64>,
    ) -> Option<Summary> {
        Summary::of(&self.good().filter_map(value).collect::<Vec<f64>>())
    }

    /// Why the row has no figures, `None` when it has some.
    pub(crate) fn missing(&self) -> Option<String> {
        if self.good().next().is_some() {
            return None;
        }
        let last = || {
            self.runs
                .iter()
                .flatten()
                .rev()
                .find_map(|run| run.reason.clone())
        };
        self.refused
            .clone()
            .or_else(last)
            .or_else(|| Some("not run".to_string()))
    }

    /// Durations of all steps of the runs that count, ascending, in milliseconds.
    pub(crate) fn steps_ms(&self) -> Vec<f64> {
        let mut ms: Vec<f64> = self
            .good()
            .filter_map(|run| run.outcome.as_ref())
            .flat_map(|outcome| &outcome.step_ns)
            .map(|ns| *ns as f64 / 1e6)
            .collect();
        ms.sort_by(f64::total_cmp);
        ms
    }

    /// `ok`, or the status of the row's last run, or `refused`.
    pub(crate) fn status(&self) -> &'static str {
        if self.good().next().is_some() {
            return "ok";
        }
        if self.refused.is_some() {
            return "refused";
        }
        match self.runs.iter().flatten().next_back().map(|run| run.status) {
            Some(RunStatus::NotCold) => "not_cold",
            Some(RunStatus::ExceededBudget) => "exceeded_budget",
            Some(RunStatus::TimedOut) => "timed_out",
            Some(RunStatus::Failed | RunStatus::Ok) => "failed",
            None => "not_run",
        }
    }
}

impl Report {
    /// A report with no runs yet.
    pub(crate) fn new(setup: Setup, rows: Vec<Row>) -> Report {
        let reference = |row: &Row| {
            rows.iter()
                .position(|first| first.same_conditions(row))
                .unwrap_or(0)
        };
        let results = rows
            .iter()
            .map(|row| RowResult::new(row.clone(), reference(row)))
            .collect();
        Report {
            setup,
            rows: results,
        }
    }

    /// The tests that each row consists of.
    pub(crate) fn tests(&self) -> Vec<Test> {
        let prompt = (self.setup.n_prompt > 0).then_some(Test::Prompt);
        let decode = (self.setup.n_gen > 0).then_some(Test::Decode);
        prompt.into_iter().chain(decode).collect()
    }

    /// Ratio of a figure to that of the row's reference, repetition by repetition; `None` for the reference itself.
    pub(crate) fn ratio(
        &self,
        index: usize,
        figure: impl Fn(&Figures) -> Option<f64>,
    ) -> Option<Summary> {
        let reference = self.rows[index].reference;
        (reference != index)
            .then(|| self.ratio_to(index, reference, figure))
            .flatten()
    }

    fn ratio_to(
        &self,
        index: usize,
        reference: usize,
        figure: impl Fn(&Figures) -> Option<f64>,
    ) -> Option<Summary> {
        stats::paired_ratio(
            &self.rows[index].series(&figure),
            &self.rows[reference].series(&figure),
        )
    }

    /// A test's name in llama-bench's notation: `pp16`, `tg64 @ d16`.
    pub(crate) fn test_name(&self, test: Test) -> String {
        let Setup {
            n_prompt, n_gen, ..
        } = self.setup;
        match (test, self.depth()) {
            (Test::Prompt, _) => format!("pp{n_prompt}"),
            (Test::Decode, 0) => format!("tg{n_gen}"),
            (Test::Decode, depth) => format!("tg{n_gen} @ d{depth}"),
        }
    }

    /// Tokens before those that count.
    pub(crate) fn depth(&self) -> u32 {
        self.setup.n_prompt + self.setup.n_warm_up
    }

    /// Tokens per second of a test in one run.
    pub(crate) fn tokens_per_s(&self, test: Test) -> impl Fn(&Figures) -> Option<f64> + use<> {
        let n_prompt = f64::from(self.setup.n_prompt);
        move |figures| {
            let tokens = match test {
                Test::Prompt => n_prompt,
                Test::Decode => figures.n_decoded as f64,
            };
            Some(tokens * 1e9 / test_ns(figures, test)? as f64)
        }
    }

    /// Ratio of the speeds of a test to those of the row's reference, as [`ratio`](Report::ratio). Of decoding only as many tokens as both
    /// runs of a pair computed: a run that was cut short had fewer tokens in which to fill its caches.
    pub(crate) fn speed_ratio(&self, index: usize, test: Test) -> Option<Summary> {
        let reference = self.rows[index].reference;
        (reference != index)
            .then(|| self.speed_ratio_to(index, reference, test))
            .flatten()
    }

    fn speed_ratio_to(&self, index: usize, reference_index: usize, test: Test) -> Option<Summary> {
        let row = &self.rows[index];
        let reference = &self.rows[reference_index];
        if test == Test::Prompt {
            return self.ratio_to(index, reference_index, self.tokens_per_s(test));
        }
        let steps_ns = |result: &RowResult, repetition: usize| -> Option<Vec<u64>> {
            let run = result.runs.get(repetition)?.as_ref()?;
            let outcome = run.outcome.as_ref()?;
            (run.status == RunStatus::Ok).then(|| outcome.step_ns.clone())
        };
        let (own_ns, reference_ns): (Vec<_>, Vec<_>) = (0..row.runs.len())
            .map(|repetition| {
                let pair = steps_ns(row, repetition).zip(steps_ns(reference, repetition));
                pair.map(|(own, other)| {
                    let both = own.len().min(other.len());
                    let sum_ns = |steps: &[u64]| steps[..both].iter().sum::<u64>() as f64;
                    (sum_ns(&own), sum_ns(&other))
                })
                .unzip()
            })
            .unzip();
        if own_ns.iter().all(Option::is_none) {
            // Another program, which tells its speed only.
            return self.ratio_to(index, reference_index, self.tokens_per_s(test));
        }
        stats::paired_ratio(&reference_ns, &own_ns)
    }

    /// Rows under other conditions that a row's speed is related to.
    pub(crate) fn set_against(&self, index: usize) -> Vec<usize> {
        let row = &self.rows[index].row;
        let others = self.rows.iter().enumerate();
        others
            .filter(|(_, other)| row.is_set_against(&other.row))
            .map(|(other, _)| other)
            .collect()
    }

    /// Ratio of the speed of decoding to that of a row under other conditions, repetition by repetition. A reference has all in memory: each of
    /// its tokens takes the same time, so the rows' own speeds are compared, over as many tokens as each decoded.
    pub(crate) fn ratio_against(&self, index: usize, other: usize) -> Option<Summary> {
        match self.rows[other].row.is_reference {
            true => self.ratio_to(index, other, self.tokens_per_s(Test::Decode)),
            false => self.speed_ratio_to(index, other, Test::Decode),
        }
    }

    /// Median step of the fastest reference in milliseconds, or what was given for one.
    fn in_ram_step_ms(&self) -> Option<f64> {
        let references = self.rows.iter().filter(|result| result.row.is_reference);
        let fastest = || {
            references
                .filter_map(|result| stats::nearest_rank(&result.steps_ms(), 0.5))
                .min_by(f64::total_cmp)
        };
        self.setup.step_ms.or_else(fastest)
    }

    /// Tokens per second that no engine exceeds under the conditions of a run, where that is known.
    pub(crate) fn bound_ts(&self, run: &RunRecord) -> Option<f64> {
        let from_parts = || Some(1e3 / run.bound?.device_ms.max(self.in_ram_step_ms()?));
        run.bound_ts
            .or_else(from_parts)
            .filter(|bound_ts| *bound_ts > 0.0)
    }

    /// The speed of decoding as a share of what no engine exceeds under the row's conditions, where the runs state that.
    pub(crate) fn share_of_bound(&self, index: usize) -> Option<Summary> {
        let tokens_per_s = self.tokens_per_s(Test::Decode);
        self.rows[index].summary_of_runs(|run| {
            let bound_ts = self.bound_ts(run)?;
            Some(tokens_per_s(run.figures.as_ref()?)? / bound_ts)
        })
    }

    /// Pairs of rows of equal conditions whose speeds in a test the machine was too noisy to tell apart, with the ratio of the second's to
    /// the first's.
    pub(crate) fn not_told_apart(&self, test: Test) -> Vec<(usize, usize, Summary)> {
        let mut pairs = Vec::new();
        for second in 0..self.rows.len() {
            for first in 0..second {
                if !self.rows[first].row.same_conditions(&self.rows[second].row) {
                    continue;
                }
                let ratio = self.speed_ratio_to(second, first, test);
                if let Some(ratio) = ratio.filter(|ratio| !ratio.differs_from_one()) {
                    pairs.push((first, second, ratio));
                }
            }
        }
        pairs
    }

    /// Whether a run of a row ended by the time limit, before its last token.
    pub(crate) fn was_cut(&self) -> bool {
        let n_gen = self.setup.n_gen as usize;
        let decoded = |run: &RunRecord| run.figures.as_ref().map(|figures| figures.n_decoded);
        self.rows
            .iter()
            .flat_map(RowResult::good)
            .any(|run| decoded(run).is_some_and(|n| n < n_gen))
    }

    /// What llama.cpp said about the model and the build, from the first run that counts.
    pub(crate) fn facts(&self) -> Option<(&ModelFacts, &BuildFacts)> {
        let run = self.rows.iter().flat_map(RowResult::good).next()?;
        run.outcome
            .as_ref()
            .map(|outcome| (&outcome.model, &outcome.build))
    }

    /// Checks that all runs with equal arithmetic computed the same tokens and logits; the first contradiction
    /// otherwise.
    pub(crate) fn check_fingerprints(&self) -> Result<(), String> {
        let mut firsts: Vec<(&RunRecord, &Fingerprint)> = Vec::new();
        for run in self.rows.iter().flat_map(|row| row.runs.iter().flatten()) {
            let Some(found) = run
                .outcome
                .as_ref()
                .and_then(|outcome| outcome.fingerprint.as_ref())
            else {
                continue;
            };
            match firsts
                .iter()
                .find(|(first, _)| first.row.same_arithmetic(&run.row))
            {
                None => firsts.push((run, found)),
                Some((first, expected)) => {
                    let Some(what) = expected.difference(found) else {
                        continue;
                    };
                    return Err(format!(
                        "{what} of `{}` (repetition {}) differ from those of `{}` (repetition {}): {found:?} against \
                         {expected:?}",
                        run.row.label(),
                        run.repetition + 1,
                        first.row.label(),
                        first.repetition + 1,
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Duration of a test in one run.
pub(crate) fn test_ns(figures: &Figures, test: Test) -> Option<u64> {
    match test {
        Test::Prompt => figures.prompt_ns,
        Test::Decode => figures.decode_ns,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cache::Prepared;
    use crate::record::tests::{outcome, row, watched};
    use crate::spec::Mode;

    pub(crate) fn run(row_index: usize, repetition: usize, row: &Row, load_ms: u64) -> RunRecord {
        let watched = watched(load_ms);
        RunRecord {
            row_index,
            repetition,
            place: row_index,
            started: "2026-11-21T09:35:00Z".into(),
            started_ns: watched.started_ns,
            row: row.clone(),
            status: RunStatus::Ok,
            reason: None,
            page_cache: Prepared {
                resident_bytes: 0,
                method: "fadvise".into(),
            },
            readahead_bytes: Some(128 << 10),
            cgroup_peak_bytes: None,
            bound_ts: None,
            bound: None,
            predicted_miss_bytes: None,
            disk_read_bytes: Some(1000),
            steal_ms: Some(0),
            figures: Figures::of(&watched, &outcome(load_ms), None),
            kernel_status: None,
            marks: watched.marks,
            outcome: Some(outcome(load_ms)),
            rss: watched.samples,
        }
    }

    /// Eager loads in 100, 110, 120 ms, selective in half of that.
    pub(crate) fn report() -> Report {
        let setup = Setup {
            bench_version: "0.1.0".into(),
            host: Host {
                cpu: "CPU <&>".into(),
                cores: 2,
                load_average: Some(0.25),
                memory_bytes: 24 << 30,
                kernel: "Linux 6.18 x86_64".into(),
                transparent_hugepages: "madvise".into(),
                file_system: "ext4".into(),
                device: Ok("vda".into()),
                readahead_bytes: Some(128 << 10),
            },
            model: ModelSetup {
                filename: "demo \"a\",b.gguf".into(),
                file_bytes: 1000,
                dense_bytes: 500,
                sparse_bytes: 400,
                other_bytes: 100,
                parts: 1,
            },
            n_prompt: 16,
            n_prompts: 1,
            n_warm_up: 0,
            n_gen: 4,
            n_batch: 2048,
            n_ubatch: 512,
            n_threads: 2,
            flash_attn: FlashAttn::Auto,
            repetitions: 3,
            decode_limit_ns: None,
            baseline_limit_ns: None,
            step_ms: None,
            routing: None,
            started: "2026-11-21T09:35:00Z".into(),
            cgroup: None,
            preread_bytes_per_s: Some(1e9),
            touches_memory: false,
        };
        let mut report = Report::new(setup, vec![row(Mode::Eager), row(Mode::Selective)]);
        for (index, divisor) in [(0, 1), (1, 2)] {
            for repetition in 0..3 {
                let load_ms = (100 + 10 * repetition as u64) / divisor;
                let run = run(index, repetition, &report.rows[index].row.clone(), load_ms);
                report.rows[index].runs.push(Some(run));
            }
        }
        report
    }

    #[test]
    fn ratios_are_against_the_first_row_of_equal_conditions() {
        let report = report();
        assert!(report.ratio(0, |f| f.load_ms).is_none());
        let ratio = report.ratio(1, |f| f.load_ms).unwrap();
        assert_eq!((ratio.n, ratio.median), (3, 0.5));
        assert_eq!(report.rows[1].summary(|f| f.load_ms).unwrap().median, 55.0);
    }

    #[test]
    fn speeds_are_compared_over_the_tokens_that_both_computed() {
        let mut report = report();
        for run in report.rows[0].runs.iter_mut().flatten() {
            run.outcome.as_mut().unwrap().step_ns = vec![4_000_000, 2_000_000];
        }
        for run in report.rows[1].runs.iter_mut().flatten() {
            run.outcome.as_mut().unwrap().step_ns = vec![2_000_000, 1_000_000, 10, 10];
        }
        let ratio = report.speed_ratio(1, Test::Decode).unwrap();
        assert_eq!((ratio.n, ratio.median), (3, 2.0));
        assert!(report.speed_ratio(0, Test::Decode).is_none());
        assert_eq!(report.speed_ratio(1, Test::Prompt).unwrap().median, 1.0);
        // A program that tells its speed only.
        for run in report.rows[1].runs.iter_mut().flatten() {
            run.outcome = None;
            run.figures = Some(Figures::of_rate(500.0, 4, None));
        }
        assert_eq!(report.speed_ratio(1, Test::Decode).unwrap().median, 0.5);
    }

    #[test]
    fn rows_are_related_to_a_reference_under_other_conditions() {
        let mut report = report();
        report.rows[0].row.is_reference = true;
        report.rows[1].row.budget_bytes = Some(1000);
        // The reference was ended after two tokens of 1 ms; of 2 ms each are the four tokens of the other.
        for run in report.rows[0].runs.iter_mut().flatten() {
            run.figures.as_mut().unwrap().n_decoded = 2;
            run.figures.as_mut().unwrap().decode_ns = Some(2_000_000);
        }
        for run in report.rows[1].runs.iter_mut().flatten() {
            run.figures.as_mut().unwrap().decode_ns = Some(8_000_000);
            run.bound = Some(crate::record::DeviceBound {
                slot_bytes: Some(500),
                miss_bytes_per_token: 10.0,
                device_ms: 0.5,
            });
        }
        assert_eq!(
            (report.set_against(0), report.set_against(1)),
            (vec![], vec![0])
        );
        assert_eq!(report.ratio_against(1, 0).unwrap().median, 0.5);
        // The step of the reference is longer than the reads.
        assert_eq!(report.share_of_bound(1).unwrap().median, 0.5);
        report.setup.step_ms = Some(0.25);
        assert_eq!(report.share_of_bound(1).unwrap().median, 0.25);
    }

    #[test]
    fn names_and_rates_of_tests() {
        let report = report();
        assert_eq!(report.tests(), [Test::Prompt, Test::Decode]);
        assert_eq!(report.test_name(Test::Prompt), "pp16");
        assert_eq!(report.test_name(Test::Decode), "tg4 @ d16");
        let rate = report.rows[0]
            .summary(report.tokens_per_s(Test::Decode))
            .unwrap();
        assert_eq!(rate.median, 1000.0);
    }

    #[test]
    fn runs_that_do_not_count_are_left_out() {
        let mut report = report();
        report.rows[0].runs[1].as_mut().unwrap().status = RunStatus::NotCold;
        assert_eq!(
            report.rows[0].series(|f| f.load_ms),
            [Some(100.0), None, Some(120.0)]
        );
        assert_eq!(report.ratio(1, |f| f.load_ms).unwrap().n, 2);
        for run in report.rows[0].runs.iter_mut().flatten() {
            run.status = RunStatus::ExceededBudget;
            run.reason = Some("exceeded the budget".into());
        }
        assert_eq!(report.rows[0].status(), "exceeded_budget");
        assert_eq!(
            report.rows[0].missing().as_deref(),
            Some("exceeded the budget")
        );
        assert_eq!(report.rows[1].status(), "ok");
    }

    #[test]
    fn a_differing_fingerprint_is_an_error() {
        let mut report = report();
        assert_eq!(report.check_fingerprints(), Ok(()));
        let run = report.rows[1].runs[2].as_mut().unwrap();
        let outcome = run.outcome.as_mut().unwrap();
        outcome.fingerprint = Some(Fingerprint {
            tokens: "aa".into(),
            logits: "cc".into(),
            after: vec!["ab".into(), "cc".into()],
        });
        let message = report.check_fingerprints().unwrap_err();
        assert!(
            message.contains("logits of `selective cold` (repetition 3)"),
            "{message}"
        );
        // Repacked kernels may round differently.
        report.rows[1].runs[2].as_mut().unwrap().row.repack = true;
        assert_eq!(report.check_fingerprints(), Ok(()));
    }
}
