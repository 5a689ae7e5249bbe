//! Values of the configuration that TOML has no type for: durations, sizes, budgets.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use pager::Budget;
use serde::de::{self, Deserialize, Deserializer, Visitor};

/// How long a model stays after its last request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// So long; zero: not at all.
    After(Duration),
    /// Until somebody unloads it or its room is needed.
    Never,
}

impl Ttl {
    /// Five minutes, as in Ollama.
    pub const DEFAULT: Ttl = Ttl::After(Duration::from_secs(5 * 60));

    fn from_seconds(seconds: f64) -> Result<Ttl, String> {
        if seconds < 0.0 {
            return Ok(Ttl::Never);
        }
        Duration::try_from_secs_f64(seconds)
            .map(Ttl::After)
            .map_err(|_| format!("{seconds} seconds are no duration"))
    }
}

impl FromStr for Ttl {
    type Err = String;

    fn from_str(text: &str) -> Result<Ttl, String> {
        let text = text.trim();
        if let Ok(seconds) = text.parse::<f64>() {
            return Ttl::from_seconds(seconds);
        }
        if text.starts_with('-') && humantime::parse_duration(&text[1..]).is_ok() {
            return Ok(Ttl::Never);
        }
        duration(text).map(Ttl::After)
    }
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ttl::After(time) => humantime::format_duration(*time).fmt(f),
            Ttl::Never => f.write_str("-1"),
        }
    }
}

/// `250ms`, `15s`, `5m`.
fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("`{text}` is not a duration: {error} (examples: 250ms, 15s, 5m)"))
}

/// A visitor for values that may be given as text or as a number.
struct TextOrNumber<T> {
    expected: &'static str,
    text: fn(&str) -> Result<T, String>,
    number: fn(f64) -> Result<T, String>,
}

impl<T> Visitor<'_> for TextOrNumber<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.text)(text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        (self.number)(number as f64).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        (self.number)(number as f64).map_err(E::custom)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        (self.number)(number).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Ttl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ttl, D::Error> {
        deserializer.deserialize_any(TextOrNumber {
            expected: "a duration such as \"5m\", a number of seconds, 0 or -1",
            text: Ttl::from_str,
            number: Ttl::from_seconds,
        })
    }
}

/// A time that must not be exceeded, in seconds or with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        deserializer.deserialize_any(TextOrNumber {
            expected: "a duration such as \"15s\", or a number of seconds",
            text: |text| duration(text).map(Time),
            number: |seconds| {
                Duration::try_from_secs_f64(seconds)
                    .map(Time)
                    .map_err(|_| format!("{seconds} seconds are no duration"))
            },
        })
    }
}

/// A number of bytes, with a unit or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        deserializer.deserialize_any(TextOrNumber {
            expected: "a size such as \"100MiB\", or a number of bytes",
            text: |text| match Budget::from_str(text) {
                Ok(Budget::Bytes(bytes)) => Ok(Bytes(bytes)),
                _ => Err(format!("`{text}` is not a size (examples: 100MiB, 2GiB)")),
            },
            number: |bytes| match bytes >= 1.0 && bytes.fract() == 0.0 {
                true => Ok(Bytes(bytes as u64)),
                false => Err(format!("{bytes} is not a number of bytes")),
            },
        })
    }
}

/// Whether states are kept in files, and within how many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(
    untagged,
    expecting = "expected true, false, or a size such as \"256MiB\""
)]
pub(super) enum KeepState {
    Switch(bool),
    Within(Bytes),
}

impl KeepState {
    /// Some conversations: a token takes 10 to 100 KB.
    const DEFAULT_BYTES: u64 = 256 << 20;

    /// Bytes; 0: nothing is kept.
    pub(super) fn bytes(self) -> u64 {
        match self {
            KeepState::Switch(true) => KeepState::DEFAULT_BYTES,
            KeepState::Switch(false) => 0,
            KeepState::Within(bytes) => bytes.0,
        }
    }
}

/// A budget of memory, as the pager reads it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct BudgetValue(pub(super) Budget);

impl<'de> Deserialize<'de> for BudgetValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BudgetValue, D::Error> {
        deserializer.deserialize_any(TextOrNumber {
            expected: "a budget such as \"7GiB\", \"50%\" or \"auto\"",
            text: |text| {
                let budget = Budget::from_str(text).map_err(|error| error.to_string())?;
                Ok(BudgetValue(budget))
            },
            number: |bytes| match bytes >= 1.0 && bytes.fract() == 0.0 {
                true => Ok(BudgetValue(Budget::Bytes(bytes as u64))),
                false => Err(format!("{bytes} is not a number of bytes")),
            },
        })
    }
}

/// Bytes as a person reads them.
pub fn shown_bytes(bytes: u64) -> String {
    let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(size, _)| bytes >= *size) {
        Some((size, unit)) => format!("{:.1} {unit}", bytes as f64 / size as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_live() {
        let minutes = |n: u64| Ttl::After(Duration::from_secs(60 * n));
        for (text, expected) in [
            ("5m", minutes(5)),
            ("300", minutes(5)),
            ("0", Ttl::After(Duration::ZERO)),
            ("0s", Ttl::After(Duration::ZERO)),
            ("-1", Ttl::Never),
            ("-1m", Ttl::Never),
            ("1h 30m", minutes(90)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["", "soon", "5 parsecs", "-", "NaN", "inf", "1e300"] {
            assert!(text.parse::<Ttl>().is_err(), "{text}");
        }
    }

    #[test]
    fn bytes_are_shown_with_a_unit() {
        assert_eq!(shown_bytes(1000), "1000 B");
        assert_eq!(shown_bytes(3 << 19), "1.5 MiB");
        assert_eq!(shown_bytes(7 << 30), "7.0 GiB");
    }
}
