//! Charts as SVG and as CSV.
//!
//! [`page`] puts charts and [`Table`]s together as one web page.
//!
//! A [`Chart`] is a column of [`Panel`]s with a legend beside each. What is drawn in a panel are [`Series`], each in a colour of
//! its own and made of [`Layer`]s: lines, intervals, bars and marks in the units of the panel's axes. The SVG needs
//! nothing from outside, follows the reader's preference for light or dark, and may stand alone or inside of an HTML page; several in one page do not
//! disturb each other as long as their `id`s differ. The CSV holds every value that is drawn.

mod axis;
mod csv;
mod page;
mod png;
mod style;
mod svg;
mod table;

pub use axis::{Axis, Unit};
pub use page::{figure, list, page};
pub use style::escape;
pub use table::Table;

/// A picture.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Letters, digits and `-`: prefix of the names inside the SVG, and a good file name.
    pub id: String,
    pub title: String,
    /// A line of explanation below the title.
    pub subtitle: String,
    /// From top to bottom.
    pub panels: Vec<Panel>,
}

/// One pair of axes.
#[derive(Clone, Debug)]
pub struct Panel {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    /// Horizontal lines that help to read the values: where they are, and what they are called.
    pub guides: Vec<(f64, String)>,
    pub series: Vec<Series>,
    /// Height of the area between the axes, in pixels.
    pub height: f64,
    /// Whether the series' names stand beside the panel.
    pub legend: bool,
}

/// What belongs together: one colour, one entry of the legend.
#[derive(Clone, Debug)]
pub struct Series {
    pub label: String,
    /// A second line in the legend; empty for none.
    pub note: String,
    /// Index into the palette, taken modulo its length. The same thing has the same colour in all panels.
    pub colour: usize,
    /// Shifts everything to the right, in pixels, so that series with equal values stay apart.
    pub shift: f64,
    pub layers: Vec<Layer>,
}

/// Values and their form, in the units of the axes. `what` names them in tool tips and in the CSV.
#[derive(Clone, Debug, PartialEq)]
pub enum Layer {
    /// A line through points.
    Line {
        what: &'static str,
        dashed: bool,
        points: Vec<(f64, f64)>,
    },
    /// A vertical interval.
    Vertical {
        what: &'static str,
        x: f64,
        low: f64,
        high: f64,
    },
    /// A horizontal interval.
    Horizontal {
        what: &'static str,
        y: f64,
        low: f64,
        high: f64,
    },
    /// A horizontal bar from the axis.
    Bar { what: &'static str, y: f64, to: f64 },
    /// A vertical bar from `low` to `high`, `width` wide in the units of the axis, around `x`.
    Column {
        what: &'static str,
        x: f64,
        width: f64,
        low: f64,
        high: f64,
    },
    /// Many cells of one size, each of a colour the stronger the larger its value. A chart with such cells has a CSV of its own form: for each
    /// panel a line with the columns' places, then a line for each row.
    Cells(Cells),
    /// A point.
    Mark {
        what: &'static str,
        shape: Shape,
        at: (f64, f64),
    },
}

/// Cells of a [`Layer::Cells`].
#[derive(Clone, Debug, PartialEq)]
pub struct Cells {
    /// What the values are.
    pub what: &'static str,
    /// From the left of the first column to the right of the last one.
    pub x: (f64, f64),
    /// From the outer edge of the first row to that of the last one. Rows go downwards where the axis has names, otherwise upwards.
    pub y: (f64, f64),
    pub n_columns: usize,
    /// Row by row; not negative.
    pub values: Vec<f64>,
    /// Whether equal ratios look equally different, instead of equal differences.
    pub logarithmic: bool,
}

/// Form of a [`Layer::Mark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Dot,
    Ring,
    /// A short vertical stroke.
    Tick,
}

impl Chart {
    /// The picture as SVG.
    pub fn svg(&self) -> String {
        svg::render(self)
    }

    /// Every value of the picture as CSV, one line each: panel, series, what it is, x, y, and the ends of intervals. The names of x and y are
    /// the first panel's axes'.
    pub fn csv(&self) -> String {
        csv::render(self)
    }
}
