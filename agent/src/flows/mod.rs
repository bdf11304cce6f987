//! The flow table: with whom workloads talk, in at most so many rows. Pure.
//!
//! A flow is a workload, a protocol, a role, a peer and a service port. What has no row is in `peer="other"`, what rows held
//! that left the table is in `peer="departed-NUMBER"`, each by protocol and role, so that sums are exact;
//! [`crate::bounded`] says how.

use std::collections::HashSet;

use siskin_ebpf::{FlowKey, FlowRow, PROTOCOL_UDP, Role, SocketCounters, UdpRow};

pub mod peer;

use crate::{
    bounded::{self, Bounded},
    metrics::{self, Exposition},
    workload::{Id, Workloads},
};
use peer::{Peer, Peers};

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Protocol {
    /// Counted at the socket, exactly until the budget asks for less.
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
    /// The service port: the local one of a server, the remote one of a client.
    pub port: u16,
}

impl bounded::Key for FlowId {
    const GROUPS: usize = Protocol::ALL.len() * Role::ALL.len();

    fn group(&self) -> usize {
        group(self.protocol, self.role)
    }
}

const fn group(protocol: Protocol, role: Role) -> usize {
    protocol as usize * Role::ALL.len() + role as usize
}

/// Counters of a flow: bytes sent and received, connections, segments sent again, datagrams sent and received.
pub const COUNTERS: usize = 6;

/// What was added to a flow since it was last read.
#[derive(Clone, Copy, Debug)]
pub struct Delta([u64; COUNTERS]);

impl From<&FlowRow> for Delta {
    fn from(row: &FlowRow) -> Self {
        let SocketCounters { sent_bytes, received_bytes, connections, retransmits } = row.moved;
        Self([sent_bytes, received_bytes, connections, retransmits, 0, 0])
    }
}

impl From<&UdpRow> for Delta {
    fn from(row: &UdpRow) -> Self {
        let UdpRow { bytes: [sent_bytes, received_bytes], datagrams: [sent, received], .. } = *row;
        Self([sent_bytes, received_bytes, 0, 0, sent, received])
    }
}

/// The table.
#[derive(Debug)]
pub struct FlowTable {
    peers: Peers,
    /// The rows, and the counters of the rest.
    pub table: Bounded<FlowId, COUNTERS>,
    max_rows: usize,
}

impl FlowTable {
    /// An empty table.
    pub fn new(limits: bounded::Limits, peers: Peers) -> Self {
        Self { peers, table: Bounded::new(limits), max_rows: limits.rows }
    }

    /// Adds to the flow of a kernel row whose cgroup belongs to `workload`, or to the other row when it gets none of its own.
    pub fn add(&mut self, key: &FlowKey, workload: Id, delta: impl Into<Delta>) {
        let role = if key.role == Role::Client as u8 { Role::Client } else { Role::Server };
        let protocol = if key.protocol == PROTOCOL_UDP { Protocol::Udp } else { Protocol::Tcp };
        let Delta(delta) = delta.into();
        match self.peers.of(key.peer) {
            Some(peer) => {
                self.table.add(FlowId { workload, protocol, role, peer, port: key.port }, &delta);
            }
            None => self.table.add_other(group(protocol, role), &delta),
        }
    }

    /// Adds what did not fit the kernel's table.
    pub fn add_other(&mut self, protocol: Protocol, role: Role, delta: impl Into<Delta>) {
        self.table.add_other(group(protocol, role), &delta.into().0);
    }

    /// The workloads that have rows.
    pub fn workloads(&self) -> HashSet<Id> {
        self.table.rows().map(|(flow, _)| flow.workload).collect()
    }

    /// Lets rows leave of workloads that `is_gone` says are over.
    pub fn retire(&mut self, is_gone: impl Fn(Id) -> bool) {
        self.table.retire(|flow| is_gone(flow.workload));
    }

    /// Lets go of workloads that are gone and have no rows.
    pub fn forget(&mut self, gone: &HashSet<Id>) {
        self.table.forget(|flow| gone.contains(&flow.workload));
    }

    /// Describes all rows of the running protocols as metrics.
    pub fn describe(&self, protocols: &[Protocol], workloads: &Workloads, out: &mut Exposition) {
        for (flow, counters) in self.table.rows() {
            let w = workloads.labels(flow.workload);
            let (peer, port) = (self.peers.label(flow.peer).to_string(), flow.port.to_string());
            let (protocol, role) = (flow.protocol.name(), flow.role.name());
            let labels = [&w.namespace, &w.pod, &w.container, protocol, role, &peer, &port];
            describe(flow.protocol, &labels, counters, out);
        }
        let mut rows = self.table.len();
        for (protocol, role) in protocols.iter().flat_map(|protocol| Role::ALL.map(|role| (*protocol, role)))
        {
            let mut rest = |peer: &str, counters| {
                let labels = ["", "", "", protocol.name(), role.name(), peer, "0"];
                describe(protocol, &labels, counters, out);
                rows += 1;
            };
            rest(peer::OTHER, self.table.other(group(protocol, role)));
            if let Some((number, counters)) = self.table.departed(group(protocol, role)) {
                rest(&format!("{}{number}", peer::DEPARTED), counters);
            }
        }
        out.gauge(&metrics::FLOW_SERIES, &[], rows as f64);
        out.gauge(&metrics::FLOW_SERIES_LIMIT, &[], self.max_rows as f64);
        out.counter(&metrics::FLOW_DEPARTURES, &[], self.table.left() as f64);
    }
}

fn describe(protocol: Protocol, labels: &[&str; 7], counters: &[u64; COUNTERS], out: &mut Exposition) {
    let [sent_bytes, received_bytes, connections, retransmits, datagrams @ ..] =
        counters.map(|word| word as f64);
    out.counter(&metrics::FLOW_SENT, labels, sent_bytes);
    out.counter(&metrics::FLOW_RECEIVED, labels, received_bytes);
    match protocol {
        Protocol::Tcp => {
            out.counter(&metrics::FLOW_CONNECTIONS, labels, connections);
            out.counter(&metrics::FLOW_RETRANSMITS, labels, retransmits);
        }
        Protocol::Udp => {
            let [a, b, c, d, e, f, g] = *labels;
            for (direction, datagrams) in ["sent", "received"].into_iter().zip(datagrams) {
                out.counter(&metrics::FLOW_DATAGRAMS, &[a, b, c, d, e, f, g, direction], datagrams);
            }
        }
    }
}
