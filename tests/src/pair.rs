//! The sum over a table that is too small for what happens, told from other traffic of the machine.

use std::net::SocketAddr;

use crate::{agent::Agent, cgroup::Cgroup, metrics::Metrics, tcp::scrape};

/// What is summed over a whole flow table.
pub const SUMS: [&str; 3] =
    ["siskin_flow_sent_bytes_total", "siskin_flow_received_bytes_total", "siskin_flow_connections_total"];

/// What each of [`SUMS`] was, or grew by: at clients' ends, then at servers'.
pub type Sums = [f64; 6];

/// The sums over the series with these labels.
pub fn sums(metrics: &Metrics, labels: &[(&str, &str)]) -> Sums {
    let of = |role, index| metrics.sum(SUMS[index], &[labels, &[("role", role)]].concat());
    std::array::from_fn(|index| of(["client", "server"][index / 3], index % 3))
}

/// What connections add up to whose clients sent and received so many bytes.
pub fn moved(up: u64, down: u64, connections: u64) -> Sums {
    [up, down, connections, down, up, connections].map(|value| value as f64)
}

/// The sum of two.
pub fn plus(a: Sums, b: Sums) -> Sums {
    std::array::from_fn(|index| a[index] + b[index])
}

/// The difference of two.
pub fn minus(a: Sums, b: Sums) -> Sums {
    plus(a, b.map(|value| -value))
}

/// Two agents that see the same: one whose tables are too small, and one whose tables say what traffic of the machine was
/// not the test's.
#[derive(Debug)]
pub struct Pair<'a> {
    small: Agent,
    large: Agent,
    cgroups: [&'a Cgroup; 2],
    /// What scrapes moved so far.
    scrapes: Sums,
}

impl<'a> Pair<'a> {
    /// Starts both. The small one has these flags; the test's traffic is that of the two cgroups.
    ///
    /// # Panics
    /// When one does not start.
    pub fn start(flags: &[&str], cgroups: [&'a Cgroup; 2]) -> Self {
        let small = Agent::start(flags);
        let large = Agent::start(&["--flows.max-series=10000"]);
        Self { small, large, cgroups, scrapes: [0.0; 6] }
    }

    /// Scrapes, and says what scrapes had moved when the agent read.
    fn scrape(&mut self, address: SocketAddr) -> (Metrics, Sums) {
        let (metrics, bytes) = scrape(address);
        // Its own connection and request, but not its answer.
        let own = plus(self.scrapes, moved(bytes.request, 0, 1));
        self.scrapes = plus(own, moved(0, bytes.answer, 0));
        (metrics, own)
    }

    /// What the large agent saw that was neither of these cgroups nor a scrape.
    fn foreign(&mut self) -> Sums {
        let (metrics, _) = self.scrape(self.large.address);
        let mut foreign = sums(&metrics, &[]);
        for cgroup in self.cgroups {
            foreign = minus(foreign, sums(&metrics, &cgroup.labels()));
        }
        for agent in [&self.small, &self.large] {
            foreign = minus(foreign, sums(&metrics, &[("port", &agent.address.port().to_string())]));
        }
        foreign
    }

    /// Reads the small agent while nobody else moves a byte: what the cgroups moved, and the metrics.
    ///
    /// # Panics
    /// When somebody always does.
    pub fn read(&mut self) -> (Sums, Metrics) {
        let mut foreign = self.foreign();
        for _ in 0..500 {
            let (metrics, own) = self.scrape(self.small.address);
            let before = std::mem::replace(&mut foreign, self.foreign());
            if before == foreign {
                return (minus(sums(&metrics, &[]), plus(own, foreign)), metrics);
            }
        }
        panic!("this machine is never quiet");
    }
}
