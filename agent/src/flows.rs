//! The bounded flow table: at most so many rows, and one row per role for all that did not fit, so that sums over the
//! table are exact. Pure.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
};

use siskin_ebpf::{FlowKey, FlowRow, Role};

use crate::{
    metrics::{self, Exposition},
    workload::{Id, Workloads},
};

/// What tells one flow's series from another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowId {
    /// The workload that owns the socket.
    pub workload: Id,
    /// Which end it is.
    pub role: Role,
    /// The remote address.
    pub peer: IpAddr,
    /// The service port.
    pub port: u16,
}

impl FlowId {
    /// The flow of a kernel row whose cgroup belongs to `workload`.
    pub fn of(key: &FlowKey, workload: Id) -> Self {
        let role = if key.role == Role::Client as u8 { Role::Client } else { Role::Server };
        Self { workload, role, peer: Ipv6Addr::from(key.peer).to_canonical(), port: key.port }
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

/// What a flow moved.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    sent: Bytes,
    received: Bytes,
    connections: u64,
    retransmits: u64,
}

impl Row {
    fn add(&mut self, delta: &FlowRow) {
        self.sent.add(delta.sent_bytes);
        self.received.add(delta.received_bytes);
        self.connections += delta.connections;
        self.retransmits += delta.retransmits;
    }

    fn describe(&self, labels: &[&str], out: &mut Exposition) {
        out.counter(&metrics::FLOW_SENT, labels, self.sent.total as f64);
        out.counter(&metrics::FLOW_RECEIVED, labels, self.received.total as f64);
        out.counter(&metrics::FLOW_CONNECTIONS, labels, self.connections as f64);
        out.counter(&metrics::FLOW_RETRANSMITS, labels, self.retransmits as f64);
    }
}

/// The table.
#[derive(Debug)]
pub struct FlowTable {
    max_rows: usize,
    rows: HashMap<FlowId, Row>,
    other: [Row; 2],
}

impl FlowTable {
    /// An empty table that will hold at most `max_rows` flows.
    pub fn new(max_rows: usize) -> Self {
        Self { max_rows, rows: HashMap::new(), other: [Row::default(); 2] }
    }

    /// Adds to a flow, or to the other row when there is no room for it.
    pub fn add(&mut self, flow: FlowId, delta: &FlowRow) {
        if let Some(row) = self.rows.get_mut(&flow) {
            row.add(delta);
        } else if self.rows.len() < self.max_rows {
            self.rows.entry(flow).or_default().add(delta);
        } else {
            self.other[flow.role as usize].add(delta);
        }
    }

    /// Adds what did not fit the kernel's table.
    pub fn add_other(&mut self, role: Role, delta: &FlowRow) {
        self.other[role as usize].add(delta);
    }

    /// Describes all rows as metrics.
    pub fn describe(&self, workloads: &Workloads, out: &mut Exposition) {
        for (flow, row) in &self.rows {
            let w = workloads.labels(flow.workload);
            let (peer, port) = (flow.peer.to_string(), flow.port.to_string());
            row.describe(&[&w.namespace, &w.pod, &w.container, "tcp", flow.role.name(), &peer, &port], out);
        }
        for role in Role::ALL {
            let labels = ["", "", "", "tcp", role.name(), "other", "0"];
            self.other[role as usize].describe(&labels, out);
        }
        out.gauge(&metrics::FLOW_SERIES, &[], (self.rows.len() + Role::ALL.len()) as f64);
        out.gauge(&metrics::FLOW_SERIES_LIMIT, &[], self.max_rows as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flow(port: u16) -> FlowId {
        FlowId { workload: Id::UNKNOWN, role: Role::Client, peer: Ipv6Addr::LOCALHOST.into(), port }
    }

    #[test]
    fn ipv4_mapped_addresses_are_shown_as_ipv4() {
        let mut peer = [0; 16];
        peer[10..].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 7]);
        let key = FlowKey { cgroup: 1, peer, port: 80, protocol: 6, role: 1, padding: 0 };
        assert_eq!(FlowId::of(&key, Id::UNKNOWN).peer.to_string(), "192.0.2.7");
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
            let rows = table.rows.values().chain(&table.other);
            prop_assert_eq!(rows.map(|row| row.sent.total).sum::<u64>(), sent);
            prop_assert!(table.rows.len() <= max_rows);
        }
    }
}
