//! Runs the load against an agent and records what it says each second.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use siskin_tests::{agent::Agent, disk::LoopDevice};

use super::{
    figure::{FIGURES, PROBES},
    line,
    record::{Run, SETTLING, Sample, Watch},
    steps::{Step, steps},
};
use crate::{
    load::{
        disk::DISK_BYTES,
        generators::Generators,
        homes::Homes,
        job::{Counts, Workload},
        network::Network,
        process::TinyProgram,
    },
    progress,
    reading::Reading,
};

/// Time for the agent to come to rest after its start, which is not part of the contract.
const REST: Duration = Duration::from_secs(4);
/// Time for the agent to account for the second in which the load ended.
const SETTLED: Duration = Duration::from_millis(1200);

/// What the loads work on.
pub struct Ground {
    network: Network,
    homes: Arc<Homes>,
    device: LoopDevice,
    tiny: TinyProgram,
}

impl Ground {
    /// Makes it.
    ///
    /// # Errors
    /// When the kernel refuses something.
    pub fn new() -> Result<Self> {
        Ok(Self {
            network: Network::new()?,
            homes: Arc::new(Homes::new()?),
            device: LoopDevice::new(DISK_BYTES),
            tiny: TinyProgram::new()?,
        })
    }

    /// The steps of the load on it whose label contains one of the words.
    pub fn steps(&self, only: &str) -> Vec<Step> {
        steps(&self.device.name, &self.tiny.path(), only)
    }

    /// Starts the load generators of a step.
    pub fn start(&self, step: &Step) -> Generators {
        Generators::start_in(&self.network, Some(&self.homes), &step.jobs, &[])
    }
}

/// Takes samples of an agent.
pub struct Observer<'a> {
    ground: &'a Ground,
    agent: &'a Agent,
    begin: Instant,
    /// What was counted by load generators that have ended.
    ended: [Counts; 2],
}

impl<'a> Observer<'a> {
    /// An observer whose time begins now.
    pub fn new(ground: &'a Ground, agent: &'a Agent) -> Self {
        Self { ground, agent, begin: Instant::now(), ended: Default::default() }
    }

    /// Takes a sample while nothing happens. `second` counts from 1 in a step.
    ///
    /// # Errors
    /// When the agent is gone.
    pub fn rest(&self, step: usize) -> Result<(Sample, Reading)> {
        let reading = Reading::take(self.agent)?;
        Ok((self.sample(step, 0, self.ended, &reading), reading))
    }

    /// Takes a sample with the load generators held up meanwhile: what they counted is then what
    /// happened. `None` when the agent's budget could not pay for a reading.
    ///
    /// # Errors
    /// When the agent is gone, or a load generator does not pause.
    pub fn second(&self, step: usize, second: usize, load: &Generators) -> Result<Option<(Sample, Reading)>> {
        let pause = load.pause()?;
        let counts = load.counts();
        let reading = Reading::take_once(self.agent)?;
        drop(pause);
        let truth = [self.ended[0] + counts[0], self.ended[1] + counts[1]];
        Ok(reading.map(|reading| (self.sample(step, second, truth, &reading), reading)))
    }

    /// Ends the load.
    ///
    /// # Errors
    /// When a load generator failed.
    pub fn finish(&mut self, load: Generators) -> Result<()> {
        let counts = load.finish()?;
        self.ended = [self.ended[0] + counts[0], self.ended[1] + counts[1]];
        Ok(())
    }

    fn sample(&self, step: usize, second: usize, truth: [Counts; 2], reading: &Reading) -> Sample {
        let metrics = &reading.metrics;
        // The sum of nothing is -0.
        let gauge = |name| metrics.sum(name, &[]).abs();
        let largest = metrics.find("siskin_budget_largest_item_seconds", &[]).map(|sample| sample.value);
        let costs = metrics.find("siskin_program_cost_seconds", &[("part", "run")]);
        let program = |labels: &[(String, String)]| {
            let program = labels.iter().find(|(label, _)| label == "program");
            program.map(|(_, program)| program.clone()).unwrap_or_default()
        };
        let container = self.ground.homes.container(Workload::First);
        let (user, kernel) = reading.meter();
        Sample {
            at: (reading.at - self.begin).as_secs_f64(),
            step,
            second,
            truth,
            estimates: FIGURES.map(|figure| figure.estimate(metrics, &self.ground.device.name, &container)),
            user,
            kernel,
            outside: reading.process_seconds + reading.statistics_seconds(),
            bucket: gauge("siskin_budget_bucket_seconds"),
            debt: gauge("siskin_budget_debt_seconds"),
            largest_item: largest.fold(0.0, f64::max),
            watches: PROBES.map(|probe| Watch {
                ratio: reading.of_probe("siskin_sampling_ratio", probe),
                duty: reading.of_probe("siskin_budget_duty_ratio", probe),
                attach_seconds: reading.of_probe("siskin_probe_attach_seconds", probe),
            }),
            run_costs: costs.map(|sample| (program(&sample.labels), sample.value)).collect(),
        }
    }
}

/// Runs all steps, each for so many seconds, with a budget.
///
/// # Errors
/// When the agent or a load generator fails.
pub fn with_budget(cpu: &str, ground: &Ground, steps: &[Step], seconds: f64) -> Result<Run> {
    let agent = Agent::start(&[&format!("--budget.cpu={cpu}"), "--debug.program-stats"]);
    thread::sleep(REST);
    let mut observer = Observer::new(ground, &agent);
    let (first, reading) = observer.rest(0)?;
    let cores = reading.metrics.find("siskin_budget_cpu_cores", &[]).next();
    let cores = cores.map_or(f64::INFINITY, |sample| sample.value);
    let mut run = Run { cpu: cpu.to_owned(), cores, samples: vec![first], unread: 0 };
    progress(&format!(
        "budget {cpu}: millicores of the second before each line; one event in N is sampled, during 1/D of the time"
    ));
    progress(&line::head());
    for (index, step) in steps.iter().enumerate() {
        let load = ground.start(step);
        let begin = Instant::now();
        for second in 1..=(seconds.round() as u64).max(SETTLING as u64 + 1) {
            thread::sleep((begin + Duration::from_secs(second)).saturating_duration_since(Instant::now()));
            match observer.second(index, second as usize, &load)? {
                Some((sample, _)) => {
                    run.samples.push(sample);
                    if let Some(span) = run.seconds().last() {
                        progress(&line::line(&span, step.label, cores));
                    }
                }
                None => run.unread += 1,
            }
        }
        observer.finish(load)?;
        thread::sleep(SETTLED);
        run.samples.push(observer.rest(index)?.0);
    }
    agent.stop(libc::SIGTERM);
    Ok(run)
}
