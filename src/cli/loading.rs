//! How a model comes into memory.

use std::fmt;

use clap::Args;
use llama_rs::Prefetch;
use pager::{Budget, Lookahead, PagerOptions, PolicyName, Replay};

use super::Switch;
use crate::exit::BadInput;

/// `--prefetch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loading {
    /// The files are mapped; the kernel decides what stays in memory.
    Mapped(Prefetch),
    /// Weights are within a budget.
    Paged,
}

impl Loading {
    pub(crate) const ALL: [Loading; 4] = [
        Loading::Mapped(Prefetch::Eager),
        Loading::Mapped(Prefetch::None),
        Loading::Mapped(Prefetch::Selective),
        Loading::Paged,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Loading::Mapped(mode) => mode.as_str(),
            Loading::Paged => "pager",
        }
    }
}

impl Default for Loading {
    fn default() -> Loading {
        Loading::Mapped(Prefetch::default())
    }
}

impl fmt::Display for Loading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The values of `--prefetch`.
pub(super) fn modes() -> impl clap::builder::TypedValueParser<Value = Loading> {
    use clap::builder::{PossibleValuesParser, TypedValueParser};
    PossibleValuesParser::new(Loading::ALL.map(Loading::as_str)).try_map(|name| {
        let mut modes = Loading::ALL.into_iter();
        modes
            .find(|mode| mode.as_str() == name)
            .ok_or("no such mode")
    })
}

/// What `--prefetch pager` takes.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub(crate) struct PagerArgs {
    /// With --prefetch pager: all memory that the process may use, such as 7GiB or 7000MB; 50% is a share of the model's size;
    /// auto is what the machine and the process's memory groups have free, less 5 % and at least 256 MiB of it [default: auto].
    #[arg(long, value_name = "SIZE", help_heading = "Loading")]
    budget: Option<Budget>,

    /// With --prefetch pager: which expert gives way to another one: lru, lfu, lfu-decay:0.95, lfu-mix or next-use [default: next-use].
    #[arg(long, value_name = "NAME", help_heading = "Loading")]
    policy: Option<PolicyName>,

    /// With --prefetch pager: which experts of the next layer are read while this one is computed: off, or those that it needs with a
    /// probability of at least P, told from the router's picks so far (picks:P) and from its router, computed in advance
    /// (router:P) [default: off].
    #[arg(long, value_name = "NAME", help_heading = "Loading")]
    lookahead: Option<Lookahead>,

    /// With --prefetch pager: whether what a run read first is kept in the cache folder, a few KiB for a model, and read in that order at the
    /// next start, while the model still loads [default: on].
    #[arg(long, value_name = "on|off", help_heading = "Loading")]
    replay: Option<Switch>,
}

impl PagerArgs {
    /// The pager's options, if it is what loads the model.
    pub(crate) fn options(&self, loading: Loading) -> Result<Option<PagerOptions>, BadInput> {
        if loading == Loading::Paged {
            let budget = self.budget.unwrap_or_default();
            return Ok(Some(PagerOptions {
                policy: self.policy.unwrap_or_default(),
                lookahead: self.lookahead.clone().unwrap_or_default(),
                replay: match self.replay {
                    None | Some(Switch::On) => Replay::in_cache(),
                    Some(Switch::Off) => Replay::Off,
                },
                ..PagerOptions::with_budget(budget)
            }));
        }
        let given = [
            ("--budget", self.budget.is_some()),
            ("--policy", self.policy.is_some()),
            ("--lookahead", self.lookahead.is_some()),
            ("--replay", self.replay.is_some()),
        ];
        let Some((given, _)) = given.iter().find(|(_, is_given)| *is_given) else {
            return Ok(None);
        };
        Err(BadInput(format!(
            "{given} is for --prefetch pager, and this is --prefetch {loading}, which leaves it to the kernel what stays in memory: \
             add --prefetch pager, or leave {given} out"
        )))
    }
}
