//! What a run with a budget found, in words and numbers.

use std::fmt::Write as _;

use crate::{
    budget::{Guess, Options, Run, Second, Step},
    crew::Event,
    stats::quantile,
    table::Table,
};

/// Cost may be this many times the budget.
const AIM: f64 = 1.1;

/// The head over the lines of [`line()`].
pub fn line_head() -> String {
    format!(
        "{:<13} {:>2} {:>9} {:>7} {:>6} {:>7} {:>7} | {:>6} {:>6} {:>6} {:>7} {:>5} | {:>9} {:>9} {:>9} {:>9} | off (se)",
        "step",
        "s",
        "dgram/s",
        "io/s",
        "exec/s",
        "conn/s",
        "xchg/s",
        "user",
        "kernel",
        "meter",
        "outside",
        "ratio",
        "udp N,D",
        "disk N,D",
        "exec N,D",
        "tcp N,D",
    )
}

/// One second while it is measured.
pub fn line(second: &Second, step: &Step, budget: f64) -> String {
    let [datagrams, ios, execs, connections, exchanges] = second.rates;
    let sampled = |probe: usize| format!("{:.0},{:.0}", 1.0 / second.ratio[probe], 1.0 / second.duty[probe]);
    let off = |((_, what), guess): (&(Event, &str), &Guess)| {
        let percent = |value: f64| 100.0 * value / guess.truth;
        let estimate = guess.estimate;
        (guess.truth > 0.0).then(|| {
            format!("{what} {:+.2}% ({:.2}%)", percent(estimate.total - guess.truth), percent(estimate.error))
        })
    };
    let offs: Vec<_> = Event::COUNTED.iter().zip(&second.guesses).filter_map(off).collect();
    format!(
        "{:<13} {:>2} {datagrams:>9.0} {ios:>7.0} {execs:>6.0} {connections:>7.0} {exchanges:>7.0} | {:>6.2} {:>6.2} {:>6.2} \
         {:>7.2} {:>5.2} | {:>9} {:>9} {:>9} {:>9} | {}",
        step.label,
        second.second,
        second.user * 1e3,
        second.kernel * 1e3,
        second.meter() * 1e3,
        second.outside * 1e3,
        second.meter() / budget,
        sampled(0),
        sampled(1),
        sampled(2),
        sampled(3),
        offs.join(", "),
    )
}

/// The section of all runs.
pub fn report(runs: &[Run], steps: &[Step], machine: &str, options: &Options) -> String {
    let mut costs = Table::new(&[
        "budget, m",
        "by",
        "mean",
        "p99",
        "max",
        "max / budget",
        "seconds over +10%",
        "first seconds' max",
        "within +10%",
    ]);
    let kinds = Event::COUNTED.map(|(_, what)| what);
    let mut truths = Table::new(&["budget, m", "asked", kinds[0], kinds[1], kinds[2], kinds[3]]);
    let mut verdicts = String::new();
    for run in runs {
        for (by, cost) in [("meter", Second::meter as fn(&Second) -> f64), ("outside", |it| it.outside)] {
            let of = |keep: &dyn Fn(&Second) -> bool| {
                let seconds = run.seconds.iter().filter(|second| keep(second));
                seconds.map(|second| cost(second) * 1e3).collect::<Vec<_>>()
            };
            // From the second after the step.
            let (later, first) = (of(&|it| it.second > 1), of(&|it| it.second == 1));
            let budget = run.cores * 1e3;
            let (max, over) =
                (quantile(&later, 1.0), later.iter().filter(|cost| **cost > budget * AIM).count());
            let kept = if over == 0 { "yes" } else { "**no**" };
            costs.row([
                format!("{budget:.0}"),
                by.to_owned(),
                format!("{:.2}", later.iter().sum::<f64>() / later.len() as f64),
                format!("{:.2}", quantile(&later, 0.99)),
                format!("{max:.2}"),
                format!("{:.2}", max / budget),
                format!("{over} of {}", later.len()),
                format!("{:.2}", quantile(&first, 1.0)),
                kept.to_owned(),
            ]);
        }
        let seconds = |kind: usize| share(run.seconds.iter().map(|second| second.guesses[kind]));
        let steps_share = |kind: usize| share(run.steps.iter().map(|step| step[kind]));
        let budget = || format!("{:.0}", run.cores * 1e3);
        let row = |asked: &str, of: &dyn Fn(usize) -> String| {
            [budget(), asked.to_owned(), of(0), of(1), of(2), of(3)]
        };
        truths.row(row("every second of a step, since it began", &seconds));
        truths.row(row("after every step, at rest", &steps_share));
        verdicts.push_str(&verdict(run, steps));
    }
    format!(
        "## Cost against budget, estimates against truth (`cargo xtask bench budget`)\n\n{machine}\n\
         Load in steps of {:.0} s: {}. {} The agent is scraped every second, which it pays for. Cost in \
         millicores of single seconds, counted from the second after each step; the first second of each step stands apart. \
         *meter* is what the agent says of itself (`siskin_cpu_seconds_total`); *outside* is the kernel's clock of its process \
         and the kernel's statistics of its programs, which leave out the tracepoints' dispatch and cost every run two readings of a \
         clock more, of which about one is inside of the figure. The meter was calibrated before these statistics were turned on.\n\n![Cost against budget](budget.svg)\n\n{costs}\n{verdicts}\n\
         Truths within 1.96 standard errors of the estimate (95% are expected; an estimate that took \
         everything has no error and must be equal). While the load runs, the truth is allowed to be off by what the load \
         made during the scrape. Errors are those of totals, so each second is asked for all that \
         came since its step began. A probe that is attached for a share of the time has one window in a second or two: the total of a \
         second may be 0, with an error as large as what came. For narrow errors ask over ten seconds and more.\n\n{truths}",
        options.seconds,
        steps.iter().map(|step| step.label).collect::<Vec<_>>().join(", "),
        if options.lax {
            "Without --budget.strict: execs and connections are counted one by one, whatever they cost."
        } else {
            "With --budget.strict: execs and connections are drawn too when they cost too much."
        },
    )
}

fn share(guesses: impl Iterator<Item = Guess>) -> String {
    let held: Vec<_> = guesses.filter_map(|guess| guess.holds()).collect();
    if held.is_empty() {
        return "-".to_owned();
    }
    let inside = held.iter().filter(|held| **held).count();
    format!("{inside} of {} ({:.0}%)", held.len(), 100.0 * inside as f64 / held.len() as f64)
}

/// Which steps were over, by the dearer of both measures, and by how much.
fn verdict(run: &Run, steps: &[Step]) -> String {
    let mut over = String::new();
    for (index, step) in steps.iter().enumerate() {
        let seconds = run.seconds.iter().filter(|it| it.step == index && it.second > 1);
        let costs: Vec<_> = seconds.map(|it| it.meter().max(it.outside) * 1e3).collect();
        let limit = run.cores * AIM * 1e3;
        let count = costs.iter().filter(|cost| **cost > limit).count();
        if count > 0 {
            let max = quantile(&costs, 1.0);
            let _ = write!(
                over,
                "{}{} ({count} of {} s, up to {max:.1}m)",
                if over.is_empty() { "" } else { ", " },
                step.label,
                costs.len()
            );
        }
    }
    match over.as_str() {
        "" => format!("- Budget {}: aim met, no second above budget + 10% by either measure.\n", run.cpu),
        over => format!("- Budget {}: **aim missed** by the dearer measure in {over}.\n", run.cpu),
    }
}
