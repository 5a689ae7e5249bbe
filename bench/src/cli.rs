//! The command line.

mod device;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};

pub(crate) use device::{DeviceArgs, RooflineArgs};

use crate::host;
use crate::output::Format;
use crate::size::{Budget, MIB, format_bytes, parse_size};
use crate::spec::{Axes, CacheState, FlashAttn, Modes, Repack};

/// Below this a worker cannot even start.
const SMALLEST_BUDGET_BYTES: u64 = 16 * MIB;

const AFTER_HELP: &str = "\
EXAMPLES:
  bench --prefetch=all                          demo model, cold, eager against none against selective
  bench -m model.gguf --prefetch=eager,selective --both -r 7 --repack both
  bench -m model.gguf --prefetch=all --budget 7000MB --readahead 128KiB,8MiB
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
    /// Prefetch modes: eager, none, selective, all, or a list; the first is the reference of the ratios
    #[arg(long, value_name = "MODES", default_value = "all")]
    prefetch: Modes,
    /// Tokens of the prompt. Few by default: a long prompt touches every expert, whatever the mode
    #[arg(short = 'p', long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    n_prompt: u32,
    /// Tokens to compute one by one after the prompt
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    n_gen: u32,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Repetitions of every row
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
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
    /// Repacking of weights. `off` compares like with like, for sparse tensors are never repacked; `both` adds eager rows
    /// with repacking on
    #[arg(long, value_enum, default_value_t = Repack::Off)]
    repack: Repack,
    /// The slice provider that asks for a layer's missing slices in one batch [default: on for selective, off otherwise]
    #[arg(long, value_enum)]
    advise: Option<Switch>,
    /// Memory limits, page cache included: sizes, percentages of the model's size, or `none`; a list multiplies the rows
    #[arg(long, value_name = "SIZES", value_delimiter = ',')]
    budget: Vec<Budget>,
    /// Readahead of the model's device during the run; a list multiplies the rows
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = parse_size)]
    readahead: Vec<u64>,
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
    /// No progress on standard error
    #[arg(short, long)]
    pub(crate) quiet: bool,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

#[derive(Debug, Args)]
pub(crate) struct MakeModelArgs {
    /// Name of the shape: gpt-oss-20b (13.8 GB), qwen3-30b-a3b, deepseek-v2-lite, llama-dense, demo, tiny-gpt-oss and others;
    /// an unknown name prints all
    #[arg(long, value_name = "NAME")]
    pub(crate) shape: String,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Seed of the random weights
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// No progress on standard error
    #[arg(short, long)]
    pub(crate) quiet: bool,
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
    pub(crate) n_prompt: u32,
    pub(crate) n_gen: u32,
    pub(crate) n_batch: u32,
    pub(crate) n_ubatch: u32,
    pub(crate) n_threads: u32,
    pub(crate) flash_attn: FlashAttn,
    pub(crate) repetitions: usize,
    pub(crate) timeout: Duration,
}

impl RunArgs {
    /// Checks what clap cannot. `model_bytes` is the size of the model's files.
    pub(crate) fn plan(&self, model_bytes: u64) -> Result<Plan> {
        if self.n_prompt == 0 && self.n_gen == 0 {
            bail!("nothing to compute: --n-prompt and --n-gen are both 0");
        }
        let caches = match (self.warm, self.both) {
            (_, true) => vec![CacheState::Cold, CacheState::Warm],
            (true, _) => vec![CacheState::Warm],
            _ => vec![CacheState::Cold],
        };
        let budgets: Vec<_> = match self.budget.as_slice() {
            [] => vec![None],
            given => given
                .iter()
                .map(|budget| budget.resolve(model_bytes))
                .collect(),
        };
        for bytes in budgets.iter().flatten() {
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
        let readaheads = match self.readahead.as_slice() {
            [] => vec![None],
            given => given.iter().map(|bytes| Some(*bytes)).collect(),
        };
        Ok(Plan {
            axes: Axes {
                modes: self.prefetch.0.clone(),
                caches,
                repack: self.repack,
                advise: self.advise.map(|switch| switch == Switch::On),
                budgets,
                readaheads,
            },
            n_prompt: self.n_prompt,
            n_gen: self.n_gen,
            n_batch: self.compute.batch_size,
            n_ubatch: self.compute.ubatch_size.min(self.compute.batch_size),
            n_threads: self.compute.n_threads(),
            flash_attn: self.compute.flash_attn,
            repetitions: self.repetitions as usize,
            timeout: Duration::from_secs(self.timeout),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::spec::Mode;

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
