//! Options of a measurement that are about some of its rows: references, baselines and the pager.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use pager::PolicyName;

use super::{Switch, positive_seconds};
use crate::size::{Budget, parse_size};
use crate::spec::{ReadEngine, Reads, Reference, TOLD};

/// Conditions of references and baselines.
#[derive(Debug, Args)]
pub(crate) struct ReferenceArgs {
    /// Rows without a limit that all others are also related to, whatever their conditions: stock:none (llama.cpp with all weights in
    /// memory), stock:none+repack (the same with repacking), or a list. Measured in the same interleaved run
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(super) reference: Vec<Reference>,
    /// Memory limits of baselines [default: those of --budget]
    #[arg(long, value_name = "SIZES", value_delimiter = ',')]
    pub(super) baseline_budget: Vec<Budget>,
    /// Readaheads of baselines [default: those of --readahead]
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = parse_size)]
    pub(super) baseline_readahead: Vec<u64>,
    /// Time limit of references and baselines [default: that of --decode-seconds]
    #[arg(long, value_name = "SECONDS", value_parser = positive_seconds, overrides_with = "baseline_seconds")]
    pub(super) baseline_seconds: Option<Duration>,
}

/// Options of the pager.
#[derive(Debug, Args)]
pub(crate) struct PagerArgs {
    /// What the pager evicts: lru, lfu, lfu-decay:0.95, lfu-mix:0.7:0.97:0.2, next-use; a list multiplies its rows [default: next-use]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(super) policy: Vec<PolicyName>,
    /// How the pager reads
    #[arg(long, value_enum, default_value_t = ReadEngine::Auto)]
    reads: ReadEngine,
    /// Requests of the pager at a time [default: the pager's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    read_depth: Option<u16>,
    /// The pager's largest request; larger reads are split [default: the pager's]
    #[arg(long, value_name = "SIZE", value_parser = request_size)]
    request_size: Option<u32>,
    /// Which experts of the next layer the pager reads ahead: off, picks:P or router:P (those that it uses with a probability of at least
    /// P, told from the picks so far, or from its router, too), told:P (those of the routing trace, each of them right with the
    /// probability P, to see what such guesses would bring); a list multiplies its rows [default: off]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = lookahead)]
    pub(super) lookahead: Vec<String>,
    /// Whether the pager reads what an earlier run needed, in its order, while the model loads; a list multiplies its rows. Before the first
    /// row with it a run that is not measured is recorded
    #[arg(long, value_name = "on|off", value_delimiter = ',')]
    pub(super) replay: Vec<Switch>,
    /// The run that is recorded for --replay uses the routing trace from this token on [default: --routing-skip]
    #[arg(long, value_name = "TOKENS", requires = "replay")]
    pub(crate) replay_skip: Option<u32>,
}

impl PagerArgs {
    pub(super) fn reads(&self) -> Reads {
        Reads {
            engine: self.reads,
            depth: self.read_depth,
            request_bytes: self.request_size,
        }
    }

    /// Without and with, or what was given.
    pub(super) fn replays(&self) -> Vec<bool> {
        match self.replay.as_slice() {
            [] => vec![false],
            given => given.iter().map(|&switch| switch == Switch::On).collect(),
        }
    }

    /// Whether anything was given.
    pub(super) fn is_used(&self) -> bool {
        !self.policy.is_empty()
            || !self.lookahead.is_empty()
            || !self.replay.is_empty()
            || self.reads() != Reads::default()
    }
}

fn lookahead(text: &str) -> Result<String> {
    match text.strip_prefix(TOLD) {
        Some(probability) => match probability.parse::<f64>() {
            Ok(number) if (0.0..=1.0).contains(&number) => {}
            _ => bail!("`{probability}` is not a number from 0 to 1"),
        },
        None => {
            text.parse::<pager::Lookahead>()
                .with_context(|| format!("and not {TOLD}P either"))?;
        }
    }
    Ok(text.to_owned())
}

fn request_size(text: &str) -> Result<u32> {
    Ok(u32::try_from(parse_size(text)?)?)
}
