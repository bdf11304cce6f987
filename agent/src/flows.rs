//! The bounded flow table: at most so many rows, and one row per role for all that did not fit, so that sums over the
//! table are exact. Pure.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use siskin_ebpf::{FlowKey, FlowRow, PROTOCOL_UDP, Role, UdpRow};

use crate::{
    metrics::{self, Exposition},
    workload::{Id, Workloads},
};

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Protocol {
    /// Counted exactly, at the socket.
    Tcp,
    /// Sampled.
    Udp,
}

impl Protocol {
    /// Both, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// The value of the label `protocol`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// The remote end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// Its address.
    Address(IpAddr),
    /// A socket that is not connected does not say whom it talks to.
    Unknown,
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(formatter),
            Self::Unknown => formatter.write_str("unknown"),
        }
    }
}

/// What tells one flow's series from another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowId {
    /// The workload that owns the socket.
    pub workload: Id,
    /// The transport protocol.
    pub protocol: Protocol,
    /// Which end it is.
    pub role: Role,
    /// The remote end.
    pub peer: Peer,
    /// The service port.
    pub port: u16,
}

impl FlowId {
    /// The flow of a kernel row whose cgroup belongs to `workload`.
    pub fn of(key: &FlowKey, workload: Id) -> Self {
        let role = if key.role == Role::Client as u8 { Role::Client } else { Role::Server };
        let protocol = if key.protocol == PROTOCOL_UDP { Protocol::Udp } else { Protocol::Tcp };
        let address = Ipv6Addr::from(key.peer).to_canonical();
        let peer = if address.is_unspecified() { Peer::Unknown } else { Peer::Address(address) };
        Self { workload, protocol, role, peer, port: key.port }
    }
}

/// A counter that never goes back.
///
/// A reading between a FIN's arrival and its flag counts one byte too many; the connection's last reading takes it back.
/// Prometheus would take a step back for a restart, so the byte is owed to what comes next.
#[derive(Clone, Copy, Debug, Default)]
struct Bytes {
    total: u64,
    owed: u64,
}

impl Bytes {
    fn add(&mut self, delta: u64) {
        if (delta as i64) < 0 {
            self.owed += delta.wrapping_neg();
        } else {
            let paid = delta.min(self.owed);
            self.owed -= paid;
            self.total += delta - paid;
        }
    }
}

/// What was added to a flow since it was last read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delta {
    /// Payload bytes sent; a TCP connection's end may take one back, as a number below zero in two's complement.
    pub sent_bytes: u64,
    /// Payload bytes received; as above.
    pub received_bytes: u64,
    /// TCP connections.
    pub connections: u64,
    /// TCP segments.
    pub retransmits: u64,
    /// UDP datagrams, sent and received.
    pub datagrams: [u64; 2],
}

impl From<&FlowRow> for Delta {
    fn from(row: &FlowRow) -> Self {
        let FlowRow { sent_bytes, received_bytes, connections, retransmits } = *row;
        Self { sent_bytes, received_bytes, connections, retransmits, datagrams: [0; 2] }
    }
}

impl From<&UdpRow> for Delta {
    fn from(row: &UdpRow) -> Self {
        let UdpRow { bytes: [sent_bytes, received_bytes], datagrams } = *row;
        Self { sent_bytes, received_bytes, connections: 0, retransmits: 0, datagrams }
    }
}

/// What a flow moved.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    sent: Bytes,
    received: Bytes,
    connections: u64,
    retransmits: u64,
    datagrams: [u64; 2],
}

impl Row {
    fn add(&mut self, delta: &Delta) {
        self.sent.add(delta.sent_bytes);
        self.received.add(delta.received_bytes);
        self.connections += delta.connections;
        self.retransmits += delta.retransmits;
        self.datagrams[0] += delta.datagrams[0];
        self.datagrams[1] += delta.datagrams[1];
    }

    fn describe(&self, protocol: Protocol, labels: &[&str; 7], out: &mut Exposition) {
        out.counter(&metrics::FLOW_SENT, labels, self.sent.total as f64);
        out.counter(&metrics::FLOW_RECEIVED, labels, self.received.total as f64);
        match protocol {
            Protocol::Tcp => {
                out.counter(&metrics::FLOW_CONNECTIONS, labels, self.connections as f64);
                out.counter(&metrics::FLOW_RETRANSMITS, labels, self.retransmits as f64);
            }
            Protocol::Udp => {
                let [a, b, c, d, e, f, g] = *labels;
                for (direction, datagrams) in ["sent", "received"].into_iter().zip(self.datagrams) {
                    let labels = [a, b, c, d, e, f, g, direction];
                    out.counter(&metrics::FLOW_DATAGRAMS, &labels, datagrams as f64);
                }
            }
        }
    }
}

/// The table.
#[derive(Debug)]
pub struct FlowTable {
    max_rows: usize,
    rows: HashMap<FlowId, Row>,
    other: [[Row; 2]; 2],
}

impl FlowTable {
    /// An empty table that will hold at most `max_rows` flows.
    pub fn new(max_rows: usize) -> Self {
        Self { max_rows, rows: HashMap::new(), other: Default::default() }
    }

    /// Adds to a flow, or to the other row when there is no room for it.
    pub fn add(&mut self, flow: FlowId, delta: impl Into<Delta>) {
        if let Some(row) = self.rows.get_mut(&flow) {
            row.add(&delta.into());
        } else if self.rows.len() < self.max_rows {
            self.rows.entry(flow).or_default().add(&delta.into());
        } else {
            self.add_other(flow.protocol, flow.role, delta);
        }
    }

    /// Adds what did not fit the kernel's table.
    pub fn add_other(&mut self, protocol: Protocol, role: Role, delta: impl Into<Delta>) {
        self.other[protocol as usize][role as usize].add(&delta.into());
    }

    /// The workloads that have rows.
    pub fn workloads(&self) -> HashSet<Id> {
        self.rows.keys().map(|flow| flow.workload).collect()
    }

    /// Describes all rows of the running protocols as metrics.
    pub fn describe(&self, protocols: &[Protocol], workloads: &Workloads, out: &mut Exposition) {
        for (flow, row) in &self.rows {
            let w = workloads.labels(flow.workload);
            let (peer, port) = (flow.peer.to_string(), flow.port.to_string());
            let (protocol, role) = (flow.protocol.name(), flow.role.name());
            let labels = [&w.namespace, &w.pod, &w.container, protocol, role, &peer, &port];
            row.describe(flow.protocol, &labels, out);
        }
        for protocol in protocols {
            for role in Role::ALL {
                let labels = ["", "", "", protocol.name(), role.name(), "other", "0"];
                self.other[*protocol as usize][role as usize].describe(*protocol, &labels, out);
            }
        }
        let others = protocols.len() * Role::ALL.len();
        out.gauge(&metrics::FLOW_SERIES, &[], (self.rows.len() + others) as f64);
        out.gauge(&metrics::FLOW_SERIES_LIMIT, &[], self.max_rows as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flow(port: u16) -> FlowId {
        FlowId {
            workload: Id::UNKNOWN,
            protocol: Protocol::Tcp,
            role: Role::Client,
            peer: Peer::Unknown,
            port,
        }
    }

    #[test]
    fn ipv4_mapped_addresses_are_shown_as_ipv4() {
        let mut peer = [0; 16];
        peer[10..].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 7]);
        let key = FlowKey { cgroup: 1, peer, port: 80, protocol: 6, role: 1, padding: 0 };
        assert_eq!(FlowId::of(&key, Id::UNKNOWN).peer.to_string(), "192.0.2.7");
    }

    #[test]
    fn no_address_is_an_unknown_peer_in_both_families() {
        let mut v4 = [0; 16];
        v4[10..12].copy_from_slice(&[0xff, 0xff]);
        let ids = [[0; 16], v4].map(|peer| {
            let key = FlowKey { cgroup: 1, peer, port: 53, protocol: PROTOCOL_UDP, role: 1, padding: 0 };
            FlowId::of(&key, Id::UNKNOWN)
        });
        assert_eq!(ids[0], ids[1]);
        assert_eq!(ids[0].peer.to_string(), "unknown");
    }

    #[test]
    fn a_byte_taken_back_is_owed_and_the_total_never_falls() {
        let mut bytes = Bytes::default();
        for (delta, total) in [(100, 100), (1u64.wrapping_neg(), 100), (0, 100), (10, 109)] {
            bytes.add(delta);
            assert_eq!(bytes.total, total);
        }
    }

    proptest! {
        #[test]
        fn the_sum_over_the_table_is_exact_however_many_flows(
            deltas in prop::collection::vec((0u16..100, 0u64..1_000_000), 0..500),
            max_rows in 0usize..20,
        ) {
            let mut table = FlowTable::new(max_rows);
            let mut sent = 0;
            for (port, sent_bytes) in deltas {
                table.add(flow(port), &FlowRow { sent_bytes, ..FlowRow::default() });
                sent += sent_bytes;
            }
            let rows = table.rows.values().chain(table.other.iter().flatten());
            prop_assert_eq!(rows.map(|row| row.sent.total).sum::<u64>(), sent);
            prop_assert!(table.rows.len() <= max_rows);
        }
    }
}
