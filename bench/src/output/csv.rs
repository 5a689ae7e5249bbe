//! CSV as llama-bench writes it: every field quoted, booleans as 0 and 1. Lists are joined with semicolons.

use serde_json::Value;

use super::columns::columns;
use crate::results::Report;

pub(super) fn render(report: &Report) -> String {
    let mut out = String::new();
    for index in 0..report.rows.len() {
        for test in report.tests() {
            let columns = columns(report, index, test);
            if out.is_empty() {
                let names: Vec<_> = columns.iter().map(|(name, _)| *name).collect();
                out.push_str(&names.join(","));
                out.push('\n');
            }
            let fields: Vec<_> = columns.iter().map(|(_, value)| quoted(value)).collect();
            out.push_str(&fields.join(","));
            out.push('\n');
        }
    }
    out
}

fn quoted(value: &Value) -> String {
    format!("\"{}\"", plain(value).replace('"', "\"\""))
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(flag) => u8::from(*flag).to_string(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(";"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::report;

    #[test]
    fn one_line_for_each_row_and_test() {
        let text = render(&report());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(lines[0].starts_with("build_commit,build_number,cpu_info"));
        // A quote in the model's name is doubled and its comma is inside of quotes.
        assert!(
            lines[1].contains("\"demo \"\"a\"\",b.gguf\""),
            "{}",
            lines[1]
        );
        assert!(lines[1].contains("\"100.0;110.0;120.0\""));
        let fields = lines[0].split(',').count();
        // The name's comma adds one.
        assert_eq!(lines[1].split(',').count(), fields + 1);
    }
}
