//! A probe's programs on the events they wait for.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::Context as _;
use siskin_ebpf::{Probe, program};

use super::{
    interrupts::{interrupted, online_cpus},
    sys,
};

/// The programs of a probe that run on events. Dropping it detaches them; they stay loaded as long as the object does.
#[derive(Debug)]
pub struct Attachment {
    /// The probe.
    pub probe: Probe,
    programs: Vec<Attached>,
    is_attached: bool,
    /// Seconds that detaching took from one of the other CPUs, each time that this was measured.
    interrupted_seconds: Vec<f64>,
    /// Times that it was tried.
    measured: usize,
}

/// So many times it is measured what detaching costs other CPUs.
const MEASURED: usize = 3;
/// What detaching or attaching a program is taken to cost one other CPU before that was measured,
/// in seconds.
const PRIOR_INTERRUPT_SECONDS: f64 = 5e-6;

/// A program and its link, which is closed to detach it.
#[derive(Debug)]
struct Attached {
    name: &'static str,
    program: OwnedFd,
    link: Option<OwnedFd>,
    /// Not detached with the others: it looks itself whether the probe is paused.
    stays: bool,
}

impl Attachment {
    /// Nothing yet.
    pub fn new(probe: Probe) -> Self {
        Self { probe, programs: Vec::new(), is_attached: false, interrupted_seconds: Vec::new(), measured: 0 }
    }

    /// Takes one more program, which is attached by `link`. One that `stays` is never detached.
    pub fn add(&mut self, name: &'static str, program: OwnedFd, link: OwnedFd, stays: bool) {
        self.programs.push(Attached { name, program, link: Some(link), stays });
        self.is_attached = true;
    }

    /// Whether the programs are attached, but for those that stay in any case.
    pub fn is_attached(&self) -> bool {
        self.is_attached
    }

    /// Seconds that attaching or detaching takes from all other CPUs together.
    pub fn interrupt_seconds(&self) -> f64 {
        let others = online_cpus().saturating_sub(1) as f64;
        // The least: others interrupt that CPU, too.
        let least = self.interrupted_seconds.iter().copied().reduce(f64::min);
        let programs = self.programs.iter().filter(|of| !of.stays).count() as f64;
        others * least.unwrap_or(programs * PRIOR_INTERRUPT_SECONDS)
    }

    /// Whether a program of the probe stays attached, so that detaching the probe does not save what running it costs.
    pub fn stays(&self) -> bool {
        self.programs.iter().any(|of| of.stays)
    }

    /// Whether its programs count nothing from the moment that the probe is paused. Others count
    /// until they are detached.
    pub fn looks_whether_paused(&self) -> bool {
        let looks = |name: &&str| program::UDP_SENDMSG.contains(name) || program::UDP_RECVMSG.contains(name);
        self.programs.iter().all(|of| of.stays || looks(&of.name))
    }

    /// Attaches the programs again. May wait long on a busy machine: before a tracepoint gets its first program again, the kernel waits
    /// until nobody can run its last one (tracepoint_add_func, kernel/tracepoint.c, 5.15 and later).
    ///
    /// # Errors
    /// When the kernel refuses one; none is attached then.
    pub fn attach(&mut self) -> anyhow::Result<()> {
        self.detach();
        for Attached { name, program, link, .. } in self.programs.iter_mut().filter(|of| !of.stays) {
            let attached =
                sys::attach(program.as_fd()).with_context(|| format!("cannot attach program `{name}`"));
            match attached {
                Ok(attached) => *link = Some(attached),
                Err(error) => {
                    self.detach();
                    return Err(error);
                }
            }
        }
        self.is_attached = true;
        Ok(())
    }

    /// Detaches the programs that do not stay. A few times it is measured what that costs the other
    /// CPUs.
    pub fn detach(&mut self) {
        if !self.is_attached || self.measured >= MEASURED {
            return self.close_links();
        }
        self.measured += 1;
        let ((), seconds) = interrupted(|| self.close_links());
        self.interrupted_seconds.extend(seconds);
    }

    fn close_links(&mut self) {
        for of in self.programs.iter_mut().filter(|of| !of.stays) {
            // Closing a link detaches.
            of.link = None;
        }
        self.is_attached = false;
    }
}
