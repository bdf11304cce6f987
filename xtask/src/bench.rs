//! Measuring what Siskin costs, and writing it into docs/overhead.md.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    agent, ebpf,
    privilege::Privilege,
    steps::{self, step},
    toolchain::Toolchain,
    vm::measure::Guests,
    workspace,
};

const PAGE: &str = "docs/overhead.md";
/// The kernel of guests, and their sizes.
const GUEST_KERNEL: &str = "6.12";
const GUEST_CPUS: [usize; 4] = [2, 16, 32, 64];
const HEAD: &str = "<!-- Written by `cargo xtask bench NAME --write`, section by section. Do not edit. -->\n\n\
    # Overhead\n\n\
    What Siskin costs, as measured by `cargo xtask bench` on one machine; run it on yours. Where a figure misses its aim, \
    it says so.\n";

/// What to measure.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Bench {
    /// Nanoseconds per event of every program, beside an empty program's
    Probes,
    /// Cost against budget, estimates against truth and optimum, under load that fills the machine
    Budget,
    /// Throughput of workloads with and without the agent
    Workload,
    /// Cgroups that come and go, and many that are there
    Cgroups,
    /// Flow rows shared by all CPUs against a copy for each
    Tables,
    /// How cost grows with events, connections, flows, workloads, devices and, in guests, CPUs
    Growth,
}

impl Bench {
    /// In the order of the page.
    const ALL: [Self; 6] =
        [Self::Probes, Self::Budget, Self::Workload, Self::Cgroups, Self::Tables, Self::Growth];

    fn name(self) -> &'static str {
        match self {
            Self::Probes => "probes",
            Self::Budget => "budget",
            Self::Workload => "workload",
            Self::Cgroups => "cgroups",
            Self::Tables => "tables",
            Self::Growth => "growth",
        }
    }

    /// Its drawing: where it is made, and where it is kept.
    fn drawing(self) -> Option<[&'static str; 2]> {
        match self {
            Self::Budget => Some(["target/bench-budget.svg", "docs/budget.svg"]),
            Self::Growth => Some(["target/bench-growth.svg", "docs/growth.svg"]),
            Self::Probes | Self::Workload | Self::Cgroups | Self::Tables => None,
        }
    }
}

/// What to measure, how long, and what to do with the result.
#[derive(Args)]
pub struct Options {
    /// What to measure
    bench: Bench,
    /// Seconds of each measurement, or of each step of the load
    #[arg(long)]
    seconds: Option<f64>,
    /// Rounds (probes, workload and tables)
    #[arg(long)]
    rounds: Option<usize>,
    /// A budget to measure, as --budget.cpu takes it; may be given several times (budget)
    #[arg(long, value_name = "CPU")]
    cpu: Vec<String>,
    /// Only steps whose name contains one of these words, separated by commas (budget)
    #[arg(long, value_name = "WORD,...")]
    only: Option<String>,
    /// Measure this agent instead of building one
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Put the result into docs/overhead.md
    #[arg(long)]
    write: bool,
}

/// Builds what is missing, measures as root, prints the report.
pub fn bench(toolchain: &Toolchain, options: &Options) -> Result<()> {
    let privilege = Privilege::find()?;
    if privilege == Privilege::Absent {
        bail!("measuring loads eBPF programs: run this as root, or as a user whom sudo lets");
    }
    let [empty, tables] = ebpf::build_bench(toolchain)?;
    let agent = match &options.agent {
        Some(agent) => fs::canonicalize(agent).with_context(|| format!("there is no {}", agent.display()))?,
        None => agent::build(toolchain, &agent::Options::default())?,
    };
    let program = build(toolchain)?;
    let drawing = options.bench.drawing();
    let mut command = privilege.command(Path::new("/usr/bin/env"));
    // As an argument, because sudo drops variables.
    let mut variable = OsString::from("SISKIN_BIN=");
    variable.push(&agent);
    command.arg(variable).arg(program).arg(options.bench.name());
    if let Some(seconds) = options.seconds {
        command.args(["--seconds", &seconds.to_string()]);
    }
    if let Some(rounds) = options.rounds {
        command.args(["--rounds", &rounds.to_string()]);
    }
    for cpu in &options.cpu {
        command.args(["--cpu", cpu]);
    }
    if let Some(only) = &options.only {
        command.args(["--only", only]);
    }
    if let Some([made, _]) = drawing {
        command.arg("--svg").arg(workspace::path(made));
    }
    match options.bench {
        Bench::Probes => command.arg("--empty-object").arg(empty),
        Bench::Tables => command.arg("--tables-object").arg(tables),
        Bench::Growth => {
            let [machines, datagrams] = in_guests(toolchain, &agent, empty)?;
            command.arg("--machines").arg(machines).arg("--datagrams").arg(datagrams)
        }
        Bench::Budget | Bench::Workload | Bench::Cgroups => &mut command,
    };
    let report = step(&format!("measuring {}", options.bench.name()), || steps::capture(&mut command))?;
    print!("{report}");
    if options.write {
        write(options.bench, &report)?;
        if let Some([made, kept]) = drawing {
            workspace::install(&workspace::path(made), &workspace::path(kept))?;
            steps::say(&format!("wrote {kept}"));
        }
    }
    Ok(())
}

/// Measures in guests. Returns files with what they said: of machines of several sizes, and of
/// datagrams.
fn in_guests(toolchain: &Toolchain, agent: &Path, empty: PathBuf) -> Result<[PathBuf; 2]> {
    let program = build_static(toolchain)?;
    let guests = Guests::new(GUEST_KERNEL, agent, &program, vec![("empty.o".to_owned(), empty)])?;
    let keep = |name: &str, said: String| {
        let file = workspace::path("target").join(name);
        fs::write(&file, said).with_context(|| format!("cannot write {}", file.display()))?;
        Ok::<_, anyhow::Error>(file)
    };
    let mut machines = String::new();
    for cpus in GUEST_CPUS {
        let said =
            step(&format!("measuring in a guest with {cpus} CPUs"), || guests.run(cpus, "guest cpus"))?;
        steps::say(said.trim());
        machines.push_str(&said);
    }
    let datagrams = step("measuring datagrams in a guest", || {
        guests.run(GUEST_CPUS[0], "guest datagrams --empty-object /empty.o")
    })?;
    Ok([keep("bench-machines.json", machines)?, keep("bench-datagrams.json", datagrams)?])
}

/// The same program without a need for libraries: guests have none.
fn build_static(toolchain: &Toolchain) -> Result<PathBuf> {
    let triple = toolchain.host()?;
    step("building what measures in guests", || {
        let mut cargo = toolchain.cargo();
        cargo.env("CARGO_PROFILE_RELEASE_PANIC", "unwind").env("CARGO_PROFILE_RELEASE_LTO", "off");
        cargo.env(agent::target_variable(&triple, "RUSTFLAGS"), agent::STATIC);
        steps::run(cargo.args(["build", "--release", "--package", "siskin-bench", "--target", &triple]))
    })?;
    Ok(workspace::path("target").join(triple).join("release/siskin-bench"))
}

fn build(toolchain: &Toolchain) -> Result<PathBuf> {
    step("building the load generators", || {
        let mut cargo = toolchain.cargo();
        // A load generator that fails must still end the agent that it started, which dropping
        // does.
        cargo.env("CARGO_PROFILE_RELEASE_PANIC", "unwind").env("CARGO_PROFILE_RELEASE_LTO", "off");
        steps::run(cargo.args(["build", "--release", "--package", "siskin-bench"]))
    })?;
    Ok(workspace::path("target/release/siskin-bench"))
}

fn write(bench: Bench, report: &str) -> Result<()> {
    let page = workspace::path(PAGE);
    // A missing page has no sections yet.
    let before = fs::read_to_string(&page).unwrap_or_default();
    fs::write(&page, with_section(&before, bench, report)).with_context(|| format!("cannot write {PAGE}"))?;
    steps::say(&format!("wrote {PAGE}"));
    Ok(())
}

/// The page with a section replaced or added.
fn with_section(page: &str, bench: Bench, report: &str) -> String {
    let mut text = HEAD.to_owned();
    for other in Bench::ALL {
        let (begin, end) = marks(other);
        let old = page.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end));
        let section = if other == bench { Some(report) } else { old.map(|(section, _)| section.trim()) };
        if let Some(section) = section {
            text.push_str(&format!("\n{begin}\n{}\n{end}\n", section.trim()));
        }
    }
    text
}

fn marks(bench: Bench) -> (String, String) {
    (format!("<!-- {} -->", bench.name()), format!("<!-- end of {} -->", bench.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_replaced_alone_and_keep_their_order() {
        let page = with_section("", Bench::Workload, "old workload\n");
        let page = with_section(&page, Bench::Probes, "probes\n");
        let page = with_section(&page, Bench::Workload, "new workload\n");
        assert!(!page.contains("old workload"));
        let (probes, workload) = (page.find("\nprobes\n"), page.find("\nnew workload\n"));
        assert!(probes.is_some() && probes < workload, "{page}");
        assert_eq!(page, with_section(&page, Bench::Workload, "new workload\n"));
    }
}
