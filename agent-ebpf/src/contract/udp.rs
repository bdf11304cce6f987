//! The UDP probe's values; its keys are [`FlowKey`](crate::FlowKey)s.

use super::{LOSSES, words::made_of_words};

made_of_words!(UdpRow, UdpBank);

/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;

/// What one flow moved, estimated: each sampled event adds its weight, and its weight times its
/// bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct UdpRow {
    /// Payload bytes, sent and received.
    pub bytes: [u64; 2],
    /// Datagrams, sent and received: one for each system call that moved one.
    pub datagrams: [u64; 2],
    /// The variance that sampling adds to the bytes, in units of 4 bytes squared.
    pub bytes_variance: [u64; 2],
    /// The variance that sampling adds to the datagrams.
    pub datagrams_variance: [u64; 2],
}

/// Totals over all flows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct UdpTotal {
    /// Payload bytes, sent and received.
    pub bytes: [u64; 2],
    /// The variance that sampling adds to them, in units of 4 bytes squared.
    pub bytes_variance: [u64; 2],
}

/// The UDP probe's per-CPU bank.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UdpBank {
    /// What did not fit the table of flows, by [`Role`](crate::Role).
    pub other: [UdpRow; 2],
    /// Totals over all flows.
    pub total: UdpTotal,
    /// Losses by [`Loss`](crate::Loss).
    pub lost: [u64; LOSSES],
}
