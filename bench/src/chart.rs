//! Draws cost against budget as SVG, readable on light and on dark.

use std::fmt::Write as _;

use crate::budget::{Run, Second, Step};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 12.0;
const PANEL: f64 = 190.0;
/// Room above a panel's plot for its title and the names of the steps.
const TOP: f64 = 50.0;
const HEAD: f64 = 30.0;
/// A panel shows costs up to so many times the budget.
const CUT: f64 = 3.0;

const STYLE: &str = "\
    text { font: 11px sans-serif; fill: #24292f } .title { font-weight: bold; font-size: 12px }\n\
    .back { fill: #ffffff } .band { fill: #57606a; fill-opacity: .10 } .axis { stroke: #57606a; stroke-width: 1 }\n\
    .meter, .outside, .budget { fill: none; stroke-width: 1.8 } .meter { stroke: #0969da }\n\
    .outside { stroke: #bc4c00; stroke-width: 1.2 } .budget { stroke: #1a7f37; stroke-dasharray: 6 4 }\n\
    @media (prefers-color-scheme: dark) {\n\
    text { fill: #e6edf3 } .back { fill: #0d1117 } .band { fill: #8b949e; fill-opacity: .16 } .axis { stroke: #8b949e }\n\
    .meter { stroke: #58a6ff } .outside { stroke: #f0883e } .budget { stroke: #3fb950 } }\n";

/// The drawing, one panel per run.
pub fn draw(runs: &[Run], steps: &[Step]) -> String {
    let height = HEAD + runs.len() as f64 * PANEL + 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
         <title>What Siskin costs every second, against its budget</title>\n<style>\n{STYLE}</style>\n\
         <rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>\n"
    );
    let legend = [("meter", "by its own meter"), ("outside", "measured from outside"), ("budget", "budget")];
    for (index, (class, text)) in legend.into_iter().enumerate() {
        let x = LEFT + 180.0 * index as f64;
        let _ = writeln!(
            svg,
            "<path class=\"{class}\" d=\"M{x} 16h26\"/><text x=\"{}\" y=\"20\">{text}</text>",
            x + 32.0
        );
    }
    for (index, run) in runs.iter().enumerate() {
        svg.push_str(&panel(run, steps, HEAD + index as f64 * PANEL));
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(run: &Run, steps: &[Step], top: f64) -> String {
    let (plot_top, plot_bottom) = (top + TOP, top + PANEL - 20.0);
    let end = run.seconds.last().map_or(1.0, |second| second.at);
    let dearest = run.seconds.iter().map(|second| second.meter().max(second.outside)).fold(0.0, f64::max);
    let most = dearest.clamp(run.cores * 1.4, run.cores * CUT) * 1.05;
    let x = |at: f64| LEFT + at / end * (WIDTH - LEFT - RIGHT);
    let y = |cores: f64| plot_bottom - cores.min(most) / most * (plot_bottom - plot_top);
    let cut = match dearest > most {
        true => format!(", cut off at the top (highest {:.0})", dearest * 1e3),
        false => String::new(),
    };
    let mut svg = format!(
        "<text class=\"title\" x=\"{LEFT}\" y=\"{:.1}\">budget {}: millicores in each second{cut}</text>\n",
        top + 16.0,
        run.cpu
    );
    let mut begin = 0.0;
    for (index, step) in steps.iter().enumerate() {
        let Some(last) = run.seconds.iter().rfind(|second| second.step == index) else { continue };
        if index % 2 == 1 {
            let _ = writeln!(
                svg,
                "<rect class=\"band\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                x(begin),
                plot_top - 16.0,
                x(last.at) - x(begin),
                plot_bottom - plot_top + 16.0
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(begin.midpoint(last.at)),
            plot_top - 4.0,
            step.label
        );
        begin = last.at;
    }
    for share in [0.0, 0.5, 1.0] {
        let cores = run.cores * share;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{:.1}</text>",
            LEFT - 6.0,
            y(cores) + 4.0,
            cores * 1e3
        );
    }
    let _ = writeln!(
        svg,
        "<path class=\"axis\" fill=\"none\" d=\"M{LEFT} {plot_top:.1}V{plot_bottom:.1}H{:.1}\"/>\n\
         <text x=\"{LEFT}\" y=\"{:.1}\">0 s</text><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{end:.0} s</text>\n\
         <path class=\"budget\" d=\"M{LEFT} {:.1}H{:.1}\"/>",
        WIDTH - RIGHT,
        plot_bottom + 14.0,
        WIDTH - RIGHT,
        plot_bottom + 14.0,
        y(run.cores),
        WIDTH - RIGHT
    );
    for (class, cost) in [("outside", outside as fn(&Second) -> f64), ("meter", Second::meter)] {
        let points = run.seconds.iter().enumerate().map(|(index, second)| {
            let letter = if index == 0 { 'M' } else { 'L' };
            format!("{letter}{:.1} {:.1}", x(second.at), y(cost(second)))
        });
        let _ = writeln!(svg, "<path class=\"{class}\" d=\"{}\"/>", points.collect::<String>());
    }
    svg
}

fn outside(second: &Second) -> f64 {
    second.outside
}
