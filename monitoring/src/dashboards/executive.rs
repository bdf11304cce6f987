//! For those who decide: is every node seen, is it getting better, what does it cost.

use super::{
    Dashboard,
    panel::{GREEN, Panel, RED, YELLOW},
};

pub fn dashboard() -> Dashboard {
    Dashboard {
        uid: "siskin-executive",
        title: "Siskin / Executive",
        description: "Coverage of the nodes, its trend, and what Siskin costs.",
        from: "now-30d",
        variables: Vec::new(),
        rows: vec![("Coverage", coverage()), ("Trust in the numbers", trust()), ("Cost", cost())],
    }
}

fn coverage() -> Vec<Panel> {
    vec![
        Panel::number("Coverage now")
            .about("Healthy agents over the nodes that should have one. The objective is 99% over 30 days.")
            .unit("percentunit")
            .colours(RED, &[(0.95, YELLOW), (0.99, GREEN)])
            .query("cluster:siskin_coverage:ratio", ""),
        Panel::number("Coverage, 30 days")
            .unit("percentunit")
            .colours(RED, &[(0.99, GREEN)])
            .query("avg_over_time(cluster:siskin_coverage:ratio[30d])", ""),
        Panel::number("Error budget left")
            .about("Of the 1% of agent time that may be missing in 30 days. Below zero the objective was missed.")
            .unit("percentunit")
            .colours(RED, &[(0.0, YELLOW), (0.5, GREEN)])
            .query("1 - (1 - avg_over_time(cluster:siskin_coverage:ratio[30d])) / 0.01", ""),
        Panel::number("Nodes that should have an agent").query("cluster:siskin_agents_expected:sum", ""),
        Panel::number("Nodes without a healthy agent")
            .colours(GREEN, &[(1.0, YELLOW)])
            .query("clamp_min(cluster:siskin_agents_expected:sum - cluster:siskin_agents_healthy:sum, 0)", ""),
        Panel::number("Alerts")
            .about("Alerts of Siskin that fire or are about to.")
            .colours(GREEN, &[(1.0, YELLOW)])
            .query("count(ALERTS{alertname=~\"Siskin.*\"}) or vector(0)", ""),
        Panel::graph("Coverage")
            .unit("percentunit")
            .from(0.9)
            .up_to(1.0)
            .line(0.99)
            .query("cluster:siskin_coverage:ratio", "coverage")
            .query("avg_over_time(cluster:siskin_coverage:ratio[1d])", "over a day"),
        Panel::graph("Burn rate")
            .about("How many times faster than allowed the error budget is used. At 1 it lasts exactly 30 days.")
            .line(1.0)
            .query("cluster:siskin_coverage_shortfall:avg1h / 0.01", "1 h")
            .query("cluster:siskin_coverage_shortfall:avg6h / 0.01", "6 h")
            .query("cluster:siskin_coverage_shortfall:avg3d / 0.01", "3 d"),
    ]
}

fn trust() -> Vec<Panel> {
    vec![
        Panel::number("Agents with errors")
            .about("Share of the agents with a probe down, losses, flows without a row, or failed readings.")
            .unit("percentunit")
            .colours(GREEN, &[(0.01, YELLOW), (0.1, RED)])
            .query("cluster:siskin_agents_with_errors:ratio", ""),
        Panel::number("Events taken, worst probe")
            .about("The smallest share of a probe's events that any agent takes within its budget. The rest is estimated.")
            .unit("percentunit")
            .query("min(node_probe:siskin_taken:ratio)", ""),
        Panel::number("Versions")
            .about("More than one is usual during a rollout.")
            .query("count(count by (version, revision) (siskin_build_info{job=\"siskin\"}))", ""),
        Panel::graph("Agents by version")
            .size(12, 5)
            .stacked()
            .query("count by (version, revision) (siskin_build_info{job=\"siskin\"})", "{{version}} {{revision}}"),
    ]
}

fn cost() -> Vec<Panel> {
    vec![
        Panel::number("CPU, all agents")
            .about("Programs in the kernel and processes together, in cores.")
            .unit("none")
            .query("sum(node:siskin_cpu_cores:rate5m)", ""),
        Panel::number("Core hours a day").unit("none").query("24 * sum(node:siskin_cpu_cores:rate5m)", ""),
        Panel::number("Share of the cluster's CPU")
            .about("Needs kube-state-metrics.")
            .unit("percentunit")
            .query(
                "sum(node:siskin_cpu_cores:rate5m) / sum(kube_node_status_capacity{resource=\"cpu\"})",
                "",
            ),
        Panel::number("Memory, all agents")
            .about("Resident memory, and the most that their maps can take.")
            .unit("bytes")
            .query("sum(node:siskin_memory_bytes:max)", ""),
        Panel::number("Series in Prometheus")
            .query("sum(scrape_samples_post_metric_relabeling{job=\"siskin\"})", ""),
        Panel::number("Samples per second")
            .about("What Prometheus stores for Siskin.")
            .query("sum(sum_over_time(scrape_samples_post_metric_relabeling{job=\"siskin\"}[5m])) / 300", ""),
        Panel::graph("CPU per node against its budget")
            .about("1 is --budget.cpu.")
            .unit("percentunit")
            .line(1.0)
            .query("avg(node:siskin_cpu_budget:ratio)", "mean")
            .query("quantile(0.95, node:siskin_cpu_budget:ratio)", "95th percentile")
            .query("max(node:siskin_cpu_budget:ratio)", "costliest node"),
        Panel::graph("CPU per node, in cores")
            .query("avg(node:siskin_cpu_cores:rate5m)", "mean")
            .query("max(node:siskin_cpu_cores:rate5m)", "costliest node"),
        Panel::graph("Memory per node")
            .unit("bytes")
            .query("avg(node:siskin_memory_bytes:max)", "mean")
            .query("max(node:siskin_memory_bytes:max)", "largest"),
        Panel::graph("Series per node")
            .query("avg(sum by (node) (scrape_samples_post_metric_relabeling{job=\"siskin\"}))", "mean")
            .query("max(sum by (node) (scrape_samples_post_metric_relabeling{job=\"siskin\"}))", "most"),
    ]
}
