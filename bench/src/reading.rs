//! One look at a running agent: what it says, and what the kernel says of its process.

use std::{io, time::Instant};

use anyhow::{Context as _, Result};
use siskin_tests::{
    agent::{Agent, unix_seconds},
    metrics::Metrics,
};

use crate::empty::Counted;

/// Programs that the process runs by its own system calls, so that their time is the process's already.
const ITERATORS: [&str; 3] = ["tcp_sweep", "tcp_listen", "tcp_adopt"];

/// What was read.
pub struct Reading {
    /// When.
    pub at: Instant,
    /// CPU seconds of the process, by the kernel's clock of it.
    pub process_seconds: f64,
    /// The scrape.
    pub metrics: Metrics,
}

impl Reading {
    /// Takes a reading in which all is what happened until now.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn take(agent: &Agent) -> Result<Self> {
        Self::of(agent, agent.scrape())
    }

    /// Takes a reading as a scrape would; `None` when the budget could not pay for one, and what is
    /// served is older.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn take_once(agent: &Agent) -> Result<Option<Self>> {
        let began = unix_seconds();
        let metrics = agent.scrape_once();
        metrics.are_since(began).then(|| Self::of(agent, metrics)).transpose()
    }

    fn of(agent: &Agent, metrics: Metrics) -> Result<Self> {
        Ok(Self { at: Instant::now(), process_seconds: process_seconds(agent.pid())?, metrics })
    }

    /// Cost in CPU seconds by the agent's own meter: its process, its programs.
    pub fn meter(&self) -> (f64, f64) {
        let of = |side| self.metrics.sum("siskin_cpu_seconds_total", &[("side", side)]);
        (of("user"), of("kernel"))
    }

    /// CPU seconds of the programs by the kernel's statistics, without those that run inside of the process's own calls.
    pub fn statistics_seconds(&self) -> f64 {
        let name = "siskin_kernel_statistics_run_seconds_total";
        let of = |program| self.metrics.sum(name, &[("program", program)]);
        self.metrics.sum(name, &[]) - ITERATORS.into_iter().map(of).sum::<f64>()
    }

    /// What the kernel's statistics say of a program.
    pub fn by_kernel(&self, program: &str) -> Counted {
        self.counted(
            program,
            "siskin_kernel_statistics_run_seconds_total",
            "siskin_kernel_statistics_runs_total",
        )
    }

    /// What the agent's own meter says of a program.
    pub fn by_meter(&self, program: &str) -> Counted {
        self.counted(program, "siskin_program_run_seconds_total", "siskin_program_runs_total")
    }

    fn counted(&self, program: &str, seconds: &str, runs: &str) -> Counted {
        let of = |name: &str| self.metrics.sum(name, &[("program", program)]);
        Counted { ns: of(seconds) * 1e9, runs: of(runs) }
    }

    /// A gauge of a probe.
    pub fn of_probe(&self, name: &str, probe: &str) -> f64 {
        self.metrics.sum(name, &[("probe", probe)])
    }
}

/// CPU seconds of a process, to the nanosecond; `utime` and `stime` of /proc count in hundredths.
pub fn process_seconds(pid: u32) -> Result<f64> {
    let mut clock = 0;
    // SAFETY: the call fills the clock's id.
    let result = unsafe { libc::clock_getcpuclockid(pid as i32, &raw mut clock) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result)).context("the agent's process has no clock");
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills the struct.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error()).context("the agent's process has ended");
    }
    Ok(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}
