//! Eviction policies by name.

use std::fmt;
use std::str::FromStr;

use crate::Mix;

/// Which values of a policy may be others than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Only those of slices that were accessed.
    Accessed,
    /// Those of every slice of the layer.
    Layer,
    /// All.
    All,
}

/// A policy that needs no future, as the user writes it: `lru`, `lfu`, `lfu-decay`, `lfu-decay:0.95`, `lfu-mix`,
/// `lfu-mix:0.7:0.97:0.2`, `next-use`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PolicyName {
    /// The slice that was used least recently gives way.
    Lru,
    /// That with the lowest of [`DecayedCounts`](crate::DecayedCounts) with this decay per token; 1 is written `lfu`.
    LfuDecay(f64),
    /// That with the lowest of [`MixedRates`](crate::MixedRates).
    LfuMix(Mix),
    /// That whose [`NextUse`](crate::NextUse) is farthest away.
    NextUse,
}

/// A name that no policy has, or numbers that make no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// No policy has the name.
    #[error(
        "`{text}` is not an eviction policy: there are lru, lfu, lfu-decay:0.95, lfu-mix and next-use"
    )]
    Name {
        /// What was given.
        text: String,
    },
    /// The policy has other numbers.
    #[error("`{text}` is not an eviction policy: {problem}")]
    Numbers {
        /// What was given.
        text: String,
        /// What they may be.
        problem: &'static str,
    },
}

impl PolicyName {
    /// Counts since the beginning that do not fade.
    pub const LFU: PolicyName = PolicyName::LfuDecay(1.0);
}

impl Default for PolicyName {
    /// `next-use`: the fewest missed bytes on real routing at every capacity.
    fn default() -> PolicyName {
        PolicyName::NextUse
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
        let numbers_error = |problem| PolicyError::Numbers {
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
                .map_err(|_| numbers_error("what follows the colon is not a number"))?,
        };
        match (name, &numbers[..]) {
            ("lru", []) => Ok(PolicyName::Lru),
            ("lfu", []) => Ok(PolicyName::LFU),
            ("next-use", []) => Ok(PolicyName::NextUse),
            ("lfu-decay", []) => Ok(PolicyName::LfuDecay(0.95)),
            ("lfu-decay", &[decay]) if (1e-3..=1.0).contains(&decay) => {
                Ok(PolicyName::LfuDecay(decay))
            }
            ("lfu-decay", _) => Err(numbers_error(
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
            ("lfu-mix", _) => Err(numbers_error(
                "its numbers are a short decay and a longer one, 0.001 to less than 1, and the share of the short one, \
                 0 to 1, as in lfu-mix:0.7:0.97:0.2",
            )),
            _ => Err(PolicyError::Name {
                text: text.to_owned(),
            }),
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
