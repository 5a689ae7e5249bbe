//! Options of `bench device` and `bench roofline`.

use std::path::PathBuf;

use clap::Args;

use crate::output::Format;
use crate::size::{Budget, parse_size};

const DEVICE_EXAMPLES: &str = "\
EXAMPLES:
  bench device -m model.gguf                              the file system of the model, on the model's file
  bench device --dir /mnt/ssd --file-size 8GiB            on a temporary file
  bench device -m model.gguf --sizes 128KiB,1MiB --depths 1,16,64 -o json > curve.json

EXIT CODES: 0 done, also where notes say that the figures are not the device's; 2 bad input or an error; 130 interrupted";

/// Measures random reads by request size and queue depth, with io_uring and O_DIRECT.
///
/// The notes of the result say why the figures may not be the device's: a cache behind it, memory instead of a device, no O_DIRECT.
#[derive(Debug, Args)]
#[command(after_help = DEVICE_EXAMPLES)]
pub(crate) struct DeviceArgs {
    /// The file to read, such as a model [default: the demo model in the cache folder]
    #[arg(short, long, value_name = "FILE", conflicts_with = "dir")]
    pub(crate) model: Option<PathBuf>,
    /// Read a temporary file in this folder instead; it is removed at the end whatever happens
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Size of that file
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = parse_size, requires = "dir")]
    pub(crate) file_size: u64,
    /// Request sizes [default: 4KiB to 4MiB, and the experts' slices of the model, or else those of gpt-oss-20b and
    /// Qwen3-30B-A3B, rounded up to 4 KiB]
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = parse_size)]
    pub(crate) sizes: Vec<u64>,
    /// Queue depths
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "1,2,4,8,16,32,64"
    )]
    pub(crate) depths: Vec<u32>,
    /// Time for each size and depth, all repetitions together
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub(crate) seconds: f64,
    /// Repetitions of every size and depth, in turn
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    pub(crate) repetitions: u32,
    /// Seed of the offsets
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Do not read the file once before (it makes the host of a virtual machine equally warm for all rows)
    #[arg(long)]
    pub(crate) no_warmup: bool,
    /// Read with threads and pread, as where io_uring is refused
    #[arg(long)]
    pub(crate) no_io_uring: bool,
    /// Format on standard output; progress goes to standard error
    #[arg(short, long, value_enum, default_value_t = Format::Md)]
    pub(crate) output: Format,
    /// Folder for device.json (what `bench roofline` reads), device.csv and device.md
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// No progress on standard error
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

const ROOFLINE_EXAMPLES: &str = "\
EXAMPLES:
  bench device -m gpt-oss-20b.gguf -o json > curve.json
  bench roofline -m gpt-oss-20b.gguf --routing gpqa.routes.u8 --budget 10000MB,7000MB,5500MB --device-curve curve.json \\
      --step-ms 128
  bench roofline -m model.gguf --log run.ftrace --budget 50% --device-curve curve.json --step-ms 40 --measured 12.5

EXIT CODES: 0 done, 2 bad input";

/// The speed that no engine exceeds within a budget: 1 / max(step in memory, Belady's miss bytes / device rate).
#[derive(Debug, Args)]
#[command(after_help = ROOFLINE_EXAMPLES)]
pub(crate) struct RooflineArgs {
    /// The model, for the sizes of its experts and of what every token reads
    #[arg(short, long, value_name = "FILE")]
    pub(crate) model: PathBuf,
    /// A routing trace of the model: NAME.u8 with NAME.json beside it
    #[arg(long, value_name = "FILE", conflicts_with = "log")]
    pub(crate) routing: Option<PathBuf>,
    /// An access log of the model, from `faultline record`
    #[arg(long, value_name = "FILE", required_unless_present = "routing")]
    pub(crate) log: Option<PathBuf>,
    /// Memory limits: sizes, percentages of the model's size, or `none`
    #[arg(
        long,
        value_name = "SIZES",
        value_delimiter = ',',
        default_value = "none,75%,50%"
    )]
    pub(crate) budget: Vec<Budget>,
    /// The device: the JSON of `bench device`
    #[arg(long, value_name = "FILE")]
    pub(crate) device_curve: PathBuf,
    /// Milliseconds of a token with all weights in memory
    #[arg(long, value_name = "MS")]
    pub(crate) step_ms: f64,
    /// Memory that is not for slots [default: the model's dense tensors]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) other_bytes: Option<u64>,
    /// Measured tokens/s, one for each budget: adds their share of the bound
    #[arg(long, value_name = "T/S", value_delimiter = ',')]
    pub(crate) measured: Vec<f64>,
    /// Tokens of the trace to leave out at the beginning
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) skip: usize,
    /// Tokens that fill the slots and are not counted
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) warmup: usize,
    /// Tokens to count [default: all that are left]
    #[arg(long, value_name = "N")]
    pub(crate) tokens: Option<usize>,
    /// Format on standard output
    #[arg(short, long, value_enum, default_value_t = Format::Md)]
    pub(crate) output: Format,
}
