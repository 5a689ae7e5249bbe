//! JSON: an array of rows, or one row a line.

use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};

use super::columns::{Column, columns};
use crate::results::Report;

/// A row whose keys keep the order of the columns.
struct Row(Vec<Column>);

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

fn rows(report: &Report) -> impl Iterator<Item = Row> {
    let tests = report.tests();
    (0..report.rows.len()).flat_map(move |index| {
        tests
            .clone()
            .into_iter()
            .map(move |test| Row(columns(report, index, test)))
    })
}

pub(super) fn render(report: &Report) -> String {
    let rows: Vec<_> = rows(report).collect();
    let mut text =
        serde_json::to_string_pretty(&rows).expect("plain values can be written as JSON");
    text.push('\n');
    text
}

pub(super) fn render_lines(report: &Report) -> String {
    let mut text = String::new();
    for row in rows(report) {
        text.push_str(&serde_json::to_string(&row).expect("plain values can be written as JSON"));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::report;

    #[test]
    fn both_forms_hold_the_same_rows() {
        let report = report();
        let array: Vec<serde_json::Value> = serde_json::from_str(&render(&report)).unwrap();
        let lines: Vec<serde_json::Value> = render_lines(&report)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(array.len(), 4);
        assert_eq!(array, lines);
        assert!(
            render(&report)
                .trim_start_matches("[\n  {\n")
                .trim_start()
                .starts_with("\"build_commit\"")
        );
    }
}
