//! One web page with all answers, and files of the figures.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use figures::{Chart, escape, figure, list, page};

use super::{Report, Section};
use crate::output::Sink;
use crate::{Error, Result, Target};

/// Rows of a table on the page; more are in the CSV of the command line.
const ROWS_MAX: usize = 1000;

impl Report {
    /// Writes a page with these figures, which needs no network.
    ///
    /// # Errors
    ///
    /// [`Error::Write`], [`Error::Output`] and [`Error::OutputIsInput`].
    pub fn write_page(&self, charts: &[Chart], path: &Path) -> Result<()> {
        let target = Target::from_path(path);
        let mut sink = Sink::create(&target, &[Path::new(&self.about.log)])?;
        let explain = sink.explain();
        sink.write_all(self.page(charts).as_bytes())
            .map_err(explain)?;
        sink.finish()
    }

    /// The page.
    pub fn page(&self, charts: &[Chart]) -> String {
        let sections = self.sections();
        let title = match Path::new(&self.about.log).file_name() {
            Some(name) => format!("What {} read", name.to_string_lossy()),
            None => "What a run read".to_owned(),
        };
        let mut body = format!("<h1>{}</h1>\n", escape(&title));
        body += &list(&self.heading());
        body += "<nav>";
        for section in &sections {
            let name = section.question.name();
            body += &format!("<a href=\"#{name}\">{name}</a> ");
        }
        body += "</nav>\n<h2 id=\"found\">What was found</h2>\n";
        let first = |section: &Section| section.findings.first().cloned();
        body += &list(&sections.iter().filter_map(first).collect::<Vec<_>>());
        body += "<h2 id=\"figures\">Figures</h2>\n";
        for chart in charts {
            body += &figure(chart);
        }
        for section in &sections {
            body += &html(section);
        }
        page(&title, &body)
    }
}

fn html(section: &Section) -> String {
    let mut text = format!(
        "<section>\n<h2 id=\"{}\">{}</h2>\n",
        section.question.name(),
        escape(section.question.title())
    );
    text += &list(&section.findings);
    let cannot = |reason: &String| format!("No answer: {reason}");
    text += &list(&section.cannot.iter().map(cannot).collect::<Vec<_>>());
    for (heading, sheet) in section.tables.iter().filter(|(_, s)| !s.rows.is_empty()) {
        text += &format!("<h3>{}</h3>\n", escape(heading));
        text += &sheet.table(ROWS_MAX).html();
    }
    text + "</section>\n"
}

/// Writes each figure as `ID.svg`, and its values as `ID.csv`, into a folder, which is made if it is not there.
///
/// # Errors
///
/// [`Error::Output`] if the folder cannot be made, and those of a file that cannot be written.
pub fn write_figures(charts: &[Chart], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|source| Error::Output {
        path: folder.to_owned(),
        action: "make this folder",
        source,
    })?;
    for chart in charts {
        for (extension, text) in [("svg", chart.svg()), ("csv", chart.csv())] {
            let path = folder.join(format!("{}.{extension}", chart.id));
            let mut sink = Sink::create(&Target::File(path), &[])?;
            let explain = sink.explain();
            sink.write_all(text.as_bytes()).map_err(explain)?;
            sink.finish()?;
        }
    }
    Ok(())
}
