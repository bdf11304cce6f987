//! Nanoseconds per event of every program, by the kernel's statistics, beside an empty program on the same tracepoint.

use std::{collections::HashMap, fmt::Write as _, path::PathBuf, thread, time::Duration};

use anyhow::{Result, ensure};
use clap::Args;
use siskin_tests::{agent::Agent, disk::LoopDevice};

use crate::{
    empty::{Counted, Empty, PAIRS, Pair},
    load::{
        disk::DISK_BYTES,
        generators::Generators,
        job::{Job, Sizes, Work},
        network::Network,
        process::TinyProgram,
    },
    machine, progress,
    reading::Reading,
    stats::{median, spread},
    table::Table,
    throughput,
};

/// How to measure programs.
#[derive(Args)]
pub struct Options {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
    /// Rounds; every round measures everything
    #[arg(long, default_value_t = 7)]
    pub rounds: usize,
    /// The object with the empty programs
    #[arg(long, value_name = "FILE")]
    pub empty_object: PathBuf,
}

/// Every hot event is sampled.
pub const SAMPLED: &str = "--debug.sampling-period=1";
/// Hardly any is.
pub const SKIPPED: &str = "--debug.sampling-period=1048576";

/// The empty programs are on tracepoints.
pub const ON_TRACEPOINTS: &str = "--debug.no-function-returns";

/// At most this many times an empty program, when the event is skipped.
const AIM: f64 = 2.0;

/// Nanoseconds per run in each round.
#[derive(Default)]
struct Runs {
    ours: Vec<f64>,
    empty: Vec<f64>,
    ratio: Vec<f64>,
}

/// Measures and reports.
pub fn run(options: &Options) -> Result<String> {
    let machine = machine::describe();
    let network = Network::new()?;
    let device = LoopDevice::new(DISK_BYTES);
    let tiny = TinyProgram::new()?;
    let disk = format!("/dev/{}", device.name).into();
    let loads = [
        ("udp", Job::full(Work::Udp { sizes: Sizes::Same })),
        ("tcp", Job::full(Work::Connect)),
        ("disk", Job::full(Work::Disk { path: disk, sizes: Sizes::Same })),
        ("process", Job::full(Work::Exec { path: tiny.path() })),
    ];
    let mut found: HashMap<(&str, bool), Runs> = HashMap::new();
    for round in 0..options.rounds {
        for sampled in [round % 2 == 0, round % 2 == 1] {
            // Who comes first at a tracepoint pays for what the other then finds in the caches.
            let empty_first = round / 2 % 2 == 0;
            let attach = || Empty::attach(&options.empty_object, &PAIRS);
            let early = if empty_first { Some(attach()?) } else { None };
            let agent = Agent::start(&[
                if sampled { SAMPLED } else { SKIPPED },
                "--debug.program-stats",
                ON_TRACEPOINTS,
            ]);
            let empty = if let Some(empty) = early { empty } else { attach()? };
            for (load, job) in &loads {
                let generators = Generators::start(&network, std::slice::from_ref(job), &[]);
                thread::sleep(Duration::from_millis(100));
                let before = both(&agent, &empty)?;
                thread::sleep(Duration::from_secs_f64(options.seconds));
                let after = both(&agent, &empty)?;
                generators.finish()?;
                let mut line = format!("round {} of {}, ", round + 1, options.rounds);
                line.push_str(if sampled { "sampled:" } else { "skipped:" });
                for (pair, (before, after)) in PAIRS.iter().zip(before.iter().zip(&after)) {
                    if load_of(pair) != *load {
                        continue;
                    }
                    let ours = after.0.ns_per_run_since(before.0);
                    let empty = after.1.ns_per_run_since(before.1);
                    ensure!((ours / empty).is_finite(), "{} or {} did not run", pair.program, pair.empty);
                    let runs = found.entry((pair.program, sampled)).or_default();
                    runs.ours.push(ours);
                    runs.empty.push(empty);
                    runs.ratio.push(ours / empty);
                    write!(line, " {} {ours:.0} ns (empty {empty:.0}),", pair.program)?;
                }
                progress(line.trim_end_matches(','));
            }
            agent.stop(libc::SIGTERM);
        }
    }
    let throughput = throughput::measure(options, &network)?;
    Ok(format!(
        "## Cost per event (`cargo xtask bench probes`)\n\n{machine}\n{}\n{throughput}",
        report(&found, options)
    ))
}

/// The load that makes a pair's events.
fn load_of(pair: &Pair) -> &'static str {
    ["udp", "tcp", "disk"].into_iter().find(|load| pair.program.starts_with(load)).unwrap_or("process")
}

/// What the kernel says of every pair: Siskin's program, the empty one.
fn both(agent: &Agent, empty: &Empty) -> Result<Vec<(Counted, Counted)>> {
    let reading = Reading::take(agent)?;
    PAIRS.iter().map(|pair| Ok((reading.by_kernel(pair.program), empty.counted(pair.empty)?))).collect()
}

fn report(found: &HashMap<(&str, bool), Runs>, options: &Options) -> String {
    let mut table =
        Table::new(&["program", "sampled, ns", "empty, ns", "ratio", "skipped, ns", "empty, ns", "ratio"]);
    let mut misses = Vec::new();
    for pair in &PAIRS {
        let cells = |sampled| {
            let runs = found.get(&(pair.program, sampled))?;
            Some([spread(&runs.ours, 0), spread(&runs.empty, 0), format!("{:.1}", median(&runs.ratio))])
        };
        let may_skip = matches!(load_of(pair), "udp" | "disk");
        let nothing = || ["-".to_owned(), "-".to_owned(), "-".to_owned()];
        let skipped = if may_skip { cells(false) } else { None };
        let ratio = found.get(&(pair.program, false)).map_or(f64::NAN, |runs| median(&runs.ratio));
        if may_skip && ratio > AIM {
            misses.push(format!("`{}` {ratio:.1}", pair.program));
        }
        let name = format!("`{}`", pair.program);
        let all = [cells(true).unwrap_or_else(nothing), skipped.unwrap_or_else(nothing)];
        table.row(std::iter::once(name).chain(all.into_iter().flatten()));
    }
    let verdict = if misses.is_empty() {
        format!("Aim met: an event that is skipped costs at most {AIM} times an empty program.")
    } else {
        format!(
            "**Aim missed**: an event that is skipped should cost at most {AIM} times an empty program; it \
             costs {}.",
            misses.join(", ")
        )
    };
    format!(
        "Nanoseconds per run by the kernel's own statistics: median (quartiles) of {} rounds of {} s, an empty program \
         on the same tracepoint measured in the same seconds, attached first in half of the rounds. The statistics read \
         a clock before and after each run, which is part of both figures, and leave out the tracepoint's dispatch. A \
         program that is not sampled has no second half.\n\n{table}\n{verdict}\n",
        options.rounds, options.seconds
    )
}
