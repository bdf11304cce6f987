//! What must hold of the sources without running them.

use anyhow::{Result, bail};

use crate::{
    docs, ebpf,
    steps::{self, step},
    toolchain::Toolchain,
};

type Check = (&'static str, fn(&Toolchain) -> Result<()>);

const CHECKS: [Check; 5] = [
    ("formatting", formatting),
    ("lints on the host", lints),
    ("lints on the BPF target", ebpf::clippy),
    ("documentation", documentation),
    ("generated pages", docs::check),
];

/// Runs every check, also after one failed: a reader wants the whole list at once.
pub fn check(toolchain: &Toolchain) -> Result<()> {
    // First, because agent/build.rs embeds the object whenever the agent is so much as looked at.
    ebpf::build(toolchain, &ebpf::Options::for_host(""))?;
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        if let Err(error) = step(&format!("checking {name}"), || check(toolchain)) {
            steps::say(&format!("error: {error:#}"));
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        let names = failed.join(", ");
        bail!("{} of {} checks failed: {names}", failed.len(), CHECKS.len());
    }
    Ok(())
}

fn formatting(toolchain: &Toolchain) -> Result<()> {
    steps::run(toolchain.cargo().args(["fmt", "--all", "--check"]))
}

fn lints(toolchain: &Toolchain) -> Result<()> {
    let mut cargo = toolchain.cargo();
    cargo.args(["clippy", "--workspace", "--all-targets"]);
    steps::run(cargo.args(["--", "--deny", "warnings"]))
}

fn documentation(toolchain: &Toolchain) -> Result<()> {
    let mut cargo = toolchain.cargo();
    cargo.env("RUSTDOCFLAGS", "--deny warnings");
    steps::run(cargo.args(["doc", "--workspace", "--no-deps"]))
}
