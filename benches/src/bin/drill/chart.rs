//! The chart of the chains: an SVG, two panels for each length.

use std::fmt::Write as _;

use crate::chain::{Run, Second};

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 200.0;
const MARGIN: f64 = 60.0;
/// Each run of a length has its own.
const COLOURS: [&str; 2] = ["#1f6fb2", "#d9730d"];

/// A panel: what it shows of a second, on which scale.
struct Panel {
    title: &'static str,
    value: fn(&Second) -> f64,
    /// From 0 to 1.
    scale: fn(f64) -> f64,
    ticks: &'static [(f64, &'static str)],
}

const PANELS: [Panel; 2] = [
    Panel {
        title: "requests at the last service for each that came in",
        value: |second| second.leaf as f64 / second.offered.max(1) as f64,
        // Logarithmic, from a tenth to a thousand.
        scale: |value| (value.max(0.1).log10() + 1.0) / 4.0,
        ticks: &[(0.1, "0.1"), (1.0, "1"), (10.0, "10"), (100.0, "100"), (1000.0, "1000")],
    },
    Panel {
        title: "answered well, in percent",
        value: |second| 100.0 * second.done as f64 / second.offered.max(1) as f64,
        scale: |value| value / 100.0,
        ticks: &[(0.0, "0"), (50.0, "50"), (100.0, "100")],
    },
];

/// Draws all runs, those of one length together.
pub(crate) fn draw(runs: &[Run]) -> String {
    let mut lengths: Vec<_> = runs.iter().map(|run| run.hops).collect();
    lengths.dedup();
    let (wide, high) = (2.0 * (WIDTH + MARGIN) + MARGIN, lengths.len() as f64 * (HEIGHT + 2.0 * MARGIN));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {wide} {high}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (row, hops) in lengths.iter().enumerate() {
        let of_it: Vec<_> = runs.iter().filter(|run| run.hops == *hops).collect();
        for (column, panel) in PANELS.iter().enumerate() {
            let left = MARGIN + column as f64 * (WIDTH + MARGIN);
            let top = MARGIN + row as f64 * (HEIGHT + 2.0 * MARGIN);
            _ = writeln!(svg, "<g transform=\"translate({left} {top})\">");
            draw_panel(&mut svg, panel, *hops, &of_it);
            svg.push_str("</g>\n");
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_panel(svg: &mut String, panel: &Panel, hops: usize, runs: &[&Run]) {
    let seconds = runs.iter().map(|run| run.seconds.len()).max().unwrap_or(1).max(1) as f64;
    let x = |second: f64| second / seconds * WIDTH;
    let y = |value: f64| HEIGHT - (panel.scale)(value).clamp(0.0, 1.0) * HEIGHT;
    _ = writeln!(svg, "<text x=\"0\" y=\"-12\">{hops} hops: {}</text>", panel.title);
    if let Some(run) = runs.first() {
        let (from, to) = (x(run.fails.0 as f64), x(run.fails.1 as f64));
        _ = writeln!(
            svg,
            "<rect x=\"{from:.1}\" y=\"0\" width=\"{:.1}\" height=\"{HEIGHT}\" fill=\"#f3e3e3\"/>",
            to - from
        );
        _ = writeln!(svg, "<text x=\"{:.1}\" y=\"14\" fill=\"#884444\">the last one fails</text>", from + 4.0);
    }
    for (value, text) in panel.ticks {
        let at = y(*value);
        _ = writeln!(svg, "<line x1=\"0\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>");
        _ = writeln!(svg, "<text x=\"-6\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>", at + 4.0);
    }
    _ = writeln!(svg, "<text x=\"{WIDTH}\" y=\"{}\" text-anchor=\"end\">seconds: {seconds}</text>", HEIGHT + 16.0);
    for (number, (run, colour)) in runs.iter().zip(COLOURS).enumerate() {
        let points: Vec<_> = run
            .seconds
            .iter()
            .enumerate()
            .map(|(second, it)| format!("{:.1},{:.1}", x(second as f64 + 0.5), y((panel.value)(it))))
            .collect();
        _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
            points.join(" ")
        );
        let at = number as f64 * 100.0;
        _ = writeln!(svg, "<text x=\"{at}\" y=\"{}\" fill=\"{colour}\">{}</text>", HEIGHT + 16.0, run.who);
    }
}
