//! Draws cost against budget and errors against the optimum as SVG, readable on light and on dark.

use std::fmt::Write as _;

use super::{
    figure::FIGURES,
    outcome::Measured,
    record::{MEASURES, Run, Sample},
};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 12.0;
/// Height of a budget's two panels, and of each plot.
const BUDGET: f64 = 370.0;
const PLOT: f64 = 120.0;
/// Room above the upper plot for the title and the names of the steps.
const TOP: f64 = 56.0;
/// Room above the lower plot.
const BETWEEN: f64 = 44.0;
const HEAD: f64 = 50.0;
/// A panel shows costs up to so many times the budget.
const CUT: f64 = 3.0;
/// Relative errors that the lower panel shows, in powers of ten.
const LEAST: f64 = -4.0;
const MOST: f64 = 0.0;
/// The figures of the lower panel: the first workload's, each with a letter.
const SHOWN: [(usize, char); 4] = [(8, 'D'), (11, 'R'), (13, 'E'), (14, 'C')];

const STYLE: &str = "\
    text { font: 11px sans-serif; fill: #24292f } .title { font-weight: bold; font-size: 12px } .small { font-size: 9px }\n\
    .back { fill: #ffffff } .band { fill: #57606a; fill-opacity: .10 } .axis { stroke: #57606a; stroke-width: 1 }\n\
    .grid { stroke: #57606a; stroke-opacity: .25 }\n\
    .meter, .outside, .budget, .optimum { fill: none; stroke-width: 1.8 } .meter { stroke: #0969da }\n\
    .outside { stroke: #bc4c00; stroke-width: 1.2 } .budget, .optimum { stroke: #1a7f37 } .budget { stroke-dasharray: 6 4 }\n\
    .reported { fill: #0969da } .actual { fill: none; stroke: #bc4c00; stroke-width: 1.4 }\n\
    @media (prefers-color-scheme: dark) {\n\
    text { fill: #e6edf3 } .back { fill: #0d1117 } .band { fill: #8b949e; fill-opacity: .16 }\n\
    .axis, .grid { stroke: #8b949e } .meter { stroke: #58a6ff } .outside, .actual { stroke: #f0883e }\n\
    .budget, .optimum { stroke: #3fb950 } .reported { fill: #58a6ff } }\n";

/// The drawing, two panels per run.
pub fn draw(all: &[Measured], steps: &[&str]) -> String {
    let all: Vec<_> = all.iter().filter(|measured| measured.run.cores.is_finite()).collect();
    let height = HEAD + all.len() as f64 * BUDGET + 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
         <title>What Siskin costs every second against its budget, and its errors against the optimum</title>\n\
         <style>\n{STYLE}</style>\n<rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>\n"
    );
    let lines = [("meter", "cost by its own meter"), ("outside", "cost from outside"), ("budget", "budget")];
    for (index, (class, text)) in lines.into_iter().enumerate() {
        let x = LEFT + 180.0 * index as f64;
        let _ = writeln!(
            svg,
            "<path class=\"{class}\" d=\"M{x} 16h26\"/>{}",
            label(x + 32.0, 20.0, "start", text)
        );
    }
    let marks = [
        "<path class=\"optimum\" d=\"M-6 0h12\"/>",
        "<circle class=\"reported\" r=\"3\"/>",
        "<circle class=\"actual\" r=\"3.5\"/>",
    ];
    let texts = ["smallest error that the budget allows", "error that it reports", "error that it made"];
    for (index, (mark, text)) in marks.into_iter().zip(texts).enumerate() {
        let x = LEFT + [0.0, 250.0, 410.0][index];
        let _ = writeln!(
            svg,
            "<g transform=\"translate({} 34)\">{mark}</g>{}",
            x + 13.0,
            label(x + 32.0, 38.0, "start", text)
        );
    }
    for (index, measured) in all.iter().enumerate() {
        let top = HEAD + index as f64 * BUDGET;
        let places = Places::new(&measured.run, steps.len());
        svg.push_str(&bands(&places, steps, top));
        svg.push_str(&cost(&measured.run, &places, top));
        svg.push_str(&errors(measured, &places, top + TOP + PLOT + BETWEEN));
    }
    svg.push_str("</svg>\n");
    svg
}

fn label(x: f64, y: f64, anchor: &str, text: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>")
}

/// Where on the page moments and steps are.
struct Places {
    seconds: f64,
    /// Begin and end of each step, in seconds.
    steps: Vec<(f64, f64)>,
}

impl Places {
    fn new(run: &Run, steps: usize) -> Self {
        let mut begin = 0.0;
        let ends = (0..steps).map(|step| {
            let end =
                run.samples.iter().rfind(|sample| sample.step == step).map_or(begin, |sample| sample.at);
            (std::mem::replace(&mut begin, end), end)
        });
        let steps: Vec<_> = ends.collect();
        Self { seconds: steps.last().map_or(1.0, |(_, end)| end.max(1.0)), steps }
    }

    fn x(&self, at: f64) -> f64 {
        LEFT + at / self.seconds * (WIDTH - LEFT - RIGHT)
    }
}

/// The names of the steps, and every other one's ground behind both plots.
fn bands(places: &Places, steps: &[&str], top: f64) -> String {
    let mut svg = String::new();
    for (index, (begin, end)) in places.steps.iter().enumerate() {
        let (left, right) = (places.x(*begin), places.x(*end));
        if index % 2 == 1 {
            for (y, height) in [(top + TOP, PLOT), (top + TOP + PLOT + BETWEEN, PLOT)] {
                let _ = writeln!(
                    svg,
                    "<rect class=\"band\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\"/>",
                    right - left
                );
            }
        }
        // Neighbours' names would touch each other on one line.
        let y = top + TOP - if index % 2 == 1 { 4.0 } else { 17.0 };
        let _ = writeln!(svg, "{}", label(left.midpoint(right), y, "middle", steps[index]));
    }
    svg
}

fn axes(top: f64) -> String {
    let (bottom, right) = (top + PLOT, WIDTH - RIGHT);
    format!("<path class=\"axis\" fill=\"none\" d=\"M{LEFT} {top:.1}V{bottom:.1}H{right:.1}\"/>\n")
}

fn title(y: f64, text: &str) -> String {
    format!("<text class=\"title\" x=\"{LEFT}\" y=\"{y:.1}\">{text}</text>\n")
}

fn cost(run: &Run, places: &Places, top: f64) -> String {
    let plot = top + TOP;
    let costs = || run.seconds().map(|span| span.meter().max(span.outside()));
    let dearest = costs().fold(0.0, f64::max);
    let most = dearest.clamp(run.cores * 1.4, run.cores * CUT) * 1.05;
    let y = |cores: f64| plot + PLOT - cores.clamp(0.0, most) / most * PLOT;
    let cut = match dearest > most {
        true => format!(", cut off at the top (highest {:.0})", dearest * 1e3),
        false => String::new(),
    };
    let mut svg = title(top + 20.0, &format!("Budget {}: millicores in each second{cut}", run.cpu));
    for share in [0.0, 0.5, 1.0] {
        let cores = run.cores * share;
        let _ = writeln!(svg, "{}", label(LEFT - 6.0, y(cores) + 4.0, "end", &format!("{:.1}", cores * 1e3)));
    }
    svg.push_str(&axes(plot));
    let _ = writeln!(
        svg,
        "{}{}",
        label(LEFT, plot + PLOT + 14.0, "start", "0 s"),
        label(WIDTH - RIGHT, plot + PLOT + 14.0, "end", &format!("{:.0} s", places.seconds)),
    );
    let _ = writeln!(svg, "<path class=\"budget\" d=\"M{LEFT} {:.1}H{:.1}\"/>", y(run.cores), WIDTH - RIGHT);
    // The meter's line lies above the other.
    for (class, cost) in MEASURES.into_iter().rev() {
        let points = run.seconds().enumerate().map(|(index, span)| {
            let letter = if index == 0 { 'M' } else { 'L' };
            format!("{letter}{:.1} {:.1}", places.x(middle(span.from, span.to)), y(span.cores(cost)))
        });
        let _ = writeln!(svg, "<path class=\"{class}\" d=\"{}\"/>", points.collect::<String>());
    }
    svg
}

fn middle(from: &Sample, to: &Sample) -> f64 {
    from.at.midpoint(to.at)
}

fn errors(measured: &Measured, places: &Places, plot: f64) -> String {
    let y = |error: f64| {
        let power = error.max(1e-9).log10().clamp(LEAST, MOST);
        plot + PLOT - (power - LEAST) / (MOST - LEAST) * PLOT
    };
    let letters: Vec<_> =
        SHOWN.iter().map(|(figure, letter)| format!("{letter} {}", FIGURES[*figure].name)).collect();
    let mut svg = title(
        plot - 8.0,
        &format!(
            "Relative error of one workload over ten seconds: {}; none at the bottom",
            letters.join(", ")
        ),
    );
    for power in [-3.0, -2.0, -1.0, 0.0f64] {
        let at = y(10f64.powf(power));
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{:.1}\"/>{}",
            WIDTH - RIGHT,
            label(LEFT - 6.0, at + 4.0, "end", &format!("{}%", 100.0 * 10f64.powf(power)))
        );
    }
    let _ = writeln!(svg, "{}", label(LEFT - 6.0, plot + PLOT + 4.0, "end", "exact"));
    svg.push_str(&axes(plot));
    for outcome in &measured.outcomes {
        let Some(column) = SHOWN.iter().position(|(figure, _)| *figure == outcome.figure) else { continue };
        let (begin, end) = places.steps[outcome.step];
        let share = (column as f64 + 0.5) / SHOWN.len() as f64;
        let x = places.x(begin + (end - begin) * share);
        if let Some(optimum) = outcome.ten.optimum {
            let _ = writeln!(svg, "<path class=\"optimum\" d=\"M{:.1} {:.1}h12\"/>", x - 6.0, y(optimum));
        }
        let _ = writeln!(
            svg,
            "<circle class=\"actual\" cx=\"{x:.1}\" cy=\"{:.1}\" r=\"3.5\"/><circle class=\"reported\" cx=\"{x:.1}\" cy=\"{:.1}\" r=\"3\"/>\
             <text class=\"small\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            y(outcome.ten.actual),
            y(outcome.ten.reported),
            plot + PLOT + 12.0,
            SHOWN[column].1
        );
    }
    svg
}
