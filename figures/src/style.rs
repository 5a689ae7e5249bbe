//! Colours for light and dark surroundings.

use std::fmt::Write as _;

/// Colours that stay apart for colour-blind readers (after Okabe and Ito), for light and for dark surroundings.
pub(crate) const COLOURS: [(&str, &str); 8] = [
    ("#0060a0", "#6db8f2"),
    ("#c04a00", "#ff9a56"),
    ("#00785a", "#3fd2a8"),
    ("#a8478a", "#eb9fd3"),
    ("#7a6200", "#e8cc4a"),
    ("#4d4d4d", "#c4c4c4"),
    ("#5b4bb5", "#a99bff"),
    ("#a02020", "#ff8080"),
];

/// Rules with the light colours, and the dark ones for readers who prefer them. Plain colours, not custom properties:
/// not every program that shows SVG knows those.
pub(crate) fn sheet() -> String {
    let mut style = String::from(
        ".figure .line,.figure .dashed{fill:none;stroke-width:2.2;stroke-linejoin:round}\
         .figure .dashed{stroke-width:1.6;stroke-dasharray:5 4}\
         .figure .ring,.figure .range,.figure .tick{stroke-width:2.2}\
         .figure .bar{stroke:none;opacity:.85}\
         .figure .grid{stroke-width:1}.figure .guide{stroke-width:1;stroke-dasharray:2 3}\n",
    );
    style.push_str(&colours(
        ["#ffffff", "#1a1a1a", "#5c5c5c", "#dddddd"],
        |(light, _)| light,
    ));
    style.push_str("@media (prefers-color-scheme: dark){\n");
    style.push_str(&colours(
        ["#14171a", "#ececec", "#a3a9ae", "#343a40"],
        |(_, dark)| dark,
    ));
    style.push_str("}\n");
    style
}

fn colours(
    [back, text, dim, grid]: [&str; 4],
    of: impl Fn((&'static str, &'static str)) -> &'static str,
) -> String {
    let mut rules = format!(
        ".figure .back,.figure .ring{{fill:{back}}}.figure text{{fill:{text}}}.figure .dim{{fill:{dim}}}\
         .figure .guide{{stroke:{dim}}}.figure .grid{{stroke:{grid}}}\n"
    );
    for (index, pair) in COLOURS.iter().enumerate() {
        let colour = of(*pair);
        // Writing to a string does not fail.
        let _ = writeln!(
            rules,
            ".figure .c{index}{{stroke:{colour}}}.figure .c{index} .dot,.figure .c{index} .bar{{fill:{colour};stroke:none}}\
             .figure .c{index} text{{stroke:none}}"
        );
    }
    rules
}

/// Text as it may stand in XML and HTML, in attributes too.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
