//! Policies by name.

use std::fmt;
use std::str::FromStr;

use super::{DecayedLfu, ExpectedUse, Lru, Mix, MixedLfu, Policy};
use crate::pool::PoolSlice;

/// A policy as the user writes it: `lru`, `lfu`, `lfu-decay`, `lfu-decay:0.95`, `lfu-mix`,
/// `lfu-mix:0.7:0.97:0.2`, `next-use`. The names are those of `faultline simulate`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PolicyName {
    /// [`Lru`].
    Lru,
    /// [`DecayedLfu`] with this decay per token; 1 is written `lfu`.
    LfuDecay(f64),
    /// [`MixedLfu`].
    LfuMix(Mix),
    /// [`ExpectedUse`].
    NextUse,
}

/// A name that no policy has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an eviction policy: {problem}")]
pub struct PolicyError {
    text: String,
    problem: &'static str,
}

impl Default for PolicyName {
    /// `next-use`: the fewest missed bytes on real routing at every capacity.
    fn default() -> PolicyName {
        PolicyName::NextUse
    }
}

impl PolicyName {
    /// The policy, for these slices of which none was used yet.
    pub fn build(self, slices: &[PoolSlice]) -> Box<dyn Policy> {
        let n_slices = slices.len();
        match self {
            PolicyName::Lru => Box::new(Lru),
            PolicyName::LfuDecay(decay) => Box::new(DecayedLfu::new(n_slices, decay)),
            PolicyName::LfuMix(mix) => Box::new(MixedLfu::new(n_slices, mix)),
            PolicyName::NextUse => Box::new(ExpectedUse::new(slices)),
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PolicyName::Lru => formatter.write_str("lru"),
            PolicyName::LfuDecay(1.0) => formatter.write_str("lfu"),
            PolicyName::LfuDecay(decay) => write!(formatter, "lfu-decay:{decay}"),
            PolicyName::LfuMix(mix) => write!(
                formatter,
                "lfu-mix:{}:{}:{}",
                mix.short_decay, mix.long_decay, mix.short_share
            ),
            PolicyName::NextUse => formatter.write_str("next-use"),
        }
    }
}

impl FromStr for PolicyName {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<PolicyName, PolicyError> {
        let error = |problem| PolicyError {
            text: text.to_owned(),
            problem,
        };
        let (name, numbers) = text.split_once(':').unwrap_or((text, ""));
        let numbers: Vec<f64> = match numbers {
            "" => Vec::new(),
            numbers => numbers
                .split(':')
                .map(str::parse)
                .collect::<Result<_, _>>()
                .map_err(|_| error("what follows the colon is not a number"))?,
        };
        match (name, &numbers[..]) {
            ("lru", []) => Ok(PolicyName::Lru),
            ("lfu", []) => Ok(PolicyName::LfuDecay(1.0)),
            ("next-use", []) => Ok(PolicyName::NextUse),
            ("lfu-decay", []) => Ok(PolicyName::LfuDecay(0.95)),
            ("lfu-decay", &[decay]) if (1e-3..=1.0).contains(&decay) => {
                Ok(PolicyName::LfuDecay(decay))
            }
            ("lfu-decay", _) => Err(error(
                "the decay per token is a number from 0.001 to 1, as in lfu-decay:0.95",
            )),
            ("lfu-mix", []) => Ok(PolicyName::LfuMix(Mix::default())),
            ("lfu-mix", &[short_decay, long_decay, short_share])
                if (1e-3..1.0).contains(&short_decay)
                    && (short_decay..1.0).contains(&long_decay)
                    && (0.0..=1.0).contains(&short_share) =>
            {
                Ok(PolicyName::LfuMix(Mix {
                    short_decay,
                    long_decay,
                    short_share,
                }))
            }
            ("lfu-mix", _) => Err(error(
                "its numbers are a short decay and a longer one, 0.001 to less than 1, and the share of the short one, \
                 0 to 1, as in lfu-mix:0.7:0.97:0.2",
            )),
            _ => Err(error(
                "there are lru, lfu, lfu-decay:0.95, lfu-mix and next-use",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in [
            "lru",
            "lfu",
            "lfu-decay:0.95",
            "lfu-mix:0.7:0.97:0.2",
            "next-use",
        ] {
            assert_eq!(name.parse::<PolicyName>().unwrap().to_string(), name);
        }
        assert_eq!("lfu-decay".parse(), Ok(PolicyName::LfuDecay(0.95)));
        assert_eq!("lfu-mix".parse(), Ok(PolicyName::LfuMix(Mix::default())));
    }

    #[test]
    fn other_names_are_refused() {
        for (text, expected) in [
            ("belady", "there are lru"),
            ("lru:2", "there are lru"),
            ("lfu-decay:0", "0.001 to 1"),
            ("lfu-decay:x", "not a number"),
            ("lfu-decay:NaN", "0.001 to 1"),
            ("lfu-mix:0.9:0.5:0.2", "a longer one"),
            ("lfu-mix:0.9", "its numbers are"),
        ] {
            let message = text.parse::<PolicyName>().unwrap_err().to_string();
            assert!(
                message.contains(expected) && message.contains(text),
                "{message}"
            );
        }
    }
}
