//! What a run of a model read first and what it had in its slots at the end, kept for the next start: which reads that order.
//!
//! A [`Replay`] says where that is kept. There is one file for each path of a model, a few KiB large, with a version and a
//! checksum. It names the model by the sizes and times of its files: one of another model, or of the same before it was written to,
//! is not used, and neither is one that is broken. All of these only mean that the model loads as if it had never run.

mod file;
mod pattern;
mod recorder;

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

pub(crate) use file::{Kept, Store};
pub(crate) use pattern::{Pattern, Step};
pub(crate) use recorder::Recorder;

/// Whether what a run read first is kept and used at the next start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Replay {
    /// Neither.
    #[default]
    Off,
    /// Both, in files of this folder, which is made when it is needed.
    In(PathBuf),
}

/// The cache folder: `$FAULTLINE_CACHE`, or `faultline` in `$XDG_CACHE_HOME` or `~/.cache`; `None` where none of these is known.
pub fn cache_folder() -> Option<PathBuf> {
    let variable = |name| {
        let value = env::var_os(name).filter(|value| !value.is_empty());
        value.map(PathBuf::from)
    };
    variable("FAULTLINE_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("faultline")))
        .or_else(|| Some(variable("HOME")?.join(".cache/faultline")))
}

impl Replay {
    /// Files in `replay` of the [`cache_folder`]. Off where there is none.
    pub fn in_cache() -> Replay {
        cache_folder().map_or(Replay::Off, |cache| Replay::In(cache.join("replay")))
    }

    /// The folder, if there is one.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Replay::Off => None,
            Replay::In(folder) => Some(folder),
        }
    }
}

/// What was known of earlier runs when a model was loaded. `Display` gives a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayReport {
    /// It was not asked for.
    Off,
    /// The slices that an earlier run read, and how many of them are read before they are asked for.
    Known {
        /// Slices that its first token needed.
        n_first: usize,
        /// All slices that it read or had at the end.
        n_slices: usize,
    },
    /// Nothing, and why.
    Unknown {
        /// The reason.
        reason: String,
    },
}

impl fmt::Display for ReplayReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplayReport::Off => f.write_str("replay: off"),
            ReplayReport::Known { n_first, n_slices } => write!(
                f,
                "replay: {n_slices} slices of the last run are known, {n_first} of them for its first token"
            ),
            ReplayReport::Unknown { reason } => write!(f, "replay: nothing is known: {reason}"),
        }
    }
}
