//! For whoever is on call: which nodes are unwell, since when, and in what way.

use super::{
    Dashboard, node,
    panel::{GREEN, Panel, RED, YELLOW},
};

pub fn dashboard() -> Dashboard {
    Dashboard {
        uid: "siskin-oncall",
        title: "Siskin / On-call",
        description: "Each node's agent: health, restarts, lag, losses. Start here when an alert fires.",
        from: "now-3h",
        variables: vec![node()],
        rows: vec![
            ("Now", now()),
            ("Health", health()),
            ("Lag", lag()),
            ("Losses", losses()),
            ("Pods and rollout (kube-state-metrics)", pods()),
        ],
    }
}

fn now() -> Vec<Panel> {
    vec![
        Panel::table("Alerts")
            .about("Pending and firing.")
            .size(24, 6)
            .now("ALERTS{alertname=~\"Siskin.*\"}")
            .column("active", "none"),
        Panel::table("Nodes")
            .about("Healthy: scraped, and all probes read within two minutes. Sort by a column to find the worst.")
            .now("node:siskin_healthy:bool{node=~\"$node\"}")
            .now("node:siskin_telemetry_gap:seconds{node=~\"$node\"}")
            .now("node:siskin_restarts:increase1h{node=~\"$node\"}")
            .now("node:siskin_cpu_budget:ratio{node=~\"$node\"}")
            .now("node:siskin_memory_limit:ratio{node=~\"$node\"}")
            .now("node:siskin_errors:count{node=~\"$node\"}")
            .join(
                "node",
                &[
                    ("healthy", ""),
                    ("telemetry gap", "s"),
                    ("restarts in 1 h", ""),
                    ("CPU of its budget", "percentunit"),
                    ("memory of its limit", "percentunit"),
                    ("kinds of error", ""),
                ],
            ),
    ]
}

fn health() -> Vec<Panel> {
    vec![
        Panel::states("Healthy")
            .words(&[("0", "no", RED), ("1", "yes", GREEN)])
            .query("node:siskin_healthy:bool{node=~\"$node\"}", "{{node}}"),
        Panel::graph("Telemetry gap")
            .about("Age of the last complete reading. An alert fires at five minutes.")
            .unit("s")
            .line(300.0)
            .query("node:siskin_telemetry_gap:seconds{node=~\"$node\"}", "{{node}}"),
        Panel::graph("Restarts in the last hour")
            .line(3.0)
            .query("node:siskin_restarts:increase1h{node=~\"$node\"}", "{{node}}"),
        Panel::graph("CPU of its budget")
            .unit("percentunit")
            .line(1.1)
            .query("node:siskin_cpu_budget:ratio{node=~\"$node\"}", "{{node}}"),
        Panel::graph("Process's CPU and memory, of the container's limits")
            .unit("percentunit")
            .line(0.9)
            .query("node:siskin_cpu_limit:ratio{node=~\"$node\"}", "{{node}} CPU")
            .query("node:siskin_memory_limit:ratio{node=~\"$node\"}", "{{node}} memory"),
    ]
}

fn lag() -> Vec<Panel> {
    vec![
        Panel::graph("Scrape duration")
            .unit("s")
            .query("max by (node) (scrape_duration_seconds{job=\"siskin\",node=~\"$node\"})", "{{node}}"),
        Panel::graph("Reading of each probe")
            .about("The longest of the chosen nodes.")
            .unit("s")
            .query("max by (probe) (siskin_collect_seconds{job=\"siskin\",node=~\"$node\"})", "{{probe}}"),
        Panel::graph("New nodes: from join to first heartbeat")
            .about("Nodes that joined within the last hour. Grows until the first heartbeat, then stays.")
            .unit("s")
            .size(24, 7)
            .line(300.0)
            .query("node:siskin_join:seconds{node=~\"$node\"}", "{{node}}"),
    ]
}

fn losses() -> Vec<Panel> {
    vec![
        Panel::states("Probes")
            .about(
                "Down: the kernel refused a program. Limited: this kernel does not have all that the probe needs. The dashboard Debug has the hooks and reasons.",
            )
            .size(12, 8)
            .words(&[("0", "up", GREEN), ("1", "limited", YELLOW), ("2", "down", RED)])
            .query(
                "clamp_max(2 * node_probe:siskin_probe_down:bool{node=~\"$node\"} + node_probe:siskin_probe_unsupported:bool{node=~\"$node\"}, 2)",
                "{{node}} {{probe}}",
            ),
        Panel::graph("Lost per second")
            .about("What could not be counted where it belongs, by reason; docs/runbooks/SiskinLosses.md explains them.")
            .query(
                "sum by (node, probe, reason) (node_probe_reason:siskin_lost:rate5m{node=~\"$node\"})",
                "{{node}} {{probe}} {{reason}}",
            ),
        Panel::graph("Flow bytes without a row of their own")
            .unit("percentunit")
            .up_to(1.0)
            .line(0.2)
            .query("node:siskin_flow_other:ratio{node=~\"$node\"}", "{{node}}"),
        Panel::graph("Probes whose last reading failed")
            .query("node:siskin_collect_failed:count{node=~\"$node\"}", "{{node}}"),
    ]
}

fn pods() -> Vec<Panel> {
    let count = |title, expr| Panel::number(title).colours(GREEN, &[(1.0, YELLOW)]).query(expr, "");
    vec![
        count("Unschedulable", "cluster:siskin_pods_unschedulable:sum"),
        count("Not started", "cluster:siskin_pods_not_started:sum"),
        count("Not created", "cluster:siskin_pods_not_created:sum"),
        count("Of an older revision", "cluster:siskin_pods_outdated:sum"),
        Panel::graph("Agents by version").size(8, 5).stacked().query(
            "count by (version, revision) (siskin_build_info{job=\"siskin\"})",
            "{{version}} {{revision}}",
        ),
    ]
}
