//! Errors in words and numbers: beside the optimum, and beside what they claim to be.

use std::fmt::Write as _;

use super::{
    figure::FIGURES,
    outcome::{Errors, Honesty, Measured, honesty},
};
use crate::table::Table;

/// A reported error may be this many times the optimum.
const AIM: f64 = 1.5;
/// Where the sum of squared errors over that of squared standard errors should lie.
const HONEST: std::ops::RangeInclusive<f64> = 0.5..=2.0;
/// Part of the errors that should be inside of 1.96 standard errors.
const INSIDE: std::ops::RangeInclusive<f64> = 0.90..=0.99;
/// Intervals that are listed one by one, of each figure.
const LISTED: usize = 20;

/// Every error of a run that is not nothing, beside the optimum.
pub fn against_optimum(measured: &Measured, steps: &[&str]) -> String {
    let mut table = Table::new(&[
        "step",
        "figure",
        "10 s: optimum, %",
        "reported, %",
        "actual, %",
        "reported / optimum",
        "1 s: optimum, %",
        "reported, %",
        "actual, %",
    ]);
    let (mut rows, mut misses) = (0, Vec::new());
    let is_estimate = |errors: &Errors| errors.reported > 0.0 || errors.optimum.is_some_and(|it| it > 0.0);
    for outcome in measured.outcomes.iter().filter(|it| is_estimate(&it.ten) || is_estimate(&it.one)) {
        let percent = |value: f64| format!("{:.2}", 100.0 * value);
        let optimum = |errors: &Errors| errors.optimum.map_or_else(|| "-".to_owned(), percent);
        let ratio = outcome.ten.ratio();
        let label = FIGURES[outcome.figure].label();
        if ratio.is_some_and(|ratio| ratio > AIM) {
            misses.push(format!("{} in {}", label, steps[outcome.step]));
        }
        rows += 1;
        table.row([
            steps[outcome.step].to_owned(),
            label,
            optimum(&outcome.ten),
            percent(outcome.ten.reported),
            percent(outcome.ten.actual),
            match ratio {
                None => "-".to_owned(),
                Some(ratio) if ratio.is_infinite() => "exact was possible".to_owned(),
                Some(ratio) => format!("{ratio:.2}"),
            },
            optimum(&outcome.one),
            percent(outcome.one.reported),
            percent(outcome.one.actual),
        ]);
    }
    let has_load = |step: usize| measured.outcomes.iter().any(|it| it.step == step);
    let is_exact =
        |step: usize| {
            measured.outcomes.iter().filter(|it| it.step == step).all(|it| {
                [it.ten, it.one].iter().all(|errors| errors.reported == 0.0 && errors.actual == 0.0)
            })
        };
    let exact: Vec<_> =
        (0..steps.len()).filter(|step| has_load(*step) && is_exact(*step)).map(|it| steps[it]).collect();
    let mut text = String::new();
    if rows > 0 {
        let _ = writeln!(
            text,
            "Relative standard errors from the third second of each step on: what the optimum allows, what the agent reports, and how \
             far the estimate was off, over ten seconds and over one (there root mean squares). Figures of one workload have \
             *workload* in their name: their errors are `siskin_workload_estimate_variance_total`, those of totals \
             `siskin_estimate_standard_error`. The optimum samples and does not calibrate, so calibrated figures may be better. Those \
             that are exact, and should be, are left out.\n\n{table}"
        );
    }
    let exact = if exact.is_empty() { "none".to_owned() } else { exact.join(", ") };
    let _ = writeln!(text, "- Every figure was exact, and claimed so, in: {exact}.");
    match misses.as_slice() {
        [] => {
            let _ = writeln!(
                text,
                "- Aim met: no error reported over ten seconds is more than {AIM} times the optimum."
            );
        }
        misses => {
            let _ = writeln!(
                text,
                "- **Aim missed** of {AIM} times the optimum over ten seconds: {}.",
                misses.join(", ")
            );
        }
    }
    text
}

/// Whether the errors are what they claim to be, in all runs.
pub fn honesty_section(all: &[Measured], steps: &[&str]) -> String {
    let mut table = Table::new(&[
        "budget",
        "figure",
        "1 s: estimates",
        "actual / claimed",
        "inside",
        "10 s: estimates",
        "actual / claimed",
        "inside",
        "exact in 1 s, equal",
    ]);
    let (mut misses, mut unequal) = (Vec::new(), String::new());
    for Measured { run, .. } in all {
        for (index, figure) in FIGURES.iter().enumerate() {
            let (one, ten) = (honesty(run.seconds(), index), honesty(run.spans(10.0), index));
            if one.estimated + one.exact == 0 {
                continue;
            }
            for (seconds, honesty) in [(1, &one), (10, &ten)] {
                if honesty.estimated > 0 && !is_honest(honesty) {
                    misses.push(format!("{} at {} over {seconds} s", figure.label(), run.cpu));
                }
            }
            let mut cells = vec![run.cpu.clone(), figure.label()];
            cells.extend(cells_of(&one).into_iter().chain(cells_of(&ten)));
            cells.push(match one.exact {
                0 => "-".to_owned(),
                exact => format!("{} of {exact}", one.equal),
            });
            table.row(cells);
            if !one.unequal.is_empty() {
                let _ = writeln!(unequal, "- {}, {}: {}.", run.cpu, figure.label(), list(&one, steps));
            }
        }
    }
    if unequal.is_empty() {
        unequal.push_str("- Every number that claimed to be exact in a second was.\n");
    }
    let verdict = match misses.as_slice() {
        [] => "Aims met.".to_owned(),
        misses => format!("**Aims missed** by {}.", misses.join(", ")),
    };
    format!(
        "\n### Are the errors honest\n\n\
         Of all seconds, and of all spans of ten seconds, which overlap. Where the agent claims an error, *actual / claimed* is the sum of squared errors \
         over the sum of squared standard errors (aim: {} to {}), and *inside* the part within 1.96 standard errors (aim: {:.0} to \
         {:.0}%). Where it claims none, the number must be equal.\n\n{table}\n- {verdict}\n\nSeconds that claimed to be exact and were \
         not, and by how much; *rest* is the pause after a step:\n\n{unequal}",
        HONEST.start(),
        HONEST.end(),
        INSIDE.start() * 100.0,
        INSIDE.end() * 100.0,
    )
}

fn inside(honesty: &Honesty) -> f64 {
    honesty.inside as f64 / honesty.estimated as f64
}

fn is_honest(honesty: &Honesty) -> bool {
    HONEST.contains(&honesty.ratio) && INSIDE.contains(&inside(honesty))
}

fn cells_of(honesty: &Honesty) -> [String; 3] {
    if honesty.estimated == 0 {
        return ["-".to_owned(), "-".to_owned(), "-".to_owned()];
    }
    [
        honesty.estimated.to_string(),
        format!("{:.2}", honesty.ratio),
        format!("{:.0}%", 100.0 * inside(honesty)),
    ]
}

fn list(honesty: &Honesty, steps: &[&str]) -> String {
    let one = |(step, second, off): &(usize, usize, f64)| match second {
        0 => format!("{} rest {off:+.0}", steps[*step]),
        second => format!("{} {second} s {off:+.0}", steps[*step]),
    };
    let mut list: Vec<_> = honesty.unequal.iter().take(LISTED).map(one).collect();
    if honesty.unequal.len() > LISTED {
        list.push(format!("and {} more", honesty.unequal.len() - LISTED));
    }
    list.join(", ")
}
