//! The command line.

mod device;
mod rows;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};

pub(crate) use device::{DeviceArgs, RooflineArgs};

use crate::host;
use crate::limit::LimitBy;
use crate::output::Format;
use crate::peer::{self, Peer};
use crate::size::{Budget, MIB, format_bytes, parse_size};
use crate::spec::{
    Axes, Baseline, CacheState, FlashAttn, LoadMode, Mode, Modes, Reads, Repack, TOLD,
};
use rows::{PagerArgs, ReferenceArgs};

/// Below this a worker cannot even start.
const SMALLEST_BUDGET_BYTES: u64 = 16 * MIB;

const AFTER_HELP: &str = "\
EXAMPLES:
  bench --prefetch=all                          demo model, cold, eager against none against selective
  bench -m model.gguf --prefetch=eager,selective --both -r 7 --repack both
  bench -m model.gguf --prefetch=all --budget 7000MB --readahead 128KiB,8MiB
  bench -m gpt-oss-20b.gguf --prefetch=selective --baseline stock --routing traces/gpqa.routes.u8 --budget 50% \
      --decode-seconds 20
  bench -m gpt-oss-20b.gguf --prefetch=pager --budget 7000MB --reference stock:none --routing traces/gpqa.routes.u8 --warm-up 64 -n 256
  bench report runs/first runs/second/raw.jsonl --output report.html
  bench make-model --shape gpt-oss-20b -o gpt-oss-20b.gguf
  bench overhead -m model.gguf --llama-bench path/to/llama-bench
  bench trace-cost -m model.gguf
  bench device -m model.gguf

Sizes: K, M, G and KiB, MiB, GiB are powers of 1024; KB, MB, GB are powers of 1000.

EXIT CODES:
  0 every row was measured; 1 some rows could not be measured, the output says why;
  2 wrong usage, an error, or results that contradict each other; 130 interrupted (what was measured is written)";

/// Measures what the prefetch modes do to load time, memory, device bytes and speed.
///
/// Every run is a process of its own; the rows' runs are interleaved; before every cold run no page of the model is in
/// memory, before every warm run all are. The results come as one row for each mode and test, llama-bench's fields first.
#[derive(Debug, Parser)]
#[command(name = "bench", version, after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a model with random weights in the shape of a real one
    MakeModel(MakeModelArgs),
    /// Show the raw samples of runs as Markdown or as a web page with plots
    Report(ReportArgs),
    /// Compare the wrapper's decode speed with the patched llama-bench's, in alternating pairs
    Overhead(OverheadArgs),
    /// Measure what recording every access costs, and what the hooks cost while nothing is recorded
    TraceCost(TraceCostArgs),
    /// Measure random reads of the model's file system by request size and queue depth
    Device(DeviceArgs),
    /// The speed that no engine exceeds within a budget, from a routing trace or log, a device curve and a step in memory
    Roofline(RooflineArgs),
    /// The process that decodes blocks for trace-cost
    #[command(hide = true)]
    Blocks {
        /// What to do, as JSON.
        spec: String,
    },
    /// The process that is measured
    #[command(hide = true)]
    Worker {
        /// What to do, as JSON.
        spec: String,
    },
}

/// Options of a measurement.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Model file, or the first of a split set [default: a generated demo model in the cache folder]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) model: Option<PathBuf>,
    /// Prefetch modes: eager, none, selective, pager (experts in slots, dense weights
    /// in memory or streamed, within the budget), all (the first three), or a list; the first is the
    /// reference of the ratios
    #[arg(long, value_name = "MODES", default_value = "all")]
    prefetch: Modes,
    /// Tokens of the prompt. Few by default: a long prompt touches every expert, whatever the mode
    #[arg(short = 'p', long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    n_prompt: u32,
    /// Prompts one after the other, each with an emptied KV cache and with a trace's next tokens; the last one counts. The first one also
    /// fills the slots, and gets memory for them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    prompts: u32,
    /// Tokens to compute one by one after the prompt; at most so many with --decode-seconds
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=1_000_000), overrides_with = "n_gen")]
    n_gen: u32,
    /// Tokens between the prompt and those that count: computed and compared with other rows, and in no rate, step or time limit of those
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000), overrides_with = "warm_up")]
    warm_up: u32,
    /// No further token is begun when those that count have taken so long together; rates are those of what was computed. A warm-up ends
    /// after the same time
    #[arg(long, value_name = "SECONDS", value_parser = positive_seconds, overrides_with = "decode_seconds")]
    decode_seconds: Option<Duration>,
    /// Use the experts that a routing trace names instead of those that the model picks: FILE is NAME.routes.u8, with
    /// NAME.routes.json beside it. `own` keeps the model's picks, at the same cost
    #[arg(long, value_name = "FILE")]
    pub(crate) routing: Option<PathBuf>,
    /// Tokens of the trace to leave out; the prompt begins after them
    #[arg(long, value_name = "N", default_value_t = 0, requires = "routing")]
    pub(crate) routing_skip: u32,
    /// Tokens of the trace to use, by prompt, warm-up and decode together; stands for --n-gen
    #[arg(long, value_name = "N", requires = "routing", conflicts_with = "n_gen", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    tokens: Option<u32>,
    /// State each row's share of the speed that no engine exceeds: the device's curve, as `bench device -o json` prints it
    #[arg(long, value_name = "FILE", requires = "routing")]
    pub(crate) device_curve: Option<PathBuf>,
    /// Milliseconds of one token with all weights in memory, for --device-curve [default: those of the fastest --reference]
    #[arg(long, value_name = "MS", requires = "device_curve", value_parser = parse_step_ms)]
    pub(crate) step_ms: Option<f64>,
    /// Rows of llama.cpp without patches, built from the same source: stock (the same as stock:mmap), stock:none, stock:dio,
    /// stock:all, or a list. They come first
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    baseline: Vec<Baseline>,
    /// A row of another program: a command for `sh` in which {model}, {tokens}, {prompt_tokens} and {threads} are replaced. Can be
    /// given more than once
    #[arg(long, value_name = "NAME=COMMAND")]
    baseline_cmd: Vec<String>,
    /// Where that program's speed is in its output: a regular expression whose first group is tokens per second; the last match
    /// counts. One for all, or one for each --baseline-cmd [default: llama.cpp's own words]
    #[arg(long, value_name = "REGEX", requires = "baseline_cmd")]
    baseline_regex: Vec<String>,
    #[command(flatten)]
    references: ReferenceArgs,
    #[command(flatten)]
    pub(crate) pager: PagerArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Repetitions of every row
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000), overrides_with = "repetitions")]
    repetitions: u32,
    /// No page of the model in memory at the start (the default)
    #[arg(long, group = "cache")]
    cold: bool,
    /// All pages of the model in memory at the start
    #[arg(long, group = "cache")]
    warm: bool,
    /// Cold rows and warm rows
    #[arg(long, group = "cache")]
    both: bool,
    /// Repacking of weights. `off` compares like with like, for experts that the kernel reads on demand are never repacked; `both`
    /// adds eager, pager and stock rows with repacking on; with `pager` it is on in pager rows alone
    #[arg(long, value_enum, default_value_t = Repack::Off)]
    repack: Repack,
    /// The slice provider that asks for a layer's missing slices in one batch [default: on for selective, off otherwise]
    #[arg(long, value_enum)]
    advise: Option<Switch>,
    /// Memory limits, page cache included: sizes, percentages of the model's size, `auto` for what is free at the start less 5 % and at
    /// least 256 MiB, or `none`; a list multiplies the rows
    #[arg(long, value_name = "SIZES", value_delimiter = ',')]
    budget: Vec<Budget>,
    /// How the limit is enforced: by a memory group, by locking all other memory of the machine, or as `auto` by the first where it
    /// is permitted and otherwise by the second
    #[arg(long, value_enum, default_value_t = LimitBy::Auto)]
    pub(crate) limit_by: LimitBy,
    /// Readahead of the model's device during the run; a list multiplies the rows
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = parse_size)]
    readahead: Vec<u64>,
    /// A file for the steps of every run, as CSV: time, CPU time, bytes read and page faults of each token
    #[arg(long, value_name = "FILE")]
    pub(crate) steps: Option<PathBuf>,
    /// Every row twice: by how much a row differs from itself shows what the machine can tell apart
    #[arg(long)]
    pub(crate) twice: bool,
    /// Format on standard output; progress goes to standard error
    #[arg(short, long, value_enum, default_value_t = Format::Md)]
    pub(crate) output: Format,
    /// Folder for raw.jsonl, summary.{md,csv,json}, setup.json and load-rss.svg [default: a new one in the cache folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// A run that takes longer is stopped
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Do not read the model once before the first run (it makes a virtual machine's host equally warm for all rows)
    #[arg(long)]
    pub(crate) no_warmup: bool,
    /// Touch the free memory that a run can use before it starts: where a host takes free memory of its virtual machine back, getting it again takes
    /// up to 5 ms for 2 MiB, and how much of it is gone depends on what ran before [default: on where a balloon device reports free pages]
    #[arg(long, value_enum)]
    pub(crate) touch_memory: Option<Switch>,
    /// No progress on standard error
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// A duration that lets something be computed.
fn positive_seconds(text: &str) -> Result<Duration> {
    match text.parse().map(Duration::try_from_secs_f64) {
        Ok(Ok(duration)) if !duration.is_zero() => Ok(duration),
        _ => bail!("`{text}` is not a number of seconds above 0"),
    }
}

/// Options that shape the computation.
#[derive(Clone, Debug, Args)]
pub(crate) struct ComputeArgs {
    /// Threads [default: one for each physical core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=512))]
    threads: Option<u32>,
    /// Most tokens of one decode call
    #[arg(short, long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) batch_size: u32,
    /// Most tokens of one graph
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) ubatch_size: u32,
    /// Fused attention
    #[arg(long, value_enum, default_value_t = FlashAttn::Auto)]
    pub(crate) flash_attn: FlashAttn,
}

impl ComputeArgs {
    pub(crate) fn n_threads(&self) -> u32 {
        self.threads.unwrap_or_else(host::default_threads)
    }
}

fn parse_step_ms(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ms) if ms.is_finite() && ms > 0.0 => Ok(ms),
        _ => Err(format!("{text:?} is not a number of milliseconds above 0")),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

#[derive(Debug, Args)]
pub(crate) struct MakeModelArgs {
    /// Name of the shape: gpt-oss-20b (13.8 GB), qwen3-30b-a3b, deepseek-v2-lite, llama-dense (8B), llama-2-7b, llama-3b (3.4 GB), demo,
    /// tiny-gpt-oss and others; an unknown name prints all
    #[arg(long, value_name = "NAME")]
    pub(crate) shape: String,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Seed of the random weights
    #[arg(long, value_name = "N", conflicts_with = "hollow")]
    pub(crate) seed: Option<u64>,
    /// No weights: holes in the file, which read as zeros and take no disk. For questions of memory
    #[arg(long)]
    pub(crate) hollow: bool,
    /// No progress on standard error
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Files raw.jsonl (also compressed: raw.jsonl.gz) with setup.json beside them, or folders that hold such files. What stands before
    /// `raw` in a file's name stands before `setup` too
    #[arg(required = true, value_name = "FILES")]
    pub(crate) files: Vec<PathBuf>,
    /// The speeds that no engine exceeds within the rows' budgets: a JSON array of objects with `budget_bytes` (null: no limit) and
    /// `tokens_per_s`, as `bench roofline -o json` prints it. Rows then state their share
    #[arg(long, value_name = "FILE")]
    pub(crate) bounds: Option<PathBuf>,
    /// Format [default: html if --output names such a file, otherwise md]
    #[arg(short = 'o', long, value_enum)]
    pub(crate) format: Option<ReportFormat>,
    /// The file to write [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Format of `bench report`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ReportFormat {
    Md,
    Html,
}

#[derive(Debug, Args)]
pub(crate) struct OverheadArgs {
    /// The patched llama-bench, built with the same options as this program
    #[arg(long, value_name = "FILE")]
    pub(crate) llama_bench: PathBuf,
    /// Model file
    #[arg(short, long, value_name = "FILE")]
    pub(crate) model: PathBuf,
    /// Tokens of each run
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) n_gen: u32,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
    /// Pairs of runs
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) pairs: u32,
    /// Repacking of weights, in both programs
    #[arg(long, value_enum, default_value_t = Switch::Off)]
    pub(crate) repack: Switch,
    /// Print JSON instead of Markdown
    #[arg(long)]
    pub(crate) json: bool,
    /// A run that takes longer is stopped
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: u64,
}

#[derive(Debug, Args)]
pub(crate) struct TraceCostArgs {
    /// Model file
    #[arg(short, long, value_name = "FILE")]
    pub(crate) model: PathBuf,
    /// bench/native/blocks.cpp built against the unpatched source (scripts/trace-cost.sh builds both and calls this)
    #[arg(long, value_name = "FILE")]
    pub(crate) unpatched: Option<PathBuf>,
    /// The same program built against the patched source
    #[arg(long, value_name = "FILE")]
    pub(crate) patched: Option<PathBuf>,
    /// Tokens of a block
    #[arg(short = 'n', long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) n_tokens: u32,
    /// Threads [default: one for each physical core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=512))]
    threads: Option<u32>,
    /// How often the processes are started
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) rounds: u32,
    /// Blocks of each row in a round
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) blocks: u32,
    /// Print JSON instead of Markdown
    #[arg(long)]
    pub(crate) json: bool,
}

impl TraceCostArgs {
    pub(crate) fn n_threads(&self) -> u32 {
        self.threads.unwrap_or_else(host::default_threads)
    }
}

/// A measurement as asked for, checked.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) axes: Axes,
    pub(crate) peers: Vec<Peer>,
    pub(crate) n_prompt: u32,
    pub(crate) n_prompts: u32,
    pub(crate) n_warm_up: u32,
    pub(crate) n_gen: u32,
    pub(crate) decode_limit_ns: Option<u64>,
    /// The same of baselines, where it is another.
    pub(crate) baseline_limit_ns: Option<u64>,
    pub(crate) reads: Reads,
    pub(crate) n_batch: u32,
    pub(crate) n_ubatch: u32,
    pub(crate) n_threads: u32,
    pub(crate) flash_attn: FlashAttn,
    pub(crate) repetitions: usize,
    pub(crate) timeout: Duration,
}

impl Plan {
    /// Tokens that a run decodes before its warm-up.
    pub(crate) fn n_prompt_tokens(&self) -> usize {
        self.n_prompt as usize * self.n_prompts as usize
    }

    /// Tokens of a routing trace that a run takes.
    pub(crate) fn n_tokens(&self) -> usize {
        self.n_prompt_tokens() + self.n_warm_up as usize + self.n_gen as usize
    }
}

impl RunArgs {
    /// Checks what clap cannot. `model_bytes` is the size of the model's files.
    pub(crate) fn plan(&self, model_bytes: u64) -> Result<Plan> {
        let n_gen = match self.tokens {
            None => self.n_gen,
            Some(tokens) if tokens >= self.n_prompt + self.warm_up => {
                tokens - self.n_prompt - self.warm_up
            }
            Some(tokens) => bail!(
                "--tokens {tokens} is less than the {} of prompt and warm-up, which take tokens of the trace as well",
                self.n_prompt + self.warm_up
            ),
        };
        if self.warm_up > 0 && n_gen == 0 {
            bail!("--warm-up is for tokens that count after it, but there are none: give --n-gen");
        }
        if self.pager.is_used() && !self.prefetch.0.contains(&Mode::Pager) {
            bail!(
                "--policy, --lookahead, --replay, --reads, --read-depth and --request-size are for the pager: give --prefetch=pager"
            );
        }
        if self.routing.is_none()
            && let Some(told) = (self.pager.lookahead.iter()).find(|name| name.starts_with(TOLD))
        {
            bail!("--lookahead {told} takes what comes from a routing trace: give --routing TRACE");
        }
        if self.device_curve.is_some()
            && self.step_ms.is_none()
            && self.references.reference.is_empty()
        {
            bail!(
                "--device-curve needs the time of a token with all weights in memory: give --step-ms, or --reference stock:none"
            );
        }
        if self.n_prompt == 0 && n_gen == 0 {
            bail!("nothing to compute: --n-prompt and --n-gen are both 0");
        }
        let peers = self.peers()?;
        if n_gen == 0 && !peers.is_empty() {
            bail!("--baseline-cmd measures decoding, but --n-gen is 0");
        }
        let mut stock: Vec<LoadMode> = Vec::new();
        for mode in self.baseline.iter().flat_map(|baseline| &baseline.0) {
            if !stock.contains(mode) {
                stock.push(*mode);
            }
        }
        let caches = match (self.warm, self.both) {
            (_, true) => vec![CacheState::Cold, CacheState::Warm],
            (true, _) => vec![CacheState::Warm],
            _ => vec![CacheState::Cold],
        };
        let resolve = |given: &[Budget]| -> Result<Option<Vec<Option<u64>>>> {
            let budgets = given.iter().map(|budget| budget.resolve(model_bytes));
            (!given.is_empty()).then(|| budgets.collect()).transpose()
        };
        let budgets = resolve(&self.budget)?.unwrap_or_else(|| vec![None]);
        let baseline_budgets = resolve(&self.references.baseline_budget)?;
        for bytes in budgets
            .iter()
            .chain(baseline_budgets.iter().flatten())
            .flatten()
        {
            if *bytes < SMALLEST_BUDGET_BYTES {
                bail!(
                    "a budget of {} is too small: no run starts in less than {}",
                    format_bytes(*bytes),
                    format_bytes(SMALLEST_BUDGET_BYTES)
                );
            }
            if caches.contains(&CacheState::Warm) {
                bail!(
                    "--budget and --warm contradict each other: pages that are in memory before the run belong to \
                     another memory group and would not count; use --cold"
                );
            }
        }
        let readaheads = |given: &[u64]| -> Option<Vec<Option<u64>>> {
            (!given.is_empty()).then(|| given.iter().copied().map(Some).collect())
        };
        let limit_ns = |limit: Option<Duration>| limit.map(|limit| limit.as_nanos() as u64);
        Ok(Plan {
            axes: Axes {
                references: self.references.reference.clone(),
                policies: self.pager.policy.iter().map(ToString::to_string).collect(),
                lookaheads: self.pager.lookahead.clone(),
                replays: self.pager.replays(),
                baseline_budgets,
                baseline_readaheads: readaheads(&self.references.baseline_readahead),
                stock,
                commands: peers.iter().map(|peer| peer.name.clone()).collect(),
                modes: self.prefetch.0.clone(),
                caches,
                repack: self.repack,
                advise: self.advise.map(|switch| switch == Switch::On),
                budgets,
                readaheads: readaheads(&self.readahead).unwrap_or_else(|| vec![None]),
            },
            peers,
            n_prompt: self.n_prompt,
            n_prompts: self.prompts,
            n_warm_up: self.warm_up,
            n_gen,
            decode_limit_ns: limit_ns(self.decode_seconds),
            baseline_limit_ns: limit_ns(self.references.baseline_seconds),
            reads: self.pager.reads(),
            n_batch: self.compute.batch_size,
            n_ubatch: self.compute.ubatch_size.min(self.compute.batch_size),
            n_threads: self.compute.n_threads(),
            flash_attn: self.compute.flash_attn,
            repetitions: self.repetitions as usize,
            timeout: Duration::from_secs(self.timeout),
        })
    }

    fn peers(&self) -> Result<Vec<Peer>> {
        let (n, regexes) = (self.baseline_cmd.len(), self.baseline_regex.as_slice());
        let mut peers: Vec<Peer> = Vec::new();
        for (index, definition) in self.baseline_cmd.iter().enumerate() {
            let regex = match regexes {
                [] => peer::DEFAULT_REGEX,
                [one] => one,
                each if each.len() == n => &each[index],
                _ => bail!(
                    "{} --baseline-regex for {n} --baseline-cmd: give one, or one for each",
                    regexes.len()
                ),
            };
            let peer = Peer::new(definition, regex)?;
            if peers.iter().any(|other| other.name == peer.name) {
                bail!("two --baseline-cmd are called {}", peer.name);
            }
            peers.push(peer);
        }
        Ok(peers)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    fn parse(args: &[&str]) -> Result<Plan, String> {
        let cli =
            Cli::try_parse_from([&["bench"], args].concat()).map_err(|error| error.to_string())?;
        cli.run.plan(1 << 30).map_err(|error| error.to_string())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults() {
        let plan = parse(&[]).unwrap();
        assert_eq!(plan.axes.modes, Mode::ALL);
        assert_eq!(plan.axes.caches, [CacheState::Cold]);
        assert_eq!(plan.axes.repack, Repack::Off);
        assert_eq!((plan.n_prompt, plan.n_gen, plan.repetitions), (16, 64, 5));
        assert!(plan.n_threads >= 1);
    }

    #[test]
    fn lists() {
        let plan = parse(&[
            "--prefetch=eager,selective",
            "--budget",
            "50%,none",
            "--readahead",
            "128KiB,8MiB",
        ])
        .unwrap();
        assert_eq!(plan.axes.budgets, [Some(1 << 29), None]);
        assert_eq!(plan.axes.readaheads, [Some(128 << 10), Some(8 << 20)]);
        assert_eq!(plan.axes.rows().len(), 8);
    }

    #[test]
    fn baselines_and_windows() {
        let plan = parse(&[
            "--prefetch=selective",
            "--baseline",
            "stock,stock:all",
            "--baseline-cmd",
            "peer=peer -m {model} -n {tokens}",
            "--routing",
            "x.routes.u8",
            "--tokens",
            "40",
            "--decode-seconds",
            "1.5",
        ])
        .unwrap();
        assert_eq!((plan.n_prompt, plan.n_gen), (16, 24));
        assert_eq!(plan.decode_limit_ns, Some(1_500_000_000));
        let rows: Vec<_> = plan
            .axes
            .rows()
            .iter()
            .map(crate::spec::Row::name)
            .collect();
        assert_eq!(
            rows,
            ["stock mmap", "stock none", "stock dio", "peer", "selective"]
        );
        for bad in [
            &["--tokens", "40"][..],
            &["--routing", "x", "--tokens", "15"],
            &["--routing", "x", "--tokens", "40", "-n", "3"],
            &["--decode-seconds", "0"],
            &["--decode-seconds", "soon"],
            &["--baseline", "stick"],
            &["--baseline-regex", "(x)"],
            &["--baseline-cmd", "a={model}", "--baseline-cmd", "a={model}"],
            &[
                "--baseline-cmd",
                "a={model}",
                "--baseline-regex",
                "(x)",
                "--baseline-regex",
                "(y)",
            ],
            &["--baseline-cmd", "a={model}", "-n", "0"],
            &["--warm-up", "1", "-n", "0"],
            &["--routing", "x", "--tokens", "40", "--warm-up", "25"],
            &["--policy", "lru"],
            &["--prefetch=pager", "--policy", "belady"],
            &["--prefetch=pager", "--lookahead", "router:2"],
            &["--prefetch=pager", "--lookahead", "told:often"],
            &["--prefetch=pager", "--lookahead", "told:1"],
            &["--prefetch=pager", "--read-depth", "0"],
            &["--prefetch=pager", "--request-size", "8GiB"],
            &["--routing", "x", "--device-curve", "y"],
            &["--reference", "eager"],
        ] {
            parse(bad).unwrap_err();
        }
    }

    #[test]
    fn options_of_the_pager_and_of_references() {
        let plan = parse(&[
            "--prefetch=pager",
            "--policy",
            "lfu-mix,lru",
            "--reads=threads",
            "--read-depth",
            "4",
            "--request-size",
            "1MiB",
            "--reference",
            "stock:none",
            "--warm-up",
            "5",
            "--decode-seconds",
            "9",
            "--decode-seconds",
            "10",
            "--baseline-seconds",
            "2",
            "--budget",
            "50%",
        ])
        .unwrap();
        let labels: Vec<_> = plan
            .axes
            .rows()
            .iter()
            .map(crate::spec::Row::label)
            .collect();
        assert_eq!(
            labels,
            [
                "stock none cold",
                "pager cold lfu-mix:0.7:0.97:0.2 in 512 MiB",
                "pager cold lru in 512 MiB"
            ]
        );
        assert_eq!(
            (plan.reads.depth, plan.reads.request_bytes),
            (Some(4), Some(1 << 20))
        );
        assert_eq!(
            (plan.decode_limit_ns, plan.baseline_limit_ns),
            (Some(10_000_000_000), Some(2_000_000_000))
        );
        assert_eq!((plan.n_warm_up, plan.n_gen), (5, 64));
    }

    #[test]
    fn nonsense_is_refused_with_the_reason() {
        let refused = |args: &[&str], words: &[&str]| {
            let message = parse(args).unwrap_err();
            for word in words {
                assert!(message.contains(word), "{args:?}: {message}");
            }
        };
        refused(
            &["--prefetch=lazy"],
            &["lazy", "eager", "none", "selective", "all"],
        );
        refused(&["-p", "0", "-n", "0"], &["both 0"]);
        refused(&["--budget", "1MiB"], &["too small", "16 MiB"]);
        refused(&["--budget", "many"], &["many"]);
        refused(&["--budget", "50%", "--warm"], &["--cold"]);
        refused(&["--cold", "--warm"], &["cannot be used with"]);
        refused(&["-t", "0"], &["0"]);
        refused(&["-t", "513"], &["513"]);
        refused(&["-o", "sql"], &["md", "jsonl"]);
        refused(&["-r", "0"], &["0"]);
    }
}
