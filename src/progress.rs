//! The progress bar while a model loads.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Steps of a full bar; llama.cpp reports a fraction.
const STEPS: u64 = 1000;

/// A bar on standard error, without colours. Hidden when that is no terminal, or when `quiet`.
pub(crate) struct LoadBar(ProgressBar);

impl LoadBar {
    pub(crate) fn new(name: &str, quiet: bool) -> LoadBar {
        let target = if quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(Some(STEPS), target);
        let style =
            ProgressStyle::with_template("loading {msg} [{bar:40}] {percent:>3}% {elapsed}");
        bar.set_style(
            style
                .expect("the template is a constant with known keys")
                .progress_chars("=> "),
        );
        bar.set_message(name.to_owned());
        LoadBar(bar)
    }

    /// Shows a fraction from 0 to 1.
    pub(crate) fn set(&self, fraction: f32) {
        let steps = (fraction.clamp(0.0, 1.0) * STEPS as f32) as u64;
        self.0.set_position(steps);
    }
}

impl Drop for LoadBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
