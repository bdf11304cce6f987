//! Everything counted of TCP so far. Pure.

use std::collections::HashMap;

use siskin_ebpf::{Failure, Loss, Probe, Role, TcpBank, TcpRow, Words as _};

use crate::{
    flows::{FlowTable, Protocol},
    metrics::{self, Exposition},
    probes::describe_losses,
    workload::{Id, Totals, Workloads},
};

/// Everything counted so far.
#[derive(Debug)]
pub struct TcpTotals {
    /// Counters by workload.
    pub workloads: Totals<TcpRow>,
    /// The bank as last read.
    pub bank: TcpBank,
    /// Connections that the last sweep found alive and that fit no row of their own.
    pub alive_other: [u64; 2],
    /// Connections that the sweep under way found alive.
    counting: HashMap<Id, [u64; 2]>,
    /// The bank at the end of the last sweep: connections without a row, and sockets visited.
    swept: ([u64; 2], u64),
}

impl Default for TcpTotals {
    fn default() -> Self {
        Self {
            workloads: Totals::default(),
            bank: TcpBank::zero(),
            alive_other: [0; 2],
            counting: HashMap::new(),
            swept: ([0; 2], 0),
        }
    }
}

impl TcpTotals {
    /// Takes a newer reading of the bank; what did not fit the kernel's table of flows goes to
    /// `flows`.
    pub fn set_bank(&mut self, bank: TcpBank, flows: &mut FlowTable) {
        for role in Role::ALL {
            let index = role as usize;
            let delta = bank.flow_other[index].since(&self.bank.flow_other[index]);
            flows.add_other(Protocol::Tcp, role, &delta);
        }
        self.bank = bank;
    }

    /// Adds to a workload. Its connections are open from the end of the sweep on that counts them.
    pub fn add(&mut self, id: Id, row: &TcpRow) {
        if row.alive != [0; 2] {
            let alive = self.counting.entry(id).or_default();
            *alive = [alive[0] + row.alive[0], alive[1] + row.alive[1]];
        }
        self.workloads.add(id, &TcpRow { alive: [0; 2], ..*row });
    }

    /// A sweep is over, and all that it counted was added. Returns how many sockets it visited.
    pub fn swept(&mut self) -> u64 {
        for row in self.workloads.rows_mut() {
            row.alive = [0; 2];
        }
        for (id, alive) in self.counting.drain() {
            self.workloads.add(id, &TcpRow { alive, ..TcpRow::zero() });
        }
        let now = (self.bank.other.alive, self.bank.swept);
        let (alive, visited) = std::mem::replace(&mut self.swept, now);
        self.alive_other = std::array::from_fn(|role| now.0[role].wrapping_sub(alive[role]));
        now.1.wrapping_sub(visited)
    }

    /// Describes the totals as metrics.
    pub fn describe(&self, workloads: &Workloads, out: &mut Exposition) {
        let mut rows = self.workloads.clone();
        rows.add(Id::UNKNOWN, &TcpRow { alive: self.alive_other, ..self.bank.other });
        for (id, row) in rows.iter() {
            let w = workloads.labels(id);
            let labels = |last| [w.namespace.as_str(), w.pod.as_str(), w.container.as_str(), last];
            for role in Role::ALL {
                let index = role as usize;
                out.counter(&metrics::TCP_OPENED, &labels(role.name()), row.opened[index] as f64);
                out.gauge(&metrics::TCP_OPEN, &labels(role.name()), row.alive[index] as f64);
            }
            for reason in Failure::ALL {
                out.counter(&metrics::TCP_FAILED, &labels(reason.name()), row.failed[reason as usize] as f64);
            }
            out.counter(&metrics::TCP_RETRANSMITS, &labels("")[..3], row.retransmits as f64);
        }
        for (index, direction) in ["sent", "received"].into_iter().enumerate() {
            out.counter(&metrics::TCP_RESETS, &[direction], self.bank.resets[index] as f64);
        }
        out.histogram(&metrics::TCP_CONNECT, &[], &self.bank.connect, metrics::LATENCY_BOUNDS);
        out.histogram(&metrics::TCP_RTT, &[], &self.bank.rtt, metrics::LATENCY_BOUNDS);
        for role in Role::ALL {
            let lifetime = &self.bank.lifetime[role as usize];
            out.histogram(&metrics::TCP_LIFETIME, &[role.name()], lifetime, metrics::LIFETIME_BOUNDS);
        }
        let reasons = [Loss::MapFull, Loss::LateAttach, Loss::SocketStorage, Loss::Budget];
        describe_losses(Probe::Tcp, &self.bank.lost, &reasons, out);
    }
}
