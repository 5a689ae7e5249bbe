//! A measurement: all rows, interleaved, with the machine prepared before each run and put back after it.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tempfile::TempDir;

use crate::backing;
use crate::bounds::Bounds;
use crate::cache::{self, Prepared, Unchanged};
use crate::cli::{Plan, RunArgs, Switch};
use crate::device::BlockDevice;
use crate::host::{self, Host};
use crate::interrupt::{self, Interrupted};
use crate::limit::{Limit, Limiter};
use crate::models;
use crate::output::{self, Format, RunFolder};
use crate::peer::Values;
use crate::predict::Predictor;
use crate::procfs;
use crate::protocol::Outcome;
use crate::readahead::{self, Readahead};
use crate::record::{Figures, RunRecord, RunStatus, judge};
use crate::recording::Recordings;
use crate::residency::{ByClass, ModelMap};
use crate::results::{ModelSetup, Report, RowResult, Setup, Test};
use crate::routing::{OWN, Replay};
use crate::runner::{self, End, Watched};
use crate::size::{MIB, format_bytes};
use crate::spec::{CacheState, Engine, Mode, Routing, Row, TokenSource, WorkerSpec};
use crate::steps::StepsFile;
use crate::stock;

/// Measures what `args` ask for, prints the result and keeps it.
pub(crate) fn run(args: &RunArgs) -> Result<ExitCode> {
    let model = match &args.model {
        Some(path) => path.clone(),
        None => models::demo(args.quiet)?,
    };
    let files = gguf::ModelFiles::open(&model)?;
    let plan = args.plan(files.total_bytes())?;
    let replay = args
        .routing
        .as_ref()
        .map(|given| Replay::new(given, args.routing_skip as usize, plan.n_tokens(), &files))
        .transpose()?;
    let steps = args.steps.as_deref().map(StepsFile::create).transpose()?;
    let mut rows = plan.axes.rows();
    if args.twice {
        rows = rows
            .into_iter()
            .flat_map(|row| std::iter::repeat_n(row.clone(), if row.is_reference { 1 } else { 2 }))
            .collect();
    }
    let limiter = rows
        .iter()
        .any(|row| row.budget_bytes.is_some())
        .then(|| Limiter::detect(args.limit_by));
    let bounds = bounds(args, plan.n_prompt_tokens(), &files)?;
    let predictor = predictor(args, &plan)?;
    let recordings = Recordings::new(args, &plan, &rows, &files)?;
    let mut bench = Bench::new(&model, &files, plan, replay, limiter)?;
    (bench.bounds, bench.predictor, bench.recordings) = (bounds, predictor, recordings);
    bench.touches_memory = match args.touch_memory {
        Some(switch) => switch == Switch::On,
        None => backing::is_reported(),
    };
    let mut setup = bench.setup(&files);
    setup.step_ms = args.step_ms;
    let mut report = Report::new(setup, rows);
    skip_what_does_not_fit(&mut report);
    bench.check_budgets(&report.rows, args.quiet)?;
    let mut folder = RunFolder::create(
        &args
            .out
            .clone()
            .map_or_else(|| default_folder(&model), Ok)?,
    )?;

    warn_of_competition(&report.setup.host);
    let measured = bench.measure(&mut report, &mut folder, args);
    // Whatever happened, what was measured is kept.
    let kept = folder
        .finish(&report)
        .and_then(|()| steps.map_or(Ok(()), |steps| steps.finish(&report)));
    if let Err(error) = kept {
        measured?;
        return Err(error);
    }
    measured.with_context(|| {
        format!(
            "stopped; what was measured is in {}",
            folder.path().display()
        )
    })?;
    let kept_in = folder.path().display();
    report.check_fingerprints().map_err(|difference| {
        anyhow!("rows that must compute the same did not, so no times are reported ({kept_in} has them): {difference}")
    })?;
    if args.output != Format::Md && !args.quiet {
        eprint!("{}", output::header(&report));
    }
    output::print(&args.output.render(&report))?;
    if !args.quiet {
        eprintln!("kept in {kept_in}");
        if report.rows.len() == 1 {
            eprintln!("compare with the other modes: --prefetch=all");
        }
    }
    exit_code(&report)
}

/// What `--device-curve` asks for.
fn bounds(args: &RunArgs, n_prompt: usize, files: &gguf::ModelFiles) -> Result<Option<Bounds>> {
    let (Some(curve), Some(routing)) = (&args.device_curve, &args.routing) else {
        return Ok(None);
    };
    let window = (args.routing_skip as usize, n_prompt);
    Bounds::new(curve, routing, window, files).map(Some)
}

/// Where a pager replays a trace.
fn predictor(args: &RunArgs, plan: &Plan) -> Result<Option<Predictor>> {
    match &args.routing {
        Some(routing) if routing != Path::new(OWN) && plan.axes.modes.contains(&Mode::Pager) => {
            let (skip, n_prompt) = (args.routing_skip as usize, plan.n_prompt_tokens());
            Predictor::new(routing, skip, n_prompt).map(Some)
        }
        _ => Ok(None),
    }
}

/// A program that reads the whole model into memory of its own would only be killed.
fn skip_what_does_not_fit(report: &mut Report) {
    let file_bytes = report.setup.model.file_bytes;
    for result in &mut report.rows {
        let budget_bytes = result.row.budget_bytes;
        let Some(budget_bytes) = budget_bytes.filter(|budget_bytes| *budget_bytes < file_bytes)
        else {
            continue;
        };
        if result.row.is_all_in_memory() {
            result.refused = Some(format!(
                "does not fit: all {} of the model would be in memory, and the budget is {}",
                format_bytes(file_bytes),
                format_bytes(budget_bytes)
            ));
        }
    }
}

/// Worker threads that wait for each other lose far more than their share to whoever else computes.
fn warn_of_competition(host: &Host) {
    let busy_cores = f64::from(host.cores) / 2.0;
    if let Some(load) = host.load_average.filter(|load| *load > busy_cores) {
        eprintln!(
            "warning: load average {load:.2}: other processes compete for the CPUs, speeds will vary"
        );
    }
}

fn exit_code(report: &Report) -> Result<ExitCode> {
    let missing: Vec<_> = report.rows.iter().filter_map(RowResult::missing).collect();
    match missing.as_slice() {
        [] => Ok(ExitCode::SUCCESS),
        [first, ..] if missing.len() == report.rows.len() => {
            Err(anyhow!("no row could be measured: {first}"))
        }
        some => {
            eprintln!(
                "{} of {} rows could not be measured",
                some.len(),
                report.rows.len()
            );
            Ok(ExitCode::from(1))
        }
    }
}

/// `runs/<time>-<model>` in the cache folder.
fn default_folder(model: &Path) -> Result<PathBuf> {
    let stem = model.file_stem().map_or_else(
        || "model".into(),
        |stem| stem.to_string_lossy().into_owned(),
    );
    let time: String = host::now_utc()
        .chars()
        .filter(|c| !matches!(c, ':' | '-'))
        .collect();
    Ok(models::cache_folder()?
        .join("runs")
        .join(format!("{time}-{stem}")))
}

/// What a run needs beside the weights, about.
const RUN_BYTES: u64 = 512 * MIB;

/// Tokens that are compared with the routing trace before the first run.
const CHECKED_TOKENS: u32 = 2;

/// What stays the same for all runs.
struct Bench {
    plan: Plan,
    model: PathBuf,
    parts: Vec<PathBuf>,
    map: ModelMap,
    unchanged: Unchanged,
    device: Result<BlockDevice>,
    replay: Option<Replay>,
    bounds: Option<Bounds>,
    predictor: Option<Predictor>,
    /// What rows that replay start from.
    recordings: Option<Recordings>,
    /// The program of the stock rows, if there are any.
    stock: Option<PathBuf>,
    /// How budgets are enforced, if a row has one.
    limiter: Option<Result<Limiter>>,
    /// Whether free memory is touched before each run.
    touches_memory: bool,
    /// The readahead with which the page cache was filled, if nothing but warm runs has used it since.
    filled_with: Cell<Option<Option<u64>>>,
}

/// What came of one attempt to run a row.
enum Attempt {
    /// The conditions cannot be had.
    Refused(String),
    Ran(Box<RunRecord>),
}

impl Bench {
    fn new(
        model: &Path,
        files: &gguf::ModelFiles,
        plan: Plan,
        replay: Option<Replay>,
        limiter: Option<Result<Limiter>>,
    ) -> Result<Bench> {
        let parts = models::parts(files);
        Ok(Bench {
            plan,
            model: model.to_path_buf(),
            map: ModelMap::new(files),
            unchanged: Unchanged::new(&parts)?,
            parts,
            device: BlockDevice::of_file(model),
            replay,
            stock: None,
            bounds: None,
            predictor: None,
            recordings: None,
            limiter,
            touches_memory: false,
            filled_with: Cell::new(None),
        })
    }

    fn setup(&self, files: &gguf::ModelFiles) -> Setup {
        let footprint = files.dense_sparse();
        Setup {
            bench_version: env!("CARGO_PKG_VERSION").into(),
            host: Host::of_model(&self.model),
            model: ModelSetup {
                filename: self.model.file_name().map_or_else(
                    || "model".into(),
                    |name| name.to_string_lossy().into_owned(),
                ),
                file_bytes: files.total_bytes(),
                dense_bytes: footprint.dense_bytes,
                sparse_bytes: footprint.sparse_bytes,
                other_bytes: footprint.other_bytes,
                parts: files.parts.len(),
            },
            n_prompt: self.plan.n_prompt,
            n_prompts: self.plan.n_prompts,
            n_warm_up: self.plan.n_warm_up,
            n_gen: self.plan.n_gen,
            n_batch: self.plan.n_batch,
            n_ubatch: self.plan.n_ubatch,
            n_threads: self.plan.n_threads,
            flash_attn: self.plan.flash_attn,
            repetitions: self.plan.repetitions,
            decode_limit_ns: self.plan.decode_limit_ns,
            baseline_limit_ns: self.plan.baseline_limit_ns,
            step_ms: None,
            routing: self.replay.as_ref().map(|replay| replay.setup.clone()),
            started: host::now_utc(),
            cgroup: self
                .limiter
                .as_ref()
                .and_then(|found| found.as_ref().ok())
                .map(Limiter::describe),
            preread_bytes_per_s: None,
            touches_memory: self.touches_memory,
        }
    }

    fn measure(
        &mut self,
        report: &mut Report,
        folder: &mut RunFolder,
        args: &RunArgs,
    ) -> Result<()> {
        let any_cold = report
            .rows
            .iter()
            .any(|result| result.row.cache == CacheState::Cold);
        let progress = Progress::new(report.rows.len() * self.plan.repetitions, args.quiet);
        let is_stock = |result: &RowResult| matches!(result.row.engine, Engine::Stock(_));
        if report.rows.iter().any(is_stock) {
            progress.state("building stock llama.cpp");
            self.stock = Some(stock::build()?);
        }
        if any_cold && !args.no_warmup {
            progress.state("reading the model once");
            report.setup.preread_bytes_per_s = Some(self.preread()?);
        }
        if let (Some(replay), Some(setup)) = (&self.replay, &mut report.setup.routing) {
            progress.state("comparing the experts that are read with the routing trace");
            setup.checked = self.check_routing(replay)?;
        }
        folder.keep_setup(&report.setup)?;
        for repetition in 0..self.plan.repetitions {
            for (place, index) in interleaved(report.rows.len(), repetition).enumerate() {
                let result = &mut report.rows[index];
                if gives_up(result) {
                    result.runs.push(None);
                    progress.step(None);
                    continue;
                }
                progress.state(&format!(
                    "{} ({}/{})",
                    result.row.label(),
                    repetition + 1,
                    self.plan.repetitions
                ));
                match self.attempt(&result.row)? {
                    Attempt::Refused(reason) => {
                        progress.step(Some(&format!("{}: refused: {reason}", result.row.label())));
                        result.refused = Some(reason);
                        result.runs.push(None);
                    }
                    Attempt::Ran(mut run) => {
                        (run.row_index, run.repetition, run.place) = (index, repetition, place);
                        folder.append(&run)?;
                        progress.step(Some(&self.line(&run)));
                        // Our own failure says that something is wrong here; a baseline's is a result.
                        let is_ours = run.row.engine == Engine::Faultline;
                        let failure = (run.status == RunStatus::Failed && is_ours)
                            .then(|| run.reason.clone())
                            .flatten();
                        result.runs.push(Some(*run));
                        if let Some(reason) = failure {
                            return Err(anyhow!("{}: {reason}", result.row.label()));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads all files once and returns the rate.
    fn preread(&self) -> Result<f64> {
        let mut seconds = 0.0;
        let total = cache::total_len(&self.parts)?;
        for part in &self.parts {
            let len = cache::total_len(std::slice::from_ref(part))?;
            seconds += len as f64 / cache::read_through(part)?;
        }
        Ok(total as f64 / seconds.max(1e-9))
    }

    /// Prepares the machine, runs the row once, and puts everything back.
    fn attempt(&self, row: &Row) -> Result<Attempt> {
        interrupt::check()?;
        self.unchanged.check()?;
        let replayed = match &self.recordings {
            Some(recordings) if row.replay => Some(self.recorded(recordings, row)?),
            _ => None,
        };
        let prepared = match self.prepare(row) {
            Ok(prepared) => prepared,
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => return Ok(Attempt::Refused(format!("{error:#}"))),
        };
        let limit = prepared.limit.as_ref();
        let spec = WorkerSpec {
            replay: replayed.as_ref().map(|folder| folder.path().to_path_buf()),
            ..self.worker_spec(row, limit.and_then(Limit::procs_file))
        };
        let device = self.device.as_ref().ok();
        let disk_before = device.and_then(BlockDevice::read_bytes_total);
        let steal_before = procfs::steal_ticks();
        let started = host::now_utc();

        let mut watched = self.launch(row, &spec)?;
        // Before anything is made of the run: a file that was cut short kills a worker that has it mapped.
        self.unchanged.check()?;

        let disk_after = device.and_then(BlockDevice::read_bytes_total);
        let steal_after = procfs::steal_ticks();
        let cgroup_peak_bytes = limit.and_then(Limit::peak_bytes);
        let oom_kills = limit.map_or(0, Limit::oom_kills);
        let (status, reason) = judge(row, &prepared.page_cache, &watched.end, oom_kills);
        let end = std::mem::replace(&mut watched.end, End::Killed);
        let (bound, predicted_miss_bytes) = match &end {
            End::Complete(outcome) => (
                self.bounds
                    .as_ref()
                    .and_then(|bounds| bounds.of(row.budget_bytes, outcome)),
                self.predictor
                    .as_ref()
                    .and_then(|predictor| predictor.miss_bytes(outcome)),
            ),
            _ => (None, None),
        };
        let (outcome, mut figures) = match end {
            End::Complete(outcome) => {
                let figures = Figures::of(&watched, &outcome, cgroup_peak_bytes);
                (Some(*outcome), figures)
            }
            End::Rate(rate) => {
                let figures = Figures::of_rate(rate, self.plan.n_gen, cgroup_peak_bytes);
                (None, Some(figures))
            }
            _ => (None, None),
        };
        // A baseline does not look at the page cache. What it leaves there is still there: the limit holds until the end of this function.
        if let Some(figures) = figures.as_mut().filter(|f| f.resident_end_bytes.is_none()) {
            figures.resident_end_bytes = self.map.resident().ok().map(ByClass::total);
        }
        Ok(Attempt::Ran(Box::new(RunRecord {
            row_index: 0,
            repetition: 0,
            place: 0,
            started,
            started_ns: watched.started_ns,
            row: row.clone(),
            status,
            reason,
            page_cache: prepared.page_cache,
            readahead_bytes: device.and_then(|device| readahead::current_bytes(device).ok()),
            cgroup_peak_bytes,
            bound_ts: None,
            bound,
            predicted_miss_bytes,
            disk_read_bytes: disk_before
                .zip(disk_after)
                .map(|(before, after)| after.saturating_sub(before)),
            // A tick is 10 ms on every Linux that reports it to user space.
            steal_ms: steal_before
                .zip(steal_after)
                .map(|(before, after)| after.saturating_sub(before) * 10),
            figures,
            kernel_status: watched.status,
            marks: watched.marks,
            outcome,
            rss: watched.samples,
        })))
    }

    /// What a run of this row needed, in a folder of its own. The first time, that run is made; it is not measured.
    fn recorded(&self, recordings: &Recordings, row: &Row) -> Result<TempDir> {
        let folder = recordings.folder_of(row);
        if !folder.exists() {
            let mut spec = WorkerSpec {
                replay: Some(folder),
                ..self.worker_spec(row, None)
            };
            spec.routing = recordings.routing().or(spec.routing);
            self.run_aside(&spec, &row.label())?;
        }
        recordings.copy_of(row)
    }

    /// Runs the row's program to its end.
    fn launch(&self, row: &Row, spec: &WorkerSpec) -> Result<Watched> {
        let timeout = self.plan.timeout;
        match &row.engine {
            Engine::Faultline => runner::run(runner::worker(spec)?, timeout),
            Engine::Stock(load_mode) => {
                let program = self.stock.as_deref().context("stock was not built")?;
                runner::run(stock::command(program, spec, *load_mode), timeout)
            }
            Engine::Command(name) => {
                let mut peers = self.plan.peers.iter();
                let peer = peers
                    .find(|peer| peer.name == *name)
                    .with_context(|| format!("no command is called {name}"))?;
                let values = Values {
                    model: &self.model,
                    n_gen: spec.n_gen,
                    n_prompt: spec.n_prompt,
                    n_threads: spec.n_threads,
                };
                let command = peer.command(values, spec.cgroup_procs.as_deref());
                runner::run_peer(command, timeout, |output| peer.tokens_per_s(output))
            }
        }
    }

    /// A few tokens in a run that is not measured, with an observer that compares every expert that is read with the trace.
    fn check_routing(&self, replay: &Replay) -> Result<u64> {
        if replay.routing == Routing::Own {
            return Ok(0);
        }
        let row = Row {
            engine: Engine::Faultline,
            mode: Mode::None,
            cache: CacheState::Warm,
            repack: false,
            advise: false,
            budget_bytes: None,
            readahead_bytes: None,
            policy: None,
            lookahead: None,
            replay: false,
            is_reference: false,
        };
        let spec = WorkerSpec {
            n_prompt: 0,
            n_prompts: 1,
            n_warm_up: 0,
            n_gen: CHECKED_TOKENS.min(replay.setup.tokens as u32),
            decode_limit_ns: None,
            check_routing: true,
            ..self.worker_spec(&row, None)
        };
        let outcome = self.run_aside(&spec, &replay.setup.name)?;
        Ok(outcome.routing_checked.unwrap_or_default())
    }

    /// Whether the pager can do with the smallest budget, before hours are spent on larger ones: the model is loaded within it, and
    /// nothing is computed. Repacking takes memory of its own.
    fn check_budgets(&self, rows: &[RowResult], quiet: bool) -> Result<()> {
        let progress = Progress::new(0, quiet);
        progress.state("planning the pager's smallest budget");
        for repack in [false, true] {
            let paged = rows.iter().map(|result| &result.row).filter(|row| {
                row.mode == Mode::Pager && row.repack == repack && row.budget_bytes.is_some()
            });
            if let Some(row) = paged.min_by_key(|row| row.budget_bytes) {
                let spec = WorkerSpec {
                    tokens: TokenSource::Nowhere,
                    ..self.worker_spec(row, None)
                };
                self.run_aside(&spec, &row.label())?;
            }
        }
        Ok(())
    }

    /// A run that is not measured, and without which nothing can be. `what` it is for is in the error.
    fn run_aside(&self, spec: &WorkerSpec, what: &str) -> Result<Outcome> {
        match runner::run(runner::worker(spec)?, self.plan.timeout)?.end {
            End::Complete(outcome) => Ok(*outcome),
            End::Failed(reason) => bail!("{what}: {reason}"),
            end => bail!("{what}: a run before the first that counts ended: {end:?}"),
        }
    }

    fn prepare(&self, row: &Row) -> Result<Conditions> {
        let readahead = match row.readahead_bytes {
            None => None,
            Some(bytes) => {
                let device = self
                    .device
                    .as_ref()
                    .map_err(|error| anyhow!("readahead cannot be set: {error:#}"))?;
                Some(Readahead::set(device, bytes)?)
            }
        };
        let filled_with = self.filled_with.take();
        let page_cache = match row.cache {
            CacheState::Cold => cache::make_cold(&self.parts)?,
            CacheState::Warm if filled_with == Some(row.readahead_bytes) => {
                cache::keep_warm(&self.parts)?
            }
            CacheState::Warm => cache::make_warm(&self.parts)?,
        };
        if row.cache == CacheState::Warm {
            self.filled_with.set(Some(row.readahead_bytes));
        }
        if self.touches_memory {
            backing::touch(self.needed_bytes(row)?)?;
        }
        // Last: a balloon must not push out what was just read, and locks what the page cache has given up.
        let limit = match (row.budget_bytes, &self.limiter) {
            (None, _) => None,
            (Some(bytes), Some(Ok(limiter))) => Some(limiter.set(bytes)?),
            (Some(_), Some(Err(error))) => return Err(anyhow!("{error:#}")),
            (Some(_), None) => return Err(anyhow!("no way to limit memory was looked for")),
        };
        Ok(Conditions {
            page_cache,
            limit,
            _readahead: readahead,
        })
    }

    /// All memory that a run of this row can use, about.
    fn needed_bytes(&self, row: &Row) -> Result<u64> {
        let model_bytes = cache::total_len(&self.parts)?;
        let copy_bytes = if row.repack { model_bytes } else { 0 };
        Ok(row
            .budget_bytes
            .unwrap_or(model_bytes + copy_bytes + RUN_BYTES))
    }

    fn worker_spec(&self, row: &Row, cgroup_procs: Option<PathBuf>) -> WorkerSpec {
        let limit_ns = self.plan.decode_limit_ns;
        let decode_limit_ns = match row.engine {
            Engine::Faultline => limit_ns,
            _ => self.plan.baseline_limit_ns.or(limit_ns),
        };
        WorkerSpec {
            model: self.model.clone(),
            mode: row.mode,
            budget_bytes: row.budget_bytes,
            repack: row.repack,
            advise: row.advise,
            n_prompt: self.plan.n_prompt,
            n_prompts: self.plan.n_prompts,
            n_warm_up: self.plan.n_warm_up,
            n_gen: self.plan.n_gen,
            n_batch: self.plan.n_batch,
            n_ubatch: self.plan.n_ubatch,
            n_threads: self.plan.n_threads,
            flash_attn: self.plan.flash_attn,
            decode_limit_ns,
            tokens: TokenSource::Greedy,
            routing: self.replay.as_ref().map(|replay| replay.routing.clone()),
            check_routing: false,
            cgroup_procs,
            policy: row.policy.clone(),
            lookahead: row.lookahead.clone(),
            replay: None,
            reads: self.plan.reads.clone(),
        }
    }

    /// One run in a line, for people who watch.
    fn line(&self, run: &RunRecord) -> String {
        let label = run.row.label();
        let Some(figures) = &run.figures else {
            return format!("{label}: {}", run.reason.as_deref().unwrap_or("no figures"));
        };
        let mut parts = Vec::new();
        if let Some(ms) = figures.load_ms {
            parts.push(format!("load {ms:.0} ms"));
        }
        if let Some(bytes) = figures.resident_after_load_bytes {
            parts.push(format!("{} resident", format_bytes(bytes)));
        }
        if let Some(bytes) = figures.load_device_bytes {
            parts.push(format!("{} read", format_bytes(bytes)));
        }
        if let Some(ms) = figures.first_token_ms {
            parts.push(format!("first token {ms:.0} ms"));
        }
        if let Some(ns) = crate::results::test_ns(figures, Test::Decode) {
            let n_decoded = figures.n_decoded;
            let rate = n_decoded as f64 * 1e9 / ns as f64;
            parts.push(format!("{rate:.2} t/s"));
            if n_decoded < self.plan.n_gen as usize {
                parts.push(format!("{n_decoded} tokens"));
            }
        }
        let mut line = format!("{label}: {}", parts.join(", "));
        if let Some(reason) = &run.reason {
            line.push_str(&format!("; does not count: {reason}"));
        }
        line
    }
}

/// The machine as one run needs it. Dropping it puts everything back.
struct Conditions {
    page_cache: Prepared,
    limit: Option<Limit>,
    _readahead: Option<Readahead>,
}

/// Whether a row is not tried again: refused, failed as a baseline, or too large for its budget or its time, which the next
/// repetition would be as well.
fn gives_up(result: &RowResult) -> bool {
    let hopeless = |run: &RunRecord| {
        matches!(
            run.status,
            RunStatus::ExceededBudget | RunStatus::TimedOut | RunStatus::Failed
        )
    };
    result.refused.is_some() || result.runs.iter().flatten().any(hopeless)
}

/// Row indices of repetition `repetition`: rotated by one each time, so that no row always runs first or always runs
/// after the same neighbour's leftovers.
fn interleaved(rows: usize, repetition: usize) -> impl Iterator<Item = usize> {
    (0..rows).map(move |i| (i + repetition) % rows)
}

/// Progress on standard error: a bar on a terminal, a line for each run in both cases.
struct Progress {
    bar: ProgressBar,
    quiet: bool,
}

impl Progress {
    fn new(runs: usize, quiet: bool) -> Progress {
        let bar = if quiet {
            ProgressBar::hidden()
        } else {
            ProgressBar::new(runs as u64)
        };
        if let Ok(style) = ProgressStyle::with_template("[{pos}/{len}] {wide_bar} {msg}") {
            bar.set_style(style);
        }
        Progress { bar, quiet }
    }

    fn state(&self, text: &str) {
        self.bar.set_message(text.to_string());
        self.bar.tick();
    }

    fn step(&self, line: Option<&str>) {
        if let Some(line) = line.filter(|_| !self.quiet) {
            // `println` of a bar that is not drawn prints nothing.
            self.bar.suspend(|| eprintln!("{line}"));
        }
        self.bar.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::report;
    use crate::spec::LoadMode;

    #[test]
    fn every_row_takes_every_place() {
        for place in 0..3 {
            let mut seen: Vec<_> = (0..3)
                .map(|rep| interleaved(3, rep).nth(place).unwrap())
                .collect();
            seen.sort_unstable();
            assert_eq!(seen, [0, 1, 2]);
        }
    }

    #[test]
    fn a_program_that_needs_all_of_the_model_is_not_run_in_less() {
        let mut report = report();
        report.rows[0].row.engine = Engine::Stock(LoadMode::None);
        skip_what_does_not_fit(&mut report);
        assert_eq!(report.rows[0].refused, None);
        for result in &mut report.rows {
            result.row.budget_bytes = Some(999);
            result.runs.clear();
        }
        skip_what_does_not_fit(&mut report);
        let reason = report.rows[0].refused.as_deref().unwrap();
        assert!(
            reason.contains("does not fit") && reason.contains("999 B"),
            "{reason}"
        );
        assert_eq!(
            (report.rows[0].status(), &report.rows[1].refused),
            ("refused", &None)
        );
    }
}
