//! Empty programs on the tracepoints that Siskin uses.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::{Btf, Ebpf, programs::BtfTracePoint};

/// A program of Siskin, and the empty one on the same tracepoint.
pub struct Pair {
    /// The name of Siskin's.
    pub program: &'static str,
    /// The name of the empty one.
    pub empty: &'static str,
    /// The tracepoint.
    pub tracepoint: &'static str,
}

const fn pair(program: &'static str, empty: &'static str, tracepoint: &'static str) -> Pair {
    Pair { program, empty, tracepoint }
}

/// Every pair.
pub const PAIRS: [Pair; 7] = [
    pair("process_exec", "empty_exec", "sched_process_exec"),
    pair("process_fork", "empty_fork", "sched_process_fork"),
    pair("process_exit", "empty_exit", "sched_process_exit"),
    pair("tcp_state", "empty_state", "inet_sock_set_state"),
    pair("disk_complete", "empty_disk", "block_rq_complete"),
    pair("udp_send", "empty_send", "sock_send_length"),
    pair("udp_receive", "empty_receive", "sock_recv_length"),
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
    /// Loads and attaches the empty programs of those tracepoints.
    ///
    /// # Errors
    /// When the object is missing or the kernel refuses it.
    pub fn attach(object: &Path, wanted: impl Fn(&Pair) -> bool) -> Result<Self> {
        let btf = Btf::from_sys_fs().context("cannot read the kernel's BTF")?;
        let what = || format!("cannot load the empty programs of {}", object.display());
        let mut ebpf = Ebpf::load_file(object).with_context(what)?;
        for pair in PAIRS.iter().filter(|pair| wanted(pair)) {
            let program = ebpf.program_mut(pair.empty).with_context(what)?;
            let program: &mut BtfTracePoint = program.try_into().with_context(what)?;
            program.load(pair.tracepoint, &btf).with_context(what)?;
            program.attach().with_context(what)?;
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
