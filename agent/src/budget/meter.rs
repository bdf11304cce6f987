//! What Siskin costs: its programs in the kernel, by their own clock, and its process.
//!
//! The kernel's own statistics of programs need CAP_SYS_ADMIN and leave out what a hook costs before the program begins.
//! Here each full run times itself, and every run adds what the hook's dispatch and the short path of a run that is passed over
//! take, calibrated at start. The programs count all their runs, so that is exact also when they sample.

use std::io;

use siskin_ebpf::{Program, Slot, Slots, Words as _};

use crate::{
    kernel::rows::Bank,
    metrics::{self, Exposition, NANOS},
};

/// Nanoseconds that a full run takes besides what it measures: the clock itself. Measured as the slowdown of a loop of
/// system calls, on 6.18 on one x86_64 machine: 119 less what a run takes in any case (docs/overhead.md).
pub const FULL_RUN_NS: u64 = 25;

/// Reads what the programs note about themselves.
#[derive(Debug)]
pub struct Meter {
    bank: Bank,
    slots: Slots,
    run_ns: u64,
}

impl Meter {
    /// A meter over the `slots` map; `run_ns` is what a run takes besides what it measures of itself, as calibrated.
    pub fn new(bank: Bank, run_ns: u64) -> Self {
        Self { bank, slots: Slots::zero(), run_ns }
    }

    /// Nanoseconds that a run takes besides what it measures of itself.
    pub fn run_ns(&self) -> u64 {
        self.run_ns
    }

    /// Takes a reading.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn read(&mut self) -> io::Result<()> {
        self.slots = self.bank.read()?;
        Ok(())
    }

    /// The last reading, summed over the CPUs.
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Nanoseconds that a program took: what its full runs measured, and what comes besides.
    pub fn cost_ns(&self, slot: &Slot) -> u64 {
        slot.busy_ns + slot.runs * self.run_ns + slot.full_runs * FULL_RUN_NS
    }

    /// Describes the cost as metrics.
    pub fn describe(&self, out: &mut Exposition) {
        let kernel_ns: u64 = self.slots.of.iter().map(|slot| self.cost_ns(slot)).sum();
        out.gauge(&metrics::PROGRAM_RUN_OVERHEAD, &[], self.run_ns as f64 / NANOS);
        for program in Program::ALL {
            let slot = &self.slots.of[program as usize];
            let seconds = self.cost_ns(slot) as f64 / NANOS;
            out.counter(&metrics::PROGRAM_RUN_SECONDS, &[program.name()], seconds);
            out.counter(&metrics::PROGRAM_RUNS, &[program.name()], slot.runs as f64);
        }
        out.counter(&metrics::CPU_SECONDS, &["kernel"], kernel_ns as f64 / NANOS);
        out.counter(&metrics::CPU_SECONDS, &["user"], process_seconds());
    }
}

/// CPU seconds that the calling thread took so far.
pub fn thread_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / NANOS
}

/// CPU seconds that this process took, in user mode and in system calls; the iterators run in the latter.
pub fn process_seconds() -> f64 {
    // SAFETY: a struct of integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the struct.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
