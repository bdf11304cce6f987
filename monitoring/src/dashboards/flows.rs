//! Who talks to whom, and how well.

use super::{Dashboard, choice, estimate, node, panel::Panel, top};

/// The workload's labels.
const WORKLOAD: &str = "namespace, pod, container";
const LEGEND: &str = "{{namespace}} {{pod}} {{container}}";

pub fn dashboard() -> Dashboard {
    Dashboard {
        uid: "siskin-flows",
        title: "Siskin / Flows",
        description: "Network flows by workload, peer and service port. TCP is exact; UDP is estimated within its bounds.",
        from: "now-1h",
        variables: vec![
            node(),
            choice("namespace", "Namespace", "siskin_tcp_connections_open{job=\"siskin\"}"),
            top(),
        ],
        rows: vec![
            ("Traffic", traffic()),
            ("UDP", udp()),
            ("TCP connections", connections()),
            ("TCP latency", latency()),
        ],
    }
}

/// A metric's rate for the chosen nodes and namespaces, by some labels.
fn rate(metric: &str, by: &str) -> String {
    format!(
        "sum by ({by}) (rate({metric}{{job=\"siskin\",node=~\"$node\",namespace=~\"$namespace\"}}[$__rate_interval]))"
    )
}

fn busiest(expr: &str) -> String {
    format!("topk($top, {expr})")
}

fn traffic() -> Vec<Panel> {
    vec![
        Panel::graph("Sent, busiest workloads")
            .about("Payload, without retransmits. Host services have a systemd unit or a cgroup's path and no namespace.")
            .unit("Bps")
            .query(&busiest(&rate("siskin_flow_sent_bytes_total", WORKLOAD)), LEGEND),
        Panel::graph("Received, busiest workloads")
            .unit("Bps")
            .query(&busiest(&rate("siskin_flow_received_bytes_total", WORKLOAD)), LEGEND),
        Panel::table("Busiest flows")
            .about("By bytes sent. The rows with peer \"other\" hold what has no row of its own.")
            .size(24, 10)
            .now(&busiest(&rate(
                "siskin_flow_sent_bytes_total",
                "namespace, pod, container, protocol, role, peer, port",
            )))
            .column("sent", "Bps"),
        Panel::graph("Sent by protocol and role")
            .unit("Bps")
            .stacked()
            .query(&rate("siskin_flow_sent_bytes_total", "protocol, role"), "{{protocol}} {{role}}"),
        Panel::graph("Sent by service port")
            .unit("Bps")
            .query(&busiest(&rate("siskin_flow_sent_bytes_total", "protocol, port")), "{{protocol}} {{port}}"),
    ]
}

fn udp() -> Vec<Panel> {
    let sum = |metric: &str, more: &str| {
        format!("sum(rate({metric}{{job=\"siskin\",node=~\"$node\",protocol=\"udp\"{more}}}[5m]))")
    };
    vec![
        estimate(
            "UDP bytes sent, all workloads",
            "Bps",
            "siskin_flow_sent_bytes_total",
            &sum("siskin_flow_sent_bytes_total", ""),
        ),
        estimate(
            "UDP bytes received, all workloads",
            "Bps",
            "siskin_flow_received_bytes_total",
            &sum("siskin_flow_received_bytes_total", ""),
        ),
        estimate(
            "Datagrams, both directions, all workloads",
            "pps",
            "siskin_flow_datagrams_total",
            &sum("siskin_flow_datagrams_total", ""),
        ),
        Panel::graph("Datagrams by workload").unit("pps").query(
            &busiest(&rate("siskin_flow_datagrams_total", "namespace, pod, container, direction")),
            "{{namespace}} {{pod}} {{container}} {{direction}}",
        ),
    ]
}

fn connections() -> Vec<Panel> {
    vec![
        Panel::graph("Opened per second, busiest workloads").unit("cps").query(
            &busiest(&rate("siskin_tcp_connections_opened_total", "namespace, pod, container, role")),
            "{{namespace}} {{pod}} {{container}} {{role}}",
        ),
        Panel::graph("Open now, most")
            .query(
                "topk($top, sum by (namespace, pod, container, role) (siskin_tcp_connections_open{job=\"siskin\",node=~\"$node\",namespace=~\"$namespace\"}))",
                "{{namespace}} {{pod}} {{container}} {{role}}",
            ),
        Panel::graph("Failed per second, by reason")
            .stacked()
            .query(&rate("siskin_tcp_connections_failed_total", "reason"), "{{reason}}"),
        Panel::graph("Resets per second").query(
            "sum by (direction) (rate(siskin_tcp_resets_total{job=\"siskin\",node=~\"$node\"}[$__rate_interval]))",
            "{{direction}}",
        ),
        Panel::graph("Segments retransmitted per second, most")
            .query(&busiest(&rate("siskin_tcp_retransmits_total", WORKLOAD)), LEGEND),
        Panel::table("Flows with retransmits")
            .size(12, 8)
            .now(&busiest(&rate("siskin_flow_retransmits_total", "namespace, pod, container, role, peer, port")))
            .column("segments per second", "none"),
        Panel::table("New connections by flow")
            .size(24, 8)
            .now(&busiest(&rate("siskin_flow_connections_total", "namespace, pod, container, role, peer, port")))
            .column("per second", "none"),
    ]
}

fn latency() -> Vec<Panel> {
    let buckets = |metric: &str| {
        format!("sum by (le) (increase({metric}_bucket{{job=\"siskin\",node=~\"$node\"}}[$__rate_interval]))")
    };
    let quantile = |q: f64, metric: &str| {
        format!(
            "histogram_quantile({q}, sum by (le) (rate({metric}_bucket{{job=\"siskin\",node=~\"$node\"}}[$__rate_interval])))"
        )
    };
    vec![
        Panel::heat_map("Time to connect", &buckets("siskin_tcp_connect_seconds"))
            .about("From the first SYN to established, of connections opened from these nodes."),
        Panel::heat_map("Round-trip time", &buckets("siskin_tcp_rtt_seconds"))
            .about("Smoothed; one observation per live connection and reading."),
        Panel::graph("Time to connect and round-trip time, percentiles")
            .size(12, 9)
            .unit("s")
            .query(&quantile(0.5, "siskin_tcp_connect_seconds"), "connect, median")
            .query(&quantile(0.99, "siskin_tcp_connect_seconds"), "connect, 99th")
            .query(&quantile(0.5, "siskin_tcp_rtt_seconds"), "RTT, median")
            .query(&quantile(0.99, "siskin_tcp_rtt_seconds"), "RTT, 99th"),
        Panel::heat_map("Lifetime of connections", &buckets("siskin_tcp_connection_lifetime_seconds")),
    ]
}
