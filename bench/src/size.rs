//! Byte sizes as people write them: `24G`, `512MiB`, `7000MB`, `50%`.

use std::str::FromStr;

use anyhow::{Context as _, Result, bail};

/// One kibibyte.
pub(crate) const KIB: u64 = 1024;
/// One mebibyte.
pub(crate) const MIB: u64 = 1024 * KIB;
/// One gibibyte.
pub(crate) const GIB: u64 = 1024 * MIB;

/// Parses a size. `K`, `M`, `G`, `T` and `KiB` .. `TiB` are powers of 1024, `KB` .. `TB` powers of 1000; a bare number
/// is bytes. A fraction is allowed before a unit (`1.5G`).
pub(crate) fn parse_size(text: &str) -> Result<u64> {
    let text = text.trim();
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => KIB,
        "m" | "mib" => MIB,
        "g" | "gib" => GIB,
        "t" | "tib" => 1024 * GIB,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => bail!(
            "`{text}` is not a size: unknown unit `{}` (examples: 128KiB, 7000MB, 1.5G)",
            unit.trim()
        ),
    };
    if let Ok(whole) = u64::from_str(number) {
        return match whole.checked_mul(scale) {
            Some(bytes) => Ok(bytes),
            None => bail!("`{text}` is larger than 2^64 bytes"),
        };
    }
    match f64::from_str(number) {
        Ok(value) if value.is_finite() && value * scale as f64 <= u64::MAX as f64 / 2.0 => {
            Ok((value * scale as f64).round() as u64)
        }
        _ => bail!("`{text}` is not a size (examples: 128KiB, 7000MB, 1.5G)"),
    }
}

/// A memory budget as given on the command line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Budget {
    /// No limit.
    Unlimited,
    /// A limit in bytes.
    Bytes(u64),
    /// A share of the model's file size, in percent.
    Percent(f64),
    /// What is free where `bench` starts, less the pager's margin.
    Auto,
}

impl Budget {
    /// The limit in bytes for a model of `model_bytes`, `None` for no limit.
    ///
    /// # Errors
    ///
    /// If it cannot be told what is free.
    pub(crate) fn resolve(self, model_bytes: u64) -> Result<Option<u64>> {
        Ok(match self {
            Budget::Unlimited => None,
            Budget::Bytes(bytes) => Some(bytes),
            Budget::Percent(percent) => Some((model_bytes as f64 * percent / 100.0).round() as u64),
            Budget::Auto => {
                let bytes = pager::Budget::Auto.resolve(model_bytes);
                Some(bytes.context("--budget auto: it cannot be told what is free")?)
            }
        })
    }
}

impl FromStr for Budget {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Budget> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("none") {
            return Ok(Budget::Unlimited);
        }
        if text.eq_ignore_ascii_case("auto") {
            return Ok(Budget::Auto);
        }
        if let Some(number) = text.strip_suffix('%') {
            return match f64::from_str(number.trim()) {
                Ok(percent) if percent > 0.0 && percent.is_finite() => Ok(Budget::Percent(percent)),
                _ => bail!("`{text}` is not a percentage of the model's size"),
            };
        }
        Ok(Budget::Bytes(parse_size(text)?))
    }
}

/// `bytes` with a binary unit and three significant digits or so: `1.43 GiB`, `128 KiB`.
pub(crate) fn format_bytes(bytes: u64) -> String {
    let value = bytes as f64;
    let (scaled, unit) = match bytes {
        0..KIB => return format!("{bytes} B"),
        KIB..MIB => (value / KIB as f64, "KiB"),
        MIB..GIB => (value / MIB as f64, "MiB"),
        _ => (value / GIB as f64, "GiB"),
    };
    if scaled.fract() == 0.0 || scaled >= 100.0 {
        format!("{scaled:.0} {unit}")
    } else if scaled >= 10.0 {
        format!("{scaled:.1} {unit}")
    } else {
        format!("{scaled:.2} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_and_without_units() {
        assert_eq!(parse_size("0").unwrap(), 0);
        assert_eq!(parse_size("4096").unwrap(), 4096);
        assert_eq!(parse_size("128KiB").unwrap(), 128 * KIB);
        assert_eq!(parse_size("128k").unwrap(), 128 * KIB);
        assert_eq!(parse_size("8 MiB").unwrap(), 8 * MIB);
        assert_eq!(parse_size("7000MB").unwrap(), 7_000_000_000);
        assert_eq!(parse_size("1.5G").unwrap(), GIB + GIB / 2);
        assert_eq!(parse_size("2T").unwrap(), 2048 * GIB);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for bad in [
            "",
            "MiB",
            "12 potatoes",
            "-5M",
            "1.2.3G",
            "99999999999999999999",
            "18446744073709551615K",
        ] {
            let message = parse_size(bad).unwrap_err().to_string();
            assert!(message.contains(bad), "{bad}: {message}");
        }
    }

    #[test]
    fn budgets() {
        assert_eq!("none".parse::<Budget>().unwrap(), Budget::Unlimited);
        let resolved = |text: &str, model_bytes| {
            let budget = text.parse::<Budget>().unwrap();
            budget.resolve(model_bytes).unwrap()
        };
        assert_eq!(resolved("50%", 1000), Some(500));
        assert_eq!(resolved("7000MiB", 1), Some(7000 * MIB));
        // Less than all of any machine, and not nothing.
        assert!((1..1 << 60).contains(&resolved("auto", 1).unwrap()));
        assert!("0%".parse::<Budget>().is_err());
        assert!("x%".parse::<Budget>().is_err());
    }

    #[test]
    fn formatting() {
        assert_eq!(format_bytes(512), "512 B");
        assert_eq!(format_bytes(128 * KIB), "128 KiB");
        assert_eq!(format_bytes(GIB + GIB / 2), "1.50 GiB");
        assert_eq!(format_bytes(7000 * MIB), "6.84 GiB");
    }
}
