//! How much memory a model may use.

mod free;

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;

use serde::Serialize;

pub use free::{FreeMemory, Limit};

/// A budget as the user gives it: `auto`, `7GiB`, `7000MB`, `50%`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// What is free where the process starts, less [`auto_margin_bytes`].
    #[default]
    Auto,
    /// So many bytes.
    Bytes(u64),
    /// A share of the size of the model's files, in percent.
    Percent(f64),
}

/// Not a budget.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a memory budget: {problem} (examples: auto, 7GiB, 7000MB, 50%)")]
pub struct BudgetError {
    text: String,
    problem: &'static str,
}

/// The margin of `auto`: 5 % of what is free, and at least 256 MiB. Other processes go on growing, and page cache that counts
/// as free may be needed.
pub fn auto_margin_bytes(free_bytes: u64) -> u64 {
    (free_bytes / 20).max(256 << 20)
}

impl Budget {
    /// The budget in bytes, for a model whose files have `model_bytes`.
    ///
    /// # Errors
    ///
    /// For `auto`, if the files of the kernel that say what is free cannot be read or understood.
    pub fn resolve(self, model_bytes: u64) -> io::Result<u64> {
        match self {
            Budget::Bytes(bytes) => Ok(bytes),
            Budget::Percent(percent) => Ok((model_bytes as f64 * percent / 100.0).round() as u64),
            Budget::Auto => {
                let free_bytes = FreeMemory::read(Path::new("/"))?.free_bytes();
                Ok(free_bytes.saturating_sub(auto_margin_bytes(free_bytes)))
            }
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Budget::Auto => formatter.write_str("auto"),
            Budget::Bytes(bytes) => write!(formatter, "{bytes}"),
            Budget::Percent(percent) => write!(formatter, "{percent}%"),
        }
    }
}

impl FromStr for Budget {
    type Err = BudgetError;

    /// `K`, `M`, `G`, `T` and `KiB` to `TiB` are powers of 1024, `KB` to `TB` powers of 1000; a bare number is bytes.
    fn from_str(text: &str) -> Result<Budget, BudgetError> {
        let error = |problem| BudgetError {
            text: text.to_owned(),
            problem,
        };
        let trimmed = text.trim();
        if trimmed.eq_ignore_ascii_case("auto") {
            return Ok(Budget::Auto);
        }
        let unit_at = trimmed
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(unit_at);
        let number = f64::from_str(number).map_err(|_| error("it does not begin with a number"))?;
        let unit = unit.trim().to_ascii_lowercase();
        if unit == "%" {
            return match number > 0.0 && number <= 1000.0 {
                true => Ok(Budget::Percent(number)),
                false => Err(error("a share is more than 0 % and at most 1000 %")),
            };
        }
        let scale: f64 = match unit.as_str() {
            "" | "b" => 1.0,
            "k" | "kib" => 1024.0,
            "m" | "mib" => 1024f64.powi(2),
            "g" | "gib" => 1024f64.powi(3),
            "t" | "tib" => 1024f64.powi(4),
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "tb" => 1e12,
            _ => return Err(error("its unit is unknown")),
        };
        // Whole bytes are exact up to 2^53; no machine has more.
        let bytes = (number * scale).round();
        match bytes >= 1.0 && bytes <= (1u64 << 53) as f64 {
            true => Ok(Budget::Bytes(bytes as u64)),
            false => Err(error("it is 0, or more than 8 PiB")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_read() {
        for (text, expected) in [
            ("auto", Budget::Auto),
            ("4096", Budget::Bytes(4096)),
            ("7GiB", Budget::Bytes(7 << 30)),
            ("7g", Budget::Bytes(7 << 30)),
            ("7000MB", Budget::Bytes(7_000_000_000)),
            (" 1.5 GiB", Budget::Bytes(3 << 29)),
            ("50%", Budget::Percent(50.0)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        assert_eq!(Budget::Percent(37.5).resolve(1000).unwrap(), 375);
    }

    #[test]
    fn other_texts_are_refused_by_name() {
        for text in [
            "",
            "GiB",
            "0",
            "-1G",
            "1.2.3G",
            "7 potatoes",
            "0%",
            "1e30",
            "9999999999T",
        ] {
            let message = text.parse::<Budget>().unwrap_err().to_string();
            assert!(message.contains(&format!("`{text}`")), "{message}");
        }
    }
}
