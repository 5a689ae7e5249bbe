//! Tables as Markdown, HTML and CSV.

use crate::csv::quoted;
use crate::escape;

/// Names, and a cell for each of them in every row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    names: Vec<String>,
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Adds a column; numbers stand on the `right`.
    pub fn column(&mut self, name: &str, right: bool) {
        self.names.push(name.to_string());
        self.right.push(right);
    }

    /// The number of columns.
    pub fn width(&self) -> usize {
        self.names.len()
    }

    /// Adds a row.
    ///
    /// # Panics
    ///
    /// If it does not have a cell for every column.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(
            cells.len(),
            self.names.len(),
            "a row needs a cell for every column"
        );
        self.rows.push(cells);
    }

    /// The number of rows.
    pub fn height(&self) -> usize {
        self.rows.len()
    }

    /// With the names in the first line.
    pub fn csv(&self) -> String {
        let mut text = String::new();
        for cells in std::iter::once(&self.names).chain(&self.rows) {
            let cells: Vec<String> = cells.iter().map(|cell| quoted(cell)).collect();
            text.push_str(&cells.join(","));
            text.push('\n');
        }
        text
    }

    /// With aligned columns.
    pub fn markdown(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| row.iter().map(|cell| cell.replace('|', "\\|")).collect())
            .collect();
        let width = |index: usize| {
            let cells = rows.iter().map(|row| row[index].chars().count());
            cells
                .chain([self.names[index].chars().count(), 3])
                .max()
                .unwrap_or(3)
        };
        let widths: Vec<usize> = (0..self.names.len()).map(width).collect();
        let mut text = self.line(&self.names, &widths);
        let rules: Vec<String> = (0..widths.len())
            .map(|i| {
                if self.right[i] {
                    format!("{}:", "-".repeat(widths[i] - 1))
                } else {
                    "-".repeat(widths[i])
                }
            })
            .collect();
        text.push_str(&self.line(&rules, &widths));
        for row in &rows {
            text.push_str(&self.line(row, &widths));
        }
        text
    }

    /// Columns are sorted by a click on their names, which the page's script does.
    pub fn html(&self) -> String {
        let class = |index: usize| {
            if self.right[index] {
                " class=\"right\""
            } else {
                ""
            }
        };
        let mut text = String::from("<div class=\"table\"><table><thead><tr>");
        for (index, name) in self.names.iter().enumerate() {
            text.push_str(&format!(
                "<th{}><button type=\"button\">{}</button></th>",
                class(index),
                escape(name)
            ));
        }
        text.push_str("</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            text.push_str("<tr>");
            for (index, cell) in row.iter().enumerate() {
                text.push_str(&format!("<td{}>{}</td>", class(index), escape(cell)));
            }
            text.push_str("</tr>\n");
        }
        text.push_str("</tbody></table></div>\n");
        text
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let mut text = String::from("|");
        for (index, cell) in cells.iter().enumerate() {
            let width = widths[index];
            let padded = if self.right[index] {
                format!(" {cell:>width$} |")
            } else {
                format!(" {cell:<width$} |")
            };
            text.push_str(&padded);
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_cannot_break_out() {
        let mut table = Table::default();
        table.column("name", false);
        table.column("n", true);
        table.row(vec!["a|b <script>".into(), "7".into()]);
        assert_eq!(
            table.markdown(),
            "| name          |   n |\n| ------------- | --: |\n| a\\|b <script> |   7 |\n"
        );
        let html = table.html();
        assert_eq!(table.csv(), "name,n\na|b <script>,7\n");
        assert!(
            html.contains("<td>a|b &lt;script&gt;</td><td class=\"right\">7</td>"),
            "{html}"
        );
    }
}
