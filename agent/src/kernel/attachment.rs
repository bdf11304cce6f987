//! A probe's programs on the events they wait for.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::Context as _;
use siskin_ebpf::Probe;

use super::sys;

/// The programs of a probe that run on events. Dropping it detaches them; they stay loaded as long as the object does.
#[derive(Debug)]
pub struct Attachment {
    /// The probe.
    pub probe: Probe,
    programs: Vec<(&'static str, OwnedFd)>,
    links: Vec<OwnedFd>,
}

impl Attachment {
    /// Nothing yet.
    pub fn new(probe: Probe) -> Self {
        Self { probe, programs: Vec::new(), links: Vec::new() }
    }

    /// Attaches one more program, which then belongs to the probe's.
    ///
    /// # Errors
    /// When the kernel refuses; the program is then none of the probe's.
    pub fn add(&mut self, name: &'static str, program: OwnedFd) -> anyhow::Result<()> {
        self.links.push(sys::attach(program.as_fd())?);
        self.programs.push((name, program));
        Ok(())
    }

    /// Whether the programs are attached.
    pub fn is_attached(&self) -> bool {
        !self.links.is_empty()
    }

    /// Attaches the programs again. May wait long on a busy machine: before a tracepoint gets its first program again, the kernel waits
    /// until nobody can run its last one (tracepoint_add_func, kernel/tracepoint.c, 5.15 and later).
    ///
    /// # Errors
    /// When the kernel refuses one; none is attached then.
    pub fn attach(&mut self) -> anyhow::Result<()> {
        self.detach();
        let links: Result<_, _> = self
            .programs
            .iter()
            .map(|(name, program)| {
                sys::attach(program.as_fd()).with_context(|| format!("cannot attach program `{name}`"))
            })
            .collect();
        self.links = links?;
        Ok(())
    }

    /// Detaches the programs.
    pub fn detach(&mut self) {
        // Closing a link detaches.
        self.links.clear();
    }
}
