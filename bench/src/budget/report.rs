//! What the runs found: cost against the contract, step by step, then errors.

use std::fmt::Write as _;

use siskin::budget::allocation::PRIOR_WINDOW_VARIANCE;

use super::{
    contract::{Breach, Contract, Spent, Verdict},
    figure::PROBES,
    outcome::Measured,
    record::{Cost, MEASURES, Run, SETTLING, Sample, Span},
    report_errors,
};
use crate::table::Table;

/// Seconds over which the contract is checked.
const INTERVALS: [f64; 3] = [1.0, 10.0, 60.0];
/// Breaches that are listed one by one, of each measure and length.
const LISTED: usize = 30;

/// The section of all runs. `seconds` is how long each step was.
pub fn report(all: &[Measured], steps: &[&str], machine: &str, seconds: f64) -> String {
    let mut text = format!(
        "## Cost against budget, estimates against truth and optimum (`cargo xtask bench budget`)\n\n{machine}\n\
         Load in steps of {seconds:.0} s: {}. *everyday mix* is UDP 1,000 datagrams/s, 320 direct writes/s of mixed size, 40 execs/s, \
         100 connections/s and 10,000 TCP request/responses/s; *compile* 40 bursts a second of 8 execs, 4 forks and 5 disk requests; \
         *changing* is 2 s each of disk and execs, UDP and connections, and nothing. Most loads belong to two workloads, so that the \
         part of each has to be estimated. The agent is scraped every second, which it pays for; when it cannot, that second is a \
         part of the next. The load generators pause meanwhile for a few milliseconds, so that the truth is known exactly.\n\n\
         *meter* is what the agent says of itself (`siskin_cpu_seconds_total`); *outside* is the kernel's clock of its \
         process and the kernel's statistics of its programs, which leave out the tracepoints' dispatch and read a clock \
         twice in every run.\n\n\
         ![Cost against budget, errors against the optimum](budget.svg)\n\n### The contract\n\n\
         Over any T seconds the cost is at most budget x (T + 1 s), plus the largest item that cannot be divided. Every interval \
         of the run between two readings is checked; its start is not part of it.\n\n{}\n{}",
        steps.join(", "),
        contract_table(all),
        all.iter().map(|measured| contract_words(&measured.run, steps)).collect::<String>(),
    );
    for measured in all {
        let _ = write!(
            text,
            "\n### Budget {}, step by step\n\n\
             Means from the third second of each step on, in millicores. *N x D*: one event in N is sampled during 1/D of the time, at the \
             step's end. In brackets the optimum: what minimises the sum of the probes' relative variances, by the true rates, \
             the measured costs of programs and what the process leaves of the budget. It takes windows of a steady load to differ by {:.0}%. The settings are for the mean of a step; the errors below for each second as it was.\n\n{}\n{}",
            measured.run.cpu,
            100.0 * PRIOR_WINDOW_VARIANCE.sqrt(),
            step_table(measured, steps),
            report_errors::against_optimum(measured, steps),
        );
    }
    text.push_str(&report_errors::honesty_section(all, steps));
    text
}

fn contract(run: &Run) -> Contract {
    let item = run.samples.iter().map(|sample| sample.largest_item).fold(0.0, f64::max);
    Contract { cores: run.cores, item }
}

fn verdict(run: &Run, cost: Cost, seconds: f64) -> Verdict {
    let spent: Vec<_> =
        run.samples.iter().map(|sample| Spent { at: sample.at, cost: cost(sample) }).collect();
    contract(run).check(&spent, seconds)
}

fn contract_table(all: &[Measured]) -> Table {
    let mut table = Table::new(&[
        "budget",
        "by",
        "over, s",
        "intervals",
        "highest, of the budget",
        "of what is allowed",
        "broken",
        "kept",
    ]);
    for Measured { run, .. } in all.iter().filter(|measured| measured.run.cores.is_finite()) {
        for (by, cost) in MEASURES {
            for seconds in INTERVALS {
                let verdict = verdict(run, cost, seconds);
                if verdict.intervals == 0 {
                    continue;
                }
                table.row([
                    run.cpu.clone(),
                    by.to_owned(),
                    format!("{seconds:.0}"),
                    verdict.intervals.to_string(),
                    format!("{:.2}", verdict.highest_of_budget),
                    format!("{:.2}", verdict.highest_share),
                    verdict.breaches.len().to_string(),
                    if verdict.breaches.is_empty() { "yes" } else { "**no**" }.to_owned(),
                ]);
            }
        }
    }
    table
}

/// What the agent says of its bucket, and every interval that cost too much.
fn contract_words(run: &Run, steps: &[&str]) -> String {
    if run.cores.is_infinite() {
        return format!("- Budget {}: no contract.\n", run.cpu);
    }
    let of = |value: fn(&Sample) -> f64| run.samples.iter().map(value);
    let mut text = format!(
        "- Budget {}: the bucket held {:.1} to {:.1} ms, the debt was at most {:.1} ms, the largest item {:.1} ms, as the agent says; {} of {} scrapes brought older numbers.\n",
        run.cpu,
        of(|sample| sample.bucket).fold(f64::INFINITY, f64::min) * 1e3,
        of(|sample| sample.bucket).fold(0.0, f64::max) * 1e3,
        of(|sample| sample.debt).fold(0.0, f64::max) * 1e3,
        contract(run).item * 1e3,
        run.unread,
        run.unread + run.samples.len(),
    );
    for (by, cost) in MEASURES {
        for seconds in INTERVALS {
            let breaches = verdict(run, cost, seconds).breaches;
            if breaches.is_empty() {
                continue;
            }
            let one = |breach: &Breach| {
                let step = run.samples.iter().find(|sample| sample.at >= breach.to);
                let step = step.and_then(|sample| steps.get(sample.step)).unwrap_or(&"?");
                format!("{:.0} to {:.0} s ({step}) +{:.2} ms", breach.from, breach.to, breach.excess * 1e3)
            };
            let mut list: Vec<_> = breaches.iter().take(LISTED).map(one).collect();
            if breaches.len() > LISTED {
                list.push(format!("and {} more", breaches.len() - LISTED));
            }
            let _ = writeln!(text, "  - **Broken** by {by} over {seconds:.0} s: {}.", list.join(", "));
        }
    }
    text
}

fn step_table(measured: &Measured, steps: &[&str]) -> Table {
    let probes = PROBES.map(|probe| format!("{probe}, N x D"));
    let mut head = vec!["step", "meter", "outside", "of the budget"];
    head.extend(probes.iter().map(String::as_str));
    let mut table = Table::new(&head);
    for (index, label) in steps.iter().enumerate() {
        let Some(span) = measured.run.step(index, SETTLING) else { continue };
        let mut cells = vec![
            (*label).to_owned(),
            format!("{:.2}", span.meter() * 1e3),
            format!("{:.2}", span.outside() * 1e3),
            used(measured, index, &span),
        ];
        cells.extend((0..PROBES.len()).map(|probe| settings(measured, index, probe, &span)));
        table.row(cells);
    }
    table
}

/// The part of the budget that was used, and that the optimum uses.
fn used(measured: &Measured, step: usize, span: &Span<'_>) -> String {
    let cores = measured.run.cores;
    let best = measured.optima[step].as_ref().map(|optimum| cores - optimum.spend_cores + optimum.cost_cores);
    if cores.is_infinite() {
        return "-".to_owned();
    }
    let best = best.map_or(f64::NAN, |best| 100.0 * best / cores);
    format!("{:.0}% ({best:.0}%)", 100.0 * span.meter() / cores)
}

/// How a probe sampled at the end of a span, and how it should.
fn settings(measured: &Measured, step: usize, probe: usize, span: &Span<'_>) -> String {
    let words = |period: f64, duty: f64| match (period, duty) {
        (1.0, 1.0) => "all".to_owned(),
        (_, duty) if duty.is_infinite() => "none".to_owned(),
        (period, 1.0) => format!("{period:.0}"),
        (period, duty) => format!("{period:.0} x {duty:.0}"),
    };
    let watch = &span.to.watches[probe];
    let reached = words((1.0 / watch.ratio).round(), (1.0 / watch.duty).round());
    let best = measured.optima[step].as_ref().map(|optimum| optimum.setting(probe));
    let best = best.map_or_else(|| "?".to_owned(), |best| words(best.period as f64, best.duty as f64));
    if reached == best { reached } else { format!("{reached} ({best})") }
}
