//! Empty programs on the hooks that Siskin uses.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, FExit},
};

/// A program of Siskin, and the empty one on the same hook.
#[derive(Clone, Copy)]
pub struct Pair {
    /// The name of Siskin's.
    pub program: &'static str,
    /// The name of the empty one.
    pub empty: &'static str,
    /// Where both are.
    pub hook: Hook,
}

/// Where a program is attached.
#[derive(Clone, Copy)]
pub enum Hook {
    /// A BTF tracepoint.
    Tracepoint(&'static str),
    /// The return of a function.
    Exit(&'static str),
}

const fn pair(program: &'static str, empty: &'static str, tracepoint: &'static str) -> Pair {
    Pair { program, empty, hook: Hook::Tracepoint(tracepoint) }
}

/// Every pair on tracepoints.
pub const PAIRS: [Pair; 7] = [
    pair("process_exec", "empty_exec", "sched_process_exec"),
    pair("process_fork", "empty_fork", "sched_process_fork"),
    pair("process_exit", "empty_exit", "sched_process_exit"),
    pair("tcp_state", "empty_state", "inet_sock_set_state"),
    pair("disk_complete", "empty_disk", "block_rq_complete"),
    UDP[0],
    UDP[1],
];

/// UDP's on tracepoints: sent and received.
pub const UDP: [Pair; 2] = [
    pair("udp_send", "empty_send", "sock_send_length"),
    pair("udp_receive", "empty_receive", "sock_recv_length"),
];

/// UDP's on the returns of functions, in the order of those on tracepoints.
pub const EXITS: [Pair; 2] = [
    Pair { program: "udp_sendmsg", empty: "empty_sendmsg", hook: Hook::Exit("udp_sendmsg") },
    Pair { program: "udp_recvmsg", empty: "empty_recvmsg", hook: Hook::Exit("udp_recvmsg") },
];

/// What the kernel counted of a program while its statistics were on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Nanoseconds it ran.
    pub ns: f64,
    /// Times it ran.
    pub runs: f64,
}

impl Counted {
    /// Nanoseconds per run since an earlier reading; NaN when it did not run.
    pub fn ns_per_run_since(self, before: Self) -> f64 {
        (self.ns - before.ns) / (self.runs - before.runs)
    }
}

/// The empty programs, attached for as long as this lives.
pub struct Empty {
    ebpf: Ebpf,
}

impl Empty {
    /// Loads and attaches the empty programs of those pairs.
    ///
    /// # Errors
    /// When the object is missing or the kernel refuses it.
    pub fn attach(object: &Path, pairs: &[Pair]) -> Result<Self> {
        let btf = Btf::from_sys_fs().context("cannot read the kernel's BTF")?;
        let what = || format!("cannot load the empty programs of {}", object.display());
        let mut ebpf = Ebpf::load_file(object).with_context(what)?;
        for pair in pairs {
            let program = ebpf.program_mut(pair.empty).with_context(what)?;
            match pair.hook {
                Hook::Tracepoint(name) => {
                    let program: &mut BtfTracePoint = program.try_into().with_context(what)?;
                    program.load(name, &btf).with_context(what)?;
                    program.attach().with_context(what)?;
                }
                Hook::Exit(name) => {
                    let program: &mut FExit = program.try_into().with_context(what)?;
                    program.load(name, &btf).with_context(what)?;
                    program.attach().with_context(what)?;
                }
            }
        }
        Ok(Self { ebpf })
    }

    /// What the kernel counted of an empty program.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn counted(&self, name: &str) -> Result<Counted> {
        let program = self.ebpf.program(name).with_context(|| format!("no program {name}"))?;
        let info = program.info().with_context(|| format!("the kernel tells nothing of {name}"))?;
        Ok(Counted { ns: info.run_time().as_nanos() as f64, runs: info.run_count() as f64 })
    }
}
