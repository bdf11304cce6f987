//! What starts, what ends, and how.

use super::{
    Dashboard, choice, node,
    panel::{GREEN, Panel, RED},
    top,
};

pub fn dashboard() -> Dashboard {
    Dashboard {
        uid: "siskin-processes",
        title: "Siskin / Processes",
        description: "Processes started and ended, by workload. All of it is exact.",
        from: "now-1h",
        variables: vec![
            node(),
            choice("namespace", "Namespace", "siskin_process_execs_total{job=\"siskin\"}"),
            top(),
        ],
        rows: vec![("Starts", starts()), ("Ends", ends()), ("Lifetimes", lifetimes())],
    }
}

/// A metric's rate for the chosen nodes and namespaces, by some labels.
fn rate(metric: &str, by: &str) -> String {
    format!(
        "sum by ({by}) (rate({metric}{{job=\"siskin\",node=~\"$node\",namespace=~\"$namespace\"}}[$__rate_interval]))"
    )
}

const WORKLOAD: &str = "namespace, pod, container";
const LEGEND: &str = "{{namespace}} {{pod}} {{container}}";

fn starts() -> Vec<Panel> {
    let busiest = |metric| format!("topk($top, {})", rate(metric, WORKLOAD));
    vec![
        Panel::graph("Programs started per second, busiest workloads")
            .query(&busiest("siskin_process_execs_total"), LEGEND),
        Panel::graph("Processes created per second, busiest workloads")
            .about("Without threads. More of these than programs started: a server that forks.")
            .query(&busiest("siskin_process_forks_total"), LEGEND),
        Panel::table("Busiest command names")
            .about("On the chosen nodes, of all namespaces. \"other\" holds the names that did not fit.")
            .size(12, 9)
            .now(
                "topk($top, sum by (comm) (rate(siskin_process_comm_execs_total{job=\"siskin\",node=~\"$node\"}[$__rate_interval])))",
            )
            .column("starts per second", "none"),
        Panel::graph("Programs started per second, by node")
            .size(12, 9)
            .query(&rate("siskin_process_execs_total", "node"), "{{node}}"),
    ]
}

fn ends() -> Vec<Panel> {
    vec![
        Panel::graph("Processes ended per second, by outcome")
            .about("success is exit status 0, failure any other, signal a process that was killed.")
            .stacked()
            .query(&rate("siskin_process_exits_total", "outcome"), "{{outcome}}"),
        Panel::graph("Failures and signals per second, busiest workloads").query(
            "topk($top, sum by (namespace, pod, container, outcome) (rate(siskin_process_exits_total{job=\"siskin\",\
             node=~\"$node\",namespace=~\"$namespace\",outcome!=\"success\"}[$__rate_interval])))",
            "{{namespace}} {{pod}} {{container}} {{outcome}}",
        ),
        Panel::number("OOM kills in the time shown").size(6, 8).colours(GREEN, &[(1.0, RED)]).query(
            "sum(increase(siskin_process_oom_kills_total{job=\"siskin\",node=~\"$node\",namespace=~\"$namespace\"}[$__range]))",
            "",
        ),
        Panel::table("OOM kills in the time shown, by workload")
            .size(18, 8)
            .now(
                "topk($top, sum by (node, namespace, pod, container) (increase(siskin_process_oom_kills_total{job=\"siskin\",\
                 node=~\"$node\",namespace=~\"$namespace\"}[$__range])))",
            )
            .column("kills", "none"),
    ]
}

fn lifetimes() -> Vec<Panel> {
    let quantile = |q: f64| {
        format!(
            "histogram_quantile({q}, sum by (le) (rate(siskin_process_lifetime_seconds_bucket{{job=\"siskin\",node=~\"$node\"}}[$__rate_interval])))"
        )
    };
    vec![
        Panel::heat_map(
            "Lifetime of processes that ended",
            "sum by (le) (increase(siskin_process_lifetime_seconds_bucket{job=\"siskin\",node=~\"$node\"}[$__rate_interval]))",
        ),
        Panel::graph("Lifetime, percentiles")
            .size(12, 9)
            .unit("s")
            .query(&quantile(0.5), "median")
            .query(&quantile(0.9), "90th")
            .query(&quantile(0.99), "99th"),
    ]
}
