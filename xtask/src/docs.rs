//! What is made from code: the pages of docs/ that the agent writes about itself, the dashboards, the PrometheusRule.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    ebpf,
    steps::{self, step},
    toolchain::Toolchain,
    workspace,
};

/// What `siskin docs` calls a page, and where the page lies.
const PAGES: [(&str, &str); 3] =
    [("metrics", "docs/metrics.md"), ("help", "docs/flags.md"), ("cardinality", "docs/cardinality.md")];

/// What to do with the pages.
#[derive(Args)]
pub struct Options {
    /// Write nothing; fail when a page is not what the agent would write
    #[arg(long)]
    check: bool,
}

/// Builds the kernel side, which the agent embeds, and writes or checks the pages.
pub fn docs(toolchain: &Toolchain, options: &Options) -> Result<()> {
    ebpf::build(toolchain, &ebpf::Options::for_host(""))?;
    if options.check {
        step("checking the generated pages", || check(toolchain))
    } else {
        step("writing the generated pages", || write(toolchain))
    }
}

/// Compares every page; the eBPF object must be there.
pub fn check(toolchain: &Toolchain) -> Result<()> {
    let mut stale = Vec::new();
    for (page, file) in PAGES {
        // A missing page is a stale one.
        let current = fs::read_to_string(workspace::path(file)).unwrap_or_default();
        if current != generate(toolchain, page)? {
            stale.push(file);
        }
    }
    if !stale.is_empty() {
        let files = stale.join(" and ");
        bail!("stale: {files}; run `cargo xtask docs` and commit what it writes");
    }
    steps::run(monitoring(toolchain).arg("--check"))
}

/// The command that makes the dashboards and the PrometheusRule.
fn monitoring(toolchain: &Toolchain) -> Command {
    let mut cargo = toolchain.cargo();
    cargo.args(["run", "--quiet", "--package", "siskin-monitoring", "--", "generate"]);
    cargo
}

fn write(toolchain: &Toolchain) -> Result<()> {
    for (page, file) in PAGES {
        let text = generate(toolchain, page)?;
        fs::create_dir_all(workspace::path("docs")).context("cannot make docs/")?;
        fs::write(workspace::path(file), text).with_context(|| format!("cannot write {file}"))?;
        steps::say(&format!("wrote {file}"));
    }
    steps::run(&mut monitoring(toolchain))
}

/// The unoptimised agent says the same and builds in a fraction of the time.
fn generate(toolchain: &Toolchain, page: &str) -> Result<String> {
    let mut cargo = toolchain.cargo();
    cargo.args(["run", "--package", "siskin", "--bin", "siskin", "--"]);
    let text = steps::capture(cargo.args(["docs", page]))?;
    if text.trim().is_empty() {
        bail!("`siskin docs {page}` printed nothing");
    }
    Ok(text)
}
