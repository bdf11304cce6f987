//! The UDP probe's values; its keys are [`FlowKey`](crate::FlowKey)s.

use super::{LOSSES, words::made_of_words};

made_of_words!(UdpRow, UdpBank);

/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;

/// What one flow moved, estimated: each taken event adds its weight, and its weight times its bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct UdpRow {
    /// Payload bytes, sent and received.
    pub bytes: [u64; 2],
    /// Datagrams, sent and received: one for each system call that moved one.
    pub datagrams: [u64; 2],
}

/// Variances of the totals over all flows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct UdpVariance {
    /// Of bytes, sent and received, in units of 16 bytes squared.
    pub bytes: [u64; 2],
    /// Of datagrams, sent and received.
    pub datagrams: [u64; 2],
}

/// The UDP probe's per-CPU bank.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UdpBank {
    /// What did not fit the table of flows, by [`Role`](crate::Role).
    pub other: [UdpRow; 2],
    /// Totals over all flows.
    pub total: UdpRow,
    /// Variances.
    pub variance: UdpVariance,
    /// Losses by [`Loss`](crate::Loss).
    pub lost: [u64; LOSSES],
}
