//! One web page that needs nothing from outside: tables that sort, and figures that can be kept as SVG and CSV.

use crate::{Chart, escape};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// A whole page; `body` is HTML, whose tables and figures are those of [`Table::html`](crate::Table::html) and [`figure`].
pub fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<link rel=\"icon\" href=\"data:,\">\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n\
         <script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )
}

/// A chart with buttons that save it.
pub fn figure(chart: &Chart) -> String {
    format!(
        "<figure data-name=\"{id}\">\n{svg}<pre hidden>{csv}</pre>\n\
         <figcaption><button type=\"button\" data-save=\"svg\">SVG</button> \
         <button type=\"button\" data-save=\"csv\">CSV</button></figcaption>\n</figure>\n",
        id = escape(&chart.id),
        svg = chart.svg(),
        csv = escape(&chart.csv()),
    )
}

/// Lines with a dot before each; nothing without lines.
pub fn list(lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let items: String = lines
        .iter()
        .map(|line| format!("<li>{}</li>\n", escape(line)))
        .collect();
    format!("<ul>\n{items}</ul>\n")
}
