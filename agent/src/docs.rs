//! Documents made from the code, so that they cannot disagree with it.

use std::fmt::Write as _;

use clap::CommandFactory as _;

use crate::{
    cardinality,
    cli::{Cli, Document, Sizes},
    metrics::{self, Kind, Truth},
};

/// The text of a document, in Markdown.
pub fn text(document: Document) -> String {
    match document {
        Document::Metrics => metrics_page(),
        Document::Help => flags_page(),
        Document::Cardinality => cardinality::page(GENERATED, &Sizes::default().limits()),
    }
}

const GENERATED: &str = "<!-- Made by `cargo xtask docs` from the code. Do not edit. -->\n";

fn metrics_page() -> String {
    let mut page = format!("{GENERATED}\n# Metrics\n\n");
    page.push_str(
        "Text format 0.0.4 at `/metrics`. Base units, `_total` on counters, no label for the node: the scraper adds that.\n\n\
         **Exact** means that every event is counted. **Sampled** means an unbiased estimate whose standard error is exported \
         as `siskin_estimate_standard_error`; at `siskin_sampling_ratio` 1 it is exact.\n\n\
         Workload labels (`namespace`, `pod`, `container`): for a host service the first two are empty and `container` is the \
         systemd unit or, outside systemd, the cgroup path. `container=\"unknown\"` is what could not be attributed.\n\n\
         Bucket bounds are powers of two in nanoseconds, written in seconds: the kernel side counts in buckets that end exactly \
         there, so no count is interpolated.\n\n\
         | Name | Kind | Labels | Truth | Meaning |\n|---|---|---|---|---|\n",
    );
    for metric in metrics::ALL {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let truth = match metric.truth {
            Truth::Exact => "exact (may be drawn with `--budget.strict`)",
            Truth::Attached => "exact while attached",
            Truth::Sampled => "sampled",
            Truth::Mixed => "TCP exact, UDP sampled",
            Truth::Agent => "agent",
        };
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(
            page,
            "| `{}` | {kind} | {} | {truth} | {} |",
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
