//! What this machine needs to boot kernels: emulators and a static shell, installed when they are missing.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::{
    arch::Arch,
    packages::{self, Suite},
};
use crate::{
    privilege::Privilege,
    steps::{self, step},
};

/// The shell and tools of guests like this machine; also unpacks modules here.
pub const BUSYBOX: &str = "/bin/busybox";
/// The suite that has the shell for other architectures.
const SHELL_SUITE: &str = "bookworm";

/// Installs what is missing, with apt: kernels come as packages of Debian, so it is there or nothing works.
pub fn ensure(archs: &[&Arch]) -> Result<()> {
    let mut missing = Vec::new();
    for arch in archs {
        if steps::ask(Command::new(arch.emulator).arg("--version"))?.is_none() {
            missing.push(arch.package);
        }
    }
    // Debian's other busybox is not static and would not start in a guest.
    let static_shell = fs::read(BUSYBOX).is_ok_and(|file| crate::elf::is_static(&file).unwrap_or(false));
    if !static_shell {
        missing.push("busybox-static");
    }
    if missing.is_empty() {
        return Ok(());
    }
    let privilege = Privilege::find()?;
    let by_hand = format!("install {} yourself", missing.join(" and "));
    if privilege == Privilege::Absent {
        bail!("we are neither root nor does sudo let us: {by_hand}");
    }
    step(&format!("installing {}", missing.join(", ")), || {
        install(privilege, &missing).with_context(|| format!("cannot install packages; {by_hand}"))
    })
}

fn install(privilege: Privilege, packages: &[&str]) -> Result<()> {
    let apt = || {
        let mut apt = privilege.command(Path::new("/usr/bin/apt-get"));
        // No package may ask anything, and a daemon that comes along need not know where it is.
        apt.stdin(Stdio::null()).args(["-q", "-y", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=300"]);
        apt
    };
    steps::run(apt().arg("update"))?;
    let mut install = apt();
    // Nothing that is installed may go: the emulator of a stable release can conflict with tools from its backports.
    install.args(["install", "--no-install-recommends", "--no-remove"]);
    let policy = steps::ask(Command::new("apt-cache").arg("policy"))?.unwrap_or_default();
    if let Some(suite) = backports(&policy) {
        install.args(["-t", suite]);
    }
    steps::run(install.args(packages))
}

/// The backports suite among the sources, as `apt-cache policy` lists them: `release o=Debian Backports,a=…,n=…`.
fn backports(policy: &str) -> Option<&str> {
    let mut words = policy.split([',', '\n', ' ']);
    words.find_map(|word| word.trim().strip_prefix("n=").filter(|name| name.ends_with("-backports")))
}

/// The shell of an architecture's guests: this machine's, or that of a package.
pub fn shell(arch: &'static Arch) -> Result<PathBuf> {
    if arch.is_host() {
        return Ok(BUSYBOX.into());
    }
    let cache = packages::cache()?;
    let folder = cache.join("shell").join(arch.debian);
    let shell = folder.join("bin/busybox");
    if !shell.exists() {
        let package = Suite::new(SHELL_SUITE, arch, &cache)?.download("busybox-static", &folder)?;
        steps::run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&folder))?;
    }
    Ok(shell)
}

/// Whether KVM works here: `/dev/kvm` may open and then fail, so a machine is made and ended at once.
pub fn has_kvm(arch: &Arch) -> bool {
    if !arch.is_host() {
        return false;
    }
    let machine = arch
        .machine(true)
        .args(["-S", "-monitor", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut machine) = machine else { return false };
    if let Some(mut monitor) = machine.stdin.take() {
        // It may have ended already, which its status says.
        let _ = monitor.write_all(b"quit\n");
    }
    machine.wait().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_backports_by_codename() {
        let policy = "Package files:\n 100 http://mirror/debian bookworm-backports/main amd64 Packages\n     \
            release o=Debian Backports,a=stable-backports,n=bookworm-backports,l=Debian Backports,c=main,b=amd64\n";
        assert_eq!(backports(policy), Some("bookworm-backports"));
        assert_eq!(backports("     release v=12,o=Debian,a=stable,n=bookworm,l=Debian\n"), None);
    }
}
