//! What is measured: the words of the options, rows and the order in which they run, and what a worker is told.

mod axes;
mod row;
mod worker;

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

pub(crate) use axes::{Axes, Repack};
pub(crate) use row::Row;
pub(crate) use worker::{ReadEngine, Reads, Routing, TokenSource, Window, WorkerSpec};

/// Begin of the names of lookaheads that the routing trace tells; the probability of a right guess follows.
pub(crate) const TOLD: &str = "told:";

/// What happens to a weight when the model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// All of the file up front: upstream's default.
    Eager,
    /// Everything on demand.
    None,
    /// Dense weights up front, sparse ones on demand.
    Selective,
    /// Dense weights in memory, experts in as many slots as the budget has room for.
    Pager,
}

impl Mode {
    pub(crate) const ALL: [Mode; 3] = [Mode::Eager, Mode::None, Mode::Selective];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Mode::Eager => "eager",
            Mode::None => "none",
            Mode::Selective => "selective",
            Mode::Pager => "pager",
        }
    }

    /// The `lazy_mode` that gives the same loading in the patched llama-bench.
    pub(crate) fn lazy_mode(self) -> &'static str {
        match self {
            Mode::Eager => "off",
            Mode::None => "all",
            Mode::Selective | Mode::Pager => "sparse",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The modes of `--prefetch`: a list in the order of the rows, without duplicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Modes(pub(crate) Vec<Mode>);

impl FromStr for Modes {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Modes> {
        let mut modes = Vec::new();
        for name in text.split(',').map(str::trim) {
            let named: &[Mode] = match name {
                "eager" => &[Mode::Eager],
                "none" => &[Mode::None],
                "selective" => &[Mode::Selective],
                "pager" => &[Mode::Pager],
                "all" => &Mode::ALL,
                _ => bail!(
                    "`{name}` is not a prefetch mode; valid modes are eager, none, selective, pager, all (the first three), or a list"
                ),
            };
            for mode in named {
                if !modes.contains(mode) {
                    modes.push(*mode);
                }
            }
        }
        Ok(Modes(modes))
    }
}

/// Which program is measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Engine {
    /// This project's wrapper around the patched llama.cpp.
    #[default]
    Faultline,
    /// The same llama.cpp without patches, in a program that uses nothing but its C interface.
    Stock(LoadMode),
    /// Another program, by the name it was given.
    Command(String),
}

impl Engine {
    /// The word of the column `engine`.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Engine::Faultline => "faultline",
            Engine::Stock(_) => "stock",
            Engine::Command(name) => name,
        }
    }
}

/// How stock llama.cpp brings the model's files into memory: its own `--load-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LoadMode {
    /// Mapped, and read up front.
    Mmap,
    /// Read into anonymous memory.
    None,
    /// The same with O_DIRECT.
    Dio,
}

impl LoadMode {
    pub(crate) const ALL: [LoadMode; 3] = [LoadMode::Mmap, LoadMode::None, LoadMode::Dio];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            LoadMode::Mmap => "mmap",
            LoadMode::None => "none",
            LoadMode::Dio => "dio",
        }
    }
}

/// One `--baseline`: `stock`, `stock:MODE` or `stock:all`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Baseline(pub(crate) Vec<LoadMode>);

impl FromStr for Baseline {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Baseline> {
        let modes = match text.trim().split_once(':') {
            None if text.trim() == "stock" => vec![LoadMode::Mmap],
            Some(("stock", "all")) => LoadMode::ALL.to_vec(),
            Some(("stock", name)) => LoadMode::ALL
                .into_iter()
                .filter(|mode| mode.as_str() == name)
                .collect(),
            _ => Vec::new(),
        };
        if modes.is_empty() {
            bail!(
                "`{text}` is not a baseline; valid ones are stock, stock:mmap, stock:none, stock:dio and stock:all"
            );
        }
        Ok(Baseline(modes))
    }
}

/// One `--reference`: `stock:MODE`, or `stock:MODE+repack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) load_mode: LoadMode,
    pub(crate) repack: bool,
}

impl FromStr for Reference {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Reference> {
        let (name, repack) = match text.trim().strip_suffix("+repack") {
            Some(name) => (name, true),
            None => (text.trim(), false),
        };
        match name.parse::<Baseline>() {
            Ok(Baseline(modes)) if modes.len() == 1 => Ok(Reference {
                load_mode: modes[0],
                repack,
            }),
            _ => bail!(
                "`{text}` is not a reference; valid ones are stock:mmap, stock:none and stock:dio, and each with repacking, as in \
                 stock:none+repack"
            ),
        }
    }
}

/// What the page cache holds of the model when the process starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CacheState {
    /// No page of the model's files.
    Cold,
    /// Every page of the model's files.
    Warm,
}

impl CacheState {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            CacheState::Cold => "cold",
            CacheState::Warm => "warm",
        }
    }
}

/// Whether attention uses the fused kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FlashAttn {
    /// llama.cpp decides.
    #[default]
    Auto,
    On,
    Off,
}

impl FlashAttn {
    /// The integer that llama-bench writes in its `flash_attn` field.
    pub(crate) fn upstream_value(self) -> i32 {
        match self {
            FlashAttn::Auto => -1,
            FlashAttn::Off => 0,
            FlashAttn::On => 1,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            FlashAttn::Auto => "auto",
            FlashAttn::On => "on",
            FlashAttn::Off => "off",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_lists() {
        assert_eq!("all".parse::<Modes>().unwrap().0, Mode::ALL);
        assert_eq!(
            "selective, eager".parse::<Modes>().unwrap().0,
            [Mode::Selective, Mode::Eager]
        );
        assert_eq!(
            "selective,all".parse::<Modes>().unwrap().0,
            [Mode::Selective, Mode::Eager, Mode::None]
        );
        let message = "lazy".parse::<Modes>().unwrap_err().to_string();
        for word in ["`lazy`", "eager", "none", "selective", "all"] {
            assert!(message.contains(word), "{message}");
        }
        assert!("".parse::<Modes>().is_err());
    }
}
