//! One run as it is kept: a line of `raw.jsonl`.

use serde::{Deserialize, Serialize};

use crate::cache::Prepared;
use crate::procfs::{self, Rss};
use crate::protocol::{Mark, Outcome, Point};
use crate::residency::ByClass;
use crate::runner::{End, Watched};
use crate::sample::Sample;
use crate::spec::{CacheState, Row};

/// Of the lines of `raw.jsonl`, in their field `schema`. Lines without the field are of schema 1, which knew our own program only and had
/// neither counters of single steps nor digests after each of them. A field that is new and may be missing is no new schema.
pub(crate) const SCHEMA: u32 = 2;

/// Whether a run counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RunStatus {
    Ok,
    /// Pages of the model were in the page cache before a cold run. The figures are kept here and counted nowhere.
    NotCold,
    /// The kernel killed the process because its memory group was over the limit.
    ExceededBudget,
    TimedOut,
    Failed,
}

/// Everything about one run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    /// Index of the row in the report.
    pub(crate) row_index: usize,
    pub(crate) repetition: usize,
    /// Place of the run within its repetition.
    pub(crate) place: usize,
    /// UTC.
    pub(crate) started: String,
    /// CLOCK_MONOTONIC just before the process was started: the origin of `rss`, and of the marks' times.
    pub(crate) started_ns: u64,
    pub(crate) row: Row,
    pub(crate) status: RunStatus,
    pub(crate) reason: Option<String>,
    /// The page cache just before the process was started.
    pub(crate) page_cache: Prepared,
    /// The device's readahead during the run.
    pub(crate) readahead_bytes: Option<u64>,
    /// The memory group's own highest charge.
    pub(crate) cgroup_peak_bytes: Option<u64>,
    /// Tokens per second that no way of decoding could exceed under the row's conditions, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bound_ts: Option<f64>,
    /// What that speed follows from, with the step in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bound: Option<DeviceBound>,
    /// Bytes of slices that the simulator says the pager missed while the tokens that count were decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) predicted_miss_bytes: Option<u64>,
    /// Bytes that anyone read from the device during the run: a check of `device_bytes`, which is the process's own.
    pub(crate) disk_read_bytes: Option<u64>,
    /// CPU time that the host took from this machine during the run, all CPUs.
    pub(crate) steal_ms: Option<u64>,
    pub(crate) figures: Option<Figures>,
    pub(crate) kernel_status: Option<procfs::Status>,
    pub(crate) marks: Vec<Mark>,
    pub(crate) outcome: Option<Outcome>,
    /// Resident memory over time: milliseconds since process start, file bytes, anonymous bytes.
    pub(crate) rss: Vec<Sample>,
}

/// What a run had to wait for the device at least.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DeviceBound {
    /// What its budget leaves for slots; `None`: all slices.
    pub(crate) slot_bytes: Option<u64>,
    /// What Belady's policy misses in as many bytes.
    pub(crate) miss_bytes_per_token: f64,
    /// Reading that.
    pub(crate) device_ms: f64,
}

/// What one run measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// What another program does not tell is `None`.
    pub(crate) load_ms: Option<f64>,
    pub(crate) first_token_ms: Option<f64>,
    pub(crate) token16_ms: Option<f64>,
    pub(crate) prompt_ns: Option<u64>,
    /// All single-token decodes together, and how many they were.
    pub(crate) decode_ns: Option<u64>,
    #[serde(default)]
    pub(crate) n_decoded: usize,
    /// Tokens that were decoded before those, and count nowhere.
    #[serde(default)]
    pub(crate) n_warmed_up: usize,
    /// Of the process while the tokens that count were decoded.
    #[serde(default)]
    pub(crate) counted_read_bytes: Option<u64>,
    #[serde(default)]
    pub(crate) counted_faults_major: Option<u64>,
    pub(crate) load_device_bytes: Option<u64>,
    pub(crate) device_bytes: Option<u64>,
    pub(crate) faults_major: Option<u64>,
    pub(crate) faults_minor: Option<u64>,
    pub(crate) rss_anon_peak_bytes: Option<u64>,
    pub(crate) rss_file_peak_bytes: Option<u64>,
    pub(crate) resident_after_load_bytes: Option<u64>,
    pub(crate) resident_end_bytes: Option<u64>,
    pub(crate) cgroup_peak_bytes: Option<u64>,
}

impl Figures {
    /// Figures of a complete run, `None` if the worker left out a point.
    pub(crate) fn of(
        watched: &Watched,
        outcome: &Outcome,
        cgroup_peak_bytes: Option<u64>,
    ) -> Option<Figures> {
        let start = watched.mark(Point::Start)?;
        let loaded = watched.mark(Point::Loaded)?;
        let end = watched.mark(Point::End)?;
        let counted = watched.mark(Point::Counted);
        let read_since_start =
            |mark: &Mark| Some(mark.read_bytes?.saturating_sub(start.read_bytes?));
        let Rss {
            file_bytes,
            anon_bytes,
        } = watched.peak;
        Some(Figures {
            load_ms: Some(outcome.load_ns as f64 / 1e6),
            first_token_ms: watched.since_start_ms(Point::FirstToken),
            token16_ms: watched.since_start_ms(Point::Token16),
            prompt_ns: outcome.prompt_ns,
            decode_ns: (!outcome.step_ns.is_empty()).then(|| outcome.step_ns.iter().sum()),
            n_decoded: outcome.step_ns.len(),
            n_warmed_up: outcome.warm_up_ns.len(),
            counted_read_bytes: counted
                .and_then(|begin| Some(end.read_bytes?.saturating_sub(begin.read_bytes?))),
            counted_faults_major: counted
                .map(|begin| end.faults_major.saturating_sub(begin.faults_major)),
            load_device_bytes: read_since_start(loaded),
            device_bytes: read_since_start(end),
            faults_major: Some(end.faults_major.saturating_sub(start.faults_major)),
            faults_minor: Some(end.faults_minor.saturating_sub(start.faults_minor)),
            rss_anon_peak_bytes: Some(anon_bytes),
            rss_file_peak_bytes: Some(file_bytes),
            resident_after_load_bytes: outcome.resident_after_load.map(ByClass::total),
            resident_end_bytes: outcome.resident_end.map(ByClass::total),
            cgroup_peak_bytes,
        })
    }
}

impl Figures {
    /// Figures of another program, which tells its speed only.
    pub(crate) fn of_rate(
        tokens_per_s: f64,
        n_gen: u32,
        cgroup_peak_bytes: Option<u64>,
    ) -> Figures {
        Figures {
            load_ms: None,
            first_token_ms: None,
            token16_ms: None,
            prompt_ns: None,
            decode_ns: Some((f64::from(n_gen) * 1e9 / tokens_per_s).round() as u64),
            n_decoded: n_gen as usize,
            n_warmed_up: 0,
            counted_read_bytes: None,
            counted_faults_major: None,
            load_device_bytes: None,
            device_bytes: None,
            faults_major: None,
            faults_minor: None,
            rss_anon_peak_bytes: None,
            rss_file_peak_bytes: None,
            resident_after_load_bytes: None,
            resident_end_bytes: None,
            cgroup_peak_bytes,
        }
    }
}

/// The status of a run, with the reason when it does not count.
pub(crate) fn judge(
    row: &Row,
    page_cache: &Prepared,
    end: &End,
    oom_kills: u64,
) -> (RunStatus, Option<String>) {
    match end {
        End::Complete(_) | End::Rate(_)
            if row.cache == CacheState::Cold && page_cache.resident_bytes > 0 =>
        {
            (
                RunStatus::NotCold,
                Some(format!(
                    "{} bytes of the model stayed in the page cache: another process has the file mapped or locked, its file \
                 system is in memory (measure with --warm), or this user does not own it and cannot see its pages",
                    page_cache.resident_bytes
                )),
            )
        }
        End::Complete(_) | End::Rate(_) => (RunStatus::Ok, None),
        // A program that a shell has started is reported as a failure of the shell.
        End::Killed | End::Failed(_) if row.budget_bytes.is_some() && oom_kills > 0 => (
            RunStatus::ExceededBudget,
            Some(format!(
                "exceeded the budget of {} bytes",
                row.budget_bytes.unwrap_or_default()
            )),
        ),
        End::Killed => (
            RunStatus::Failed,
            Some("the worker was killed (SIGKILL)".to_string()),
        ),
        End::TimedOut => (
            RunStatus::TimedOut,
            Some("took longer than --timeout allows".to_string()),
        ),
        End::Failed(reason) => (RunStatus::Failed, Some(reason.clone())),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::protocol::{BuildFacts, Fingerprint, ModelFacts, StepCounters};
    use crate::spec::{Engine, Mode};

    pub(crate) fn row(mode: Mode) -> Row {
        Row {
            engine: Engine::Faultline,
            mode,
            cache: CacheState::Cold,
            repack: false,
            advise: mode == Mode::Selective,
            budget_bytes: None,
            readahead_bytes: None,
            policy: None,
            lookahead: None,
            replay: false,
            is_reference: false,
        }
    }

    pub(crate) fn outcome(load_ms: u64) -> Outcome {
        Outcome {
            model: ModelFacts {
                description: "tiny F16".into(),
                size_bytes: 900,
                n_params: 450,
                n_vocab: 256,
                n_layer: 2,
            },
            build: BuildFacts {
                llama_build: "b12032".into(),
                ggml_version: "0.28.0".into(),
                patch_set_digest: "0123456789ab".into(),
                cpu_features: "AVX2".into(),
            },
            load_ns: load_ms * 1_000_000,
            prompt_ns: Some(2_000_000),
            warm_up_ns: Vec::new(),
            step_ns: vec![1_000_000; 4],
            steps: StepCounters {
                cpu_ns: vec![1_500_000; 4],
                read_bytes: vec![4096; 4],
                faults_major: vec![1; 4],
                faults_minor: vec![2; 4],
            },
            decode_loop_ns: 4_100_000,
            fingerprint: Some(Fingerprint {
                tokens: "aa".into(),
                logits: "bb".into(),
                after: vec!["ab".into(), "bb".into()],
            }),
            resident_after_load: Some(ByClass {
                dense_bytes: 500,
                sparse_bytes: 0,
                other_bytes: 100,
            }),
            resident_end: Some(ByClass {
                dense_bytes: 500,
                sparse_bytes: 200,
                other_bytes: 100,
            }),
            routing_checked: None,
            n_ctx: 256,
            advise: None,
            pager: None,
            buffers: Vec::new(),
        }
    }

    fn mark(point: Point, at_ms: u64, probe_ms: u64, read_bytes: u64, faults: u64) -> Mark {
        Mark {
            point,
            at_ns: at_ms * 1_000_000,
            probe_ns: probe_ms * 1_000_000,
            read_bytes: Some(read_bytes),
            faults_major: faults,
            faults_minor: 10 * faults,
        }
    }

    pub(crate) fn watched(load_ms: u64) -> Watched {
        Watched {
            started_ns: 1_000_000,
            marks: vec![
                mark(Point::Start, 2, 0, 50, 1),
                mark(Point::Loaded, 3 + load_ms, 0, 550, 3),
                mark(Point::FirstToken, 20 + load_ms, 5, 700, 5),
                mark(Point::Counted, 30 + load_ms, 5, 750, 5),
                mark(Point::End, 40 + load_ms, 6, 850, 7),
            ],
            samples: vec![(0.5, 10, 10).into(), (load_ms as f64, 600, 20).into()],
            peak: Rss {
                file_bytes: 600,
                anon_bytes: 20,
            },
            status: None,
            end: End::Complete(Box::new(outcome(load_ms))),
        }
    }

    #[test]
    fn figures_are_differences_between_marks() {
        let figures = Figures::of(&watched(10), &outcome(10), Some(7)).unwrap();
        assert_eq!(figures.load_ms, Some(10.0));
        // 30 - 1 (start of the process) - 5 (looking at itself).
        assert_eq!(figures.first_token_ms, Some(24.0));
        assert_eq!(figures.token16_ms, None);
        assert_eq!(
            (figures.load_device_bytes, figures.device_bytes),
            (Some(500), Some(800))
        );
        assert_eq!(
            (figures.faults_major, figures.faults_minor),
            (Some(6), Some(60))
        );
        assert_eq!(
            (figures.counted_read_bytes, figures.counted_faults_major),
            (Some(100), Some(2))
        );
        assert_eq!(
            (
                figures.resident_after_load_bytes,
                figures.resident_end_bytes
            ),
            (Some(600), Some(800))
        );
        assert_eq!((figures.decode_ns, figures.n_decoded), (Some(4_000_000), 4));
    }

    #[test]
    fn a_run_that_was_not_cold_does_not_count() {
        let dirty = Prepared {
            resident_bytes: 4096,
            method: "fadvise".into(),
        };
        let end = End::Complete(Box::new(outcome(1)));
        let (status, reason) = judge(&row(Mode::Eager), &dirty, &end, 0);
        assert_eq!(status, RunStatus::NotCold);
        assert!(reason.unwrap().contains("4096"));
        let warm = Row {
            cache: CacheState::Warm,
            ..row(Mode::Eager)
        };
        assert_eq!(judge(&warm, &dirty, &end, 0).0, RunStatus::Ok);
    }

    #[test]
    fn a_kill_is_the_budget_only_with_a_budget_and_an_oom_count() {
        let none = Prepared::default();
        let budget = Row {
            budget_bytes: Some(1 << 20),
            ..row(Mode::Eager)
        };
        let (status, reason) = judge(&budget, &none, &End::Killed, 1);
        assert_eq!(status, RunStatus::ExceededBudget);
        assert!(reason.unwrap().contains("exceeded the budget of 1048576"));
        assert_eq!(judge(&budget, &none, &End::Killed, 0).0, RunStatus::Failed);
        let shell = End::Failed("it ended with exit status: 137".into());
        assert_eq!(
            judge(&budget, &none, &shell, 1).0,
            RunStatus::ExceededBudget
        );
        assert_eq!(judge(&budget, &none, &shell, 0).0, RunStatus::Failed);
        assert_eq!(
            judge(&row(Mode::Eager), &none, &End::Killed, 1).0,
            RunStatus::Failed
        );
    }
}
