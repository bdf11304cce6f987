//! Becoming root, which loading eBPF programs takes.

use std::{
    fs,
    io::{self, IsTerminal as _},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::steps;

/// How a program can be run as root here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Privilege {
    /// We are root.
    Root,
    /// By sudo, which lets us.
    Sudo,
    /// Not at all.
    Absent,
}

impl Privilege {
    /// Finds out; sudo may ask for a password when somebody is there to type it.
    pub fn find() -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status")
            .context("cannot read /proc/self/status, which says who we are")?;
        if effective_uid(&status) == Some(0) {
            return Ok(Self::Root);
        }
        let mut sudo = Command::new("sudo");
        if !io::stdin().is_terminal() {
            sudo.arg("-n");
        }
        let works = sudo.arg("true").stderr(Stdio::inherit()).status();
        Ok(match works {
            Ok(status) if status.success() => Self::Sudo,
            _ => Self::Absent,
        })
    }

    /// What cargo has to put before a test binary, if anything.
    pub fn runner(self) -> Option<&'static str> {
        // The tests need SISKIN_BIN, which plain sudo would drop.
        (self == Self::Sudo).then_some("sudo -E")
    }

    /// The program, to be run as root.
    pub fn command(self, program: &Path) -> Command {
        match self {
            Self::Sudo => {
                let mut sudo = Command::new("sudo");
                sudo.arg(program);
                sudo
            }
            Self::Root | Self::Absent => Command::new(program),
        }
    }

    /// The capabilities that a program run as root has: in a container they are not all of them.
    pub fn capabilities(self) -> Result<u64> {
        let mut cat = self.command(Path::new("/bin/cat"));
        let status = steps::capture(cat.arg("/proc/self/status"))?;
        effective_capabilities(&status).context("/proc/self/status names no capabilities")
    }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = status.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

fn effective_uid(status: &str) -> Option<u32> {
    let mut uids = field(status, "Uid")?.split_whitespace();
    uids.nth(1)?.parse().ok()
}

fn effective_capabilities(status: &str) -> Option<u64> {
    u64::from_str_radix(field(status, "CapEff")?.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tcat\nUid:\t1000\t0\t1000\t1000\nCapEff:\t000000c000000000\n";

    #[test]
    fn reads_the_effective_ids() {
        assert_eq!(effective_uid(STATUS), Some(0));
        assert_eq!(effective_capabilities(STATUS), Some(0b11 << 38));
        assert_eq!(effective_uid("Uid:\t"), None);
    }
}
