//! For who works on Siskin: what each program costs, what is sampled, what fails, how full the maps are.

use super::{
    Dashboard, choice, node,
    panel::{GREEN, Panel, RED, YELLOW},
    rate_error,
};

pub fn dashboard() -> Dashboard {
    Dashboard {
        uid: "siskin-debug",
        title: "Siskin / Debug",
        description: "Probes and programs from inside: cost, sampling, errors, maps.",
        from: "now-1h",
        variables: vec![node(), choice("probe", "Probe", "siskin_probe_up{job=\"siskin\"}")],
        rows: vec![
            ("Cost", cost()),
            ("Sampling", sampling()),
            ("Errors", errors()),
            ("Maps and tables", maps()),
        ],
    }
}

/// A sum of rates by one label over the chosen nodes.
fn rate(metric: &str, by: &str) -> String {
    format!("sum by ({by}) (rate({metric}{{job=\"siskin\",node=~\"$node\"}}[$__rate_interval]))")
}

fn cost() -> Vec<Panel> {
    let (seconds, runs) =
        (rate("siskin_program_run_seconds_total", "program"), rate("siskin_program_runs_total", "program"));
    vec![
        Panel::graph("CPU by side")
            .about("user is the process, kernel its programs, measured by themselves. In cores.")
            .stacked()
            .query(&rate("siskin_cpu_seconds_total", "side"), "{{side}}"),
        Panel::graph("CPU against budget")
            .query("max(node:siskin_cpu_cores:rate5m{node=~\"$node\"})", "costliest node")
            .query("min(siskin_budget_cpu_cores{job=\"siskin\",node=~\"$node\"})", "smallest budget"),
        Panel::graph("CPU by program").stacked().query(&seconds, "{{program}}"),
        Panel::graph("Runs per second").unit("ops").query(&runs, "{{program}}"),
        Panel::graph("Time per run").unit("s").query(&format!("{seconds} / ({runs} > 0)"), "{{program}}"),
        Panel::graph("Time per run, by the kernel's own statistics")
            .about("Zero unless they are on (--debug.program-stats, or kernel.bpf_stats_enabled). They leave the dispatch out.")
            .unit("s")
            .query(
                &format!(
                    "{} / clamp_min({}, 1)",
                    rate("siskin_kernel_statistics_run_seconds_total", "program"),
                    rate("siskin_kernel_statistics_runs_total", "program")
                ),
                "{{program}}",
            ),
    ]
}

fn sampling() -> Vec<Panel> {
    let relative = |panel: Panel, metric: &str, total: &str| {
        let total = format!("sum(rate({total}{{job=\"siskin\",node=~\"$node\"}}[5m]))");
        panel.query(&format!("{} / ({total} > 0)", rate_error(metric)), metric)
    };
    let graph = Panel::graph("Standard error of five-minute rates, relative")
        .about(
            "Of the sum over the chosen nodes and all labels; a part of it has a larger one. Flow bytes include TCP's, which are exact.",
        )
        .unit("percentunit");
    let graph = relative(graph, "siskin_process_execs_total", "siskin_process_execs_total");
    let graph = relative(graph, "siskin_disk_io_seconds", "siskin_disk_io_seconds_sum");
    let graph = relative(graph, "siskin_workload_disk_ios_total", "siskin_workload_disk_ios_total");
    let graph = relative(graph, "siskin_flow_sent_bytes_total", "siskin_flow_sent_bytes_total");
    let graph = relative(graph, "siskin_flow_datagrams_total", "siskin_flow_datagrams_total");
    vec![
        Panel::graph("CPU time that may still be spent at once, and debt")
            .about("The bucket holds what the budget gives in a second; a debt is repaid before anything else is bought.")
            .unit("s")
            .query("min(siskin_budget_bucket_seconds{job=\"siskin\",node=~\"$node\"})", "bucket, least of the nodes")
            .query("max(siskin_budget_debt_seconds{job=\"siskin\",node=~\"$node\"})", "debt, most of the nodes"),
        Panel::graph("Share of events sampled while attached").unit("percentunit").up_to(1.0).query(
            "min by (probe) (siskin_sampling_ratio{job=\"siskin\",node=~\"$node\",probe=~\"$probe\"})",
            "{{probe}}, least of the nodes",
        ),
        Panel::graph("Share of the time attached").unit("percentunit").up_to(1.0).query(
            "min by (probe) (siskin_budget_duty_ratio{job=\"siskin\",node=~\"$node\",probe=~\"$probe\"})",
            "{{probe}}, least of the nodes",
        ),
        graph,
        Panel::table("Standard error of the last hour, by workload")
            .about("Of what each workload's value grew by in an hour, in the metric's unit; only what was estimated.")
            .size(12, 8)
            .now(
                "sqrt(sum by (metric, namespace, pod, container) (increase(siskin_workload_estimate_variance_total{job=\"siskin\",node=~\"$node\"}[1h]))) > 0",
            )
            .column("standard error", "short"),
        Panel::table("Standard errors since start, by node")
            .about("Of each metric's total over all labels, in its unit.")
            .size(12, 8)
            .now("max by (node, metric) (siskin_estimate_standard_error{job=\"siskin\",node=~\"$node\"})")
            .column("standard error", "short"),
    ]
}

fn errors() -> Vec<Panel> {
    vec![
        Panel::table("Hooks")
            .about("What became of each hook, and why; value is the number of nodes.")
            .size(24, 8)
            .now(
                "count by (probe, hook, state, reason) (siskin_probe_hook_info{job=\"siskin\",node=~\"$node\",probe=~\"$probe\"})",
            )
            .column("nodes", "none"),
        Panel::graph("Lost per second")
            .query(
                "sum by (probe, reason) (rate(siskin_lost_total{job=\"siskin\",node=~\"$node\",probe=~\"$probe\"}[$__rate_interval]))",
                "{{probe}} {{reason}}",
            ),
        Panel::graph("Nodes on which a probe cannot be read").query(
            "sum by (probe) (siskin_collect_success{job=\"siskin\",node=~\"$node\",probe=~\"$probe\"} == bool 0)",
            "{{probe}}",
        ),
        Panel::graph("Time of a reading").unit("s").query(
            "max by (probe) (siskin_collect_seconds{job=\"siskin\",node=~\"$node\",probe=~\"$probe\"})",
            "{{probe}}, longest of the nodes",
        ),
        Panel::table("Builds and kernels")
            .size(12, 8)
            .now(
                "siskin_build_info{job=\"siskin\",node=~\"$node\"} * on (node) group_left (release, machine) siskin_kernel_info{job=\"siskin\"}",
            )
            .column("agents", "none"),
    ]
}

fn maps() -> Vec<Panel> {
    vec![
        Panel::bars("How full each map is")
            .about("The fullest of the chosen nodes. Tables with two banks are emptied at three quarters.")
            .unit("percentunit")
            .up_to(1.0)
            .colours(GREEN, &[(0.8, YELLOW), (0.95, RED)])
            .query(
                "max by (map) (max by (node, map) (siskin_map_entries{job=\"siskin\",node=~\"$node\"}) \
                 / on (node, map) max by (node, map) (siskin_map_capacity{job=\"siskin\",node=~\"$node\"}))",
                "{{map}}",
            ),
        Panel::graph("Memory")
            .unit("bytes")
            .query("max(process_resident_memory_bytes{job=\"siskin\",node=~\"$node\"})", "resident, largest")
            .query("max(siskin_maps_memory_bytes{job=\"siskin\",node=~\"$node\"})", "maps at their fullest")
            .query("min(siskin_budget_memory_bytes{job=\"siskin\",node=~\"$node\"})", "budget of the maps"),
        Panel::graph("Flow rows")
            .query("max(siskin_flow_series{job=\"siskin\",node=~\"$node\"})", "most rows on a node")
            .query("min(siskin_flow_series_limit{job=\"siskin\",node=~\"$node\"})", "limit"),
        Panel::graph("Workloads")
            .query(
                "max(siskin_workload_series{job=\"siskin\",node=~\"$node\"})",
                "with series of their own, most",
            )
            .query("min(siskin_workload_series_limit{job=\"siskin\",node=~\"$node\"})", "limit")
            .query("max(siskin_workload_cgroups{job=\"siskin\",node=~\"$node\"})", "cgroups known, most"),
        Panel::graph("Cgroups looked up per second")
            .about("By what they turned out to be.")
            .size(24, 7)
            .query(&rate("siskin_workload_lookups_total", "outcome"), "{{outcome}}"),
    ]
}
