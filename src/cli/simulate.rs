//! Options of `faultline simulate`.

use std::path::PathBuf;

use analysis::simulate::{PolicyName, Size};
use clap::{Args, ValueEnum};

const EXAMPLES: &str = "\
EXAMPLES:
  How often a cache of 8 or 16 of the experts of each layer hits:
    faultline simulate gpt-oss-20b.gpqa_main.routes.u8 --slots 8,16
  One cache for all layers, after 64 tokens of warm-up; an expert has 13.2 MB:
    faultline simulate trace.routes.u8 --pool global --slots 37.5% --slot-bytes 13200000 --warmup 64
  What a run that was recorded would read with 3 GiB for experts:
    faultline simulate run.ftrace --pool global --budget 3GiB

POLICIES:
  lru            the least recently used slice gives way
  lfu            the least frequently used one
  lfu-decay:D    the same, where all counts are multiplied by D before each token
  lfu-mix        the one used least by the last few tokens (a fifth of the value) and by some dozens (the rest)
  next-use       the one that is expected to be used again last, by what was learned from the tokens so far
  belady         the one whose next use is farthest away: what no policy can beat if all slices have the same size

EXIT CODES: 0 done, 1 failure while running, 2 bad input";

/// Cache policies on what a model really read: hits and missed bytes. Results go to standard output.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[group(skip)]
pub(crate) struct SimulateArgs {
    /// A routing trace NAME.u8 with NAME.json beside it, or an access log from `faultline record`.
    #[arg(value_name = "TRACE")]
    pub(crate) trace: PathBuf,

    /// Slots for each layer, or a share of all slices such as 37.5%; a shared cache has as many in all.
    #[arg(long, value_name = "N|P%,..", value_delimiter = ',', value_parser = slots)]
    #[arg(
        default_value = "25%,50%",
        conflicts_with = "budget",
        help_heading = "Cache"
    )]
    pub(crate) slots: Vec<Size>,

    /// Size of a shared cache in bytes, such as 3GiB or 7000MB; needs the sizes of slices.
    #[arg(long, value_name = "SIZE,..", value_delimiter = ',', value_parser = bytes, help_heading = "Cache")]
    pub(crate) budget: Vec<u64>,

    /// Whether each layer has a cache of its own, or all layers share one.
    #[arg(
        long,
        value_name = "layer|global",
        default_value = "layer",
        help_heading = "Cache"
    )]
    pub(crate) pool: Pool,

    /// Bytes of one expert, for missed bytes; an access log has the sizes itself.
    #[arg(long, value_name = "SIZE", value_parser = bytes, help_heading = "Cache")]
    pub(crate) slot_bytes: Option<u64>,

    /// Which slices give way, see below.
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', value_parser = policy)]
    #[arg(
        default_value = "lru,lfu,lfu-decay:0.99,belady",
        help_heading = "Cache"
    )]
    pub(crate) policy: Vec<PolicyName>,

    /// Leave out this many tokens at the beginning.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Window")]
    pub(crate) skip: usize,

    /// Simulate this many tokens without counting them.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Window")]
    pub(crate) warmup: usize,

    /// Count this many tokens [default: all that are left].
    #[arg(long, value_name = "N", help_heading = "Window")]
    pub(crate) tokens: Option<usize>,

    /// Add a row for every layer.
    #[arg(long, help_heading = "Output")]
    pub(crate) by_layer: bool,

    /// The form of the result.
    #[arg(
        short,
        long,
        value_name = "md|csv|json",
        default_value = "md",
        help_heading = "Output"
    )]
    pub(crate) output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pool {
    Layer,
    Global,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Md,
    Csv,
    Json,
}

fn policy(text: &str) -> Result<PolicyName, String> {
    text.parse()
        .map_err(|error: analysis::simulate::SimulateError| error.to_string())
}

fn slots(text: &str) -> Result<Size, String> {
    if let Some(percent) = text.strip_suffix('%') {
        return match percent.parse::<f64>() {
            Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(Size::Percent(percent)),
            _ => Err("a share is more than 0% and at most 100%".to_owned()),
        };
    }
    match text.parse::<u64>() {
        Ok(0) => Err("a cache has at least 1 slot".to_owned()),
        Ok(count) => Ok(Size::Slots(count)),
        Err(_) => Err("expected a number of slots, or a share such as 37.5%".to_owned()),
    }
}

/// `KiB`, `MiB`, `GiB` are powers of 1024; `kB`, `MB`, `GB` powers of 1000; a bare number is bytes.
fn bytes(text: &str) -> Result<u64, String> {
    let unit_at = text
        .find(|character: char| !character.is_ascii_digit() && character != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let scale = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        _ => {
            return Err(format!(
                "unknown unit {unit:?}; examples: 13219200, 7000MB, 3GiB"
            ));
        }
    };
    match number.parse::<f64>() {
        Ok(value) if value > 0.0 && value * scale < 2f64.powi(53) => {
            Ok((value * scale).round() as u64)
        }
        _ => {
            Err("expected a size of more than 0 bytes, such as 13219200, 7000MB or 3GiB".to_owned())
        }
    }
}
