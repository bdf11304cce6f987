//! How long disks take, and for whom.

use super::{
    Dashboard, choice, estimate, node,
    panel::{GREEN, Panel, RED},
    top,
};

pub fn dashboard() -> Dashboard {
    Dashboard {
        uid: "siskin-disk",
        title: "Siskin / Disk latency",
        description: "Block requests: latency, throughput, errors, by device and by workload. Sampled within the budget.",
        from: "now-1h",
        variables: vec![
            node(),
            choice("device", "Device", "siskin_disk_bytes_total{job=\"siskin\"}"),
            choice("namespace", "Namespace", "siskin_workload_disk_bytes_total{job=\"siskin\"}"),
            top(),
        ],
        rows: vec![("Latency", latency()), ("Throughput", throughput()), ("Workloads", workloads())],
    }
}

const DEVICES: &str = "job=\"siskin\",node=~\"$node\",device=~\"$device\"";

/// A metric's rate for the chosen devices, by some labels.
fn rate(metric: &str, by: &str) -> String {
    format!("sum by ({by}) (rate({metric}{{{DEVICES}}}[$__rate_interval]))")
}

fn latency() -> Vec<Panel> {
    let heat = |title: &str, metric: &str, op: &str| {
        Panel::heat_map(
            title,
            &format!("sum by (le) (increase({metric}_bucket{{{DEVICES},op=\"{op}\"}}[$__rate_interval]))"),
        )
    };
    let quantile = |q: f64, op: &str| {
        format!(
            "histogram_quantile({q}, sum by (le) (rate(siskin_disk_io_seconds_bucket{{{DEVICES},op=\"{op}\"}}[$__rate_interval])))"
        )
    };
    let mean = |metric: &str| {
        format!("{} / ({} > 0)", rate(&format!("{metric}_sum"), "op"), rate(&format!("{metric}_count"), "op"))
    };
    vec![
        heat("Reads, from queueing to completion", "siskin_disk_io_seconds", "read"),
        heat("Writes, from queueing to completion", "siskin_disk_io_seconds", "write"),
        heat("Reads, from issue to completion", "siskin_disk_device_seconds", "read")
            .about("The device alone, without the queue; where the kernel keeps the time of issue."),
        heat("Writes, from issue to completion", "siskin_disk_device_seconds", "write"),
        Panel::graph("Percentiles")
            .unit("s")
            .query(&quantile(0.5, "read"), "read, median")
            .query(&quantile(0.99, "read"), "read, 99th")
            .query(&quantile(0.5, "write"), "write, median")
            .query(&quantile(0.99, "write"), "write, 99th"),
        Panel::graph("Mean, with the queue and of the device alone")
            .about("What lies between the two is spent in the queue.")
            .unit("s")
            .query(&mean("siskin_disk_io_seconds"), "{{op}}, from queueing")
            .query(&mean("siskin_disk_device_seconds"), "{{op}}, device"),
    ]
}

fn throughput() -> Vec<Panel> {
    let all = |metric: &str| format!("sum(rate({metric}{{job=\"siskin\",node=~\"$node\"}}[5m]))");
    vec![
        estimate("Bytes, all devices", "Bps", "siskin_disk_bytes_total", &all("siskin_disk_bytes_total")),
        estimate(
            "Requests, all devices",
            "iops",
            "siskin_workload_disk_ios_total",
            &all("siskin_workload_disk_ios_total"),
        ),
        Panel::graph("Bytes by device and operation")
            .unit("Bps")
            .query(&rate("siskin_disk_bytes_total", "device, op"), "{{device}} {{op}}"),
        Panel::graph("Requests by device and operation")
            .unit("iops")
            .query(&rate("siskin_disk_io_seconds_count", "device, op"), "{{device}} {{op}}"),
        Panel::graph("Time in flight")
            .about("Mean number of requests between queueing and completion.")
            .query(&rate("siskin_disk_io_seconds_sum", "device"), "{{device}}"),
        Panel::graph("Errors per second")
            .about("Exact.")
            .query(&rate("siskin_disk_errors_total", "node, device, op"), "{{node}} {{device}} {{op}}"),
        Panel::number("Errors in the time shown")
            .size(24, 4)
            .colours(GREEN, &[(1.0, RED)])
            .query(&format!("sum(increase(siskin_disk_errors_total{{{DEVICES}}}[$__range]))"), ""),
    ]
}

fn workloads() -> Vec<Panel> {
    let busiest = |metric: &str| {
        format!(
            "topk($top, sum by (namespace, pod, container, op) (rate({metric}{{job=\"siskin\",node=~\"$node\",namespace=~\"$namespace\"}}[$__rate_interval])))"
        )
    };
    let legend = "{{namespace}} {{pod}} {{container}} {{op}}";
    vec![
        Panel::graph("Bytes, busiest workloads")
            .about("Writeback is charged to who wrote.")
            .unit("Bps")
            .query(&busiest("siskin_workload_disk_bytes_total"), legend),
        Panel::graph("Requests, busiest workloads")
            .unit("iops")
            .query(&busiest("siskin_workload_disk_ios_total"), legend),
    ]
}
