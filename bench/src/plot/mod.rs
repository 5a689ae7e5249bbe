//! The figures of a report.

mod budget;
mod load;
mod steps;

use figures::Chart;

use crate::results::Report;
use crate::size::format_bytes;
use crate::spec::Row;

pub(crate) use load::load_timeline;

/// All figures that the report has something for. `id` begins their names.
pub(crate) fn all(report: &Report, id: &str) -> Vec<Chart> {
    let name = |what: &str| format!("{id}-{what}");
    [
        budget::speed(report, &name("speed")),
        budget::memory(report, &name("memory")),
        load_timeline(report, &name("load")),
        steps::strip(report, &name("steps")),
        budget::share_of_bound(report, &name("bound")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What a row is called beside others of the same conditions.
fn kind_label(row: &Row) -> String {
    let mut label = row.name();
    if row.repack {
        label.push_str(", repacked");
    }
    if !row.default_advise() {
        label.push_str(if row.advise {
            ", advise"
        } else {
            ", no advise"
        });
    }
    label
}

/// Whether a property of the rows has more than one value.
fn varies<T: PartialEq>(report: &Report, value: impl Fn(&Row) -> T) -> bool {
    let mut values = report.rows.iter().map(|result| value(&result.row));
    let first = values.next();
    values.any(|value| Some(value) != first)
}

/// The conditions that differ between the rows, as words after a name; the budget where it is not an axis.
fn conditions(report: &Report, row: &Row, with_budget: bool) -> String {
    let mut label = String::new();
    if varies(report, |row| row.cache) {
        label.push_str(&format!(", {}", row.cache.as_str()));
    }
    if with_budget && varies(report, |row| row.budget_bytes) {
        let budget = row.budget_bytes.map_or("no limit".into(), format_bytes);
        label.push_str(&format!(", {budget}"));
    }
    if varies(report, |row| row.readahead_bytes) {
        let readahead = row.readahead_bytes.map_or("as is".into(), format_bytes);
        label.push_str(&format!(", readahead {readahead}"));
    }
    label
}

/// Numbers things in the order in which they are seen.
#[derive(Default)]
struct Numbers(Vec<String>);

impl Numbers {
    fn of(&mut self, name: String) -> usize {
        self.0
            .iter()
            .position(|known| *known == name)
            .unwrap_or_else(|| {
                self.0.push(name);
                self.0.len() - 1
            })
    }
}

/// The model's file and what llama.cpp calls it.
fn model_words(report: &Report) -> String {
    let file = &report.setup.model.filename;
    report.facts().map_or_else(
        || file.clone(),
        |(model, _)| format!("{file}, {}", model.description),
    )
}
