//! Throughput of workloads with and without the agent, at its default budget and at none, in rounds
//! that take turns.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use siskin_tests::{agent::Agent, disk::LoopDevice};

use crate::{
    load::{
        disk::DISK_BYTES,
        generators::Generators,
        job::{Count, Job, Sizes, Work},
        network::Network,
        process::TinyProgram,
    },
    machine, progress,
    stats::{median, median_interval, quantile},
    table::Table,
};

/// How to measure workloads.
#[derive(Args)]
pub struct Options {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 1.5)]
    pub seconds: f64,
    /// Rounds; every round measures every workload with the agent and without
    #[arg(long, default_value_t = 12)]
    pub rounds: usize,
}

/// `--budget.cpu` as it is without the flag.
const BUDGET: &str = "--budget.cpu=10m";
/// The flags of the agents that are measured, after none.
const AGENTS: [&[&str]; 2] = [&[BUDGET], &["--budget.cpu=unlimited"]];
/// What is said of each behind a workload's name.
const SUFFIXES: [&str; 2] = ["", ", unlimited"];
/// At most this share slower.
const AIM: f64 = 0.01;
/// Time for the agent to come to rest after its start.
const REST: Duration = Duration::from_secs(3);

/// What is done as fast as it goes.
enum Workload {
    Loop(Work, Count),
    Fio(PathBuf),
}

struct Case {
    name: &'static str,
    workload: Workload,
    /// Per second, without an agent and with each of [`AGENTS`], round by round.
    rates: [Vec<f64>; 1 + AGENTS.len()],
}

/// Measures and reports.
pub fn run(options: &Options) -> Result<String> {
    let machine = machine::describe();
    let network = Network::new()?;
    let device = LoopDevice::new(DISK_BYTES);
    let tiny = TinyProgram::new()?;
    let disk: PathBuf = format!("/dev/{}", device.name).into();
    let fio = Command::new("fio").arg("--version").stdout(Stdio::null()).status();
    let fio = fio.is_ok_and(|status| status.success());
    let case = |name, work: Work, count| Case {
        name,
        workload: Workload::Loop(work, count),
        rates: Default::default(),
    };
    let mut cases = vec![
        case("TCP request/response", Work::Exchange, Count::Exchanges),
        case("TCP connect/close", Work::Connect, Count::Connections),
        case("UDP ping-pong", Work::UdpPingPong, Count::Datagrams),
        case("exec of a tiny program", Work::Exec { path: tiny.path() }, Count::Execs),
    ];
    cases.push(if fio {
        Case {
            name: "disk, fio randrw 4 KiB, depth 4",
            workload: Workload::Fio(disk),
            rates: Default::default(),
        }
    } else {
        case("disk, 4 KiB O_DIRECT", Work::Disk { path: disk, sizes: Sizes::Same }, Count::Requests)
    });
    for round in 0..options.rounds {
        for turn in 0..=AGENTS.len() {
            // Each comes first in turn.
            let which = (round + turn) % (1 + AGENTS.len());
            let agent = which.checked_sub(1).map(|agent| Agent::start(AGENTS[agent]));
            if agent.is_some() {
                thread::sleep(REST);
            }
            for case in &mut cases {
                let rate = measure(&case.workload, &network, agent.as_ref(), options.seconds)?;
                case.rates[which].push(rate);
            }
            if let Some(agent) = agent {
                agent.stop(libc::SIGTERM);
            }
        }
        let ratios = cases.iter().map(|case| {
            let [without, with, unlimited] = case.rates.each_ref().map(|rates| rates[round]);
            format!("{} {:.4}, {:.4}", case.name, with / without, unlimited / without)
        });
        let ratios: Vec<_> = ratios.collect();
        progress(&format!(
            "round {} of {}, with / without, and without a limit: {}",
            round + 1,
            options.rounds,
            ratios.join(", ")
        ));
    }
    Ok(report(&cases, &machine, options))
}

/// Events per second, after as long again without counting: the agent finds its periods meanwhile. It is scraped once
/// in the middle.
fn measure(workload: &Workload, network: &Network, agent: Option<&Agent>, seconds: f64) -> Result<f64> {
    let time = Duration::from_secs_f64(seconds);
    let scrape = || {
        if let Some(agent) = agent {
            agent.get("/metrics");
        }
    };
    match workload {
        Workload::Loop(work, count) => {
            let cpus: Vec<_> = (0..cpus()).collect();
            let jobs = vec![Job::full(work.clone()); cpus.len()];
            let generators = Generators::start(network, &jobs, &cpus);
            thread::sleep(time);
            let rate = thread::scope(|scope| {
                let rate = scope.spawn(|| generators.rate(*count, time));
                thread::sleep(time / 2);
                scrape();
                rate.join()
            });
            generators.finish()?;
            rate.ok().context("counting panicked")
        }
        Workload::Fio(path) => fio(path, time, scrape),
    }
}

/// How many CPUs there are.
fn cpus() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Reads and writes per second by fio.
fn fio(path: &Path, time: Duration, scrape: impl FnOnce()) -> Result<f64> {
    let milliseconds = time.as_millis();
    let child = Command::new("fio")
        .args(["--name=siskin", "--direct=1", "--rw=randrw", "--bs=4k", "--ioengine=libaio", "--iodepth=4"])
        .args(["--size=64m", "--time_based", "--randrepeat=1", "--output-format=terse", "--terse-version=3"])
        .args(["--group_reporting", "--cpus_allowed_policy=split"])
        .arg(format!("--cpus_allowed=0-{}", cpus() - 1))
        .arg(format!("--numjobs={}", cpus()))
        .arg(format!("--filename={}", path.display()))
        .arg(format!("--runtime={milliseconds}ms"))
        .arg(format!("--ramp_time={milliseconds}ms"))
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start fio")?;
    thread::sleep(time.mul_f64(1.7));
    scrape();
    let output = child.wait_with_output().context("cannot wait for fio")?;
    if !output.status.success() {
        bail!("fio failed ({})", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with("3;")).context("fio printed no result")?;
    // Requests per second of reads and of writes (HOWTO, terse output).
    let field = |index| line.split(';').nth(index).and_then(|field: &str| field.parse::<f64>().ok());
    field(7).zip(field(48)).map(|(reads, writes)| reads + writes).context("fio printed another format")
}

fn report(cases: &[Case], machine: &str, options: &Options) -> String {
    let mut table = Table::new(&[
        "workload",
        "without, per s",
        "with, per s",
        "slower, %",
        "quartiles, %",
        "95% interval, %",
        "at most 1%",
    ]);
    for (case, agent) in cases.iter().flat_map(|case| (0..AGENTS.len()).map(move |agent| (case, agent))) {
        let (without, with) = (&case.rates[0], &case.rates[1 + agent]);
        let slower: Vec<_> =
            without.iter().zip(with).map(|(without, with)| 100.0 * (1.0 - with / without)).collect();
        let (low, high) = median_interval(&slower);
        let verdict = match (low <= 100.0 * AIM, high <= 100.0 * AIM) {
            (_, true) => "yes",
            (true, false) if median(&slower) <= 100.0 * AIM => "yes, not certain",
            (true, false) => "no, not certain",
            (false, false) => "**no**",
        };
        table.row([
            format!("{}{}", case.name, SUFFIXES[agent]),
            format!("{:.0}", median(without)),
            format!("{:.0}", median(with)),
            format!("{:+.2}", median(&slower)),
            format!("{:+.2} to {:+.2}", quantile(&slower, 0.25), quantile(&slower, 0.75)),
            format!("{low:+.2} to {high:+.2}"),
            verdict.to_owned(),
        ]);
    }
    format!(
        "## Workloads with and without (`cargo xtask bench workload`)\n\n{machine}\n\
         Throughput at the default budget ({BUDGET}), and with --budget.cpu=unlimited, where every event is counted whatever it costs, against none. The aim holds for the default. One copy of the workload stays on each CPU, so that the \
         machine is full and what the agent takes is missing to them. {} rounds of {} s each way take turns, each after \
         as long again for the agent to find its periods; the agent is scraped once in each. *slower* is the median \
         over the rounds of one minus the ratio of neighbours, with its quartiles and the 95% bootstrap interval of the \
         median; negative is noise. \"Not certain\" says that the interval holds the aim of 1%.\n\n{table}",
        options.rounds, options.seconds
    )
}
