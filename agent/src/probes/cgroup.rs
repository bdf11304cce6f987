//! The cgroup probe: learns of cgroups as they come and go, so that what the other probes count has a name. It counts nothing
//! itself.

use std::io;

use siskin_ebpf::{CgroupBank, CgroupKey, CgroupNote, Loss, Probe, Table, Words as _, map, program};

use super::{Context, Reader, describe_losses};
use crate::{
    kernel::{
        control::Control,
        hook::{Group, Hook, Point, Way},
        loader::{Kernel, possible_cpus},
        memory::{Kind, Plan},
        rows::Bank,
    },
    metrics::Exposition,
    workload::Workloads,
};

/// The probe's programs.
pub const GROUPS: &[Group] = &[Group {
    ways: &[Way::any(&[
        hook(program::CGROUP_MKDIR, "cgroup_mkdir"),
        hook(program::CGROUP_RELEASE, "cgroup_release"),
    ])],
}];

const fn hook(program: &'static str, tracepoint: &'static str) -> Hook {
    let point = Point::Tracepoint(tracepoint);
    Hook {
        probe: Probe::Cgroup,
        program,
        point,
        requires: "CONFIG_CGROUPS=y",
        limitation: None,
        always_attached: false,
    }
}

/// Notes that the kernel keeps until the next tick: six times what 10,000 cgroups a minute leave.
const NOTES: u32 = 1024;

/// The probe's maps.
pub fn plans() -> Vec<Plan> {
    vec![
        Plan::new(map::CGROUP_BANK, Kind::PerCpuArray, 4, size_of::<CgroupBank>(), 1),
        Plan::new(map::CGROUP_DRAFT, Kind::PerCpuArray, 4, size_of::<CgroupNote>(), 1),
        Plan::new(map::CGROUP_NOTES, Kind::Hash, size_of::<CgroupKey>(), size_of::<CgroupNote>(), NOTES),
    ]
}

/// The running probe.
pub struct Cgroup {
    bank: Bank,
    /// The bank as last read.
    last: CgroupBank,
}

impl Cgroup {
    /// Takes the probe's maps.
    ///
    /// # Errors
    /// When a map is not there.
    pub fn new(kernel: &Kernel) -> anyhow::Result<Self> {
        let bank = Bank::new(kernel.map(map::CGROUP_BANK)?, size_of::<CgroupBank>(), possible_cpus()?);
        Ok(Self { bank, last: CgroupBank::zero() })
    }
}

impl Reader for Cgroup {
    fn probe(&self) -> Probe {
        Probe::Cgroup
    }

    fn read(&mut self, Context { control, workloads, now_seconds, .. }: &mut Context<'_>) -> io::Result<f64> {
        // Before the notes are taken: one that comes meanwhile is counted for the next time.
        control.emptied(Table::Cgroup, 0);
        workloads.learn()?;
        let bank: CgroupBank = self.bank.read()?;
        if !bank.since(&self.last).is_zero() {
            workloads.distrust();
        }
        self.last = bank;
        Ok(*now_seconds)
    }

    fn fills_up(&self, control: &Control) -> bool {
        // Also a few notes are worth taking every tick: the names of what is short-lived do not last.
        control.rows(Table::Cgroup, 0) > 0
    }

    fn map_entries(&self, control: &Control) -> Vec<(&'static str, u64)> {
        vec![(map::CGROUP_NOTES, control.rows(Table::Cgroup, 0))]
    }

    fn describe(&self, _: &Workloads, out: &mut Exposition) {
        describe_losses(Probe::Cgroup, &self.last.lost, &[Loss::MapFull, Loss::LongPath], out);
    }
}

const _: () = assert!(size_of::<CgroupBank>() <= 32 * 1024, "a bank fits the kernel's per-CPU unit");
