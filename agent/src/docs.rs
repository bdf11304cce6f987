//! Documents made from the code, so that they cannot disagree with it.

use std::fmt::Write as _;

use clap::CommandFactory as _;

use crate::{
    cardinality,
    cli::{Cli, Document, Sizes},
    metrics::{self, Kind},
};

/// The text of a document, in Markdown.
pub fn text(document: Document) -> String {
    match document {
        Document::Metrics => metrics_page(),
        Document::Help => flags_page(),
        Document::Cardinality => cardinality::page(GENERATED, &Sizes::default().limits(1)),
    }
}

const GENERATED: &str = "<!-- Made by `cargo xtask docs` from the code. Do not edit. -->\n";

fn metrics_page() -> String {
    let mut page = format!("{GENERATED}\n# Metrics\n\n");
    page.push_str(
        "Text format 0.0.4 at `/metrics`. Base units, `_total` on counters, no label for the node: the scraper adds that.\n\n\
         **Exact** means that every event is counted. *Exact until the budget asks for an estimate*: exact while \
         `siskin_sampling_ratio` and `siskin_budget_duty_ratio` of the probe are 1, always so with `--budget.exact`. **Sampled** means an \
         unbiased estimate. The standard error of an estimate is in `siskin_estimate_standard_error` (of the total over all \
         labels) and, by workload, `sqrt(increase(siskin_workload_estimate_variance_total[5m]))` for the increase over five minutes.\n\n\
         **Alerts** on an estimate should know its error: compare with `rate(x[5m]) - 2 * sqrt(rate(variance[5m]) / 300)`, or ask for a longer \
         time. An estimate never falls, and never hides an event for good; over a short time it may lack some, or have too many.\n\n\
         Workload labels (`namespace`, `pod`, `container`): for a host service the first two are empty and `container` is the \
         systemd unit or, outside systemd, the cgroup path. `container=\"unknown\"` is what could not be attributed.\n\n\
         Bucket bounds are powers of two in nanoseconds, written in seconds: the kernel side counts in buckets that end exactly \
         there, so no count is interpolated.\n\n\
         | Name | Kind | Labels | Accuracy | Meaning |\n|---|---|---|---|---|\n",
    );
    for metric in metrics::ALL {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let accuracy = metric.accuracy.name();
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(
            page,
            "| `{}` | {kind} | {} | {accuracy} | {} |",
            metric.name,
            labels.join(", "),
            metric.text
        );
    }
    page.push_str("\nBesides these, the usual `process_*` metrics of the agent's own process.\n");
    page
}

fn flags_page() -> String {
    let mut page = format!("{GENERATED}\n# Flags\n");
    let mut command = Cli::command().term_width(110);
    command.build();
    for subcommand in command.get_subcommands_mut().filter(|subcommand| !subcommand.is_hide_set()) {
        if subcommand.get_name() == "help" {
            continue;
        }
        let help = subcommand.render_long_help();
        let _ = write!(page, "\n## siskin {}\n\n```text\n{help}```\n", subcommand.get_name());
    }
    page
}
