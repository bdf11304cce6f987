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
    packages::{self, KEYRING, Suite},
};
use crate::{
    privilege::Privilege,
    steps::{self, step},
    workspace,
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

/// Nothing that is installed may go: the emulator of a stable release can conflict with tools from its backports. Then it has to come from
/// there too.
fn install(privilege: Privilege, packages: &[&str]) -> Result<()> {
    let Err(error) = install_from(privilege, packages, None) else { return Ok(()) };
    let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let Some(release) = codename(&os_release) else { return Err(error) };
    let suite = format!("{release}-backports");
    steps::say(&format!("{error:#}; trying with {suite}"));
    let line = format!("deb [signed-by={KEYRING}] {} {suite} main\n", packages::mirror(&suite)?);
    // In place of the file of sources that apt reads besides a folder of them.
    let own = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let sources = packages::cache()?.join("with-backports.list");
    workspace::write(&sources, format!("{own}\n{line}").as_bytes())?;
    install_from(privilege, packages, Some(&sources))
}

/// Installs from this machine's sources, or with other ones in place of `/etc/apt/sources.list`.
fn install_from(privilege: Privilege, packages: &[&str], sources: Option<&Path>) -> Result<()> {
    let option = sources.map(|file| format!("Dir::Etc::SourceList={}", file.display()));
    let add_sources = |command: &mut Command| {
        command.args(option.iter().flat_map(|option| ["-o", option]));
    };
    let apt = || {
        let mut apt = privilege.command(Path::new("/usr/bin/apt-get"));
        // No package may ask anything, and a daemon that comes along need not know where it is.
        apt.stdin(Stdio::null()).args(["-q", "-y", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=300"]);
        add_sources(&mut apt);
        apt
    };
    steps::run(apt().arg("update"))?;
    let mut install = apt();
    install.args(["install", "--no-install-recommends", "--no-remove"]);
    let mut policy = Command::new("apt-cache");
    add_sources(&mut policy);
    let policy = steps::ask(policy.arg("policy"))?.unwrap_or_default();
    if let Some(suite) = backports(&policy) {
        install.args(["-t", suite]);
    }
    steps::run(install.args(packages))
}

/// What the running release is called, from `/etc/os-release`.
fn codename(os_release: &str) -> Option<&str> {
    os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))
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

/// Whether KVM works here: `/dev/kvm` may open and then fail, so a machine is made and ended at
/// once. Not inside of a virtual machine: there it may work at first and stop guests in the middle
/// (seen: "KVM internal error. Suberror: 1").
pub fn has_kvm(arch: &Arch) -> bool {
    let is_virtual = || fs::read_to_string("/proc/cpuinfo").is_ok_and(|info| is_virtual(&info));
    if !arch.is_host() || is_virtual() {
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

/// Whether the processor says that this machine is a virtual one.
fn is_virtual(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    flags.flat_map(str::split_whitespace).any(|flag| flag == "hypervisor")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtual_machine_is_known_by_its_processors_flags() {
        assert!(is_virtual("processor\t: 0\nflags\t\t: fpu vmx hypervisor lahf_lm\n"));
        assert!(!is_virtual("model name\t: hypervisor 9000\nflags\t\t: fpu vmx\n"));
    }

    #[test]
    fn finds_the_codename() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=bookworm\n"), Some("bookworm"));
        assert_eq!(codename("ID=debian\n"), None);
    }

    #[test]
    fn finds_backports_by_codename() {
        let policy = "Package files:\n 100 http://mirror/debian bookworm-backports/main amd64 Packages\n     \
            release o=Debian Backports,a=stable-backports,n=bookworm-backports,l=Debian Backports,c=main,b=amd64\n";
        assert_eq!(backports(policy), Some("bookworm-backports"));
        assert_eq!(backports("     release v=12,o=Debian,a=stable,n=bookworm,l=Debian\n"), None);
    }
}
