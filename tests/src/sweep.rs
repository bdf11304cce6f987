//! Sweeps over connections, as many as the machine can do: what is only wrong for some nanoseconds of a connection's life shows.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use crate::agent::Agent;

// Commands of bpf(2), include/uapi/linux/bpf.h, 6.18.
const LINK_GET_FD_BY_ID: libc::c_int = 30;
const ITER_CREATE: libc::c_int = 33;

/// The iterator by which an agent sweeps.
#[derive(Debug)]
pub struct Sweep {
    link: OwnedFd,
}

impl Sweep {
    /// That of an agent that serves.
    ///
    /// # Panics
    /// When it has none, and without privileges.
    pub fn of(agent: &Agent) -> Self {
        let descriptors = fs::read_dir(format!("/proc/{}/fdinfo", agent.pid())).expect("the agent runs");
        let link =
            descriptors.filter_map(|entry| link_of_sweep(&fs::read_to_string(entry.ok()?.path()).ok()?));
        let link = link.into_iter().next().expect("the agent sweeps");
        Self { link: descriptor(LINK_GET_FD_BY_ID, link).expect("a link of the agent's") }
    }

    /// Sweeps once.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn run(&self) {
        let walk = descriptor(ITER_CREATE, self.link.as_raw_fd() as u32).expect("a walk");
        // It prints nothing.
        assert_eq!(File::from(walk).read(&mut [0; 64]).expect("a walk to its end"), 0);
    }
}

/// The number of the link, when that is what a descriptor's description says it is.
fn link_of_sweep(text: &str) -> Option<u32> {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim)
    };
    matches!(value("target_name"), Some("bpf_sk_storage_map" | "tcp"))
        .then_some(value("link_id")?.parse().ok()?)
}

/// A new descriptor by a command that takes one number.
fn descriptor(command: libc::c_int, number: u32) -> io::Result<OwnedFd> {
    let attributes = [number, 0, 0, 0];
    // SAFETY: both commands take at most 16 bytes and write nothing.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(&attributes)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
