//! Numbers for people.

/// A size with a unit: `16.8 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // From here on two decimals would show 1024.00.
    while value >= 1023.995 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.2} {}", UNITS[unit])
}

/// A share from 0 to 1 in per cent, with about three digits: `12.5 %`.
pub(crate) fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    let text = match percent.abs() {
        0.0 => "0".to_owned(),
        // One decimal would say all or nothing where it is not quite that.
        value if value < 0.1 || (value > 99.9 && value < 100.0) => format!("{percent:.3}"),
        _ => format!("{percent:.1}"),
    };
    match text.strip_suffix(".0") {
        Some(whole) => format!("{whole} %"),
        None => format!("{text} %"),
    }
}

/// A part of a whole as a share; 0 of nothing.
pub(crate) fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// A number with commas between thousands: `12,186`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of things: `1 token`, `2 tokens`.
pub(crate) fn plural(n: u64, thing: &str) -> String {
    match n {
        1 => format!("1 {thing}"),
        _ => format!("{} {thing}s", count(n)),
    }
}

/// A duration with a unit: `12.3 ms`.
pub(crate) fn duration(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    format!("{value:.2} {unit}")
}

/// Rows with aligned columns: the first column to the left, the others to the right.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    left: &'static [usize],
}

impl Table {
    /// `left` has the columns that are aligned to the left.
    pub(crate) fn new(heading: &[&str], left: &'static [usize]) -> Table {
        Table {
            rows: vec![heading.iter().map(|&name| name.to_owned()).collect()],
            left,
        }
    }

    pub(crate) fn push(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let n_columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..n_columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let cell = if self.left.contains(&column) {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                };
                line.push_str(if column == 0 { "" } else { "  " });
                line.push_str(&cell);
            }
            writeln!(formatter, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.50 KiB");
        assert_eq!(size((1 << 20) - 1), "1.00 MiB");
        assert_eq!(size(13_800_000_000), "12.85 GiB");
        assert_eq!(size(u64::MAX), "16777216.00 TiB");
    }

    #[test]
    fn numbers_for_people() {
        let percents = [0.125, 1.0, 0.0, 0.9996, 0.0004, 0.4573].map(percent);
        let expected = ["12.5 %", "100 %", "0 %", "99.960 %", "0.040 %", "45.7 %"];
        assert_eq!(percents, expected);
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(count),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(
            plural(1, "token") + ", " + &plural(1200, "token"),
            "1 token, 1,200 tokens"
        );
        assert_eq!(duration(1_500_000), "1.50 ms");
    }

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["name", "n"], &[0]);
        table.push(vec!["a".into(), "1000".into()]);
        assert_eq!(table.to_string(), "name     n\na     1000\n");
    }
}
