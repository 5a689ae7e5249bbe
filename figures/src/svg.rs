//! Drawing.

use std::fmt::Write as _;

use crate::style::{COLOURS, escape, sheet};
use crate::{Axis, Cells, Chart, Layer, Panel, Series, Shape, png};

const WIDTH: f64 = 1000.0;
/// Above the first panel: title and subtitle.
const TOP: f64 = 64.0;
/// Of a panel: its title above, its axis below.
const PANEL_TOP: f64 = 28.0;
const PANEL_BOTTOM: f64 = 50.0;
/// Room for the values beside the vertical axis, and for names at most.
const LEFT: f64 = 84.0;
const LEFT_MAX: f64 = 360.0;
const LEGEND: f64 = 270.0;
const GUIDE: f64 = 96.0;
const NO_LEGEND: f64 = 36.0;
/// Width of a letter of the font, about.
const LETTER: f64 = 6.7;

pub(crate) fn render(chart: &Chart) -> String {
    let height = TOP
        + chart
            .panels
            .iter()
            .map(|panel| PANEL_TOP + panel.height + PANEL_BOTTOM)
            .sum::<f64>();
    let mut svg = String::new();
    // Here and below: writing to a string does not fail.
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"figure\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\" font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
         <title>{title}</title>\n<style>\n{style}</style>\n\
         <rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         <text x=\"24\" y=\"26\" font-size=\"17\" font-weight=\"600\">{title}</text>\n\
         <text x=\"24\" y=\"46\" class=\"dim\">{subtitle}</text>\n",
        title = escape(&chart.title),
        style = sheet(),
        subtitle = escape(&chart.subtitle),
    );
    let left = chart.panels.iter().map(left_of).fold(LEFT, f64::max);
    let mut top = TOP;
    for (index, panel) in chart.panels.iter().enumerate() {
        let name = format!("{}-{index}", chart.id);
        draw_panel(&mut svg, panel, &name, left, top + PANEL_TOP);
        top += PANEL_TOP + panel.height + PANEL_BOTTOM;
    }
    svg.push_str("</svg>\n");
    svg
}

/// Room that the words beside the vertical axis need.
fn left_of(panel: &Panel) -> f64 {
    let longest = panel
        .y
        .ticks
        .iter()
        .map(|(_, text)| text.chars().count())
        .max()
        .unwrap_or(0);
    (longest as f64 * LETTER + 24.0).min(LEFT_MAX)
}

/// The area between the axes.
struct Area<'a> {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
    x: &'a Axis,
    y: &'a Axis,
}

impl Area<'_> {
    fn right(&self) -> f64 {
        self.left + self.width
    }

    fn bottom(&self) -> f64 {
        self.top + self.height
    }

    fn x(&self, value: f64) -> f64 {
        self.left + self.x.share(value) * self.width
    }

    /// Values grow upwards, names go downwards.
    fn y(&self, value: f64) -> f64 {
        let share = self.y.share(value);
        let down = if self.y.named { share } else { 1.0 - share };
        self.top + down * self.height
    }
}

fn draw_panel(svg: &mut String, panel: &Panel, name: &str, left: f64, top: f64) {
    let guide = if panel.guides.is_empty() { 0.0 } else { GUIDE };
    let right = guide + if panel.legend { LEGEND } else { NO_LEGEND };
    let area = Area {
        left,
        top,
        width: WIDTH - left - right,
        height: panel.height,
        x: &panel.x,
        y: &panel.y,
    };
    let _ = writeln!(
        svg,
        "<text x=\"{left:.1}\" y=\"{:.1}\" font-weight=\"600\">{}</text>",
        top - 10.0,
        escape(&panel.title)
    );
    axes(svg, &area);
    for (value, text) in &panel.guides {
        if !(0.0..=1.0).contains(&panel.y.share(*value)) {
            continue;
        }
        let at = area.y(*value);
        let _ = writeln!(
            svg,
            "<line class=\"guide\" x1=\"{left:.1}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"dim\" font-size=\"11\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            area.right(),
            area.right() + 6.0,
            at + 4.0,
            escape(text)
        );
    }
    let _ = writeln!(
        svg,
        "<clipPath id=\"{name}\"><rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/></clipPath>",
        top - 6.0,
        area.width + 6.0,
        area.height + 12.0
    );
    let mut legend_top = top + 8.0;
    for series in &panel.series {
        let _ = writeln!(svg, "<g class=\"c{}\">", series.colour % COLOURS.len());
        let _ = writeln!(svg, "<g clip-path=\"url(#{name})\">");
        for layer in &series.layers {
            draw_layer(svg, &area, series, layer);
        }
        svg.push_str("</g>\n");
        if panel.legend {
            legend(svg, series, area.right() + guide + 18.0, legend_top);
            legend_top += if series.note.is_empty() { 22.0 } else { 34.0 };
        }
        svg.push_str("</g>\n");
    }
}

fn axes(svg: &mut String, area: &Area<'_>) {
    for (value, text) in &area.y.ticks {
        let at = area.y(*value);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"{}\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            area.left,
            area.right(),
            if area.y.named { "name" } else { "dim" },
            area.left - 8.0,
            at + 4.0,
            escape(text)
        );
    }
    let mut free_from = f64::NEG_INFINITY;
    for (value, text) in &area.x.ticks {
        let at = area.x(*value);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
            area.top,
            area.bottom()
        );
        // Words that would overlap those before are left out.
        let half = text.chars().count() as f64 * LETTER / 2.0;
        if at - half < free_from {
            continue;
        }
        free_from = at + half + 6.0;
        let _ = writeln!(
            svg,
            "<text class=\"dim\" text-anchor=\"middle\" x=\"{at:.1}\" y=\"{:.1}\">{}</text>",
            area.bottom() + 18.0,
            escape(text)
        );
    }
    let _ = writeln!(
        svg,
        "<text class=\"dim\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\" font-size=\"11\">{}</text>",
        area.right(),
        area.bottom() + 34.0,
        escape(&area.x.name)
    );
}

fn draw_layer(svg: &mut String, area: &Area<'_>, series: &Series, layer: &Layer) {
    let tip = |value: &str| {
        format!(
            "<title>{}, {}</title>",
            escape(&series.label),
            escape(value)
        )
    };
    let (x_text, y_text) = (
        |value: f64| area.x.unit.format(value),
        |value: f64| area.y.unit.format(value),
    );
    let shift = series.shift;
    match layer {
        Layer::Line {
            what,
            dashed,
            points,
        } => {
            let class = if *dashed { "dashed" } else { "line" };
            let points: Vec<String> = points
                .iter()
                .map(|(x, y)| format!("{:.1},{:.1}", area.x(*x) + shift, area.y(*y)))
                .collect();
            let _ = writeln!(
                svg,
                "<polyline class=\"{class}\" points=\"{}\">{}</polyline>",
                points.join(" "),
                tip(what)
            );
        }
        Layer::Vertical { what, x, low, high } => {
            let at = area.x(*x) + shift;
            let (y1, y2) = (area.y(*low), area.y(*high));
            let _ = writeln!(
                svg,
                "<path class=\"range\" fill=\"none\" d=\"M{:.1} {y1:.1}h8m-4 0V{y2:.1}m-4 0h8\">{}</path>",
                at - 4.0,
                tip(&format!("{what} {} to {}", y_text(*low), y_text(*high)))
            );
        }
        Layer::Horizontal { what, y, low, high } => {
            let at = area.y(*y);
            let (x1, x2) = (area.x(*low), area.x(*high));
            let _ = writeln!(
                svg,
                "<path class=\"range\" fill=\"none\" d=\"M{x1:.1} {:.1}v8m0 -4H{x2:.1}m0 -4v8\">{}</path>",
                at - 4.0,
                tip(&format!("{what} {} to {}", x_text(*low), x_text(*high)))
            );
        }
        Layer::Bar { what, y, to } => {
            let (at, end) = (area.y(*y), area.x(*to));
            let _ = writeln!(
                svg,
                "<rect class=\"bar\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"14\">{}</rect>",
                area.left,
                at - 7.0,
                (end - area.left).max(1.0),
                tip(&format!("{what} {}", x_text(*to)))
            );
        }
        Layer::Column {
            what,
            x,
            width,
            low,
            high,
        } => {
            let (x1, x2) = (area.x(x - width / 2.0), area.x(x + width / 2.0));
            let (y1, y2) = (area.y(*high), area.y(*low));
            let _ = writeln!(
                svg,
                "<rect class=\"bar\" x=\"{x1:.1}\" y=\"{y1:.1}\" width=\"{:.1}\" height=\"{:.1}\">{}</rect>",
                (x2 - x1).max(1.0),
                (y2 - y1).max(0.0),
                tip(&format!("{what} {}", y_text(high - low)))
            );
        }
        Layer::Cells(cells) => draw_cells(svg, area, cells),
        Layer::Mark { what, shape, at } => {
            let (x, y) = (area.x(at.0) + shift, area.y(at.1));
            let value = if area.y.named {
                x_text(at.0)
            } else {
                y_text(at.1)
            };
            let tip = tip(&format!("{what} {value}"));
            let _ = match shape {
                Shape::Dot => writeln!(
                    svg,
                    "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\">{tip}</circle>"
                ),
                Shape::Ring => writeln!(
                    svg,
                    "<circle class=\"ring\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\">{tip}</circle>"
                ),
                Shape::Tick => writeln!(
                    svg,
                    "<path class=\"tick\" d=\"M{x:.1} {:.1}v16\">{tip}</path>",
                    y - 8.0
                ),
            };
        }
    }
}

/// As a picture inside of the picture, with a pixel for each cell.
fn draw_cells(svg: &mut String, area: &Area<'_>, cells: &Cells) {
    let n_columns = cells.n_columns.max(1);
    let n_rows = cells.values.len() / n_columns;
    if n_rows == 0 {
        return;
    }
    let scaled = |value: f64| {
        if cells.logarithmic {
            value.ln_1p()
        } else {
            value
        }
    };
    let most = cells.values.iter().copied().fold(0.0, f64::max);
    let opacity = |value: &f64| match scaled(*value) / scaled(most) {
        // Something is never drawn as nothing.
        share if share > 0.0 => (24.0 + share * 231.0) as u8,
        _ => 0,
    };
    let mut rows: Vec<&[f64]> = cells.values.chunks_exact(n_columns).collect();
    if !area.y.named {
        rows.reverse();
    }
    let pixels: Vec<u8> = rows.into_iter().flatten().map(opacity).collect();
    let png = png::encode(n_columns as u32, n_rows as u32, &pixels);
    let (left, right) = (area.x(cells.x.0), area.x(cells.x.1));
    let (one, other) = (area.y(cells.y.0), area.y(cells.y.1));
    let _ = writeln!(
        svg,
        "<image x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" preserveAspectRatio=\"none\" \
         style=\"image-rendering:pixelated\" href=\"data:image/png;base64,{}\"/>",
        one.min(other),
        right - left,
        (one - other).abs(),
        png::base64(&png)
    );
}

fn legend(svg: &mut String, series: &Series, x: f64, y: f64) {
    let _ = writeln!(
        svg,
        "<line class=\"line\" x1=\"{x:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
         <text x=\"{text:.1}\" y=\"{:.1}\">{}</text>\
         <text class=\"dim\" font-size=\"11\" x=\"{text:.1}\" y=\"{:.1}\">{}</text>",
        x + 18.0,
        y + 4.0,
        escape(&series.label),
        y + 18.0,
        escape(&series.note),
        text = x + 24.0,
    );
}
