//! What each step of the load asks of an agent that samples everything: the ground for what would
//! be best.

use std::{collections::HashMap, thread, time::Duration};

use anyhow::{Context as _, Result};
use siskin_ebpf::Program;
use siskin_tests::agent::Agent;

use super::{
    figure::PROBES,
    measure::{Ground, Observer},
    record::Sample,
    steps::Step,
};
use crate::{load::job::Count, progress, reading::Reading};

/// The event of each of [`PROBES`] that it samples.
pub const UNITS: [Count; PROBES.len()] =
    [Count::Datagrams, Count::Requests, Count::Execs, Count::Connections];
/// What its programs run for, and how often for each: those of UDP also for every send and receive
/// on a TCP socket.
const RUNS: [&[(Count, f64)]; PROBES.len()] = [
    &[(Count::Datagrams, 1.0), (Count::Exchanges, 4.0), (Count::Connections, 1.0)],
    &[(Count::Requests, 1.0)],
    &[(Count::Execs, 1.0)],
    &[(Count::Connections, 1.0)],
];

/// Time for the agent to come to rest after its start.
const REST: Duration = Duration::from_secs(2);
/// Time for a load to come up.
const WARM: Duration = Duration::from_millis(300);
/// Seconds for which a load is watched, unless it takes longer to happen once.
const WATCHED: usize = 2;

/// What a probe cost while every event was sampled.
#[derive(Clone, Debug, Default)]
pub struct ProbeCost {
    /// Events that it sampled.
    pub events: f64,
    /// What its programs ran for, by [`activity`].
    pub activity: f64,
    /// Runs of each program.
    pub runs: HashMap<String, f64>,
    /// CPU seconds of all of them.
    pub seconds: f64,
}

/// What a step asks of the agent.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    /// By [`PROBES`].
    pub probes: [ProbeCost; PROBES.len()],
    /// Cores that the process takes.
    pub process_cores: f64,
    /// CPU seconds that each program's run costs when its event is skipped, where the agent says
    /// so.
    pub run_costs: Vec<(String, f64)>,
}

/// Watches each step for a short time without a limit.
///
/// # Errors
/// When the agent or a load generator fails.
pub fn calibrate(ground: &Ground, steps: &[Step]) -> Result<Vec<Calibration>> {
    let agent = Agent::start(&["--budget.cpu=unlimited", "--debug.program-stats"]);
    thread::sleep(REST);
    let mut observer = Observer::new(ground, &agent);
    let mut calibrations = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        progress(&format!("what {:?} asks of an agent without a limit", step.label));
        let load = ground.start(step);
        thread::sleep(WARM);
        // Without a limit each can be paid for.
        let mut samples: Vec<_> = observer.second(index, 0, &load)?.into_iter().collect();
        // As often scraped as in a run.
        for second in 1..=WATCHED.max(step.seconds) {
            thread::sleep(Duration::from_secs(1));
            samples.extend(observer.second(index, second, &load)?);
        }
        observer.finish(load)?;
        let ends = samples.first().zip(samples.last()).context("nothing was read")?;
        calibrations.push(calibration(ends.0, ends.1));
    }
    agent.stop(libc::SIGTERM);
    Ok(calibrations)
}

/// How much one of [`PROBES`] has to do, where so many of each [`Count`] happen.
pub fn activity(probe: usize, of: impl Fn(Count) -> f64) -> f64 {
    RUNS[probe].iter().map(|(count, runs)| of(*count) * runs).sum()
}

fn calibration((from, before): &(Sample, Reading), (to, now): &(Sample, Reading)) -> Calibration {
    let cost = |index: usize| {
        let count = |count: Count| to.truth[0].of(count) - from.truth[0].of(count);
        let mut cost = ProbeCost {
            events: count(UNITS[index]),
            activity: activity(index, count),
            ..ProbeCost::default()
        };
        for program in Program::ALL.iter().filter(|program| program.probe().name() == PROBES[index]) {
            let (now, before) = (now.by_meter(program.name()), before.by_meter(program.name()));
            cost.runs.insert(program.name().to_owned(), now.runs - before.runs);
            cost.seconds += (now.ns - before.ns) / 1e9;
        }
        cost
    };
    Calibration {
        probes: std::array::from_fn(cost),
        process_cores: (to.user - from.user) / (to.at - from.at),
        run_costs: to.run_costs.clone(),
    }
}
