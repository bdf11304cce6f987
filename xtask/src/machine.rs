//! What the tests need besides a compiler, and what of it this machine lacks.

use std::{fs, path::Path, process::Command};

use anyhow::Result;

use crate::{privilege::Privilege, steps};

const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Which tests a lack keeps from running.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tests {
    /// All that load programs into the kernel.
    Kernel,
    /// Those whose name contains this word.
    Named(&'static str),
}

/// Something missing: what it keeps from running, why, and the way out.
#[derive(Debug, PartialEq)]
pub struct Lack {
    /// The tests that cannot run.
    pub tests: Tests,
    because: &'static str,
    remedy: &'static str,
}

impl Lack {
    /// The one line for the user.
    pub fn line(&self) -> String {
        let tests = match self.tests {
            Tests::Kernel => "the tests on the real kernel".to_owned(),
            Tests::Named(word) => format!("the tests named *{word}*"),
        };
        let Self { because, remedy, .. } = self;
        format!("could not run: {tests}, because {because}, do {remedy}")
    }
}

/// What was found on the machine.
#[derive(Clone, Copy)]
struct Facts {
    root: bool,
    capabilities: u64,
    bpf: bool,
    btf: bool,
    cgroup2: bool,
    loop_devices: bool,
    ipv6: bool,
    kubectl: bool,
    systemd: bool,
}

/// Probes the machine.
pub fn lacks(privilege: Privilege) -> Result<Vec<Lack>> {
    let root = privilege != Privilege::Absent;
    let exists = |path| Path::new(path).exists();
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    Ok(missing(Facts {
        root,
        capabilities: if root { privilege.capabilities()? } else { 0 },
        // The setting is there exactly when the kernel was built with the system call.
        bpf: exists("/proc/sys/kernel/unprivileged_bpf_disabled"),
        btf: exists("/sys/kernel/btf/vmlinux"),
        cgroup2: has_cgroup2(&read("/proc/self/mounts")),
        loop_devices: exists("/dev/loop-control"),
        ipv6: !read("/proc/net/if_inet6").trim().is_empty(),
        // It brings kustomize.
        kubectl: steps::ask(Command::new("kubectl").args(["kustomize", "--help"]))?.is_some(),
        systemd: steps::ask(Command::new("systemd-analyze").arg("--version"))?.is_some(),
    }))
}

fn missing(facts: Facts) -> Vec<Lack> {
    let mut lacks = Vec::new();
    let mut need = |met: bool, tests, because, remedy| {
        if !met {
            lacks.push(Lack { tests, because, remedy });
        }
    };
    let (kernel, named) = (Tests::Kernel, Tests::Named);
    need(
        facts.root,
        kernel,
        "we are not root and sudo does not let us",
        "this as root, or as a user whom sudo lets",
    );
    need(
        !facts.root || may_load(facts.capabilities),
        kernel,
        "root here has neither CAP_SYS_ADMIN nor CAP_BPF with CAP_PERFMON",
        "this outside of the container, or give it these capabilities",
    );
    need(facts.bpf, kernel, "the kernel has no bpf system call", "boot a kernel with CONFIG_BPF_SYSCALL=y");
    need(
        facts.btf,
        kernel,
        "/sys/kernel/btf/vmlinux is missing",
        "boot a kernel with CONFIG_DEBUG_INFO_BTF=y",
    );
    need(
        facts.cgroup2,
        kernel,
        "cgroup2 is mounted nowhere",
        "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
    );
    need(facts.loop_devices, named("loop_device"), "/dev/loop-control is missing", "modprobe loop");
    need(
        facts.ipv6,
        named("ipv6"),
        "no interface has an IPv6 address",
        "sysctl net.ipv6.conf.all.disable_ipv6=0",
    );
    need(
        facts.kubectl,
        named("kustomize"),
        "there is no kubectl",
        "install kubectl 1.27 or newer, see https://kubernetes.io/docs/tasks/tools",
    );
    need(facts.systemd, named("systemd_takes"), "there is no systemd-analyze", "apt-get install systemd");
    lacks
}

fn may_load(capabilities: u64) -> bool {
    let has = |bit: u32| capabilities >> bit & 1 == 1;
    has(CAP_SYS_ADMIN) || (has(CAP_BPF) && has(CAP_PERFMON))
}

fn has_cgroup2(mounts: &str) -> bool {
    let mut kinds = mounts.lines().filter_map(|line| line.split_whitespace().nth(2));
    kinds.any(|kind| kind == "cgroup2")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: Facts = Facts {
        root: true,
        capabilities: u64::MAX,
        bpf: true,
        btf: true,
        cgroup2: true,
        loop_devices: true,
        ipv6: true,
        kubectl: true,
        systemd: true,
    };

    #[test]
    fn a_whole_machine_lacks_nothing() {
        assert_eq!(missing(WHOLE), []);
    }

    #[test]
    fn a_lack_says_what_why_and_what_to_do() {
        let lacks = missing(Facts { loop_devices: false, ..WHOLE });
        let lines: Vec<_> = lacks.iter().map(Lack::line).collect();
        assert_eq!(
            lines,
            ["could not run: the tests named *loop_device*, because /dev/loop-control is missing, \
              do modprobe loop"]
        );
    }

    #[test]
    fn without_root_its_capabilities_are_not_blamed() {
        let lacks = missing(Facts { root: false, capabilities: 0, ..WHOLE });
        assert_eq!(lacks.len(), 1);
        assert_eq!(lacks[0].tests, Tests::Kernel);
    }

    #[test]
    fn loading_needs_both_small_capabilities_or_the_large_one() {
        assert!(may_load(1 << CAP_SYS_ADMIN));
        assert!(may_load(1 << CAP_BPF | 1 << CAP_PERFMON));
        assert!(!may_load(1 << CAP_BPF));
    }

    #[test]
    fn finds_cgroup2_by_type_and_not_by_name() {
        assert!(has_cgroup2("none /mnt cgroup2 rw 0 0\n"));
        assert!(!has_cgroup2("cgroup2 /sys/fs/cgroup2 tmpfs rw 0 0\n"));
    }
}
