//! `bench device`: how fast the device reads at random.

mod render;

use std::fs;
use std::path::{Path, PathBuf};

use ::device_curve::DeviceCurve;
use ::device_curve::measure::{self, MeasureError, Options, Progress, Source};
use anyhow::{Context as _, Result};

use crate::cli::DeviceArgs;
use crate::host::{self, Host};
use crate::interrupt::{self, Interrupted};
use crate::output::{self, Format};
use crate::size::KIB;
use crate::{models, procfs};

/// Powers of two; slices come between them.
const SIZES: [u64; 8] = [
    4 * KIB,
    16 * KIB,
    64 * KIB,
    128 * KIB,
    256 * KIB,
    512 * KIB,
    1024 * KIB,
    4096 * KIB,
];
/// One expert of one tensor: gpt-oss-20b (MXFP4, 2880 x 2880) and Qwen3-30B-A3B (Q4_K and Q6_K, 2048 x 768).
const SLICES: [u64; 3] = [4_406_400, 884_736, 1_290_240];
/// Direct reads of a slice begin and end at multiples of this.
const PAGE_BYTES: u64 = 4 * KIB;

/// Measures and prints.
pub(crate) fn run(args: &DeviceArgs) -> Result<()> {
    let source = match (&args.dir, &args.model) {
        (Some(folder), _) => Source::Temporary {
            folder: folder.clone(),
            size_bytes: args.file_size,
        },
        (None, Some(path)) => Source::File(path.clone()),
        (None, None) => Source::File(models::demo(args.quiet)?),
    };
    // Before the measurement: a folder that cannot be made must not cost minutes.
    if let Some(out) = &args.out {
        fs::create_dir_all(out).with_context(|| format!("{}: cannot be made", out.display()))?;
    }
    let options = Options {
        sizes: match args.sizes.as_slice() {
            [] => default_sizes(&source),
            given => given.to_vec(),
        },
        depths: args.depths.clone(),
        seconds: args.seconds,
        repetitions: args.repetitions,
        seed: args.seed,
        warm_up: !args.no_warmup,
        io_uring: !args.no_io_uring,
    };
    let setup = Setup::new(path_of(&source), &options);
    let mut progress = |step: Progress| {
        if !args.quiet {
            eprintln!("{}", words(step));
        }
    };
    let curve = measure::measure(&source, &options, &mut progress, &interrupt::pending).map_err(
        |error| match error {
            MeasureError::Interrupted => Interrupted.into(),
            error => anyhow::Error::new(error),
        },
    )?;
    if let Some(out) = &args.out {
        keep(out, &setup, &curve)?;
    }
    if args.output != Format::Md && !args.quiet {
        curve
            .notes
            .iter()
            .for_each(|note| eprintln!("note: {note}"));
    }
    output::print(&render::render(args.output, &setup, &curve))
}

/// Where, when and with which options.
#[derive(Debug)]
struct Setup {
    host: Host,
    started: String,
    seconds: f64,
    repetitions: u32,
}

impl Setup {
    fn new(path: &Path, options: &Options) -> Setup {
        Setup {
            host: Host::of_model(path),
            started: host::now_utc(),
            seconds: options.seconds,
            repetitions: options.repetitions,
        }
    }
}

fn path_of(source: &Source) -> &Path {
    match source {
        Source::File(path) => path,
        Source::Temporary { folder, .. } => folder,
    }
}

/// Those that a curve needs, and the slices of the model. A file that is no model is read as one without experts.
fn default_sizes(source: &Source) -> Vec<u64> {
    let mut slices = Vec::new();
    if let Source::File(path) = source
        && let Ok(model) = gguf::ModelFiles::open(path)
    {
        let experts = model
            .tensors()
            .filter(|(_, tensor)| gguf::is_expert_name(&tensor.name));
        slices.extend(experts.map(|(_, tensor)| tensor.slice_bytes()));
    }
    if slices.is_empty() {
        slices.extend(SLICES);
    }
    let rounded = slices
        .into_iter()
        .map(|bytes| bytes.next_multiple_of(PAGE_BYTES));
    SIZES.into_iter().chain(rounded).collect()
}

fn words(step: Progress) -> String {
    match step {
        Progress::Writing => "writing a temporary file".to_owned(),
        Progress::LookingForCache => "reading ranges twice, to find a cache".to_owned(),
        Progress::Verifying => "comparing reads with the contents".to_owned(),
        Progress::WarmingUp => "reading the file once".to_owned(),
        Progress::Repetition { number, of } => {
            let load = procfs::load_average()
                .map_or_else(String::new, |load| format!(", load average {load:.2}"));
            format!("repetition {number}/{of}{load}")
        }
    }
}

fn keep(folder: &Path, setup: &Setup, curve: &DeviceCurve) -> Result<()> {
    for (name, format) in [
        ("device.json", Format::Json),
        ("device.csv", Format::Csv),
        ("device.md", Format::Md),
    ] {
        let path: PathBuf = folder.join(name);
        fs::write(&path, render::render(format, setup, curve))
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}
