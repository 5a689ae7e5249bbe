//! What the user can type.

mod answers;
mod loading;
mod memory;
mod report;
mod serve;
mod simulate;

use std::path::PathBuf;

use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use llama_rs::KvType;

pub(crate) use answers::{
    DumpArgs, ExportArgs, ExportFormat, InfoArgs, InfoFormat, LogArgs, MapArgs, MapFormat,
};

use crate::version;

pub(crate) use loading::{Loading, PagerArgs};
pub(crate) use memory::{MemoryArgs, MemoryFormat};
pub(crate) use report::{DiffArgs, ReportArgs};
pub(crate) use serve::{CheckArgs, PsArgs, ServeArgs, ServerArgs, StopArgs, TableFormat};
pub(crate) use simulate::{Format, Pool, SimulateArgs};

const EXAMPLES: &str = "\
EXAMPLES:
  Continue a text, always the most probable token:
    faultline run -m model.gguf -p \"The capital of Germany is\" --raw --temp 0 -n 16
  Ask a question with the model's chat template, reading only what is needed:
    faultline run -m model.gguf -p \"Why is the sky blue?\" --prefetch selective
  A model larger than memory, within 7 GiB in all:
    faultline run -m model.gguf -p \"Why is the sky blue?\" --prefetch pager --budget 7GiB
  Repeatable sampling of a prompt in a file:
    faultline run -m model.gguf -f prompt.txt --seed 7 --temp 0.6 --top-p 0.9
  With an adapter at half strength, and a smaller KV cache:
    faultline run -m model.gguf -p \"Hello\" --lora-scaled adapter.gguf:0.5 --cache-type-k q8_0 --cache-type-v q8_0
  Token ids only, for comparisons:
    faultline run -m model.gguf -p \"Hello\" --raw --temp 0 -n 32 --ids -q

EXIT CODES:
  0    done (also when the reader of standard output went away)
  1    failure while running, such as a failed read or too little memory
  2    bad input: wrong usage, or a model or prompt that cannot be used
  130  ended by Ctrl-C";

/// Shows which weight bytes a language model reads, and loads only those.
#[derive(Debug, Parser)]
#[command(
    name = "faultline",
    version,
    after_help = "Exit codes: 0 done, 1 failure while running, 2 bad input, 130 ended by Ctrl-C."
)]
#[command(arg_required_else_help = true, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Generate text from a prompt.
    Run(RunArgs),
    /// Generate text and record every access to a weight in a log.
    Record(RecordArgs),
    /// Simulate caches of experts on a routing trace or an access log.
    Simulate(SimulateArgs),
    /// Say what a log's run read, how often, in which order, and what for nothing.
    Report(ReportArgs),
    /// Compare two logs or reports, number by number.
    Diff(DiffArgs),
    /// Show where a model's tensors are in its files.
    Map(MapArgs),
    /// Turn a log into CSV, Parquet or a trace for Perfetto.
    Export(ExportArgs),
    /// Print the records of a log.
    Dump(DumpArgs),
    /// Say what a log holds.
    Info(InfoArgs),
    /// Predict how much memory a model takes, say why, and measure it.
    Memory(MemoryArgs),
    /// Serve models over HTTP: loaded on demand, within a budget, unloaded when idle.
    Serve(ServeArgs),
    /// List the models of a running server.
    Ps(PsArgs),
    /// Unload a model of a running server.
    Stop(StopArgs),
    /// Measure the models of a configuration against its thresholds.
    Check(CheckArgs),
}

const RECORD_EXAMPLES: &str = "\
EXAMPLES:
  Record a prompt and 64 tokens:
    faultline record -m model.gguf -p \"The capital of Germany is\" -n 64 -o run.ftrace
  What was read of each tensor that is read by slices:
    faultline record -m model.gguf -p \"Hello\" -n 16 -o run.ftrace -v
  What the kernel did for it (the last two as root): page faults, what is in memory after each step, reads from the disk:
    faultline record -m model.gguf -p \"Hello\" -n 16 -o run.ftrace -v --prefetch none --faults --residency --block

EXIT CODES: those of `faultline run`";

/// All options of `run`, and where the log goes. Text goes to standard output; progress to standard error, if that is a
/// terminal and, once text comes, standard output is none.
#[derive(Debug, Args)]
#[command(after_help = RECORD_EXAMPLES)]
#[group(skip)]
pub(crate) struct RecordArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,

    /// The log; replaces a file of that name.
    #[arg(short, long, value_name = "FILE", help_heading = "Log")]
    pub(crate) output: PathBuf,

    /// Most that the log takes on disk, in MiB; it is reserved at the start, and what is not used is given back.
    #[arg(long, value_name = "MIB", default_value_t = tracer::CAPACITY_BYTES_DEFAULT >> 20, help_heading = "Log")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub(crate) log_size: u64,

    /// When the log is full: the oldest records give way, or the run ends.
    #[arg(
        long,
        value_name = "wrap|stop",
        default_value = "wrap",
        help_heading = "Log"
    )]
    pub(crate) on_full: OnFull,

    /// Record page faults in the model's files too: when, and which page. Needs kernel.perf_event_paranoid of at most 2.
    /// Pages that are mapped ahead of their use (--prefetch eager, selective) do not fault.
    #[arg(long, help_heading = "Kernel")]
    pub(crate) faults: bool,

    /// Record what is read of the model's files from the disk, by whomever. Needs root or CAP_PERFMON, tracefs, and a file
    /// system that lies directly on a disk.
    #[arg(long, help_heading = "Kernel")]
    pub(crate) block: bool,

    /// Record how much of each tensor is in the page cache: at the start, after loading, and after every N steps.
    #[arg(
        long,
        value_name = "N",
        num_args = 0..=1,
        default_missing_value = "1",
        help_heading = "Kernel"
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) residency: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnFull {
    Wrap,
    Stop,
}

/// Text goes to standard output, everything else to standard error.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_override_self = true)]
#[group(skip)]
pub(crate) struct RunArgs {
    /// The model: a GGUF file, or the first file of a split one.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) model: PathBuf,

    /// The prompt.
    #[arg(
        short,
        long,
        value_name = "TEXT",
        required_unless_present = "file",
        conflicts_with = "file"
    )]
    pub(crate) prompt: Option<String>,

    /// Read the prompt from a file; `-` reads standard input.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// Generate at most this many tokens; -1: until the model ends its answer or the context is full.
    #[arg(short, long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(i64).range(-1..=i64::from(u32::MAX)))]
    pub(crate) n_predict: i64,

    /// Continue the prompt as plain text, without the model's chat template.
    #[arg(long, conflicts_with_all = ["chat", "system"], help_heading = "Prompt")]
    pub(crate) raw: bool,

    /// Put the prompt into the model's chat template, and fail if the model has none [default: if the model has one].
    #[arg(long, help_heading = "Prompt")]
    pub(crate) chat: bool,

    /// A system message before the prompt; implies --chat.
    #[arg(long, value_name = "TEXT", help_heading = "Prompt")]
    pub(crate) system: Option<String>,

    /// Temperature; 0 always takes the most probable token.
    #[arg(
        long,
        visible_alias = "temperature",
        value_name = "T",
        default_value_t = 0.8,
        help_heading = "Sampling"
    )]
    #[arg(value_parser = temperature)]
    pub(crate) temp: f32,

    /// Keep the K most probable tokens; 0 keeps all.
    #[arg(
        long,
        value_name = "K",
        default_value_t = 40,
        help_heading = "Sampling"
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=i64::from(i32::MAX)))]
    pub(crate) top_k: u32,

    /// Keep the most probable tokens that together have probability P; 1 keeps all.
    #[arg(long, value_name = "P", default_value_t = 0.95, value_parser = probability, help_heading = "Sampling")]
    pub(crate) top_p: f32,

    /// Keep tokens with at least P times the probability of the most probable one; 0 keeps all.
    #[arg(long, value_name = "P", default_value_t = 0.05, value_parser = probability, help_heading = "Sampling")]
    pub(crate) min_p: f32,

    /// Seed of the random numbers [default: a new one for every run, printed at the start].
    #[arg(short, long, value_name = "N", help_heading = "Sampling")]
    pub(crate) seed: Option<u32>,

    /// What is read of the model before the first token: all of the file (eager), nothing (none), or only what every
    /// token reads in full (selective and pager: experts are read when a token needs them). With pager, memory is
    /// bounded: see --budget.
    #[arg(long, value_name = "MODE", default_value_t = Loading::default(), value_parser = loading::modes(), help_heading = "Loading")]
    pub(crate) prefetch: Loading,

    #[command(flatten)]
    pub(crate) pager: PagerArgs,

    /// Bring weights into the layout that suits the CPU best: faster, but that part of the model is in memory twice; once with
    /// --prefetch pager. Experts that the kernel reads on demand (selective, none) stay as they are.
    #[arg(
        long,
        value_name = "on|off",
        default_value = "on",
        help_heading = "Loading"
    )]
    pub(crate) repack: Switch,

    /// Context size in tokens; 0: as many as the model was trained for [default: 4096, or fewer if the model was
    /// trained for fewer].
    #[arg(short, long, value_name = "N", help_heading = "Loading")]
    pub(crate) ctx_size: Option<u32>,

    /// Type of the keys in the KV cache.
    #[arg(long, value_name = "TYPE", default_value_t = KvType::F16, value_parser = kv_types(), help_heading = "Loading")]
    pub(crate) cache_type_k: KvType,

    /// Type of the values in the KV cache.
    #[arg(long, value_name = "TYPE", default_value_t = KvType::F16, value_parser = kv_types(), help_heading = "Loading")]
    pub(crate) cache_type_v: KvType,

    /// Change the model by a LoRA adapter; several with commas or by repeating the option.
    #[arg(
        long,
        value_name = "FILE",
        value_delimiter = ',',
        help_heading = "Loading"
    )]
    pub(crate) lora: Vec<PathBuf>,

    /// As --lora, with the adapter's part multiplied by a number.
    #[arg(long, value_name = "FILE:SCALE", value_delimiter = ',', value_parser = scaled, help_heading = "Loading")]
    pub(crate) lora_scaled: Vec<(PathBuf, f32)>,

    /// Threads [default: one for each CPU that the process may use].
    #[arg(short, long, value_name = "N", help_heading = "Loading")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(llama_rs::MAX_THREADS)))]
    pub(crate) threads: Option<u32>,

    /// Print token ids instead of text: one line for the prompt, one for what was generated.
    #[arg(long, help_heading = "Output")]
    pub(crate) ids: bool,

    /// Show llama.cpp's log; twice: its debug messages too.
    #[arg(short, long, action = ArgAction::Count, help_heading = "Output")]
    pub(crate) verbose: u8,

    /// Print errors only: no progress bar, no configuration, no summary.
    #[arg(short, long, conflicts_with = "verbose", help_heading = "Output")]
    pub(crate) quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

/// The parsed command line. Wrong usage, `--help` and `--version` end the process here.
pub(crate) fn parse() -> Cli {
    let matches = command().get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

fn command() -> clap::Command {
    Cli::command().long_version(version::long())
}

fn kv_types() -> impl clap::builder::TypedValueParser<Value = KvType> {
    use clap::builder::{PossibleValuesParser, TypedValueParser};
    PossibleValuesParser::new(KvType::ALL.map(KvType::as_str))
        .try_map(|kind| kind.parse::<KvType>())
}

/// The last colon counts: a name may contain some.
fn scaled(text: &str) -> Result<(PathBuf, f32), String> {
    let (file, scale) = text
        .rsplit_once(':')
        .filter(|(file, _)| !file.is_empty())
        .ok_or("expected FILE:SCALE")?;
    let scale = number_in(scale, f32::MIN, f32::MAX, "a number after the last colon")?;
    Ok((PathBuf::from(file), scale))
}

fn temperature(text: &str) -> Result<f32, String> {
    number_in(text, 0.0, f32::MAX, "a number of at least 0")
}

fn probability(text: &str) -> Result<f32, String> {
    number_in(text, 0.0, 1.0, "a number from 0 to 1")
}

/// Not-a-number is in no range.
fn number_in(text: &str, low: f32, high: f32, expected: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(number) if (low..=high).contains(&number) => Ok(number),
        _ => Err(format!("expected {expected}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_args(arguments: &[&str]) -> Result<RunArgs, clap::Error> {
        let matches =
            command().try_get_matches_from([&["faultline", "run"], arguments].concat())?;
        match Cli::from_arg_matches(&matches)?.command {
            Command::Run(run) => Ok(run),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn short_flags_are_those_of_llama_cpp() {
        let run = run_args(&[
            "-m", "a", "-p", "b", "-n", "-1", "-c", "9", "-t", "2", "-s", "3", "-q",
        ])
        .unwrap();
        assert_eq!(
            (run.n_predict, run.ctx_size, run.threads, run.seed),
            (-1, Some(9), Some(2), Some(3))
        );
        assert_eq!(
            run_args(&["-m", "a", "-f", "-"]).unwrap().file,
            Some(PathBuf::from("-"))
        );
    }

    #[test]
    fn the_last_of_repeated_flags_counts() {
        let run = run_args(&[
            "-m", "a", "-p", "b", "-n", "1", "--raw", "-n", "2", "--raw", "-v", "-v",
        ])
        .unwrap();
        assert_eq!((run.n_predict, run.raw, run.verbose), (2, true, 2));
    }

    #[test]
    fn every_prefetch_mode_parses() {
        for mode in Loading::ALL {
            let run = run_args(&["-m", "a", "-p", "b", "--prefetch", mode.as_str()]).unwrap();
            assert_eq!(run.prefetch, mode);
        }
    }

    #[test]
    fn budgets_and_policies_are_for_the_pager() {
        let options = |flags: &[&str]| {
            let run = run_args(&[&["-m", "a", "-p", "b"], flags].concat()).unwrap();
            run.pager
                .options(run.prefetch)
                .map_err(|error| error.to_string())
        };
        assert!(options(&[]).unwrap().is_none());
        let paged = ["--prefetch", "pager"];
        let given = options(&[&paged[..], &["--budget", "50%", "--policy", "lru"]].concat());
        let given = given.unwrap().unwrap();
        assert_eq!(given.budget, pager::Budget::Percent(50.0));
        assert_eq!(given.policy.to_string(), "lru");
        let left = options(&paged).unwrap().unwrap();
        assert_eq!(left.budget, pager::Budget::Auto);
        for flags in [
            ["--budget", "7GiB"],
            ["--policy", "lru"],
            ["--lookahead", "router:0.3"],
            ["--replay", "on"],
        ] {
            let message = options(&flags).unwrap_err();
            assert!(message.contains("--prefetch pager"), "{message}");
        }
    }

    #[test]
    fn every_type_of_the_kv_cache_parses() {
        for kind in KvType::ALL {
            let flags = ["--cache-type-k", kind.as_str(), "--cache-type-v", "f32"];
            let run = run_args(&[&["-m", "a", "-p", "b"], &flags[..]].concat()).unwrap();
            assert_eq!((run.cache_type_k, run.cache_type_v), (kind, KvType::F32));
        }
    }

    #[test]
    fn adapters_add_up() {
        let flags = [
            "--lora",
            "x,y",
            "--lora",
            "z",
            "--lora-scaled",
            "a:b:0.5,c:-2",
        ];
        let run = run_args(&[&["-m", "a", "-p", "b"], &flags[..]].concat()).unwrap();
        assert_eq!(run.lora, ["x", "y", "z"].map(PathBuf::from));
        let scaled = [("a:b", 0.5), ("c", -2.0)].map(|(file, scale)| (PathBuf::from(file), scale));
        assert_eq!(run.lora_scaled, scaled);
    }

    #[test]
    fn impossible_values_are_wrong_usage() {
        for wrong in [
            &["--prefetch", "lazy"][..],
            &["--budget", "much"],
            &["--policy", "random"],
            &["--lookahead", "router"],
            &["--temp", "NaN"],
            &["--temp", "-1"],
            &["--temp", "inf"],
            &["--top-p", "1.5"],
            &["--min-p", "-0.1"],
            &["--top-k", "-1"],
            &["--threads", "0"],
            &["--threads", "513"],
            &["--repack", "maybe"],
            &["-n", "-2"],
            &["--cache-type-k", "q6_K"],
            &["--cache-type-v", "F16"],
            &["--lora-scaled", "a"],
            &["--lora-scaled", "a:"],
            &["--lora-scaled", ":1"],
            &["--lora-scaled", "a:nan"],
            &["--raw", "--chat"],
            &["--raw", "--system", "x"],
            &["-f", "x"],
            &["-v", "-q"],
        ] {
            let error = run_args(&[&["-m", "a", "-p", "b"], wrong].concat()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong:?}: {error}");
        }
        assert_eq!(run_args(&["-m", "a"]).unwrap_err().exit_code(), 2);
        assert_eq!(run_args(&["-p", "a"]).unwrap_err().exit_code(), 2);
    }
}
