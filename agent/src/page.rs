//! The page at `/`: what the machine is doing, for a person. Made from the metrics, so it cannot say anything else. Pure.

use std::fmt::Write as _;

use crate::{
    collect::Snapshot,
    metrics::{self, Metric},
};

/// Rows per table: the busiest ones.
const ROWS: usize = 10;

/// The page, in HTML.
pub fn html(snapshot: &Snapshot, telemetry_path: &str) -> String {
    let mut page = String::from(HEAD);
    let text = str::from_utf8(&snapshot.text).unwrap_or_default();
    let _ = write!(
        page,
        "<h1>Siskin</h1><p><a href=\"{0}\">{0}</a> · <a href=\"/readyz\">/readyz</a> · <a href=\"/healthz\">/healthz</a></p>",
        escape(telemetry_path)
    );
    for line in snapshot.readiness.lacks() {
        let _ = write!(page, "<p class=\"bad\">{}</p>", escape(line));
    }
    page.push_str("<div class=\"tables\">");
    for (title, metric, unit) in TABLES {
        table(&mut page, text, title, metric, *unit);
    }
    page.push_str("</div></body></html>\n");
    page
}

/// How a value is written.
#[derive(Clone, Copy)]
enum Unit {
    Count,
    Bytes,
    /// The mean of a histogram in seconds.
    Mean,
}

/// What the page shows.
const TABLES: &[(&str, &Metric, Unit)] = &[
    ("Programs started", &metrics::PROCESS_COMM_EXECS, Unit::Count),
    ("… by workload", &metrics::PROCESS_EXECS, Unit::Count),
    ("Open TCP connections", &metrics::TCP_OPEN, Unit::Count),
    ("TCP connections opened", &metrics::TCP_OPENED, Unit::Count),
    ("TCP connections failed", &metrics::TCP_FAILED, Unit::Count),
    ("Bytes sent by flow", &metrics::FLOW_SENT, Unit::Bytes),
    ("Bytes received by flow", &metrics::FLOW_RECEIVED, Unit::Bytes),
    ("Disk bytes", &metrics::DISK_BYTES, Unit::Bytes),
    ("… by workload", &metrics::WORKLOAD_DISK_BYTES, Unit::Bytes),
    ("Mean disk latency", &metrics::DISK_IO, Unit::Mean),
];

fn table(page: &mut String, text: &str, title: &str, metric: &Metric, unit: Unit) {
    let mut rows: Vec<_> = match unit {
        Unit::Count | Unit::Bytes => samples(text, metric, "").collect(),
        Unit::Mean => {
            let counts = samples(text, metric, "_count").map(|(count, _)| count.max(1.0));
            samples(text, metric, "_sum").zip(counts).map(|((sum, who), count)| (sum / count, who)).collect()
        }
    };
    rows.retain(|(value, _)| *value > 0.0);
    if rows.is_empty() {
        return;
    }
    rows.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let _ = write!(page, "<section><h2 title=\"{}\">{title}</h2><table>", escape(&metric.help()));
    for (value, labels) in rows.iter().take(ROWS) {
        let _ = write!(
            page,
            "<tr><td>{}</td><td class=\"n\">{}</td></tr>",
            who(labels),
            write_value(*value, unit)
        );
    }
    if rows.len() > ROWS {
        let _ = write!(page, "<tr><td>and {} more</td><td></td></tr>", rows.len() - ROWS);
    }
    page.push_str("</table></section>");
}

/// The values of a metric's samples, and their labels as written.
fn samples<'a>(text: &'a str, metric: &Metric, suffix: &str) -> impl Iterator<Item = (f64, &'a str)> {
    let head = format!("# TYPE {} ", metric.name);
    let of_metric = text.find(&head).map_or("", |begin| &text[begin..]).lines().skip(1);
    let name = format!("{}{suffix}", metric.name);
    of_metric.take_while(|line| !line.starts_with('#')).filter_map(move |line| {
        let (labels, value) = line.strip_prefix(&name)?.rsplit_once(' ')?;
        Some((value.parse().ok()?, labels.strip_prefix('{')?.strip_suffix('}')?))
    })
}

fn write_value(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Count => format!("{value}"),
        Unit::Mean if value < 1e-3 => format!("{:.0} µs", value * 1e6),
        Unit::Mean => format!("{:.1} ms", value * 1e3),
        Unit::Bytes => {
            let mut rest = value;
            for unit in ["B", "KiB", "MiB", "GiB"] {
                if rest < 1024.0 {
                    return format!("{rest:.0} {unit}");
                }
                rest /= 1024.0;
            }
            format!("{rest:.1} TiB")
        }
    }
}

/// The labels that say something.
fn who(labels: &str) -> String {
    let mut values: Vec<String> = Vec::new();
    let mut rest = labels;
    while let Some((_, quoted)) = rest.split_once("=\"") {
        let mut value = String::new();
        let mut characters = quoted.chars();
        loop {
            match characters.next() {
                None | Some('"') => break,
                Some('\\') => value.extend(characters.next()),
                Some(other) => value.push(other),
            }
        }
        rest = characters.as_str();
        values.push(value);
    }
    values.retain(|value| !value.is_empty());
    escape(&values.join(" "))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"5\">\
<meta name=\"viewport\" content=\"width=device-width\"><title>Siskin</title><style>\
:root{color-scheme:light dark}body{font:15px/1.4 system-ui,sans-serif;margin:1.5rem auto;max-width:72rem;padding:0 1rem}\
h1{font-size:1.4rem;margin:0}h2{font-size:1rem;margin:0 0 .3rem}\
.tables{columns:22rem auto;column-gap:2.5rem}section{break-inside:avoid;margin-bottom:1.5rem}\
table{width:100%;border-collapse:collapse}td{padding:.15rem 0;border-bottom:1px solid #8883;overflow-wrap:anywhere}\
.n{text-align:right;white-space:nowrap;padding-left:1rem;font-variant-numeric:tabular-nums}.bad{color:#c33}\
</style></head><body>";

#[cfg(test)]
mod tests {
    use siskin_ebpf::{Latency, Probe, Words as _};

    use super::*;
    use crate::{exposition::Exposition, readiness::Readiness};

    #[test]
    fn the_page_shows_the_busiest_and_escapes_what_others_named() {
        let mut out = Exposition::default();
        for (comm, execs) in [("<script>", 3.0), ("idle", 0.0), ("sh", 12.0)] {
            out.counter(&metrics::PROCESS_COMM_EXECS, &[comm], execs);
        }
        let mut bank = siskin_ebpf::TcpBank::zero();
        bank.connect.buckets[Latency::index(500_000)] = 2;
        bank.connect.sum = 1_000_000;
        for labels in [["a \"b\"", "read"], ["vda", "read"]] {
            out.histogram(&metrics::DISK_IO, &labels, &bank.connect, metrics::LATENCY_BOUNDS);
        }
        out.counter(&metrics::DISK_BYTES, &["vda", "read"], 3.0 * 1024.0 * 1024.0);
        let readiness = Readiness::of(&[], |probe| probe != Probe::Tcp);
        let snapshot = Snapshot { text: out.into_text().into(), readiness };
        let page = html(&snapshot, "/metrics");
        assert!(
            page.contains("<tr><td>sh</td><td class=\"n\">12</td></tr><tr><td>&lt;script&gt;</td>"),
            "{page}"
        );
        assert!(page.contains("<td>vda read</td><td class=\"n\">3 MiB</td>"), "{page}");
        assert!(page.contains("<td>a &quot;b&quot; read</td><td class=\"n\">500 µs</td>"), "{page}");
        assert!(page.contains("tcp: the last reading failed"));
        assert!(!page.contains("idle") && !page.contains("<script>"));
    }
}
