//! A probe's programs on the events they wait for.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use siskin_ebpf::{Probe, program};

use super::{interrupts::Interrupts, sys};

/// So long after it was detached nobody runs a program any more, also on a busy machine.
const QUIET: Duration = Duration::from_millis(500);

/// The programs of a probe that run on events. Dropping it detaches them; they stay loaded as long as the object does.
#[derive(Debug)]
pub struct Attachment {
    /// The probe.
    pub probe: Probe,
    programs: Vec<Attached>,
    is_attached: bool,
    detached_at: Option<Instant>,
    interrupts: Arc<Interrupts>,
}

/// A program and its link, which is closed to detach it.
#[derive(Debug)]
struct Attached {
    name: &'static str,
    program: OwnedFd,
    link: Option<OwnedFd>,
    /// Not detached with the others: it looks itself whether the probe is paused.
    always_attached: bool,
}

impl Attachment {
    /// Nothing yet.
    pub fn new(probe: Probe, interrupts: Arc<Interrupts>) -> Self {
        Self { probe, programs: Vec::new(), is_attached: false, detached_at: None, interrupts }
    }

    /// Takes one more program, which is attached by `link`. One that `stays` is never detached.
    pub fn add(&mut self, name: &'static str, program: OwnedFd, link: OwnedFd, always_attached: bool) {
        self.programs.push(Attached { name, program, link: Some(link), always_attached });
        self.is_attached = true;
    }

    /// Whether the programs are attached, but for those that stay in any case.
    pub fn is_attached(&self) -> bool {
        self.is_attached
    }

    /// Seconds that attaching or detaching takes from all other CPUs together.
    pub fn interrupt_seconds(&self) -> f64 {
        self.interrupts.seconds(self.detachable())
    }

    /// Programs that are detached when the probe is.
    fn detachable(&self) -> usize {
        self.programs.iter().filter(|of| !of.always_attached).count()
    }

    /// Whether a program of the probe stays attached, so that detaching the probe does not save what running it costs.
    pub fn is_always_attached(&self) -> bool {
        self.programs.iter().any(|of| of.always_attached)
    }

    /// Whether its programs count nothing from the moment that the probe is paused. Others count
    /// until they are detached.
    pub fn looks_whether_paused(&self) -> bool {
        let looks = |name: &&str| program::UDP_SENDMSG.contains(name) || program::UDP_RECVMSG.contains(name);
        self.programs.iter().all(|of| of.always_attached || looks(&of.name))
    }

    /// Attaches the programs again. May wait long on a busy machine: before a tracepoint gets its
    /// first program again, the kernel waits until nobody can run its last one
    /// (tracepoint_add_func, kernel/tracepoint.c, 5.15 and later). Soon after they were detached
    /// that is waited for before the first is attached, and not with some of them attached, which
    /// would cost more than anybody planned.
    ///
    /// # Errors
    /// When the kernel refuses one; none is attached then.
    pub fn attach(&mut self) -> anyhow::Result<()> {
        self.detach();
        if self.detached_at.take().is_some_and(|at| at.elapsed() < QUIET) {
            sys::wait_for_programs();
        }
        for Attached { name, program, link, .. } in self.programs.iter_mut().filter(|of| !of.always_attached)
        {
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

    /// Detaches the programs that do not stay.
    pub fn detach(&mut self) {
        if std::mem::take(&mut self.is_attached) {
            let interrupts = Arc::clone(&self.interrupts);
            interrupts.detach(self.detachable(), || self.close_links());
        } else {
            self.close_links();
        }
    }

    fn close_links(&mut self) {
        for of in self.programs.iter_mut().filter(|of| !of.always_attached) {
            // Closing a link detaches.
            if of.link.take().is_some() {
                self.detached_at = Some(Instant::now());
            }
        }
    }
}
