//! What the TCP probe remembers of a socket, and how it adds what the socket moved to its flow.
//!
//! The kernel counts bytes, segments and retransmits in `tcp_sock` itself. A sweep and the end of a connection may run at
//! once on two CPUs; each claims what it adds by an atomic exchange of the socket's `counted` words (or keeps out of the other's
//! way, see [`ByAddress`]), so that every byte is added exactly once.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE},
    helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get, bpf_skc_to_tcp_sock},
};
use siskin_ebpf::{FlowKey, FlowRow, Loss, Socket, SocketCounters, Table, TcpBank, TcpRow, Weight};

use crate::{
    atomic::{add, get, replace, set, swap},
    facts::{self, Untyped, after, load},
    maps::{self, CONTROL, TCP_BY_ADDRESS, TCP_SOCKETS},
};

/// What a socket moved so far, from the kernel's own counters.
#[derive(Clone, Copy)]
pub struct Moved {
    /// Payload bytes sent, without retransmits.
    pub sent_bytes: u64,
    /// Payload bytes received, without `doubtful_bytes`.
    pub received_bytes: u64,
    /// 1 when one more came that may have been a FIN.
    pub doubtful_bytes: u64,
    /// Segments retransmitted.
    pub retransmits: u64,
    /// Smoothed round-trip time in nanoseconds.
    pub rtt_ns: u64,
    /// Local port in host byte order, also when the socket has given it back.
    pub local_port: u16,
}

/// Where what is remembered of sockets is kept, and how a word of it is claimed.
pub trait Memory {
    /// Whether it stays when the socket is gone, until it is removed.
    const OUTLIVES_SOCKET: bool;

    /// What is remembered of the socket, if it is followed.
    fn find(sk: *const c_void) -> Option<*mut Socket>;

    /// Remembers it.
    fn make(sk: *const c_void, socket: &mut Socket) -> Followed;

    /// Forgets it; says whether it was there.
    fn remove(sk: *const c_void) -> bool;

    /// Writes a word and returns what it was.
    fn swap(word: *mut u64, value: u64) -> u64;

    /// Writes a word if it is still `before`; says whether it was.
    fn replace(word: *mut u64, before: u64, value: u64) -> bool;
}

/// What came of following a socket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Followed {
    /// It is followed from now on.
    Now,
    /// Somebody else was first.
    Already,
    /// It cannot be followed: the limit is reached or the kernel has no memory.
    NoRoom,
}

/// In the socket itself, with which it goes.
pub struct InSocket;

/// The storage map as the helpers want it.
#[inline(always)]
fn storage_map() -> *mut c_void {
    ptr::from_ref(&TCP_SOCKETS).cast_mut().cast()
}

impl Memory for InSocket {
    const OUTLIVES_SOCKET: bool = false;

    #[inline(always)]
    fn find(sk: *const c_void) -> Option<*mut Socket> {
        // SAFETY: `sk` is a socket by BTF; without the create flag the value may be null.
        let socket = unsafe { bpf_sk_storage_get(storage_map(), sk.cast_mut(), ptr::null_mut(), 0) };
        (!socket.is_null()).then_some(socket.cast())
    }

    #[inline(always)]
    fn make(sk: *const c_void, socket: &mut Socket) -> Followed {
        let (value, create) = (ptr::from_mut(socket).cast(), BPF_SK_STORAGE_GET_F_CREATE.into());
        // SAFETY: `sk` is a socket by BTF, and the value is as long as the map's.
        let made = unsafe { bpf_sk_storage_get(storage_map(), sk.cast_mut(), value, create) };
        if made.is_null() { Followed::NoRoom } else { Followed::Now }
    }

    #[inline(always)]
    fn remove(sk: *const c_void) -> bool {
        // SAFETY: `sk` is a socket by BTF.
        unsafe { bpf_sk_storage_delete(storage_map(), sk.cast_mut()) == 0 }
    }

    #[inline(always)]
    fn swap(word: *mut u64, value: u64) -> u64 {
        swap(word, value)
    }

    #[inline(always)]
    fn replace(word: *mut u64, before: u64, value: u64) -> bool {
        replace(word, before, value)
    }
}

/// In a table by the socket's address, for kernels without storage in sockets and without atomic exchange.
///
/// Words are claimed by plain writes: who sweeps holds the lock of the socket's hash bucket, and a socket is taken out of it
/// before the tracepoint says that it closed (`tcp_set_state`, net/ipv4/tcp.c, 5.10), so the two never meet. Since 5.15 who sweeps holds
/// the socket's own lock, under which it closes.
pub struct ByAddress;

impl Memory for ByAddress {
    const OUTLIVES_SOCKET: bool = true;

    #[inline(always)]
    fn find(sk: *const c_void) -> Option<*mut Socket> {
        TCP_BY_ADDRESS.get_ptr_mut(sk as u64)
    }

    #[inline(always)]
    fn make(sk: *const c_void, socket: &mut Socket) -> Followed {
        // Never in place of another: between a walk's look for the socket and its adoption the socket may have been established, and
        // what was noted of that must not be lost.
        match TCP_BY_ADDRESS.insert(sk as u64, *socket, BPF_NOEXIST.into()) {
            Ok(()) => Followed::Now,
            Err(maps::EEXIST) => Followed::Already,
            Err(_) => Followed::NoRoom,
        }
    }

    #[inline(always)]
    fn remove(sk: *const c_void) -> bool {
        TCP_BY_ADDRESS.remove(sk as u64).is_ok()
    }

    #[inline(always)]
    fn swap(word: *mut u64, value: u64) -> u64 {
        let before = get(word);
        set(word, value);
        before
    }

    #[inline(always)]
    fn replace(word: *mut u64, _: u64, value: u64) -> bool {
        set(word, value);
        true
    }
}

/// Starts to follow a socket.
#[inline(always)]
pub fn follow<M: Memory>(sk: *const c_void, socket: &mut Socket) -> Followed {
    let Some(control) = CONTROL.get_ptr_mut(0) else { return Followed::NoRoom };
    // SAFETY: `control` is a map value.
    unsafe {
        if get(&raw const (*control).sockets) >= get(&raw const (*control).sockets_limit) {
            return Followed::NoRoom;
        }
        let followed = M::make(sk, socket);
        if followed == Followed::Now {
            add(&raw mut (*control).sockets, 1);
        }
        followed
    }
}

/// Stops following a socket; says whether it was followed.
#[inline(always)]
pub fn forget<M: Memory>(sk: *const c_void) -> bool {
    let followed = M::remove(sk);
    if followed && let Some(control) = CONTROL.get_ptr_mut(0) {
        // SAFETY: the control element is a map value.
        add(unsafe { &raw mut (*control).sockets }, u64::MAX);
    }
    followed
}

/// Who keeps a socket as it is while it is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Nobody: segments may be processed at the same time.
    Open,
    /// The caller's caller holds the socket's lock.
    Held,
}

/// The smoothed round-trip time of a followed socket that moved nothing since it was last counted,
/// as far as two words say: most are idle at a sweep, and what else there is to read of them is not
/// in the cache. A retransmission is sent, too. A connection that had retransmissions or a FIN is
/// never idle, and all of it is read.
#[inline(always)]
pub fn idle(sk: *const c_void, socket: *mut Socket) -> Option<u64> {
    // SAFETY: `sk` is a `sock` by BTF, the helper checks that it is a `tcp_sock`; socket storage is
    // a map value.
    unsafe {
        let tcp: *const c_void = bpf_skc_to_tcp_sock(sk.cast_mut()).cast();
        if tcp.is_null() {
            return None;
        }
        let counted = &raw const (*socket).counted;
        let is_idle = get(&raw const (*counted).connections) != 0
            && load::<u64>(tcp, &facts::TCP_BYTES_SENT) == get(&raw const (*counted).sent_bytes)
            && load::<u64>(tcp, &facts::TCP_BYTES_RECEIVED) == get(&raw const (*counted).received_bytes);
        is_idle.then(|| rtt_ns(tcp))
    }
}

/// Smoothed round-trip time in nanoseconds.
///
/// # Safety
/// `tcp` is a `tcp_sock` by BTF.
#[inline(always)]
unsafe fn rtt_ns(tcp: *const c_void) -> u64 {
    // SAFETY: as the caller promises.
    let srtt_us: u32 = unsafe { load(tcp, &facts::TCP_SRTT_US) };
    // Kept times eight (include/linux/tcp.h, 6.18).
    u64::from(srtt_us >> 3) * 1000
}

/// Reads the kernel's counters of a full TCP socket; `None` when it is not one.
#[inline(always)]
pub fn moved(sk: *const c_void, lock: Lock) -> Option<Moved> {
    // SAFETY: `sk` is a `sock` by BTF; the helper checks that it is a `tcp_sock`.
    unsafe {
        let tcp: *const c_void = bpf_skc_to_tcp_sock(sk.cast_mut()).cast();
        if tcp.is_null() {
            return None;
        }
        let (received_bytes, doubtful_bytes) = received(sk, tcp, lock);
        let sent: u64 = load(tcp, &facts::TCP_BYTES_SENT);
        // In the opposite order to the kernel's, which counts a segment as retransmitted and then as sent (__tcp_retransmit_skb,
        // net/ipv4/tcp_output.c, 6.18): one that comes in between is too few bytes, which the next reading adds.
        let resent: u64 = load(after(tcp, sent), &facts::TCP_BYTES_RETRANS);
        let retransmits: u32 = load(tcp, &facts::TCP_TOTAL_RETRANS);
        Some(Moved {
            sent_bytes: sent.wrapping_sub(resent),
            received_bytes,
            doubtful_bytes,
            retransmits: retransmits.into(),
            rtt_ns: rtt_ns(tcp),
            // An `inet_sock` is what a `tcp_sock` begins with (include/linux/tcp.h, 6.18).
            local_port: u16::from_be(load(tcp, &facts::INET_SPORT)),
        })
    }
}

/// Payload bytes received, and 1 when one more may have been a FIN.
///
/// The kernel counts a FIN as a received byte and then sets `SOCK_DONE`, before it changes the state (`tcp_data_queue` and `tcp_fin`,
/// net/ipv4/tcp_input.c, 5.10 to 6.18): under the spin lock of the socket, or in a task that owns it. Whoever holds the lock sees both
/// or neither. For all others the lock is read after the count and before the flag, and it was free when neither its owner nor, after
/// that, the spin lock was seen. Then a FIN in the count had begun before the owner was looked for: in a task, which no longer owned
/// the socket and had set the flag; or under the spin lock, which was released by the second look, with the flag set. So without the
/// flag there is none in the count, whatever came in the meantime. With the flag there is one in every later count. And while
/// somebody holds the lock the last byte is in doubt.
///
/// # Safety
/// `sk` and `tcp` are one socket as `sock` and as `tcp_sock` by BTF.
#[inline(always)]
unsafe fn received(sk: *const c_void, tcp: *const c_void, lock: Lock) -> (u64, u64) {
    // SAFETY: as the caller promises.
    unsafe {
        let count: u64 = load(tcp, &facts::TCP_BYTES_RECEIVED);
        let done = |sk| load::<u64>(sk, &facts::SK_FLAGS) >> facts::value(&facts::SOCK_DONE) & 1;
        if lock == Lock::Held {
            return (count.wrapping_sub(done(sk)), 0);
        }
        let held = holders(after(sk, count));
        let done = done(after(sk, held));
        if done != 0 {
            return (load::<u64>(after(tcp, done), &facts::TCP_BYTES_RECEIVED).saturating_sub(1), 0);
        }
        if held != 0 && count != 0 { (count - 1, 1) } else { (count, 0) }
    }
}

/// Not zero while somebody holds the socket's lock, and where it is not known how this kernel's locks look.
///
/// # Safety
/// `sk` is a `sock` by BTF.
#[inline(always)]
unsafe fn holders(sk: *const c_void) -> u64 {
    const UNKNOWN: u64 = 1;
    if !facts::present(&facts::SK_LOCK_OWNED) {
        return UNKNOWN;
    }
    // SAFETY: as the caller promises.
    unsafe {
        let owned: u64 = load::<u32>(sk, &facts::SK_LOCK_OWNED).into();
        let sk = after(sk, owned);
        let spin = if facts::present(&facts::SK_LOCK_SPIN) {
            load::<u32>(sk, &facts::SK_LOCK_SPIN).into()
        } else if facts::present(&facts::SK_LOCK_SPIN_RT) {
            // A real-time kernel's spin lock has a pointer to its owner. As a number, which `after` can take.
            load(Untyped(sk), &facts::SK_LOCK_SPIN_RT)
        } else {
            UNKNOWN
        };
        owned | spin
    }
}

/// The row of TCP counters of a cgroup, or the bank's `other` row.
#[inline(always)]
pub fn row_of(cgroup: u64, bank: *mut TcpBank) -> *mut TcpRow {
    let zero = TcpRow {
        opened: [0; 2],
        alive: [0; 2],
        failed: [0; 4],
        retransmits: 0,
        opened_sampled: [0; 2],
        opened_variance: 0,
        failed_variance: 0,
    };
    maps::row(Table::Tcp, &maps::TCP_ROWS_A, &maps::TCP_ROWS_B, &cgroup, &zero).unwrap_or_else(|| {
        // SAFETY: a map value.
        unsafe {
            maps::lose(&raw mut (*bank).lost, Loss::MapFull);
            &raw mut (*bank).other
        }
    })
}

/// Whether this reading of the counters is the last one of the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// The connection lives on; its end may be read at the same time.
    Sweep,
    /// The connection is ending; nothing is read after.
    Last,
}

/// Adds what the socket moved since it was last counted to its flow and to its cgroup's retransmits.
#[inline(always)]
pub fn account<M: Memory>(
    socket: *mut Socket,
    moved: &Moved,
    reading: Reading,
    bank: *mut TcpBank,
    weight: Weight,
) {
    // SAFETY: socket storage is a map value.
    unsafe {
        let counted = &raw mut (*socket).counted;
        let delta = SocketCounters {
            sent_bytes: claim::<M>(&raw mut (*counted).sent_bytes, moved.sent_bytes, reading),
            received_bytes: claim::<M>(&raw mut (*counted).received_bytes, moved.received_bytes, reading),
            connections: claim::<M>(&raw mut (*counted).connections, 1, reading),
            retransmits: claim::<M>(&raw mut (*counted).retransmits, moved.retransmits, reading),
        };
        if delta.sent_bytes | delta.received_bytes | delta.connections | delta.retransmits == 0 {
            return;
        }
        // On the stack: the verifier of 6.1 takes no key from the value that an iterator is handed.
        let flow = (*socket).flow;
        if reading == Reading::Last {
            ended(&delta, bank, weight);
        }
        add_flow(&flow, &delta, bank, weight);
    }
}

/// Adds all that a connection moved which was not followed.
#[inline(always)]
pub fn account_whole(flow: &FlowKey, moved: &Moved, bank: *mut TcpBank, weight: Weight) {
    let Moved { sent_bytes, received_bytes, retransmits, .. } = *moved;
    let whole = SocketCounters { sent_bytes, received_bytes, connections: 1, retransmits };
    ended(&whole, bank, weight);
    add_flow(flow, &whole, bank, weight);
}

/// Variances of bytes are kept in units of 16 bytes.
const BYTES_UNIT_LOG2: u32 = 4;

/// Adds to a flow and to its cgroup's retransmits.
#[inline(always)]
fn add_flow(flow: &FlowKey, delta: &SocketCounters, bank: *mut TcpBank, weight: Weight) {
    // SAFETY: banks and rows are map values.
    unsafe {
        const NOTHING: SocketCounters =
            SocketCounters { sent_bytes: 0, received_bytes: 0, connections: 0, retransmits: 0 };
        let zero = FlowRow { moved: NOTHING, sampled: NOTHING, variance: NOTHING };
        let row = maps::row(Table::Flow, &maps::FLOW_ROWS_A, &maps::FLOW_ROWS_B, flow, &zero).unwrap_or_else(
            || {
                maps::lose(&raw mut (*bank).lost, Loss::MapFull);
                maps::element(&raw mut (*bank).flow_other, flow.role.into())
            },
        );
        add_counters(&raw mut (*row).moved, delta, weight);
        if delta.retransmits != 0 {
            let row = row_of(flow.cgroup, bank);
            add(&raw mut (*row).retransmits, weight.of(delta.retransmits));
        }
        if !weight.is_one() {
            add_counters(&raw mut (*row).sampled, delta, weight);
        }
        if weight.is_sampled() {
            let (of_flow, of_all) = (&raw mut (*row).variance, &raw mut (*bank).variance);
            let connections = weight.variance(delta.connections, 0);
            let sent = weight.variance(delta.sent_bytes, BYTES_UNIT_LOG2);
            let received = weight.variance(delta.received_bytes, BYTES_UNIT_LOG2);
            add(&raw mut (*of_flow).connections, connections);
            add(&raw mut (*of_all).connections, connections);
            add(&raw mut (*of_flow).sent_bytes, sent);
            add(&raw mut (*of_all).sent_bytes, sent);
            add(&raw mut (*of_flow).received_bytes, received);
            add(&raw mut (*of_all).received_bytes, received);
            let retransmits = weight.variance(delta.retransmits, 0);
            add(&raw mut (*of_flow).retransmits, retransmits);
            add(&raw mut (*of_all).retransmits, retransmits);
        }
    }
}

/// Adds what a socket moved, by its weight.
#[inline(always)]
fn add_counters(counters: *mut SocketCounters, delta: &SocketCounters, weight: Weight) {
    // SAFETY: part of a map value.
    unsafe {
        add(&raw mut (*counters).sent_bytes, weight.of(delta.sent_bytes));
        add(&raw mut (*counters).received_bytes, weight.of(delta.received_bytes));
        add(&raw mut (*counters).connections, weight.of(delta.connections));
        if delta.retransmits != 0 {
            add(&raw mut (*counters).retransmits, weight.of(delta.retransmits));
        }
    }
}

/// Adds what a connection's end adds to the totals of what events add.
#[inline(always)]
fn ended(delta: &SocketCounters, bank: *mut TcpBank, weight: Weight) {
    // SAFETY: a bank is a map value.
    unsafe {
        let events = &raw mut (*bank).events;
        add(&raw mut (*events).connections, weight.of(delta.connections));
        add(&raw mut (*events).sent_bytes, weight.of(delta.sent_bytes));
        add(&raw mut (*events).received_bytes, weight.of(delta.received_bytes));
        add(&raw mut (*events).retransmits, weight.of(delta.retransmits));
    }
}

/// Moves one `counted` word to `now` and returns what that adds.
///
/// The last reading takes everything. A sweep takes nothing when somebody else moved the word. Nobody takes a step back: what was
/// counted was moved. The kernel's own counters may step back, when a retransmission fails after it was counted; and those of an
/// adopted connection may have begun with its FIN.
#[inline(always)]
pub fn claim<M: Memory>(counted: *mut u64, now: u64, reading: Reading) -> u64 {
    match reading {
        Reading::Last => step(M::swap(counted, now), now),
        Reading::Sweep => {
            let before = get(counted);
            let step = step(before, now);
            if step == 0 || !M::replace(counted, before, now) {
                return 0;
            }
            step
        }
    }
}

/// How far a counter went on.
#[inline(always)]
fn step(before: u64, now: u64) -> u64 {
    let step = now.wrapping_sub(before);
    if step as i64 > 0 { step } else { 0 }
}
