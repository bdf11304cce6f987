//! Programs that do nothing, on hooks of Siskin's own: what they cost is what any program there
//! costs. For benchmarks; an object of its own, because loading it must not make Siskin's maps.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        macros::{btf_tracepoint, fexit},
        programs::{BtfTracePointContext, FExitContext},
    };

    /// Programs on tracepoints that return at once.
    macro_rules! empty {
        ($($program:ident on $tracepoint:literal;)+) => {
            $(
                #[doc = concat!("`", $tracepoint, "`.")]
                #[btf_tracepoint(function = $tracepoint)]
                pub fn $program(_ctx: BtfTracePointContext) -> i32 {
                    0
                }
            )+
        };
    }

    empty! {
        empty_exec on "sched_process_exec";
        empty_fork on "sched_process_fork";
        empty_exit on "sched_process_exit";
        empty_state on "inet_sock_set_state";
        empty_disk on "block_rq_complete";
        empty_send on "sock_send_length";
        empty_receive on "sock_recv_length";
    }

    /// `udp_sendmsg`.
    #[fexit(function = "udp_sendmsg")]
    pub fn empty_sendmsg(_ctx: FExitContext) -> i32 {
        0
    }

    /// `udp_recvmsg`.
    #[fexit(function = "udp_recvmsg")]
    pub fn empty_recvmsg(_ctx: FExitContext) -> i32 {
        0
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
