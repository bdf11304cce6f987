//! Load in steps until the machine is full: what Siskin costs against its budget, what it estimates against the truth.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use siskin_tests::{agent::Agent, disk::LoopDevice};

use crate::{
    budget_report, chart,
    crew::{Crew, Event, Job, Network},
    jobs::{DISK_BYTES, TinyProgram},
    machine,
    reading::{Estimate, Reading},
    say,
};

/// How to measure the budget.
#[derive(Args)]
pub struct Options {
    /// Seconds of each step of the load
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Budgets, as --budget.cpu takes them
    #[arg(long, value_name = "CPU", default_values = ["5m", "10m", "50m"])]
    pub cpu: Vec<String>,
    /// Without --budget.strict: execs and connections are counted one by one whatever they cost
    #[arg(long)]
    pub lax: bool,
    /// Only steps whose name contains this
    #[arg(long, value_name = "WORD", default_value = "", hide_default_value = true)]
    pub only: String,
    /// Where to draw the cost
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// A step of the load.
pub struct Step {
    /// What runs.
    pub label: &'static str,
    jobs: Vec<Job>,
}

/// A second under load, or what became of one.
pub struct Second {
    /// Which step.
    pub step: usize,
    /// Which second of it, from 1.
    pub second: usize,
    /// When it ended, in seconds since the load began.
    pub at: f64,
    /// Events per second that the load makers made, by kind.
    pub rates: [f64; Event::ALL.len()],
    /// Cores that the process took by the agent's own meter.
    pub user: f64,
    /// Cores that the programs took by the agent's own meter.
    pub kernel: f64,
    /// Cores by the kernel's clock of the process and its statistics of the programs.
    pub outside: f64,
    /// Share of the time for which each of [`PROBES`] was attached, at the second's end.
    pub duty: [f64; 4],
    /// Share of the events of each that were taken, at the second's end.
    pub ratio: [f64; 4],
    /// What is said of each kind of event that the agent counts, since the step began: the errors that it exports are those of totals.
    pub guesses: Guesses,
}

/// An estimate beside the truth.
#[derive(Clone, Copy, Default)]
pub struct Guess {
    /// What the load makers counted.
    pub truth: f64,
    /// What the agent estimates.
    pub estimate: Estimate,
    /// The load went on while it was asked, at the beginning and at the end: by so much the truth may be off.
    pub slack: f64,
}

/// One for each of [`Event::COUNTED`].
pub type Guesses = [Guess; Event::COUNTED.len()];

/// The probes of these events, in the same order.
pub const PROBES: [&str; 4] = ["udp", "disk", "process", "tcp"];

/// A run with one budget.
pub struct Run {
    /// As it was given.
    pub cpu: String,
    /// In cores.
    pub cores: f64,
    /// Its seconds.
    pub seconds: Vec<Second>,
    /// For each step, its guesses when asked for after the load makers had ended: nothing is off here.
    pub steps: Vec<Guesses>,
}

impl Second {
    /// Cores by the agent's own meter.
    pub fn meter(&self) -> f64 {
        self.user + self.kernel
    }
}

impl Guess {
    /// Whether the truth lies within 1.96 standard errors; `None` when nothing happened.
    pub fn holds(&self) -> Option<bool> {
        let off = (self.estimate.total - self.truth).abs() - self.slack;
        (self.truth > 0.0).then_some(off <= 1.96 * self.estimate.error)
    }
}

/// Measures and reports.
pub fn run(options: &Options) -> Result<String> {
    let machine = machine::describe();
    let tiny = TinyProgram::new()?;
    let mut runs = Vec::new();
    for cpu in &options.cpu {
        let device = LoopDevice::new(DISK_BYTES);
        let steps = steps(&device.name, &tiny.path(), &options.only);
        runs.push(with_budget(cpu, &steps, &device.name, options)?);
    }
    let steps = steps("loop", Path::new("tiny"), &options.only);
    if let Some(svg) = &options.svg {
        std::fs::write(svg, chart::draw(&runs, &steps))
            .with_context(|| format!("cannot write {}", svg.display()))?;
    }
    Ok(budget_report::report(&runs, &steps, &machine, options))
}

/// The steps whose name contains a word.
fn steps(device: &str, program: &Path, only: &str) -> Vec<Step> {
    let step = |label, jobs: &[&Job]| Step { label, jobs: jobs.iter().map(|job| (*job).clone()).collect() };
    let paced = |per_second| Job::Udp { per_second: Some(per_second) };
    let udp = Job::Udp { per_second: None };
    let disk = Job::Disk { path: Path::new("/dev").join(device) };
    let exec = Job::Exec { path: program.to_owned() };
    let all = [
        step("idle", &[]),
        step("UDP 1k/s", &[&paced(1_000)]),
        step("UDP 10k/s", &[&paced(10_000)]),
        step("UDP 100k/s", &[&paced(50_000), &paced(50_000)]),
        step("UDP full", &[&udp, &udp]),
        step("disk full", &[&disk, &disk]),
        step("exec full", &[&exec, &exec]),
        step("connect full", &[&Job::Connect, &Job::Connect]),
        step("TCP full", &[&Job::Exchange, &Job::Exchange]),
        step("all at once", &[&udp, &disk, &exec, &Job::Connect, &Job::Exchange]),
        step("idle again", &[]),
    ];
    all.into_iter().filter(|step| step.label.contains(only)).collect()
}

/// Time for the agent to come to rest after its start.
const REST: Duration = Duration::from_secs(4);
/// Time for the agent to end the second in which the load ended.
const SETTLED: Duration = Duration::from_millis(1200);

fn with_budget(cpu: &str, steps: &[Step], device: &str, options: &Options) -> Result<Run> {
    let network = Network::new()?;
    let budget = format!("--budget.cpu={cpu}");
    let mut flags = vec![budget.as_str(), "--debug.program-stats"];
    if !options.lax {
        flags.push("--budget.strict");
    }
    let agent = Agent::start(&flags);
    thread::sleep(REST);
    let mut last = Reading::take(&agent)?;
    let cores = last.metrics.one("siskin_budget_cpu_cores", &[]);
    let mut run = Run { cpu: cpu.to_owned(), cores, seconds: Vec::new(), steps: Vec::new() };
    say(&format!(
        "budget {cpu}: cost in millicores of the second before each line; one event in N is taken, during 1/D of the time"
    ));
    say(&budget_report::line_head());
    let start = Instant::now();
    for (index, step) in steps.iter().enumerate() {
        let crew = Crew::start(&network, &step.jobs, &[]);
        let begin = Instant::now();
        let quiet = Event::COUNTED.map(|(event, _)| last.estimate(event, device).unwrap_or_default());
        let mut asked = Asked { early: [0; Event::ALL.len()], late: [0; Event::ALL.len()] };
        for number in 1..=(options.seconds.round() as u64).max(2) {
            thread::sleep((begin + Duration::from_secs(number)).saturating_duration_since(Instant::now()));
            let early = Event::ALL.map(|event| crew.count(event));
            let now = Reading::take(&agent)?;
            let before = asked;
            asked = Asked { early, late: Event::ALL.map(|event| crew.count(event)) };
            let second = second(index, number as usize, (&last, &before), (&now, &asked));
            let guesses = std::array::from_fn(|index| {
                let (event, _) = Event::COUNTED[index];
                Guess {
                    truth: asked.middle(event as usize),
                    estimate: now.estimate(event, device).unwrap_or_default().since(quiet[index]),
                    // A load maker counts after the fact: what each of them was at may be missing.
                    slack: asked.slack(event as usize) + IN_FLIGHT,
                }
            });
            let second = Second { at: start.elapsed().as_secs_f64(), guesses, ..second };
            say(&budget_report::line(&second, step, cores));
            run.seconds.push(second);
            last = now;
        }
        let made = crew.finish()?;
        // The agent accounts for the error of a share of the time when its own second ends.
        thread::sleep(SETTLED);
        last = Reading::take(&agent)?;
        let guesses: Guesses = std::array::from_fn(|index| {
            let (event, _) = Event::COUNTED[index];
            Guess {
                truth: made[event as usize] as f64,
                estimate: last.estimate(event, device).unwrap_or_default().since(quiet[index]),
                // Load makers open a few connections to each other to begin and to end.
                slack: if event == Event::Connection { IN_FLIGHT } else { 0.0 },
            }
        });
        for ((_, what), guess) in Event::COUNTED.iter().zip(&guesses).filter(|(_, it)| it.truth > 0.0) {
            let Guess { truth, estimate: Estimate { total, error }, .. } = guess;
            say(&format!("{:<13} at rest: {truth:.0} {what}, estimate {total:.0} ({error:.0})", step.label));
        }
        run.steps.push(guesses);
    }
    agent.stop(libc::SIGTERM);
    Ok(run)
}

/// Events that two load makers may be at, not yet counted.
const IN_FLIGHT: f64 = 4.0;

/// What the load makers had counted just before and just after a reading.
#[derive(Clone, Copy)]
struct Asked {
    early: [u64; Event::ALL.len()],
    late: [u64; Event::ALL.len()],
}

impl Asked {
    /// At the reading, as far as can be told.
    fn middle(&self, kind: usize) -> f64 {
        (self.early[kind] as f64).midpoint(self.late[kind] as f64)
    }

    /// How far that may be off.
    fn slack(&self, kind: usize) -> f64 {
        (self.late[kind] - self.early[kind]) as f64 / 2.0
    }
}

/// The second between two readings.
fn second(
    step: usize,
    number: usize,
    (before, asked_before): (&Reading, &Asked),
    (now, asked): (&Reading, &Asked),
) -> Second {
    let time = (now.at - before.at).as_secs_f64();
    let made = |kind: usize| asked.middle(kind) - asked_before.middle(kind);
    let ((user, kernel), (user_before, kernel_before)) = (now.meter(), before.meter());
    let process = now.process_seconds - before.process_seconds;
    let programs = now.statistics_seconds() - before.statistics_seconds();
    let of_each = |name| PROBES.map(|probe| now.of_probe(name, probe));
    Second {
        step,
        second: number,
        at: 0.0,
        rates: std::array::from_fn(|kind| made(kind) / time),
        user: (user - user_before) / time,
        kernel: (kernel - kernel_before) / time,
        outside: (process + programs) / time,
        duty: of_each("siskin_budget_duty_ratio"),
        ratio: of_each("siskin_sampling_ratio"),
        guesses: [Guess::default(); Event::COUNTED.len()],
    }
}
