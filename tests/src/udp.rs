//! UDP traffic of a test's own: in a network namespace of its own, where every port is free and nobody else talks, from
//! sockets of a cgroup of its own. On loopback nothing gets lost as long as each datagram is received before the next.

use std::{
    io, mem,
    net::{SocketAddr, UdpSocket},
    ops,
    os::fd::AsRawFd as _,
    ptr, thread,
};

use crate::{
    cgroup::{self, Cgroup},
    metrics::Metrics,
    netns,
};

/// Datagrams and their payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// How many.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What sockets moved in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Sent.
    pub sent: Moved,
    /// Received.
    pub received: Moved,
}

impl ops::AddAssign for Moved {
    fn add_assign(&mut self, other: Self) {
        self.datagrams += other.datagrams;
        self.bytes += other.bytes;
    }
}

impl ops::Sub for Traffic {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        let of = |now: Moved, before: Moved| Moved {
            datagrams: now.datagrams - before.datagrams,
            bytes: now.bytes - before.bytes,
        };
        Self { sent: of(self.sent, before.sent), received: of(self.received, before.received) }
    }
}

impl Traffic {
    /// What the agent counted, summed over the UDP flows with these labels.
    pub fn seen(metrics: &Metrics, labels: &[(&str, &str)]) -> Self {
        let labels = [&[("protocol", "udp")], labels].concat();
        let sum = |name, more: &[(&str, &str)]| metrics.sum(name, &[&labels, more].concat()) as u64;
        let moved = |bytes, direction| Moved {
            datagrams: sum("siskin_flow_datagrams_total", &[("direction", direction)]),
            bytes: sum(bytes, &[]),
        };
        Self {
            sent: moved("siskin_flow_sent_bytes_total", "sent"),
            received: moved("siskin_flow_received_bytes_total", "received"),
        }
    }

    /// What the agent counted of one flow.
    ///
    /// # Panics
    /// When the flow has not exactly one series of each metric.
    pub fn of_flow(metrics: &Metrics, cgroup: &Cgroup, role: &str, peer: &str, port: u16) -> Self {
        let port = port.to_string();
        let flow = [("protocol", "udp"), ("role", role), ("peer", peer), ("port", &port)];
        let labels = [&cgroup.labels()[..], &flow].concat();
        for direction in ["sent", "received"] {
            metrics.one("siskin_flow_datagrams_total", &[&labels[..], &[("direction", direction)]].concat());
        }
        metrics.one("siskin_flow_sent_bytes_total", &labels);
        metrics.one("siskin_flow_received_bytes_total", &labels);
        Self::seen(metrics, &labels)
    }
}

/// Runs `work` in a network namespace of its own, which has nothing but loopback.
///
/// # Panics
/// When the kernel makes none, or `work` panics.
pub fn in_network<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            netns::enter_new().expect("a network namespace");
            work()
        });
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Runs `make` with this process in the cgroup: sockets that it makes belong there, whoever uses them later.
///
/// # Panics
/// When the process cannot move.
pub fn owned_by<T>(cgroup: &Cgroup, make: impl FnOnce() -> T) -> T {
    struct Back;
    impl Drop for Back {
        fn drop(&mut self) {
            cgroup::leave();
        }
    }
    cgroup.enter();
    let _back = Back;
    make()
}

/// A socket on an address that it chose, as servers do.
///
/// # Panics
/// When the address is taken.
pub fn server(address: &str) -> UdpSocket {
    UdpSocket::bind(address).expect("the port is free")
}

/// A socket on a port that the kernel chose, connected to a server.
///
/// # Panics
/// When there is no way to it.
pub fn client(server: SocketAddr) -> UdpSocket {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).expect("a port");
    socket.connect(server).expect("a way to the server");
    socket
}

/// A client and a server that are connected to each other, the server at this address.
///
/// # Panics
/// When they cannot be.
pub fn pair(address: &str) -> (UdpSocket, UdpSocket) {
    let server = server(address);
    let client = client(server.local_addr().expect("an address"));
    server.connect(client.local_addr().expect("an address")).expect("a way to the client");
    (client, server)
}

/// What [`pass`] sends: as long as any datagram.
static PAYLOAD: [u8; 65_507] = [0; 65_507];

/// Sends datagrams of these sizes from one connected socket to another, each received before the next. Returns what was
/// moved.
///
/// # Panics
/// When one gets lost.
pub fn pass(from: &UdpSocket, to: &UdpSocket, sizes: impl IntoIterator<Item = usize>) -> Moved {
    let mut buffer = vec![0; PAYLOAD.len()];
    let mut moved = Moved::default();
    for size in sizes {
        assert_eq!(from.send(&PAYLOAD[..size]).expect("a datagram is sent"), size);
        assert_eq!(to.recv(&mut buffer).expect("a datagram comes"), size);
        moved += Moved { datagrams: 1, bytes: size as u64 };
    }
    moved
}

/// Sends datagrams of these sizes by one call (`sendmmsg`), then receives them by one (`recvmmsg`).
///
/// # Panics
/// When not all are moved.
pub fn pass_at_once(from: &UdpSocket, to: &UdpSocket, sizes: &[usize]) {
    let mut buffers: Vec<_> = sizes.iter().map(|size| vec![0u8; *size]).collect();
    let mut parts: Vec<_> = buffers
        .iter_mut()
        .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() })
        .collect();
    let mut messages: Vec<_> = parts.iter_mut().map(message).collect();
    let count = messages.len() as u32;
    // SAFETY: messages, parts and buffers live, and are as long as they say.
    let sent = unsafe { libc::sendmmsg(from.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
    assert_eq!(sent, sizes.len() as i32, "{}", io::Error::last_os_error());
    // SAFETY: as above.
    let received =
        unsafe { libc::recvmmsg(to.as_raw_fd(), messages.as_mut_ptr(), count, 0, ptr::null_mut()) };
    assert_eq!(received, sizes.len() as i32, "{}", io::Error::last_os_error());
    assert!(messages.iter().zip(sizes).all(|(message, size)| message.msg_len as usize == *size));
}

fn message(part: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: a struct of integers and pointers that may be null.
    let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
    message.msg_hdr.msg_iov = part;
    message.msg_hdr.msg_iovlen = 1;
    message
}

/// Receives with flags into that many bytes. Returns the call's result.
///
/// # Errors
/// When there is nothing to receive.
pub fn receive(socket: &UdpSocket, bytes: usize, flags: i32) -> io::Result<usize> {
    let mut buffer = vec![0u8; bytes];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut message = message(&mut part);
    // SAFETY: message, part and buffer live, and are as long as they say.
    let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message.msg_hdr, flags) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Waits until the answer to a datagram for which there was nobody has come back. The kernel may
/// send it later, from a thread of its own, and sends not more than some tens at once.
///
/// Returns whether it came within two seconds.
pub fn wait_for_error(socket: &UdpSocket) -> bool {
    let mut wanted = libc::pollfd { fd: socket.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one pollfd, as said. An error is told without being asked for.
    let ready = unsafe { libc::poll(&raw mut wanted, 1, 2000) };
    ready == 1 && wanted.revents & libc::POLLERR != 0
}

/// Keeps what comes back of datagrams for which there was nobody, to be read with `MSG_ERRQUEUE`.
///
/// # Panics
/// When the kernel refuses.
pub fn keep_errors(socket: &UdpSocket) {
    let on: libc::c_int = 1;
    // SAFETY: the option reads an int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_RECVERR,
            (&raw const on).cast(),
            size_of_val(&on) as u32,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}
