//! The UDP probe: datagrams and bytes by flow, sampled. Here it sits on the two tracepoints that
//! every socket passes after it sent or received, so other sockets are filtered first: they cost a
//! run. Only where nothing is attached to the returns of functions (`udp_exit`).

use core::ffi::c_void;

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use siskin_ebpf::{Loss, PROTOCOL_UDP, Program, Role, Table, UdpBank, UdpRow, Weight};

use crate::{
    atomic::add,
    facts::{self, Pointer, load, load_bits},
    maps::{self, UDP_BANK},
    meter, sampling,
    socket::{self, AF_INET, AF_INET6},
};

/// The caller looks at the datagram and will receive it again (`MSG_PEEK`, include/linux/socket.h, 6.18).
const MSG_PEEK: u32 = 2;
/// The caller gets back what it sent itself, with an error or a time stamp (`MSG_ERRQUEUE`, as above).
const MSG_ERRQUEUE: u32 = 0x2000;
/// Type of a datagram socket (include/linux/net.h, 6.18).
const SOCK_DGRAM: u16 = 2;
/// The program chose the local port with `bind` (`SOCK_BINDPORT_LOCK`, include/net/sock.h, 6.18).
const SOCK_BINDPORT_LOCK: u32 = 8;
/// Variances of bytes are kept in units of 4 bytes: datagrams may be small.
const UNIT_LOG2: u32 = 2;

/// `sock_send_length(sk, ret, flags)`, in the process that sent; 6.3 and later.
#[btf_tracepoint(function = "sock_send_length")]
pub fn udp_send(ctx: BtfTracePointContext) -> i32 {
    let sk: *const c_void = ctx.arg(0);
    sent(sk, ctx.arg(1), SOCKET_LAYER)
}

/// `sock_recv_length(sk, ret, flags)`, in the process that received; 6.3 and later.
#[btf_tracepoint(function = "sock_recv_length")]
pub fn udp_receive(ctx: BtfTracePointContext) -> i32 {
    let sk: *const c_void = ctx.arg(0);
    received(sk, ctx.arg(1), ctx.arg(2), SOCKET_LAYER)
}

/// What is known of the sockets at a hook.
#[derive(Clone, Copy)]
pub struct Hook {
    /// They are of UDP's own functions, and not of whatever protocol.
    pub is_of_udp: bool,
    /// Its programs stay attached while the probe is paused.
    pub stays_attached: bool,
}

const SOCKET_LAYER: Hook = Hook { is_of_udp: false, stays_attached: false };

/// A socket sent `result` bytes, or failed to.
#[inline(always)]
pub fn sent(sk: impl Pointer, result: i32, hook: Hook) -> i32 {
    moved(sk, result, 0, Program::UdpSend, hook)
}

/// A socket received `result` bytes with these flags, or failed to.
#[inline(always)]
pub fn received(sk: impl Pointer, result: i32, flags: u32, hook: Hook) -> i32 {
    let is_received = flags & (MSG_PEEK | MSG_ERRQUEUE) == 0;
    moved(sk, if is_received { result } else { NOTHING }, 1, Program::UdpReceive, hook)
}

/// The result of a call that moved no datagram.
pub const NOTHING: i32 = -1;

/// A socket moved `result` bytes, or failed to: `direction` 0 is sent, 1 received.
#[inline(always)]
fn moved(sk: impl Pointer, result: i32, direction: usize, program: Program, hook: Hook) -> i32 {
    let is_event = is_udp(sk, hook.is_of_udp) && result >= 0;
    let Some(mut run) = meter::begin_event(program, is_event, hook.stays_attached) else { return 0 };
    if is_event {
        let weight = sampling::sample(&run);
        if !weight.is_nothing()
            && let Some(bank) = UDP_BANK.get_ptr_mut(0)
        {
            run.begin_work();
            count(sk, result as u64, direction, weight, bank);
            run.end_work();
        }
    }
    run.end();
    0
}

/// Whether the socket is one of UDP. UDP's functions are those of UDP-Lite, too.
#[inline(always)]
fn is_udp(sk: impl Pointer, is_of_udp: bool) -> bool {
    // SAFETY: `sk` is a `sock`.
    let protocol: u16 = unsafe { load(sk, &facts::SK_PROTOCOL) };
    if is_of_udp || protocol != u16::from(PROTOCOL_UDP) {
        return protocol == u16::from(PROTOCOL_UDP);
    }
    // SAFETY: as above.
    let (family, kind): (u16, u16) = unsafe { (load(sk, &facts::SK_FAMILY), load(sk, &facts::SK_TYPE)) };
    // Raw sockets may have the protocol, and other families a number that is the same.
    (family == AF_INET || family == AF_INET6) && kind == SOCK_DGRAM
}

/// Adds a sampled datagram to its flow.
#[inline(always)]
fn count(sk: impl Pointer, bytes: u64, direction: usize, weight: Weight, bank: *mut UdpBank) {
    // SAFETY: `sk` is a `sock`.
    let bound = unsafe { load_bits(sk, &facts::SK_USERLOCKS) } & SOCK_BINDPORT_LOCK != 0;
    // A server waits on a port that it chose; who takes any port asks others.
    let role = if bound { Role::Server } else { Role::Client };
    let key = socket::flow(sk, PROTOCOL_UDP, role);
    let zero =
        UdpRow { bytes: [0; 2], datagrams: [0; 2], bytes_variance: [0; 2], datagrams_variance: [0; 2] };
    let row = maps::row(Table::Udp, &maps::UDP_ROWS_A, &maps::UDP_ROWS_B, &key, &zero).unwrap_or_else(|| {
        // SAFETY: a map value.
        unsafe {
            maps::lose(&raw mut (*bank).lost, Loss::MapFull);
            maps::element(&raw mut (*bank).other, role as usize)
        }
    });
    // SAFETY: rows and banks are map values; `direction` is a constant where this is inlined.
    unsafe {
        add((&raw mut (*row).bytes).cast::<u64>().add(direction), weight.of(bytes));
        add((&raw mut (*row).datagrams).cast::<u64>().add(direction), weight.of(1));
        let total = &raw mut (*bank).total;
        add((&raw mut (*total).bytes).cast::<u64>().add(direction), weight.of(bytes));
        if weight.is_sampled() {
            let variance = weight.variance(bytes, UNIT_LOG2);
            add((&raw mut (*row).bytes_variance).cast::<u64>().add(direction), variance);
            add((&raw mut (*total).bytes_variance).cast::<u64>().add(direction), variance);
            add((&raw mut (*row).datagrams_variance).cast::<u64>().add(direction), weight.variance(1, 0));
        }
    }
}
