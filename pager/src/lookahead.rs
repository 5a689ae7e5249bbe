//! Which experts are read before the layer that needs them is computed.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Who says which experts the next layer will need. What it says decides what is read early, and nothing else: the logits are the same.
#[derive(Clone, Debug, Default)]
pub enum Lookahead {
    /// Nobody: experts are read when the router has picked them.
    #[default]
    Off,
    /// The picks so far: experts that the next layer uses with at least this probability, 0 to 1, as [`forecast::Lookahead`] has it.
    Picks(f64),
    /// The picks so far, and the router of the next layer, applied to the hidden state that this layer's experts are given.
    Router(f64),
    /// Somebody who knows: for experiments that ask what guesses of a certain quality would bring.
    Told(Arc<dyn Foresight>),
}

/// Says which experts a layer will need, before its router does.
pub trait Foresight: fmt::Debug + Send + Sync {
    /// The experts that `layer` will use for the token that is computed, or for the one after it if `is_next_token`. Called when the
    /// picks of the layer before it are known. They are read in this order, as far as they are not there.
    fn experts(&self, layer: u32, is_next_token: bool, experts: &mut Vec<u32>);
}

/// A text that names no [`Lookahead`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no lookahead: off, picks:P or router:P with a probability P from 0 to 1")]
pub struct LookaheadError {
    text: String,
}

impl FromStr for Lookahead {
    type Err = LookaheadError;

    /// `off`, `picks:0.3`, `router:0.3`.
    fn from_str(text: &str) -> Result<Lookahead, LookaheadError> {
        let error = || LookaheadError {
            text: text.to_owned(),
        };
        if text == "off" {
            return Ok(Lookahead::Off);
        }
        let (name, probability) = text.split_once(':').ok_or_else(error)?;
        let probability = match probability.parse() {
            Ok(number) if (0.0..=1.0).contains(&number) => number,
            _ => return Err(error()),
        };
        match name {
            "picks" => Ok(Lookahead::Picks(probability)),
            "router" => Ok(Lookahead::Router(probability)),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Lookahead {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lookahead::Off => formatter.pad("off"),
            Lookahead::Picks(probability) => write!(formatter, "picks:{probability}"),
            Lookahead::Router(probability) => write!(formatter, "router:{probability}"),
            Lookahead::Told(_) => formatter.pad("told"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in ["off", "picks:0.3", "router:1", "router:0"] {
            assert_eq!(name.parse::<Lookahead>().unwrap().to_string(), name);
        }
        for bad in [
            "",
            "on",
            "picks",
            "router:",
            "router:1.5",
            "picks:NaN",
            "told",
            "off:0.3",
            "picks:-1",
        ] {
            let message = bad.parse::<Lookahead>().unwrap_err().to_string();
            assert!(
                message.contains(bad) && message.contains("router:P"),
                "{message}"
            );
        }
    }
}
