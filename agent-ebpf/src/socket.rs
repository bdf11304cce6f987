//! What TCP and UDP sockets have in common: who owns them, and which flow they belong to.

use aya_ebpf::helpers::bpf_probe_read_kernel_buf;
use siskin_ebpf::{FlowKey, Role};

use crate::facts::{self, Pointer, at, follow, load};

/// `AF_INET`.
pub const AF_INET: u16 = 2;
/// `AF_INET6`.
pub const AF_INET6: u16 = 10;

/// The id of the cgroup that owns the socket, whoever runs now.
#[inline(always)]
pub fn cgroup(sk: impl Pointer) -> u64 {
    // SAFETY: `sk` is a `sock`, and each next pointer is what the field before points to.
    unsafe {
        let cgroup = follow(sk, &facts::SK_CGROUP);
        let node = follow(cgroup, &facts::CGROUP_KN);
        load(node, &facts::KN_ID)
    }
}

/// The flow that a socket belongs to.
#[inline(always)]
pub fn flow(sk: impl Pointer, protocol: u8, role: Role) -> FlowKey {
    let mut peer = [0; 16];
    // SAFETY: `sk` is a `sock`; the 16 bytes of the address are copied by a helper, because the verifier follows no
    // loads into the union that `in6_addr` is.
    unsafe {
        if load::<u16>(sk, &facts::SK_FAMILY) == AF_INET6 {
            // A failed copy leaves the address zero: the flow is then one with an unknown peer.
            let _ = bpf_probe_read_kernel_buf(at(sk, &facts::SK_V6_DADDR), &mut peer);
        } else {
            let address: u32 = load(sk, &facts::SK_DADDR);
            peer[10] = 0xff;
            peer[11] = 0xff;
            // Network byte order in memory already.
            peer[12..16].copy_from_slice(&address.to_ne_bytes());
        }
        let port = match role {
            Role::Client => u16::from_be(load(sk, &facts::SK_DPORT)),
            Role::Server => load(sk, &facts::SK_NUM),
        };
        FlowKey { cgroup: cgroup(sk), peer, port, protocol, role: role as u8, padding: 0 }
    }
}
