//! How cost grows: with events, connections, flows, workloads and devices on this machine, and with
//! CPUs in guests.

mod chart;
pub mod guest;
mod host;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::Args;

use self::guest::{Machine, Way};
use crate::{machine, table::Table};

/// How to measure growth.
#[derive(Args)]
pub struct Options {
    /// Seconds of each measurement of events
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Readings for each figure
    #[arg(long, default_value_t = 9)]
    pub rounds: usize,
    /// What guests of several sizes said, a line each
    #[arg(long, value_name = "FILE")]
    pub machines: Option<PathBuf>,
    /// What a guest said of datagrams
    #[arg(long, value_name = "FILE")]
    pub datagrams: Option<PathBuf>,
    /// Where to draw the curves
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// How a cost grows with the number of something.
pub struct Curve {
    /// Of what.
    pub name: &'static str,
    /// What the cost is, with its unit.
    pub cost: &'static str,
    /// Numbers and costs.
    pub points: Vec<(f64, f64)>,
}

/// A reading at 64 CPUs is to take no more than so many times what it takes at 2.
const AIM: f64 = 2.0;

/// Measures and reports.
pub fn run(options: &Options) -> Result<String> {
    let machine = machine::describe();
    let mut curves = host::measure(options)?;
    let machines: Vec<Machine> = lines(options.machines.as_deref())?;
    let ways: Vec<Way> = lines::<Vec<Way>>(options.datagrams.as_deref())?.into_iter().flatten().collect();
    let mut text = format!(
        "## Growth (`cargo xtask bench growth`)\n\n{machine}\n![How cost grows](growth.svg)\n\n{}",
        on_host(&curves, options)
    );
    if !machines.is_empty() {
        text.push_str(&by_cpus(&machines));
        curves.push(Curve {
            name: "CPUs, one disk (guest)",
            cost: "million instructions of a scrape",
            points: machines.iter().map(|of| (of.cpus as f64, of.scrape_seconds * 1e3)).collect(),
        });
    }
    if !ways.is_empty() {
        text.push_str(&by_way(&ways));
    }
    if let Some(svg) = &options.svg {
        fs::write(svg, chart::draw(&curves)).with_context(|| format!("cannot write {}", svg.display()))?;
    }
    Ok(text)
}

fn lines<T: serde::de::DeserializeOwned>(file: Option<&Path>) -> Result<Vec<T>> {
    let Some(file) = file else { return Ok(Vec::new()) };
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let said = |line: &str| serde_json::from_str(line).with_context(|| format!("a guest said `{line}`"));
    text.lines().map(said).collect()
}

fn on_host(curves: &[Curve], options: &Options) -> String {
    let mut table = Table::new(&["number of", "cost", "number: cost"]);
    for Curve { name, cost, points } in curves {
        let points: Vec<_> = points.iter().map(|(number, cost)| format!("{number:.0}: {cost:.2}")).collect();
        table.row([(*name).to_owned(), (*cost).to_owned(), points.join(", ")]);
    }
    format!(
        "### On this machine\n\nWithout a limit of CPU. Of each number there is an agent of its own; a reading is the \
         median of {} readings of the probe, all of which did something since the last one. Events are the mean of {} s.\n\n\
         {table}\n",
        options.rounds, options.seconds
    )
}

fn by_cpus(machines: &[Machine]) -> String {
    let mut table = Table::new(&[
        "CPUs",
        "scrape",
        "disk reading",
        "process reading",
        "tcp reading",
        "udp reading",
        "start",
        "resident, MiB",
        "maps at most, MiB",
    ]);
    // A nanosecond of a guest's clock is an instruction.
    let millions = |seconds: f64| format!("{:.2}", seconds * 1e3);
    let mib = |bytes: f64| format!("{:.1}", bytes / f64::from(1 << 20));
    for of in machines {
        let probe = |name: &str| millions(of.readings.get(name).copied().unwrap_or(f64::NAN));
        table.row([
            of.cpus.to_string(),
            millions(of.scrape_seconds),
            probe("disk"),
            probe("process"),
            probe("tcp"),
            probe("udp"),
            millions(of.start_seconds),
            mib(of.rss_bytes),
            mib(of.maps_bytes),
        ]);
    }
    let verdict = match (machines.first(), machines.last()) {
        (Some(few), Some(many)) => {
            let ratio = many.scrape_seconds / few.scrape_seconds;
            let met = if ratio <= AIM { "Aim met" } else { "**Aim missed**" };
            format!(
                "{met}: a scrape with {} CPUs takes {ratio:.2} times what it takes with {} (at most {AIM}).",
                many.cpus, few.cpus
            )
        }
        _ => String::new(),
    };
    format!(
        "### By CPUs\n\nIn emulated guests with one disk, where one CPU reads eight blocks, sends eight datagrams and starts a program \
         before each scrape. Their clock counts instructions, so it does not depend on the machine: all are in millions of them. A scrape is \
         CPU time of the process; readings and the start are elapsed time, with what they wait for. How CPUs contend for a row is not in \
         it: `bench tables` measures that on two, and beyond it is unproven.\n\n{table}\n{verdict}\n\n"
    )
}

fn by_way(ways: &[Way]) -> String {
    let mut table =
        Table::new(&["hook", "direction", "sampled", "empty", "ratio", "skipped", "empty", "ratio"]);
    for way in ways {
        for (direction, [sampled, beside, skipped, beside_skipped]) in
            ["sent", "received"].into_iter().zip(way.seconds)
        {
            let instructions = |seconds: f64| format!("{:.0}", seconds * 1e9);
            table.row([
                way.hook.clone(),
                direction.to_owned(),
                instructions(sampled),
                instructions(beside),
                format!("{:.1}", sampled / beside),
                instructions(skipped),
                instructions(beside_skipped),
                format!("{:.1}", skipped / beside_skipped),
            ]);
        }
    }
    format!(
        "### A datagram on either hook\n\nInstructions of a run by the kernel's own statistics, in the same kind of guest, which attaches \
         programs to both; an empty program is on the same hook in the same run. Reading the clock twice is part of all. Calls that \
         move no datagram, and messages of TCP, run nothing on the returns of UDP's functions.\n\n{table}\n"
    )
}
