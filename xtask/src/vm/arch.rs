//! What guests are made of: the architectures, what Debian calls them, and how each is emulated.

use std::{env::consts, process::Command};

/// An architecture that guests may have.
#[derive(Debug, PartialEq)]
pub struct Arch {
    /// As Rust calls it.
    pub name: &'static str,
    /// As Debian calls it.
    pub debian: &'static str,
    /// Its emulator.
    pub emulator: &'static str,
    /// The package that the emulator is in.
    pub package: &'static str,
    /// A machine with PCI and two serial lines.
    machine: &'static str,
    /// The CPU with everything that can be emulated fast.
    cpu: &'static str,
    /// The serial lines, as the guest's kernel calls them: its own messages, and what `init.sh` says.
    pub serial: [&'static str; 2],
}

/// AMD64.
pub const X86_64: Arch = Arch {
    name: "x86_64",
    debian: "amd64",
    emulator: "qemu-system-x86_64",
    package: "qemu-system-x86",
    machine: "pc",
    cpu: "max",
    serial: ["ttyS0", "ttyS1"],
};

/// ARM64. Real pointer authentication is a cipher, which takes an emulator most of its time.
pub const AARCH64: Arch = Arch {
    name: "aarch64",
    debian: "arm64",
    emulator: "qemu-system-aarch64",
    package: "qemu-system-arm",
    machine: "virt",
    cpu: "max,pauth-impdef=on",
    serial: ["ttyAMA0", "ttyAMA1"],
};

impl Arch {
    /// Whether this machine is one.
    pub fn is_host(&self) -> bool {
        self.name == consts::ARCH
    }

    /// The emulator, with a machine of this kind that has nothing but what is asked for.
    pub fn machine(&self, kvm: bool) -> Command {
        if kvm { self.emulator("kvm", "host") } else { self.emulator("tcg,thread=multi", self.cpu) }
    }

    /// The same whose clock counts instructions: each takes it a nanosecond, on whatever CPU, and
    /// waiting for something takes no time here.
    pub fn counting_machine(&self) -> Command {
        let mut emulator = self.emulator("tcg,thread=single", self.cpu);
        emulator.args(["-icount", "shift=0,sleep=off"]);
        emulator
    }

    fn emulator(&self, accelerator: &str, cpu: &str) -> Command {
        let mut emulator = Command::new(self.emulator);
        emulator.args(["-accel", accelerator, "-cpu", cpu, "-machine", self.machine]);
        emulator.args(["-nodefaults", "-display", "none"]);
        emulator
    }
}
