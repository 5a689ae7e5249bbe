//! Options of `faultline memory`.

use std::path::PathBuf;

use analysis::memory::Change;
use clap::{Args, ValueEnum};
use llama_rs::{KvType, Prefetch};

use super::{Switch, kv_types};

const EXAMPLES: &str = "\
EXAMPLES:
  Why does a 3.8 GB model need 6 GB, and what removes how much?
    faultline memory -m model.gguf -c 4096 --explain
  Is it true? Loads the model, computes a ubatch, and asks the kernel:
    faultline memory -m model.gguf -c 4096 --measure
  What each change alone would save, and all together:
    faultline memory -m model.gguf --what-if n_ctx=2048,repack=off,prefetch=selective
  From the file's metadata alone, for an architecture that this llama.cpp cannot run, too:
    faultline memory -m model.gguf --metadata-only

CHANGES:
  n_ctx=N  n_ubatch=N  type_k=TYPE  type_v=TYPE  repack=on|off  prefetch=eager|none|selective  flash_attn=on|off  threads=N

EXIT CODES: 0 done, 1 failure while running, such as too little memory for --measure, 2 bad input";

/// How much memory a model takes, before it is loaded: weights and KV cache from the file's metadata, buffers as llama.cpp plans them
/// without reading a weight. Results go to standard output.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES, args_override_self = true)]
#[group(skip)]
pub(crate) struct MemoryArgs {
    /// The model: a GGUF file, or the first file of a split one.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) model: PathBuf,

    /// Context size in tokens; 0: as many as the model was trained for [default: 4096, or fewer if the model was
    /// trained for fewer].
    #[arg(short, long, value_name = "N", help_heading = "Use")]
    pub(crate) ctx_size: Option<u32>,

    /// Most tokens that are computed in one graph.
    #[arg(
        long,
        visible_alias = "ub",
        value_name = "N",
        default_value_t = 512,
        help_heading = "Use"
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) ubatch_size: u32,

    /// Type of the keys in the KV cache.
    #[arg(long, visible_alias = "type-k", value_name = "TYPE", default_value_t = KvType::F16, value_parser = kv_types(), help_heading = "Use")]
    pub(crate) cache_type_k: KvType,

    /// Type of the values in the KV cache.
    #[arg(long, visible_alias = "type-v", value_name = "TYPE", default_value_t = KvType::F16, value_parser = kv_types(), help_heading = "Use")]
    pub(crate) cache_type_v: KvType,

    /// Whether weights are copied into the layout that suits the CPU best.
    #[arg(
        long,
        value_name = "on|off",
        default_value = "on",
        help_heading = "Use"
    )]
    pub(crate) repack: Switch,

    /// The same as --repack off.
    #[arg(long, conflicts_with = "repack", help_heading = "Use")]
    pub(crate) no_repack: bool,

    /// What is read at load: all of the file (eager), nothing (none), or what every token reads in full (selective).
    #[arg(long, value_name = "MODE", default_value_t = Prefetch::Eager, value_parser = prefetch_values(), help_heading = "Use")]
    pub(crate) prefetch: Prefetch,

    /// Threads [default: one for each CPU that the process may use].
    #[arg(short, long, value_name = "N", help_heading = "Use")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(llama_rs::MAX_THREADS)))]
    pub(crate) threads: Option<u32>,

    /// Also run the model in a process of its own and show what it held: a ubatch and a few single tokens.
    #[arg(long, conflicts_with = "metadata_only", help_heading = "Answer")]
    pub(crate) measure: bool,

    /// Do not ask llama.cpp: what the file's metadata do not determine is an estimate.
    #[arg(long, help_heading = "Answer")]
    pub(crate) metadata_only: bool,

    /// Say in words what takes how much and why, and which option removes it.
    #[arg(long, help_heading = "Answer")]
    pub(crate) explain: bool,

    /// Changes, each shown alone, and all together.
    #[arg(
        long,
        value_name = "KEY=VALUE,..",
        value_delimiter = ',',
        help_heading = "Answer"
    )]
    pub(crate) what_if: Vec<Change>,

    /// Tables for people, one line for each part, or one JSON object.
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        default_value = "md",
        help_heading = "Answer"
    )]
    pub(crate) output: MemoryFormat,

    /// The process of --measure: one line of JSON.
    #[arg(long, hide = true)]
    pub(crate) worker: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MemoryFormat {
    Md,
    Csv,
    Json,
}

/// Modes in which the kernel decides what stays in memory.
fn prefetch_values() -> impl clap::builder::TypedValueParser<Value = Prefetch> {
    use clap::builder::{PossibleValuesParser, TypedValueParser};
    PossibleValuesParser::new(Prefetch::ALL.map(Prefetch::as_str))
        .try_map(|mode| mode.parse::<Prefetch>())
}
