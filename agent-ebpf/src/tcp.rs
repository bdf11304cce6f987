//! The TCP probe: connections from their first state to their last, without touching a packet.
//!
//! Every connection is followed: its socket carries a [`Socket`]. Only when the CPU budget cannot
//! pay for that some are not: then the moment when they are established and the moment when they
//! end are events that are sampled like any other, and a sampled end adds all that the connection
//! moved. What was followed before is counted to its end.

use core::ffi::c_void;

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use siskin_ebpf::{
    ConnectionCount, Failure, Loss, PROTOCOL_TCP, Probe, Program, Role, Socket, SocketCounters, TcpBank,
    Weight,
};

use crate::{
    atomic::{add, get, set},
    facts::{self, load},
    log::trace,
    maps::{self, CONTROL, TCP_BANK},
    meter::{self, Run},
    sampling::{self, add_variance},
    socket::{cgroup, flow},
    tcp_iter,
    tcp_socket::{self as socket, ByAddress, Followed, InSocket, Lock, Memory, Reading},
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
    state_changed::<InSocket>(&ctx)
}

/// The same for kernels that keep nothing in sockets. It stays attached when the probe is paused: what it remembers of a socket must go
/// when the socket does.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn tcp_state_addr(ctx: BtfTracePointContext) -> i32 {
    state_changed::<ByAddress>(&ctx)
}

#[inline(always)]
fn state_changed<M: Memory>(ctx: &BtfTracePointContext) -> i32 {
    let sk: *const c_void = ctx.arg(0);
    let (old, new): (u32, u32) = (ctx.arg(1), ctx.arg(2));
    if M::OUTLIVES_SOCKET && sampling::paused(Probe::Tcp) {
        if new == state::CLOSE {
            socket::forget::<M>(sk);
        }
        return 0;
    }
    meter::run(Program::TcpState, |run| {
        // SAFETY: `sk` is a `sock` by the tracepoint's BTF.
        if unsafe { load::<u16>(sk, &facts::SK_PROTOCOL) } != u16::from(PROTOCOL_TCP) {
            return;
        }
        let Some(bank) = TCP_BANK.get_ptr_mut(maps::shard()) else { return };
        trace!(ctx, "tcp state {} to {}", old, new);
        // Should anything be remembered here, it is of an earlier socket at this address.
        if M::OUTLIVES_SOCKET && (new == state::SYN_SENT || old == state::SYN_RECV) {
            socket::forget::<M>(sk);
        }
        match (old, new) {
            // When it is not followed now, that is decided when it is established.
            (_, state::SYN_SENT) if sampling::samples_all(run) => {
                let now_ns = run.begin_work_at();
                connecting::<M>(sk, now_ns);
                run.end_work();
            }
            (_, state::CLOSE) => match M::find(sk) {
                Some(socket) => {
                    let now_ns = run.begin_work_at();
                    followed_closed::<M>(sk, socket, old, now_ns, bank, run);
                    run.end_work();
                }
                None => closed::<M>(sk, old, bank, run),
            },
            (_, state::LISTEN) => {
                run.begin_work();
                tcp_iter::listens(sk);
                run.end_work();
            }
            // A socket closed before the last segment of its handshake goes from there to
            // FIN_WAIT1.
            (state::SYN_SENT | state::SYN_RECV, state::ESTABLISHED | state::FIN_WAIT1) => match M::find(sk) {
                Some(socket) => {
                    let now_ns = run.begin_work_at();
                    followed_established(socket, now_ns, bank, run);
                    run.end_work();
                }
                None => established::<M>(sk, old, bank, run),
            },
            _ => {}
        }
    })
}

/// `tcp_send_reset(sk, skb[, reason])`.
#[btf_tracepoint(function = "tcp_send_reset")]
pub fn tcp_reset_sent(_ctx: BtfTracePointContext) -> i32 {
    reset(Program::TcpResetSent, 0)
}

/// `tcp_receive_reset(sk)`.
#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn tcp_reset_recv(_ctx: BtfTracePointContext) -> i32 {
    reset(Program::TcpResetReceived, 1)
}

/// Counts a reset: 0 sent, 1 received.
#[inline(always)]
fn reset(program: Program, direction: usize) -> i32 {
    let Some(mut run) = meter::begin(program) else { return 0 };
    let weight = sampling::sample(&run);
    if !weight.is_nothing()
        && let Some(bank) = TCP_BANK.get_ptr_mut(maps::shard())
    {
        run.begin_work();
        // SAFETY: a map value with two such words.
        unsafe { add((&raw mut (*bank).resets).cast::<u64>().add(direction), weight.of(1)) };
        run.end_work();
    }
    run.end();
    0
}

/// The first state of a connection opened from here.
#[inline(always)]
fn connecting<M: Memory>(sk: *const c_void, now_ns: u64) {
    // When there is no room now, there is another try when it is established.
    begin::<M>(sk, Role::Client, now_ns, 0);
}

/// Both ends agreed on a connection that is followed since its SYN was sent.
#[inline(always)]
fn followed_established(socket: *mut Socket, now_ns: u64, bank: *mut TcpBank, run: &Run) {
    let weight = sampling::whenever_attached(run);
    // SAFETY: socket storage and banks are map values; only this socket's own state changes write these words.
    unsafe {
        if (*socket).since_ns != 0 {
            maps::observe(&raw mut (*bank).connect, now_ns.saturating_sub((*socket).since_ns), weight);
        }
        (*socket).since_ns = now_ns;
        (*socket).established = 1;
        opened((*socket).flow.cgroup, Role::Client, bank, weight);
    }
}

/// Both ends agreed on a connection that is not followed yet.
#[inline(always)]
fn established<M: Memory>(sk: *const c_void, old: u32, bank: *mut TcpBank, run: &mut Run) {
    let weight = sampling::sample(run);
    // SAFETY: a map value.
    count(unsafe { &raw mut (*bank).opened }, weight, run);
    if weight.is_nothing() {
        return shed();
    }
    let now_ns = run.begin_work_at();
    let role = if old == state::SYN_SENT { Role::Client } else { Role::Server };
    opened(cgroup(sk), role, bank, weight);
    if !weight.is_one() {
        shed();
        // SAFETY: every `lost` has a word for each `Loss`.
        add(unsafe { (&raw mut (*bank).lost).cast::<u64>().add(Loss::Budget as usize) }, weight.of(1));
    } else if !begin::<M>(sk, role, now_ns, 1) {
        // SAFETY: a map value.
        maps::lose(unsafe { &raw mut (*bank).lost }, Loss::SocketStorage);
    }
    run.end_work();
}

/// Counts a beginning or an end that may have been skipped.
#[inline(always)]
fn count(counted: *mut ConnectionCount, weight: Weight, run: &Run) {
    // SAFETY: a map value.
    unsafe {
        add(&raw mut (*counted).passed, sampling::whenever_attached(run).of(1));
        if !weight.is_nothing() {
            add(&raw mut (*counted).estimated, weight.of(1));
        }
    }
}

/// Counts a connection as opened.
#[inline(always)]
fn opened(cgroup: u64, role: Role, bank: *mut TcpBank, weight: Weight) {
    let row = socket::row_of(cgroup, bank);
    // SAFETY: map values.
    unsafe {
        match role {
            Role::Client => add(&raw mut (*row).opened[0], weight.of(1)),
            Role::Server => add(&raw mut (*row).opened[1], weight.of(1)),
        }
        add(&raw mut (*bank).events.opened, weight.of(1));
        if !weight.is_one() {
            match role {
                Role::Client => add(&raw mut (*row).opened_sampled[0], weight.of(1)),
                Role::Server => add(&raw mut (*row).opened_sampled[1], weight.of(1)),
            }
            add_variance(&raw mut (*row).opened_variance, weight, 1, 0);
            add_variance(&raw mut (*bank).variance.opened, weight, 1, 0);
        }
    }
}

/// Says that there may be connections that are not followed because of the budget.
#[inline(always)]
fn shed() {
    if let Some(control) = CONTROL.get_ptr_mut(0) {
        // SAFETY: a map value. Looked at first, so that CPUs do not take its cache line from each other.
        unsafe {
            let shed = &raw mut (*control).tcp_shed;
            if get(shed) == 0 {
                set(shed, 1);
            }
        }
    }
}

/// Whether there may be such connections.
#[inline(always)]
pub fn was_shed() -> bool {
    // SAFETY: a map value.
    CONTROL.get_ptr(0).is_some_and(|control| unsafe { get(&raw const (*control).tcp_shed) } != 0)
}

/// Starts to follow a socket whose counters are all zero; `false` when it cannot be followed.
#[inline(always)]
fn begin<M: Memory>(sk: *const c_void, role: Role, since_ns: u64, established: u64) -> bool {
    let counted = SocketCounters { sent_bytes: 0, received_bytes: 0, connections: 0, retransmits: 0 };
    let mut value = Socket { flow: flow(sk, PROTOCOL_TCP, role), since_ns, established, counted };
    socket::follow::<M>(sk, &mut value) != Followed::NoRoom
}

/// The last state of a connection that is not followed. `M` makes it another function for each program, which the compiler then
/// writes in place: old kernels want programs without calls.
#[inline(always)]
fn closed<M: Memory>(sk: *const c_void, old: u32, bank: *mut TcpBank, run: &mut Run) {
    // Never a connection: a listener, or a socket that was never used.
    if matches!(old, state::CLOSE | state::LISTEN) {
        return;
    }
    let handshake = matches!(old, state::SYN_SENT | state::SYN_RECV);
    let was_shed = was_shed();
    if !was_shed && !handshake {
        // SAFETY: a map value.
        maps::lose(unsafe { &raw mut (*bank).lost }, Loss::LateAttach);
    }
    let weight = sampling::sample(run);
    if was_shed && !handshake {
        // SAFETY: a map value.
        count(unsafe { &raw mut (*bank).ended }, weight, run);
    }
    if weight.is_nothing() {
        return;
    }
    run.begin_work();
    // SAFETY: `sk` is a `sock` by the tracepoint's BTF.
    let errno: u32 = unsafe { load(sk, &facts::SK_ERR) };
    let cgroup = cgroup(sk);
    if old == state::SYN_SENT || errno != 0 {
        fail(socket::row_of(cgroup, bank), errno, bank, weight);
    }
    if was_shed
        && !handshake
        && let Some(moved) = socket::moved(sk, Lock::Held)
    {
        let flow = tcp_iter::flow_at_end(sk, moved.local_port);
        socket::account_whole(&flow, &moved, bank, weight);
        if moved.rtt_ns != 0 {
            // SAFETY: a map value.
            maps::observe(unsafe { &raw mut (*bank).rtt }, moved.rtt_ns, weight);
        }
    }
    run.end_work();
}

/// The last state of a connection that is followed.
#[inline(always)]
fn followed_closed<M: Memory>(
    sk: *const c_void,
    socket: *mut Socket,
    old: u32,
    now_ns: u64,
    bank: *mut TcpBank,
    run: &Run,
) {
    let weight = sampling::whenever_attached(run);
    // SAFETY: `sk` is a `sock` by the tracepoint's BTF; socket storage and banks are map values; only this socket's own state
    // changes write these words.
    unsafe {
        let errno: u32 = load(sk, &facts::SK_ERR);
        let since_ns = (*socket).since_ns;
        // The program may not have been attached when it was established.
        let established = (*socket).established != 0 || !matches!(old, state::SYN_SENT | state::SYN_RECV);
        let row = socket::row_of((*socket).flow.cgroup, bank);
        if let Some(moved) = socket::moved(sk, Lock::Held) {
            if established {
                socket::account::<M>(socket, &moved, Reading::Last, bank, weight);
                if moved.rtt_ns != 0 {
                    maps::observe(&raw mut (*bank).rtt, moved.rtt_ns, weight);
                }
            } else {
                let counted = &raw mut (*socket).counted.retransmits;
                let retransmits = socket::claim::<M>(counted, moved.retransmits, Reading::Last);
                add(&raw mut (*row).retransmits, weight.of(retransmits));
            }
        }
        if established && (*socket).established != 0 && since_ns != 0 {
            let lifetime_ns = now_ns.saturating_sub(since_ns);
            let lifetimes = &raw mut (*bank).lifetime;
            let lifetime = if (*socket).flow.role == Role::Client as u8 {
                &raw mut (*lifetimes)[0]
            } else {
                &raw mut (*lifetimes)[1]
            };
            maps::observe(lifetime, lifetime_ns, weight);
        }
        if !established || errno != 0 {
            fail(row, errno, bank, weight);
        }
    }
    socket::forget::<M>(sk);
}

/// Counts a connection that ended in an error.
#[inline(always)]
fn fail(row: *mut siskin_ebpf::TcpRow, errno: u32, bank: *mut TcpBank, weight: Weight) {
    // SAFETY: map values.
    unsafe {
        match Failure::of_errno(errno) {
            Failure::Refused => add(&raw mut (*row).failed[0], weight.of(1)),
            Failure::Timeout => add(&raw mut (*row).failed[1], weight.of(1)),
            Failure::Reset => add(&raw mut (*row).failed[2], weight.of(1)),
            Failure::Other => add(&raw mut (*row).failed[3], weight.of(1)),
        }
        add(&raw mut (*bank).events.failed, weight.of(1));
        if weight.is_sampled() {
            add_variance(&raw mut (*row).failed_variance, weight, 1, 0);
            add_variance(&raw mut (*bank).variance.failed, weight, 1, 0);
        }
    }
}
