//! The UDP probe on the return of the protocol's own functions, one pair for each address family:
//! the first choice, because nothing else runs them. The result is the same number that the socket
//! layer's tracepoints pass on.
//!
//! Kernels before 5.13 attach a program to a function once and never again, so these stay attached when the probe is paused.
//!
//! A pair shares its statistics. Where tasks are preempted inside programs, two families at once
//! may cost the meter a run.

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::{macros::fexit, programs::FExitContext};

use crate::{
    facts::{self, load},
    socket::{AF_INET, AF_INET6},
    udp::{Hook, received, sent},
};

const PROTOCOL: Hook = Hook { is_of_udp: true, stays_attached: true };

/// `udp_sendmsg(sk, msg, len)`. Sockets of IPv6 come here too, for IPv4 peers, from inside their own function: they are counted there.
#[fexit(function = "udp_sendmsg")]
pub fn udp_sendmsg(ctx: FExitContext) -> i32 {
    on_send(&ctx, AF_INET)
}

/// `udpv6_sendmsg(sk, msg, len)`.
#[fexit(function = "udpv6_sendmsg")]
pub fn udpv6_sendmsg(ctx: FExitContext) -> i32 {
    on_send(&ctx, AF_INET6)
}

/// `udp_recvmsg(sk, msg, len, [noblock,] flags[, addr_len])`: with `noblock` before 5.19, and lately without `addr_len`.
#[fexit(function = "udp_recvmsg")]
pub fn udp_recvmsg(ctx: FExitContext) -> i32 {
    on_receive(&ctx, AF_INET)
}

/// `udpv6_recvmsg`, with the same arguments.
#[fexit(function = "udpv6_recvmsg")]
pub fn udpv6_recvmsg(ctx: FExitContext) -> i32 {
    on_receive(&ctx, AF_INET6)
}

#[inline(always)]
fn on_send(ctx: &FExitContext, family: u16) -> i32 {
    let sk: *const c_void = ctx.arg(0);
    if is_of(sk, family) { sent(sk, ctx.arg(3), PROTOCOL) } else { 0 }
}

#[inline(always)]
fn on_receive(ctx: &FExitContext, family: u16) -> i32 {
    let sk: *const c_void = ctx.arg(0);
    if !is_of(sk, family) {
        return 0;
    }
    // The result comes after the arguments. In boxes, because the compiler would make one load at a computed place of them,
    // which the verifier does not take.
    let (result, flags): (i32, u32) = match facts::value(&facts::UDP_RECEIVE_ARGUMENTS) {
        6 => black_box((ctx.arg(6), ctx.arg(4))),
        5 => black_box((ctx.arg(5), ctx.arg(3))),
        _ => black_box((ctx.arg(4), ctx.arg(3))),
    };
    received(sk, result, flags, PROTOCOL)
}

/// Whether the socket is of the address family.
#[inline(always)]
fn is_of(sk: *const c_void, family: u16) -> bool {
    // SAFETY: `sk` is a `sock` by the function's BTF.
    unsafe { load::<u16>(sk, &facts::SK_FAMILY) == family }
}
