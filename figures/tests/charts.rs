//! Charts of every kind of layer: well-formed, complete, and free of what a browser would not draw.

use figures::{Axis, Cells, Chart, Layer, Panel, Series, Shape, Unit};

/// A minimal check of XML: tags nest, attributes are quoted, text has no bare `<` or `&`.
fn assert_well_formed(svg: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = svg;
    while let Some(at) = rest.find('<') {
        assert_text(&rest[..at]);
        let end = at + rest[at..].find('>').expect("an open tag");
        let tag = &rest[at + 1..end];
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "in {svg}");
        } else if !tag.ends_with('/') {
            open.push(tag.split([' ', '\n']).next().unwrap());
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "{open:?}");
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
}

fn assert_text(text: &str) {
    assert!(!text.contains('>'), "{text}");
    for (at, _) in text.match_indices('&') {
        let known = ["&amp;", "&lt;", "&gt;", "&quot;"];
        assert!(
            known.iter().any(|known| text[at..].starts_with(known)),
            "{text}"
        );
    }
}

fn series(label: &str, layers: Vec<Layer>) -> Series {
    Series {
        label: label.into(),
        note: "a \"note\"".into(),
        colour: 11,
        shift: 0.0,
        layers,
    }
}

fn panel(x: Axis, y: Axis, layers: Vec<Layer>) -> Panel {
    Panel {
        title: "5 < 6".into(),
        x,
        y,
        guides: vec![(5.0, "file & more".into()), (1e9, "beyond the axis".into())],
        series: vec![series("one, with a comma", layers)],
        height: 120.0,
        legend: true,
    }
}

fn chart() -> Chart {
    let lines = vec![
        Layer::Line {
            what: "speed",
            dashed: false,
            points: vec![(1.0, 2.0), (2.0, 4.0)],
        },
        Layer::Vertical {
            what: "interval",
            x: 1.0,
            low: 1.5,
            high: 2.5,
        },
        Layer::Mark {
            what: "median",
            shape: Shape::Ring,
            at: (1.0, 2.0),
        },
    ];
    let strips = vec![
        Layer::Horizontal {
            what: "range",
            y: 1.0,
            low: 3.0,
            high: 40.0,
        },
        Layer::Bar {
            what: "share",
            y: 0.0,
            to: 20.0,
        },
        Layer::Mark {
            what: "median",
            shape: Shape::Dot,
            at: (10.0, 1.0),
        },
        Layer::Mark {
            what: "p99",
            shape: Shape::Tick,
            at: (10.0, 0.0),
        },
        Layer::Line {
            what: "nothing",
            dashed: true,
            points: Vec::new(),
        },
    ];
    Chart {
        id: "test".into(),
        title: "A & B".into(),
        subtitle: "<all of it>".into(),
        panels: vec![
            panel(
                Axis::linear("time", Unit::Milliseconds, 2.0),
                Axis::linear("size", Unit::Plain, 6.0),
                lines,
            ),
            panel(
                Axis::logarithmic("time", Unit::Milliseconds, 3.0, 40.0),
                Axis::names("", vec!["a \"name\"".into(), "another".into()]),
                strips,
            ),
        ],
    }
}

#[test]
fn every_layer_is_drawn() {
    let svg = chart().svg();
    assert_well_formed(&svg);
    for (part, count) in [
        ("<polyline class=\"line\"", 1),
        ("<polyline class=\"dashed\"", 1),
        ("class=\"range\"", 2),
        ("class=\"bar\"", 1),
        ("class=\"ring\"", 1),
        ("class=\"dot\"", 1),
        ("class=\"tick\"", 1),
        ("file &amp; more", 1),
        ("beyond the axis", 0),
        ("<clipPath id=\"test-1\"", 1),
        ("prefers-color-scheme: dark", 1),
    ] {
        assert_eq!(svg.matches(part).count(), count, "{part}");
    }
}

#[test]
fn a_value_that_is_larger_is_higher_and_a_later_name_is_lower() {
    let svg = chart().svg();
    let y_of = |at: usize| -> f64 {
        let rest = &svg[at..];
        let start = rest.find("cy=\"").unwrap() + 4;
        rest[start..].split('"').next().unwrap().parse().unwrap()
    };
    let ring = y_of(svg.find("class=\"ring\"").unwrap());
    // Two sixths of the first panel's height, counted from its bottom at 64 + 28 + 120.
    assert!(
        (ring - (212.0 - 120.0 * 2.0 / (6.0 * 1.03))).abs() < 0.1,
        "{ring}"
    );
    let dot = y_of(svg.find("class=\"dot\"").unwrap());
    assert!((dot - (64.0 + 198.0 + 28.0 + 90.0)).abs() < 0.1, "{dot}");
}

#[test]
fn every_value_is_in_the_csv() {
    let csv = chart().csv();
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines[0], "panel,series,what,time,size,low,high");
    assert_eq!(lines[1], "5 < 6,\"one, with a comma\",speed,1,2,,");
    assert_eq!(lines[3], "5 < 6,\"one, with a comma\",interval,1,,1.5,2.5");
    assert_eq!(lines[5], "5 < 6,\"one, with a comma\",range,,another,3,40");
    assert_eq!(
        lines[6],
        "5 < 6,\"one, with a comma\",share,20,\"a \"\"name\"\"\",,"
    );
    assert_eq!(lines.len(), 9);
}

#[test]
fn no_panels() {
    let empty = Chart {
        panels: Vec::new(),
        ..chart()
    };
    assert_well_formed(&empty.svg());
    assert_eq!(empty.csv().lines().count(), 1);
}

/// A chart of one panel.
fn one(x: Axis, y: Axis, layer: Layer) -> Chart {
    Chart {
        panels: vec![panel(x, y, vec![layer])],
        ..chart()
    }
}

#[test]
fn columns_stand_where_their_ends_are() {
    let chart = one(
        Axis::linear("snapshot", Unit::Plain, 4.0),
        Axis::linear("size", Unit::Bytes, 4096.0),
        Layer::Column {
            what: "resident",
            x: 1.5,
            width: 1.0,
            low: 1024.0,
            high: 3072.0,
        },
    );
    assert_well_formed(&chart.svg());
    assert!(chart.svg().contains("resident 2 KiB"));
    assert!(
        chart.csv().ends_with("resident,1.5,,1024,3072\n"),
        "{}",
        chart.csv()
    );
}

#[test]
fn cells_are_one_image_and_a_table() {
    let cells = |y| Cells {
        what: "bytes",
        x: (0.0, 30.0),
        y,
        n_columns: 3,
        values: vec![0.0, 1.0, 100.0, 7.0, 0.0, 0.0],
        logarithmic: true,
    };
    let x = || Axis::linear("step", Unit::Plain, 30.0);
    let named = one(
        x(),
        Axis::places("tensor", 2, vec![(1.0, "a, b".into())]),
        Layer::Cells(cells((-0.5, 1.5))),
    );
    let svg = named.svg();
    assert_well_formed(&svg);
    assert_eq!(svg.matches("<image ").count(), 1);
    // The first row is on top: its image fills the panel from 64 + 28 on.
    assert!(svg.contains("y=\"92.0\""), "{svg}");
    assert_eq!(
        named.csv(),
        "5 < 6: bytes,0,10,20\n-0.5,0,1,100\n\"a, b\",7,0,0\n"
    );
    let upwards = one(
        x(),
        Axis::linear("offset", Unit::Bytes, 2.0),
        Layer::Cells(cells((0.0, 2.0))),
    );
    assert_ne!(
        image(&upwards.svg()),
        image(&svg),
        "the rows are turned around"
    );
    assert_eq!(upwards.csv().lines().nth(1), Some("0,0,1,100"));
}

fn image(svg: &str) -> &str {
    svg.split("base64,")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap()
}
