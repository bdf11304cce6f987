//! What the kernel says about each loaded program.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use siskin_ebpf::Probe;

use super::sys;

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    /// Its probe.
    pub probe: Probe,
    /// Its name.
    pub name: &'static str,
    fd: OwnedFd,
}

/// What the kernel counted of a program.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Nanoseconds it ran, while statistics were on.
    pub run_time_ns: u64,
    /// Times it ran, while statistics were on.
    pub runs: u64,
    /// Times it was passed over because it was running on that CPU already.
    pub recursion_misses: u64,
    /// Instructions that the verifier looked at; 0 before 5.16, which does not tell.
    pub verified_instructions: u32,
}

impl Program {
    /// Takes over the descriptor.
    pub fn new(probe: Probe, name: &'static str, fd: OwnedFd) -> Self {
        Self { probe, name, fd }
    }

    /// Asks the kernel.
    ///
    /// # Errors
    /// When the kernel refuses, which it does not for a program's own descriptor.
    pub fn counted(&self) -> io::Result<Counted> {
        let info = sys::program_info(self.fd.as_fd())?;
        Ok(Counted {
            run_time_ns: info.run_time_ns,
            runs: info.run_cnt,
            recursion_misses: info.recursion_misses,
            verified_instructions: info.verified_insns,
        })
    }
}
