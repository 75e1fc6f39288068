//! The curve: what mesh-control costs as a mesh grows, as an SVG.

use std::fmt::Write as _;

const WIDTH: f64 = 260.0;
const HEIGHT: f64 = 180.0;
const MARGIN: f64 = 60.0;
const COLOURS: [&str; 2] = ["#1f6fb2", "#d9730d"];

/// A mesh of so many services: memory in MiB, seconds to load it, milliseconds of a change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Point {
    pub(crate) services: usize,
    pub(crate) alone: f64,
    pub(crate) with_clients: f64,
    pub(crate) load: f64,
    pub(crate) change: f64,
}

/// What a line shows: its name, and its value at a point.
type Line = (&'static str, fn(&Point) -> f64);

/// Panels beside each other, over the number of services; both axes begin at 0, so that a straight line is linear growth.
pub(crate) fn draw(points: &[Point]) -> String {
    let panels: [(&str, &[Line]); 3] = [
        ("memory, MiB", &[("with 200 clients", |one| one.with_clients), ("without", |one| one.alone)]),
        ("seconds from start to serving", &[("", |one| one.load)]),
        ("one endpoint changes, p99 in ms", &[("", |one| one.change)]),
    ];
    let (wide, high) = (panels.len() as f64 * (WIDTH + MARGIN) + MARGIN, HEIGHT + 2.0 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {wide} {high}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (column, (title, lines)) in panels.into_iter().enumerate() {
        _ = writeln!(svg, "<g transform=\"translate({} {MARGIN})\">", MARGIN + column as f64 * (WIDTH + MARGIN));
        panel(&mut svg, title, lines, points);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(svg: &mut String, title: &str, lines: &[Line], points: &[Point]) {
    let most = points.iter().map(|point| point.services).max().unwrap_or(1) as f64;
    let values = points.iter().flat_map(|point| lines.iter().map(|(_, value)| value(point)));
    let top = round(values.fold(0.0, f64::max));
    let x = |services: usize| services as f64 / most * WIDTH;
    let y = |value: f64| HEIGHT - value / top * HEIGHT;
    _ = writeln!(svg, "<text x=\"0\" y=\"-12\">{title}</text>");
    for part in 0..=4 {
        let value = top * f64::from(part) / 4.0;
        let at = y(value);
        _ = writeln!(svg, "<line x1=\"0\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>");
        _ = writeln!(svg, "<text x=\"-6\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>", at + 4.0);
    }
    for point in points {
        let at = x(point.services);
        _ = writeln!(
            svg,
            "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            HEIGHT + 16.0,
            point.services
        );
    }
    _ = writeln!(svg, "<text x=\"{WIDTH}\" y=\"{}\" text-anchor=\"end\">services</text>", HEIGHT + 32.0);
    for ((name, value), colour) in lines.iter().zip(COLOURS) {
        let all: Vec<_> = points.iter().map(|one| format!("{:.1},{:.1}", x(one.services), y(value(one)))).collect();
        _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
            all.join(" ")
        );
        if let Some(last) = points.last() {
            let (at, y) = (x(last.services) - 8.0, y(value(last)) - 6.0);
            _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"{y:.1}\" text-anchor=\"end\" fill=\"{colour}\">{name}</text>");
        }
    }
}

/// The next number of the form 1, 2, 4 or 8 times a power of ten: quarters of it are short.
fn round(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(0.001).log10().floor());
    [1.0, 2.0, 4.0, 8.0, 10.0].into_iter().map(|by| by * power).find(|round| *round >= value).unwrap_or(value)
}
