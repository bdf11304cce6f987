//! Draws curves of growth as SVG, readable on light and on dark: both axes are logarithms, so that
//! what grows in proportion is a line of one slope.

use std::fmt::Write as _;

use super::Curve;

const COLUMNS: usize = 3;
const PANEL: [f64; 2] = [320.0, 220.0];
/// Where the plot is in its panel: left, top, width, height.
const PLOT: [f64; 4] = [52.0, 40.0, 250.0, 140.0];

const STYLE: &str = "\
    text { font: 11px sans-serif; fill: #24292f } .title { font-weight: bold; font-size: 12px }\n\
    .back { fill: #ffffff } .axis { stroke: #57606a; fill: none } .grid { stroke: #57606a; stroke-opacity: .25 }\n\
    .curve { stroke: #0969da; stroke-width: 1.8; fill: none } .point { fill: #0969da }\n\
    .slope { stroke: #57606a; stroke-dasharray: 4 4; fill: none }\n\
    @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .back { fill: #0d1117 }\n\
    .axis, .grid, .slope { stroke: #8b949e } .curve { stroke: #58a6ff } .point { fill: #58a6ff } }\n";

/// The drawing: a panel for each curve.
pub fn draw(curves: &[Curve]) -> String {
    let rows = curves.len().div_ceil(COLUMNS);
    let (width, height) = (PANEL[0] * COLUMNS as f64, PANEL[1] * rows as f64 + 24.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\">\n\
         <title>How the cost of Siskin grows</title>\n<style>\n{STYLE}</style>\n\
         <rect class=\"back\" width=\"{width}\" height=\"{height}\"/>\n"
    );
    for (index, curve) in curves.iter().enumerate() {
        let place = [(index % COLUMNS) as f64 * PANEL[0], (index / COLUMNS) as f64 * PANEL[1]];
        let _ = writeln!(svg, "<g transform=\"translate({} {})\">{}</g>", place[0], place[1], panel(curve));
    }
    let _ = writeln!(
        svg,
        "<text x=\"12\" y=\"{}\">Dashed: what would grow in proportion. Both axes are logarithms.</text>\n</svg>",
        height - 8.0
    );
    svg
}

fn panel(curve: &Curve) -> String {
    let [left, top, width, height] = PLOT;
    // Nothing has no logarithm: it stands one tenth of the way before the first of something.
    let numbers: Vec<_> = curve.points.iter().map(|(number, _)| *number).collect();
    let least = numbers.iter().copied().filter(|number| *number > 0.0).fold(f64::INFINITY, f64::min);
    let log = |number: f64| (if number > 0.0 { number } else { least / 10.0 }).log10();
    let (from, to) = (
        numbers.iter().copied().map(log).fold(f64::INFINITY, f64::min),
        log(least.max(numbers.iter().copied().fold(0.0, f64::max))),
    );
    let costs: Vec<_> = curve.points.iter().map(|(_, cost)| cost.max(1e-6).log10()).collect();
    let low = costs.iter().copied().fold(f64::INFINITY, f64::min).floor();
    let high = costs.iter().copied().fold(f64::NEG_INFINITY, f64::max).ceil().max(low + 1.0);
    let x = |number: f64| left + (log(number) - from) / (to - from).max(1e-9) * width;
    let y =
        |cost: f64| top + height - (cost.max(1e-6).log10().clamp(low, high) - low) / (high - low) * height;

    let mut out = format!(
        "<text class=\"title\" x=\"{left}\" y=\"16\">{}</text><text x=\"{left}\" y=\"31\">{}</text>",
        curve.name, curve.cost
    );
    for power in low as i32..=high as i32 {
        let (value, at) = (10f64.powi(power), y(10f64.powi(power)));
        let _ = write!(
            out,
            "<path class=\"grid\" d=\"M{left} {at:.1}h{width}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
            left - 5.0,
            at + 4.0
        );
    }
    let (mut path, mut marks) = (String::new(), String::new());
    for (index, (number, cost)) in curve.points.iter().enumerate() {
        let (x, y) = (x(*number), y(*cost));
        let _ = write!(path, "{}{x:.1} {y:.1}", if index == 0 { "M" } else { "L" });
        let _ = write!(
            marks,
            "<circle class=\"point\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{number}</text>",
            top + height + 16.0
        );
    }
    // From the last point backwards, as far as the panel goes.
    if let Some((number, cost)) = curve.points.last() {
        let decades = (log(*number) - from).min(cost.max(1e-6).log10() - low).max(0.0);
        let begin = [number / 10f64.powf(decades), cost / 10f64.powf(decades)];
        let _ = write!(
            out,
            "<path class=\"slope\" d=\"M{:.1} {:.1}L{:.1} {:.1}\"/>",
            x(begin[0]),
            y(begin[1]),
            x(*number),
            y(*cost)
        );
    }
    let _ = write!(
        out,
        "<path class=\"axis\" d=\"M{left} {top}v{height}h{width}\"/><path class=\"curve\" d=\"{path}\"/>{marks}"
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_inside_of_its_panel() {
        let curve =
            Curve { name: "sockets", cost: "ms", points: vec![(0.0, 0.02), (100.0, 0.0), (9000.0, 31.0)] };
        let svg = draw(&[curve]);
        assert_eq!(svg.matches("<circle").count(), 3);
        for circle in svg.split("<circle").skip(1) {
            let of = |name: &str| -> f64 {
                let (_, rest) = circle.split_once(&format!("{name}=\"")).unwrap();
                rest.split_once('"').unwrap().0.parse().unwrap()
            };
            assert!((PLOT[0] - 0.1..=PLOT[0] + PLOT[2] + 0.1).contains(&of("cx")), "{circle}");
            assert!((PLOT[1] - 0.1..=PLOT[1] + PLOT[3] + 0.1).contains(&of("cy")), "{circle}");
        }
    }
}
