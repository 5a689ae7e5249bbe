//! Generated models: the demo model in the cache folder, and `make-model`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use model_shapes::Shape;

use crate::cli::MakeModelArgs;
use crate::{EXIT_INTERRUPTED, interrupt};

/// Where models and runs are kept.
pub(crate) fn cache_folder() -> Result<PathBuf> {
    model_shapes::local::cache_folder().context("no cache folder: set FAULTLINE_CACHE")
}

/// The demo model, generated on the first call.
pub(crate) fn demo(quiet: bool) -> Result<PathBuf> {
    let folder = cache_folder()?.join("models");
    let bar = Bar::new("generating the demo model", quiet);
    Ok(model_shapes::ensure_demo(&folder, &mut |done, total| {
        bar.show(done, total)
    })?)
}

/// The files of a model.
pub(crate) fn parts(files: &gguf::ModelFiles) -> Vec<PathBuf> {
    let parts = files.parts.iter();
    parts.map(|part| part.path().to_path_buf()).collect()
}

/// Writes a model of a shape.
pub(crate) fn make(args: &MakeModelArgs) -> Result<()> {
    let shape = Shape::by_name(&args.shape)?;
    if args.hollow {
        model_shapes::generate_hollow(&shape, &args.output)?;
    } else {
        let bar = Bar::new(shape.name(), args.quiet);
        let seed = args.seed.unwrap_or(model_shapes::DEMO_SEED);
        model_shapes::generate(&shape, &args.output, seed, &mut |done, total| {
            bar.show(done, total)
        })?;
    }
    if !args.quiet {
        eprintln!("{}: {} bytes", args.output.display(), shape.total_bytes());
    }
    Ok(())
}

/// A progress bar that appears with the first byte: an existing model shows none.
struct Bar {
    bar: ProgressBar,
    text: String,
}

impl Bar {
    fn new(text: &str, quiet: bool) -> Bar {
        let bar = if quiet {
            ProgressBar::hidden()
        } else {
            ProgressBar::no_length()
        };
        if let Ok(style) = ProgressStyle::with_template(
            "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        ) {
            bar.set_style(style);
        }
        Bar {
            bar,
            text: text.to_string(),
        }
    }

    fn show(&self, done: u64, total: u64) {
        if interrupt::pending() {
            self.bar.finish_and_clear();
            eprintln!("interrupted");
            // Nothing to put back yet, and the unfinished file has no name that could stay behind.
            std::process::exit(EXIT_INTERRUPTED.into());
        }
        if self.bar.length() != Some(total) {
            self.bar.set_message(self.text.clone());
            self.bar.set_length(total);
        }
        self.bar.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
