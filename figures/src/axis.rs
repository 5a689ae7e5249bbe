//! Axes: which value is where, and how values are written.

const KIB: f64 = 1024.0;

/// How an axis writes its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Plain,
    /// In KiB, MiB or GiB.
    Bytes,
    /// In ms or s.
    Milliseconds,
    /// Of a share, where 1 is 100 %.
    Percent,
}

impl Unit {
    /// A value in words, with about three digits.
    pub fn format(self, value: f64) -> String {
        match self {
            Unit::Plain => digits(value),
            Unit::Percent => format!("{} %", digits(value * 100.0)),
            Unit::Milliseconds if value >= 1000.0 => format!("{} s", digits(value / 1000.0)),
            Unit::Milliseconds => format!("{} ms", digits(value)),
            Unit::Bytes => {
                let (name, size) = bytes_unit(value);
                format!("{} {name}", digits(value / size))
            }
        }
    }
}

fn bytes_unit(value: f64) -> (&'static str, f64) {
    let units = [
        ("GiB", KIB * KIB * KIB),
        ("MiB", KIB * KIB),
        ("KiB", KIB),
        ("B", 1.0),
    ];
    let fits = |(_, size): &(&str, f64)| value.abs() >= *size;
    units.into_iter().find(fits).unwrap_or(units[3])
}

/// About three digits, without zeros at the end.
fn digits(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return "0".to_string();
    }
    let before = value.abs().log10().floor() as i32 + 1;
    let after = usize::try_from(3 - before).unwrap_or(0).min(6);
    let text = format!("{value:.after$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    } else {
        text
    }
}

/// One axis of a panel.
#[derive(Clone, Debug)]
pub struct Axis {
    pub(crate) name: String,
    pub(crate) unit: Unit,
    low: f64,
    high: f64,
    logarithmic: bool,
    /// Where something is written at the axis, and what.
    pub(crate) ticks: Vec<(f64, String)>,
    /// Whether the ticks name things instead of values.
    pub(crate) named: bool,
}

impl Axis {
    /// From 0 to `high` or a little more.
    pub fn linear(name: &str, unit: Unit, high: f64) -> Axis {
        let high = if high > 0.0 { high } else { 1.0 };
        // Round in the unit that is written.
        let scale = match unit {
            Unit::Bytes => bytes_unit(high / 2.0).1,
            Unit::Milliseconds if high >= 1000.0 => 1000.0,
            Unit::Percent => 0.01,
            Unit::Plain | Unit::Milliseconds => 1.0,
        };
        let ticks = round(high / scale, 6)
            .into_iter()
            .map(|value| {
                let text = match unit {
                    Unit::Bytes => format!("{} {}", digits(value), bytes_unit(high / 2.0).0),
                    _ => unit.format(value * scale),
                };
                (value * scale, text)
            })
            .collect();
        Axis {
            name: name.to_string(),
            unit,
            low: 0.0,
            high: high * 1.03,
            logarithmic: false,
            ticks,
            named: false,
        }
    }

    /// From `low` to `high`, both above 0, with equal distances for equal ratios.
    pub fn logarithmic(name: &str, unit: Unit, low: f64, high: f64) -> Axis {
        let low = if low > 0.0 { low } else { 1e-3 };
        let high = high.max(low * 2.0);
        let steps: &[f64] = if high / low > 1e3 {
            &[1.0]
        } else {
            &[1.0, 2.0, 5.0]
        };
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let ticks = (first..=last)
            .flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)))
            .filter(|value| (low * 0.999..=high * 1.001).contains(value))
            .map(|value| (value, unit.format(value)))
            .collect();
        Axis {
            name: name.to_string(),
            unit,
            low: low / 1.08,
            high: high * 1.08,
            logarithmic: true,
            ticks,
            named: false,
        }
    }

    /// A place for each name: 0 for the first, 1 for the next.
    pub fn names(name: &str, names: Vec<String>) -> Axis {
        let count = names.len().max(1) as f64;
        Axis {
            name: name.to_string(),
            unit: Unit::Plain,
            low: -0.5,
            high: count - 0.5,
            logarithmic: false,
            ticks: names
                .into_iter()
                .enumerate()
                .map(|(at, name)| (at as f64, name))
                .collect(),
            named: true,
        }
    }

    /// A place for each of `n` things, from 0 on, of which only those in `ticks` are named.
    pub fn places(name: &str, n: usize, ticks: Vec<(f64, String)>) -> Axis {
        Axis {
            name: name.to_string(),
            unit: Unit::Plain,
            low: -0.5,
            high: n.max(1) as f64 - 0.5,
            logarithmic: false,
            ticks,
            named: true,
        }
    }

    /// With ticks at these values only, and some room on both sides.
    pub fn at(name: &str, unit: Unit, ticks: Vec<(f64, String)>) -> Axis {
        let low = ticks
            .iter()
            .map(|tick| tick.0)
            .fold(f64::INFINITY, f64::min);
        let high = ticks
            .iter()
            .map(|tick| tick.0)
            .fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        let room = if high > low {
            (high - low) * 0.08
        } else {
            high.abs().max(1.0) * 0.5
        };
        Axis {
            name: name.to_string(),
            unit,
            low: low - room,
            high: high + room,
            logarithmic: false,
            ticks,
            named: false,
        }
    }

    /// Where `value` is, from 0 to 1; outside of it for values that the axis does not reach.
    pub(crate) fn share(&self, value: f64) -> f64 {
        let share = if self.logarithmic {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        if share.is_finite() { share } else { 0.0 }
    }
}

/// Round values from 0 to `max`, about `count` of them.
fn round(max: f64, count: usize) -> Vec<f64> {
    let rough = max / count as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    // Multiplied, not added up: 3 * 0.1 is printed as 0.3 after rounding.
    (0..)
        .map(|i| f64::from(i) * step)
        .take_while(|tick| *tick <= max * 1.000_001)
        .map(|tick| (tick / power).round() * power)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn round_ticks() {
        assert_eq!(
            texts(&Axis::linear("", Unit::Plain, 10.0)),
            ["0", "2", "4", "6", "8", "10"]
        );
        assert_eq!(
            texts(&Axis::linear("", Unit::Plain, 0.35)),
            ["0", "0.1", "0.2", "0.3"]
        );
        assert_eq!(
            texts(&Axis::linear("", Unit::Milliseconds, 1550.0)),
            ["0 ms", "500 ms", "1 s", "1.5 s"]
        );
        assert_eq!(
            texts(&Axis::linear("", Unit::Bytes, 2.5 * KIB * KIB * KIB)),
            ["0 GiB", "0.5 GiB", "1 GiB", "1.5 GiB", "2 GiB", "2.5 GiB"]
        );
        assert_eq!(
            texts(&Axis::linear("", Unit::Percent, 1.0)),
            ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]
        );
        assert_eq!(
            texts(&Axis::logarithmic("", Unit::Milliseconds, 3.0, 60.0)),
            ["5 ms", "10 ms", "20 ms", "50 ms"]
        );
    }

    #[test]
    fn places() {
        let linear = Axis::linear("", Unit::Plain, 100.0);
        assert_eq!(linear.share(0.0), 0.0);
        assert!((linear.share(103.0) - 1.0).abs() < 1e-12);
        let log = Axis::logarithmic("", Unit::Plain, 1.0, 100.0);
        assert!((log.share(10.0) - 0.5).abs() < 1e-12);
        assert_eq!(log.share(0.0), 0.0);
        let names = Axis::names("", vec!["a".into(), "b".into()]);
        assert_eq!((names.share(0.0), names.share(1.0)), (0.25, 0.75));
        assert_eq!(
            Axis::at("", Unit::Plain, vec![(5.0, "x".into())]).share(5.0),
            0.5
        );
        assert_eq!(Axis::linear("", Unit::Plain, 0.0).share(0.0), 0.0);
    }

    #[test]
    fn values_in_words() {
        assert_eq!(Unit::Bytes.format(7e9), "6.52 GiB");
        assert_eq!(Unit::Milliseconds.format(0.25), "0.25 ms");
        assert_eq!(Unit::Plain.format(1234.5), "1234");
        assert_eq!(Unit::Percent.format(0.873), "87.3 %");
    }
}
