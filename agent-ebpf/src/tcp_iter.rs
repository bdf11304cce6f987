//! The TCP probe's iterators: the sweep over live connections, and the one pass at start that adopts connections older
//! than the agent. They run when user space reads them, in process context, and print nothing.

use core::{
    ffi::{c_int, c_void},
    hint::black_box,
    ptr,
};

use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::generated::{bpf_seq_write, bpf_skc_to_tcp_sock, bpf_sock_from_file},
};
use siskin_ebpf::{FlowKey, Listener, Loss, PROTOCOL_TCP, Probe, Role, Socket, SocketCounters, Weight};

use crate::{
    atomic::{add, get},
    facts::{self, load},
    maps::{self, CONTROL, TCP_BANK, TCP_LISTENERS},
    sampling::paused,
    socket::flow,
    tcp::{state, was_shed},
    tcp_socket::{self as socket, ByAddress, Followed, InSocket, Lock, Memory, Reading},
};

/// Of every iterator (`bpf_iter_meta`, include/linux/bpf.h, 6.18).
#[repr(C)]
pub struct Meta {
    seq: *mut c_void,
    session: u64,
    /// How many objects came before.
    number: u64,
}

/// What `iter/bpf_sk_storage_map` hands over (`bpf_iter__bpf_sk_storage_map`, net/core/bpf_sk_storage.c, 6.18).
#[repr(C)]
pub struct StorageElement {
    meta: *const Meta,
    map: *const c_void,
    sk: *const c_void,
    value: *mut Socket,
}

/// What `iter/task_file` hands over (`bpf_iter__task_file`, kernel/bpf/task_iter.c, 6.18).
#[repr(C)]
pub struct TaskFile {
    meta: *const Meta,
    task: *const c_void,
    fd: u64,
    file: *const c_void,
}

/// What `iter/tcp` hands over (`bpf_iter__tcp`, net/ipv4/tcp_ipv4.c, 5.10 to 6.18).
#[repr(C)]
pub struct TcpSocket {
    meta: *const c_void,
    sk: *const c_void,
    uid: u64,
}

/// Files between two places where user space may stop and go on later.
const FILES_SLICE: u64 = 512;

/// Visits every followed socket of every network namespace and counts what it moved since the last visit.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub extern "C" fn tcp_sweep(ctx: *const StorageElement) -> c_int {
    // SAFETY: the kernel passes a context of this layout; both pointers are checked before use.
    unsafe {
        let (sk, socket) = ((*ctx).sk, (*ctx).value);
        if sk.is_null() || socket.is_null() {
            return 0;
        }
        sweep::<InSocket>(sk, socket, Lock::Open);
        let stop = CONTROL.get_ptr(0).map_or(0, |of| get(&raw const (*of).sweep_stop));
        if stop != 0 && (*(*ctx).meta).number + 1 >= stop {
            end_slice((*ctx).meta);
        }
        0
    }
}

/// Writes a byte, at which the kernel returns to who reads.
///
/// # Safety
/// `meta` is what the kernel passed to an iterator.
#[inline(always)]
unsafe fn end_slice(meta: *const Meta) {
    // SAFETY: as the caller promises.
    unsafe {
        // On the stack: a constant would be a map of its own.
        let end = black_box(0u64);
        bpf_seq_write((*meta).seq.cast(), (&raw const end).cast(), 1);
    }
}

/// Ends a slice of files where it is time. Returns what an iterator that goes on does.
///
/// # Safety
/// As for [`end_slice`].
#[inline(always)]
unsafe fn end_files(meta: *const Meta) -> c_int {
    // SAFETY: as the caller promises.
    unsafe {
        if (*meta).number % FILES_SLICE == FILES_SLICE - 1 {
            end_slice(meta);
        }
    }
    0
}

/// Counts what a followed socket moved since it was last visited.
#[inline(always)]
fn sweep<M: Memory>(sk: *const c_void, socket: *mut Socket, lock: Lock) {
    let Some(bank) = TCP_BANK.get_ptr_mut(maps::shard()) else { return };
    // SAFETY: `sk` is a `sock` by BTF; the others are map values.
    unsafe {
        add(&raw mut (*bank).swept, 1);
        // Not a connection yet; or its end has been counted, or is being counted now.
        if matches!(state_of(sk), state::SYN_SENT | state::SYN_RECV | state::CLOSE) {
            return;
        }
        let (cgroup, role) = ((*socket).flow.cgroup, (*socket).flow.role);
        let row = socket::row_of(cgroup, bank);
        if role == Role::Client as u8 {
            add(&raw mut (*row).alive[0], 1);
        } else {
            add(&raw mut (*row).alive[1], 1);
        }
        let rtt_ns = match socket::idle(sk, socket) {
            Some(rtt_ns) => rtt_ns,
            None => {
                let Some(moved) = socket::moved(sk, lock) else { return };
                socket::account::<M>(socket, &moved, Reading::Sweep, bank, Weight::ONE);
                moved.rtt_ns
            }
        };
        if rtt_ns != 0 {
            maps::observe(&raw mut (*bank).rtt, rtt_ns, Weight::ONE);
        }
    }
}

/// Notes every listening port, so that adoption can tell servers from clients.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub extern "C" fn tcp_listen(ctx: *const TaskFile) -> c_int {
    // SAFETY: the kernel passes a context of this layout.
    if let Some(sk) = unsafe { tcp_socket_of(ctx) }
        && state_of(sk) == state::LISTEN
    {
        listens(sk);
    }
    // SAFETY: as above.
    unsafe { end_files((*ctx).meta) }
}

/// Notes the port of a socket that listens.
#[inline(always)]
pub fn listens(sk: *const c_void) {
    // A port that does not fit makes its connections look like clients; the table holds more ports than that.
    let _ = TCP_LISTENERS.insert(local_port(sk), 1, BPF_ANY.into());
}

/// The flow of a connection that ended without having been followed. The socket has given its local port back by now, which is
/// why the caller knows it; whether somebody listens on it tells servers from clients.
#[inline(always)]
pub fn flow_at_end(sk: *const c_void, port: u16) -> FlowKey {
    // SAFETY: `sk` is a `sock` by BTF, and `net` what it points to.
    let netns: u32 = unsafe {
        let net: *const c_void = load(sk, &facts::SK_NET);
        load(net, &facts::NET_INUM)
    };
    match TCP_LISTENERS.get_ptr(Listener { netns, port: port.into() }) {
        Some(_) => FlowKey { port, ..flow(sk, PROTOCOL_TCP, Role::Server) },
        None => flow(sk, PROTOCOL_TCP, Role::Client),
    }
}

/// Adopts every connection that a process holds open: its counters as they are now are where counting begins.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub extern "C" fn tcp_adopt(ctx: *const TaskFile) -> c_int {
    // SAFETY: the kernel passes a context of this layout.
    if let Some(sk) = unsafe { tcp_socket_of(ctx) }
        && InSocket::find(sk).is_none()
        && !adopt::<InSocket>(sk, Lock::Open)
        && let Some(bank) = TCP_BANK.get_ptr_mut(maps::shard())
    {
        // SAFETY: a map value.
        maps::lose(unsafe { &raw mut (*bank).lost }, Loss::SocketStorage);
    }
    // SAFETY: the kernel passes a context of this layout.
    unsafe { end_files((*ctx).meta) }
}

/// Visits every socket of this network namespace, where the kernel keeps nothing in sockets: notes those that listen, sweeps those
/// that are followed, and adopts the others, also those that there was no room for before.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub extern "C" fn tcp_walk(ctx: *const TcpSocket) -> c_int {
    // SAFETY: the kernel passes a context of this layout; the helper gives null for what is no full TCP socket.
    unsafe {
        let sk: *const c_void = (*ctx).sk;
        if sk.is_null() {
            return 0;
        }
        let sk: *const c_void = bpf_skc_to_tcp_sock(sk.cast_mut()).cast_const().cast();
        if sk.is_null() {
            return 0;
        }
        // Since it collects sockets in batches the walk holds the lock of the one that it shows, before that only the lock of its hash
        // bucket (bpf_iter_tcp_seq_show, net/ipv4/tcp_ipv4.c, 5.15 and 5.10).
        let lock = if facts::present(&facts::WALK_BATCH) { Lock::Held } else { Lock::Open };
        // Those that listen come first (net/ipv4/tcp_ipv4.c, 5.10).
        if state_of(sk) == state::LISTEN {
            listens(sk);
        } else if let Some(socket) = ByAddress::find(sk) {
            sweep::<ByAddress>(sk, socket, lock);
        } else if !paused(Probe::Tcp) {
            // Without room its end is counted as one whose beginning was not seen.
            adopt::<ByAddress>(sk, lock);
        }
    }
    0
}

/// Adopts a connection that is not followed; `false` when there is no room.
#[inline(always)]
fn adopt<M: Memory>(sk: *const c_void, lock: Lock) -> bool {
    let state = state_of(sk);
    if matches!(state, state::LISTEN | state::CLOSE | state::SYN_RECV) {
        return true;
    }
    let (Some(bank), Some(moved)) = (TCP_BANK.get_ptr_mut(maps::shard()), socket::moved(sk, lock)) else {
        return true;
    };
    // SAFETY: a reference to a key on the stack.
    let role = match TCP_LISTENERS.get_ptr(local_port(sk)) {
        Some(_) => Role::Server,
        None => Role::Client,
    };
    let established = u64::from(state != state::SYN_SENT);
    // Opened before the agent: not a new connection of the flow. After the budget left connections out, one that is not followed
    // is one of those: whole, because none of it was counted.
    let counted = if was_shed() {
        SocketCounters { sent_bytes: 0, received_bytes: 0, connections: 0, retransmits: 0 }
    } else {
        SocketCounters {
            sent_bytes: moved.sent_bytes,
            // Doubtful or not, what came before is not counted; and after a FIN nothing comes.
            received_bytes: moved.received_bytes + moved.doubtful_bytes,
            connections: established,
            retransmits: moved.retransmits,
        }
    };
    let mut value = Socket { flow: flow(sk, PROTOCOL_TCP, role), since_ns: 0, established, counted };
    match socket::follow::<M>(sk, &mut value) {
        Followed::Now => {}
        Followed::Already => return true,
        Followed::NoRoom => return false,
    }
    // It may have closed just before it was followed; its end was then counted as one whose beginning was not seen. If its
    // end found it followed, it was adopted and closed like any other.
    if state_of(sk) == state::CLOSE && socket::forget::<M>(sk) {
        return true;
    }
    if established != 0 && !was_shed() {
        // SAFETY: a map value.
        maps::lose(unsafe { &raw mut (*bank).lost }, Loss::LateAttach);
    }
    true
}

/// The TCP socket behind an open file, if it is one.
///
/// # Safety
/// `ctx` is what the kernel passed to a `task_file` iterator.
#[inline(always)]
unsafe fn tcp_socket_of(ctx: *const TaskFile) -> Option<*const c_void> {
    // SAFETY: as the caller promises; each pointer is checked before the next use.
    unsafe {
        let file = (*ctx).file;
        if file.is_null() {
            return None;
        }
        let socket: *const c_void = bpf_sock_from_file(file.cast_mut().cast()).cast();
        if socket.is_null() {
            return None;
        }
        let sk: *const c_void = load(socket, &facts::SOCKET_SK);
        if ptr::eq(sk, ptr::null()) || load::<u16>(sk, &facts::SK_PROTOCOL) != u16::from(PROTOCOL_TCP) {
            return None;
        }
        Some(sk)
    }
}

/// The socket's TCP state.
#[inline(always)]
fn state_of(sk: *const c_void) -> u32 {
    // SAFETY: `sk` is a `sock` by BTF.
    u32::from(unsafe { load::<u8>(sk, &facts::SK_STATE) })
}

/// The socket's network namespace and local port.
#[inline(always)]
fn local_port(sk: *const c_void) -> Listener {
    // SAFETY: `sk` is a `sock` by BTF, and `net` what it points to.
    unsafe {
        let net: *const c_void = load(sk, &facts::SK_NET);
        let port: u16 = load(sk, &facts::SK_NUM);
        Listener { netns: load(net, &facts::NET_INUM), port: port.into() }
    }
}
