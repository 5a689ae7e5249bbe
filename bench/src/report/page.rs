//! One web page that needs nothing from outside: tables that sort, and figures that can be kept as SVG and CSV.

use figures::{escape, figure, list, page};

use super::{Run, setups, twins};
use crate::{output, plot};

pub(super) fn render(runs: &[Run]) -> String {
    let mut body = String::from("<h1>Bench report</h1>\n");
    if runs.len() > 1 {
        body.push_str("<nav>");
        for (index, run) in runs.iter().enumerate() {
            body.push_str(&format!(
                "<a href=\"#run{index}\">{}</a> ",
                escape(&run.name)
            ));
        }
        body.push_str("</nav>\n");
    }
    body.push_str("<h2>Set-ups</h2>\n<p>Compare rows of one run only: a machine gives different speeds from one hour to the next.</p>\n");
    body.push_str(&format!(
        "<div class=\"wrap\">\n{}</div>\n",
        setups(runs).html()
    ));
    body.push_str(&list(&twins::lines(runs)));
    for (index, run) in runs.iter().enumerate() {
        body.push_str(&section(run, index));
    }
    page("Bench report", &body)
}

fn section(run: &Run, index: usize) -> String {
    let report = &run.report;
    let mut text = format!(
        "<section id=\"run{index}\">\n<h2>{}</h2>\n",
        escape(&run.name)
    );
    let facts: Vec<String> = output::header(report)
        .lines()
        .map(|line| line.trim_start_matches("- ").to_string())
        .collect();
    text.push_str(&list(&facts));
    for chart in plot::all(report, &format!("run{index}")) {
        text.push_str(&figure(&chart));
    }
    for (name, table) in output::tables(report) {
        text.push_str(&format!("<h3>{}</h3>\n", escape(name)));
        text.push_str(&table.html());
    }
    text.push_str("<h3>Notes</h3>\n");
    text.push_str(&list(
        &[output::notes(report), run.remarks.clone()].concat(),
    ));
    text.push_str("</section>\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::report;

    #[test]
    fn a_page_is_whole_and_names_nothing_outside() {
        let run = |name: &str| Run {
            name: name.into(),
            report: report(),
            remarks: vec!["a <remark>".into()],
        };
        let page = render(&[run("first"), run("second")]);
        assert_eq!(page.matches("<section id=").count(), 2);
        // Speed, memory, load and single tokens; nothing states a bound.
        assert_eq!(page.matches("<figure data-name=").count(), 8);
        assert_eq!(
            page.matches("<svg ").count(),
            page.matches("</svg>").count()
        );
        assert!(page.contains("a &lt;remark&gt;") && page.contains("CPU &lt;&amp;&gt;"));
        for outside in [
            "src=",
            "@import",
            "url(http",
            "<link rel=\"stylesheet",
            "fetch(",
            "XMLHttpRequest",
        ] {
            assert!(!page.contains(outside), "{outside}");
        }
        let ids: Vec<&str> = page
            .split(" id=\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        let mut unique = ids.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), ids.len());
    }
}
