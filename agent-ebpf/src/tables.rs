//! Adding to a flow row in two kinds of table: one row for all CPUs, or a copy for each. For benchmarks: run by
//! `BPF_PROG_TEST_RUN`, attached to nothing; an object of its own, because loading it must not make Siskin's maps.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(internal_features, reason = "the BPF target has no stable atomic arithmetic; see atomic.rs")
)]

#[cfg(target_arch = "bpf")]
#[expect(dead_code, reason = "adding is all that is measured")]
mod atomic;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        bindings::BPF_NOEXIST,
        btf_maps::{HashMap, PerCpuHashMap},
        macros::{btf_map, classifier},
        programs::TcContext,
    };
    use siskin_ebpf::{FlowKey, PROTOCOL_UDP, SocketCounters};

    use crate::atomic::add;

    /// As many as the benchmark sets.
    const ROWS: usize = 1024;

    #[btf_map(name = "shared")]
    pub static SHARED: HashMap<FlowKey, SocketCounters, ROWS> = HashMap::new();
    #[btf_map(name = "per_cpu")]
    pub static PER_CPU: PerCpuHashMap<FlowKey, SocketCounters, ROWS> = PerCpuHashMap::new();
    /// As large as the copies of 64 CPUs.
    #[btf_map(name = "as_of_64")]
    pub static AS_OF_64: HashMap<FlowKey, [SocketCounters; 64], ROWS> = HashMap::new();
    /// As large as the copies of 256 CPUs.
    #[btf_map(name = "as_of_256")]
    pub static AS_OF_256: HashMap<FlowKey, [SocketCounters; 256], ROWS> = HashMap::new();

    const ZERO: &SocketCounters =
        &SocketCounters { sent_bytes: 0, received_bytes: 0, connections: 0, retransmits: 0 };

    /// The row of a packet: its length says which.
    #[inline(always)]
    fn key(ctx: &TcContext) -> FlowKey {
        FlowKey {
            cgroup: ctx.len().into(),
            peer: [7; 16],
            port: 443,
            protocol: PROTOCOL_UDP,
            role: 0,
            padding: 0,
        }
    }

    /// Adds two words, as a datagram does. The copy of a CPU is added to by an atomic instruction, too: a program can be
    /// interrupted by another of ours.
    #[inline(always)]
    fn count(row: *mut SocketCounters) {
        // SAFETY: a row is a map value.
        unsafe {
            add(&raw mut (*row).sent_bytes, 1500);
            add(&raw mut (*row).connections, 1);
        }
    }

    /// Adds to nothing: what a run costs.
    #[classifier]
    pub fn add_none(ctx: TcContext) -> i32 {
        ctx.len() as i32
    }

    /// Adds to a row of the table that all CPUs share.
    #[classifier]
    pub fn add_shared(ctx: TcContext) -> i32 {
        let key = &key(&ctx);
        if let Some(row) = SHARED.get_ptr_mut(key) {
            count(row);
            return 1;
        }
        SHARED.insert(key, ZERO, BPF_NOEXIST.into()).map_or(0, |()| 2)
    }

    /// Adds to this CPU's copy of a row.
    #[classifier]
    pub fn add_per_cpu(ctx: TcContext) -> i32 {
        let key = &key(&ctx);
        if let Some(row) = PER_CPU.get_ptr_mut(key) {
            count(row);
            return 1;
        }
        PER_CPU.insert(key, ZERO, BPF_NOEXIST.into()).map_or(0, |()| 2)
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// What the kernel's licence check reads.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
