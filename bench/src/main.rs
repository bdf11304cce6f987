//! What Siskin costs, measured on this machine with the binary that ships (`SISKIN_BIN`, or target/release/siskin), as root.
//!
//! Progress goes to stderr; the report, a section of docs/overhead.md, to stdout. `cargo xtask bench` builds what this needs
//! and starts it.

mod budget;
mod cgroups;
mod empty;
mod growth;
mod load;
mod machine;
mod probes;
mod reading;
mod stats;
mod table;
mod tables;
mod throughput;
mod workload;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures what Siskin costs.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Nanoseconds per event of every program, beside an empty program's
    Probes(probes::Options),
    /// Cost against budget, estimates against truth and optimum, under load that fills the machine
    Budget(budget::Options),
    /// Throughput of workloads with and without the agent
    Workload(workload::Options),
    /// Cgroups that come and go, and many that are there
    Cgroups(cgroups::Options),
    /// Flow rows shared by all CPUs against a copy for each
    Tables(tables::Options),
    /// How cost grows with events, connections, flows, workloads, devices and CPUs
    Growth(growth::Options),
    /// What is measured inside of a guest
    #[command(hide = true)]
    Guest(growth::guest::Options),
}

fn main() -> Result<()> {
    let report = match Cli::parse().bench {
        Bench::Probes(options) => probes::run(&options)?,
        Bench::Budget(options) => budget::run(&options)?,
        Bench::Workload(options) => workload::run(&options)?,
        Bench::Cgroups(options) => cgroups::run(&options)?,
        Bench::Tables(options) => tables::run(&options)?,
        Bench::Growth(options) => growth::run(&options)?,
        Bench::Guest(options) => growth::guest::run(&options)?,
    };
    print!("{report}");
    Ok(())
}

/// Says what happens now.
fn progress(line: &str) {
    eprintln!("{line}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
