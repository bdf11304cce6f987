//! The UDP probe where nothing is attached to the returns of functions (arm64 before 6.4) and the
//! socket layer has no length tracepoints (before 6.3): kprobes where a datagram leaves the
//! protocol. Not on the entry and the return of the protocol's own functions: a
//! receiver sleeps in there, and the kernel keeps in mind a few sleepers only and forgets the others' returns without a word.
//!
//! A datagram that is received is seen by `skb_consume_udp` with the very number that the call returns. One that is sent is seen when it
//! is handed to IP, which may still refuse it: then it is counted, although the call failed. And calls that make one datagram together
//! (`MSG_MORE`) are seen as the one.
//!
//! These stay attached: attaching a kprobe takes a privilege that the agent does not keep. The kernel passes over programs on kprobes
//! on a CPU that is just in a map's system call or in another of them (`bpf_prog_active`, kernel/trace/bpf_trace.c, 6.1).

use core::ffi::c_void;

use aya_ebpf::{macros::kprobe, programs::ProbeContext};

use crate::{
    facts::{self, Untyped, follow, load},
    udp::{Hook, NOTHING, received, sent},
};

const BELOW: Hook = Hook { is_of_udp: false, stays_attached: true };

/// Length of a UDP header (`struct udphdr`, include/uapi/linux/udp.h, 6.18).
const HEADER_BYTES: i32 = 8;

/// `ip_send_skb(net, skb)`: for IPv4 peers, of sockets of both families.
#[kprobe]
pub fn ip_send_skb(ctx: ProbeContext) -> u32 {
    on_send(ctx.arg(1))
}

/// `ip6_send_skb(skb)`.
#[kprobe]
pub fn ip6_send_skb(ctx: ProbeContext) -> u32 {
    on_send(ctx.arg(0))
}

/// `skb_consume_udp(sk, skb, len)`, both families: a call received `len` bytes, or looked at `-len` of them.
#[kprobe]
pub fn skb_consume_udp(ctx: ProbeContext) -> u32 {
    let arguments: (_, _, Option<i32>) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    let (Some(sk), Some(skb), Some(result)) = arguments else { return 0 };
    // A datagram without bytes that was looked at is still in the queue.
    // SAFETY: `skb` is a `sk_buff`.
    let is_left = result == 0 && !unsafe { load::<*const c_void>(Untyped(skb), &facts::SKB_NEXT) }.is_null();
    received(Untyped(sk), if is_left { NOTHING } else { result }, 0, BELOW);
    0
}

#[inline(always)]
fn on_send(skb: Option<*const c_void>) -> u32 {
    let Some(skb) = skb.map(Untyped) else { return 0 };
    // SAFETY: `skb` is a `sk_buff`; one of another protocol is turned away by its socket.
    unsafe { sent(follow(skb, &facts::SKB_SK), payload_bytes(skb), BELOW) };
    0
}

/// Bytes behind the UDP header of a datagram that begins with its IP header.
///
/// # Safety
/// `skb` is a `sk_buff`.
#[inline(always)]
unsafe fn payload_bytes(skb: Untyped) -> i32 {
    // SAFETY: as the caller promises.
    unsafe {
        let (head, data): (u64, u64) = (load(skb, &facts::SKB_HEAD), load(skb, &facts::SKB_DATA));
        let (bytes, transport): (u32, u16) = (load(skb, &facts::SKB_LEN), load(skb, &facts::SKB_TRANSPORT));
        // From `head`, while `bytes` are from `data`.
        let header = head.wrapping_add(transport.into()).wrapping_sub(data);
        bytes as i32 - header as i32 - HEADER_BYTES
    }
}
