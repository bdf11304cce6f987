//! The TCP probe: connections from their first state to their last, without touching a packet. Nothing here is sampled.

use core::ffi::c_void;

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext};
use siskin_ebpf::{Failure, FlowRow, Loss, PROTOCOL_TCP, Program, Role, Socket, TcpBank};

use crate::{
    atomic::add,
    facts::{self, load},
    log::trace,
    maps::{self, TCP_BANK},
    meter,
    sampling::Weight,
    socket::{cgroup, flow},
    tcp_socket::{self as socket, Reading},
};

/// TCP states (include/net/tcp_states.h, 6.18).
pub mod state {
    /// A connection that both ends agreed on.
    pub const ESTABLISHED: u32 = 1;
    /// A SYN was sent.
    pub const SYN_SENT: u32 = 2;
    /// A SYN came; the child of a listener, or both ends connected at once.
    pub const SYN_RECV: u32 = 3;
    /// Closed from here, the FIN not yet acknowledged.
    pub const FIN_WAIT1: u32 = 4;
    /// Closed.
    pub const CLOSE: u32 = 7;
    /// Waits for connections.
    pub const LISTEN: u32 = 10;
}

/// `inet_sock_set_state(sk, oldstate, newstate)`: in the process for `connect` and `close`, in softirq for the rest.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn tcp_state(ctx: BtfTracePointContext) -> i32 {
    meter::run(Program::TcpState, || state_changed(&ctx))
}

/// A socket goes from one state to another.
#[inline(always)]
fn state_changed(ctx: &BtfTracePointContext) {
    let sk: *const c_void = ctx.arg(0);
    let (old, new): (u32, u32) = (ctx.arg(1), ctx.arg(2));
    // SAFETY: `sk` is a `sock` by the tracepoint's BTF.
    if unsafe { load::<u16>(sk, &facts::SK_PROTOCOL) } != u16::from(PROTOCOL_TCP) {
        return;
    }
    let Some(bank) = TCP_BANK.get_ptr_mut(0) else { return };
    trace!(ctx, "tcp state {} to {}", old, new);
    match (old, new) {
        (_, state::SYN_SENT) => connecting(sk),
        (_, state::CLOSE) => closed(sk, old, bank),
        // A socket closed before the last segment of its handshake goes from there to FIN_WAIT1.
        (state::SYN_SENT | state::SYN_RECV, state::ESTABLISHED | state::FIN_WAIT1) => {
            established(sk, old, bank)
        }
        _ => {}
    }
}

/// `tcp_send_reset(sk, skb[, reason])`.
#[btf_tracepoint(function = "tcp_send_reset")]
pub fn tcp_reset_sent(_ctx: BtfTracePointContext) -> i32 {
    meter::run(Program::TcpResetSent, || reset(0))
}

/// `tcp_receive_reset(sk)`.
#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn tcp_reset_recv(_ctx: BtfTracePointContext) -> i32 {
    meter::run(Program::TcpResetReceived, || reset(1))
}

/// Counts a reset: 0 sent, 1 received.
#[inline(always)]
fn reset(direction: usize) {
    if let Some(bank) = TCP_BANK.get_ptr_mut(0) {
        // SAFETY: a map value with two such words.
        unsafe { add((&raw mut (*bank).resets).cast::<u64>().add(direction), 1) };
    }
}

/// The first state of a connection opened from here.
#[inline(always)]
fn connecting(sk: *const c_void) {
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    // When there is no room now, there is another try when it is established.
    begin(sk, Role::Client, now, 0);
}

/// Both ends agreed on a connection.
#[inline(always)]
fn established(sk: *const c_void, old: u32, bank: *mut TcpBank) {
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let (cgroup, role, followed) = match socket::find(sk) {
        // SAFETY: socket storage and banks are map values; only this socket's own state changes write these words.
        Some(socket) => unsafe {
            if (*socket).since_ns != 0 {
                maps::observe(&raw mut (*bank).connect, now.saturating_sub((*socket).since_ns), Weight::ONE);
            }
            (*socket).since_ns = now;
            (*socket).established = 1;
            ((*socket).flow.cgroup, Role::Client, true)
        },
        None => {
            let role = if old == state::SYN_SENT { Role::Client } else { Role::Server };
            let followed = begin(sk, role, now, 1);
            (cgroup(sk), role, followed)
        }
    };
    let row = socket::row_of(cgroup, bank);
    // SAFETY: a map value.
    unsafe {
        let (opened, closed) = match role {
            Role::Client => (&raw mut (*row).opened[0], &raw mut (*row).closed[0]),
            Role::Server => (&raw mut (*row).opened[1], &raw mut (*row).closed[1]),
        };
        add(opened, 1);
        if !followed {
            // Nothing will tell its end from that of any other, so it is no longer among those open.
            add(closed, 1);
            maps::lose(&raw mut (*bank).lost, Loss::SocketStorage);
        }
    }
}

/// Starts to follow a socket whose counters are all zero; `false` when it cannot be followed.
#[inline(always)]
fn begin(sk: *const c_void, role: Role, since_ns: u64, established: u64) -> bool {
    let counted = FlowRow { sent_bytes: 0, received_bytes: 0, connections: 0, retransmits: 0 };
    let mut value = Socket { flow: flow(sk, PROTOCOL_TCP, role), since_ns, established, counted };
    socket::follow(sk, &mut value)
}

/// The last state of a connection.
#[inline(always)]
fn closed(sk: *const c_void, old: u32, bank: *mut TcpBank) {
    // SAFETY: `sk` is a `sock` by the tracepoint's BTF.
    let errno: u32 = unsafe { load(sk, &facts::SK_ERR) };
    let Some(socket) = socket::find(sk) else {
        // Never a connection: a listener, or a socket that was never used.
        if matches!(old, state::CLOSE | state::LISTEN) {
            return;
        }
        if !matches!(old, state::SYN_SENT | state::SYN_RECV) {
            // SAFETY: a map value.
            maps::lose(unsafe { &raw mut (*bank).lost }, Loss::LateAttach);
        }
        if old == state::SYN_SENT || errno != 0 {
            fail(socket::row_of(cgroup(sk), bank), errno);
        }
        return;
    };
    // SAFETY: socket storage and banks are map values; only this socket's own state changes write these words.
    let (cgroup, role, since_ns, established) =
        unsafe { ((*socket).flow.cgroup, (*socket).flow.role, (*socket).since_ns, (*socket).established) };
    let row = socket::row_of(cgroup, bank);
    if let Some(moved) = socket::moved(sk) {
        // SAFETY: as above.
        unsafe {
            if established != 0 {
                socket::account(socket, &moved, Reading::Last, bank);
                if moved.rtt_ns != 0 {
                    maps::observe(&raw mut (*bank).rtt, moved.rtt_ns, Weight::ONE);
                }
            } else {
                let counted = &raw mut (*socket).counted.retransmits;
                add(&raw mut (*row).retransmits, socket::claim(counted, moved.retransmits, Reading::Last));
            }
        }
    }
    // SAFETY: as above.
    unsafe {
        if established != 0 {
            // SAFETY: the helper has no preconditions.
            let lifetime_ns = bpf_ktime_get_ns().saturating_sub(since_ns);
            let lifetimes = &raw mut (*bank).lifetime;
            let (closed, lifetime) = if role == Role::Client as u8 {
                (&raw mut (*row).closed[0], &raw mut (*lifetimes)[0])
            } else {
                (&raw mut (*row).closed[1], &raw mut (*lifetimes)[1])
            };
            add(closed, 1);
            if since_ns != 0 {
                maps::observe(lifetime, lifetime_ns, Weight::ONE);
            }
        }
        if established == 0 || errno != 0 {
            fail(row, errno);
        }
    }
    socket::forget(sk);
}

/// Counts a connection that ended in an error.
#[inline(always)]
fn fail(row: *mut siskin_ebpf::TcpRow, errno: u32) {
    // SAFETY: a map value.
    unsafe {
        match Failure::of_errno(errno) {
            Failure::Refused => add(&raw mut (*row).failed[0], 1),
            Failure::Timeout => add(&raw mut (*row).failed[1], 1),
            Failure::Reset => add(&raw mut (*row).failed[2], 1),
            Failure::Other => add(&raw mut (*row).failed[3], 1),
        }
    }
}
