//! Building the agent: one static binary with the kernel side inside.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    ebpf, elf,
    steps::{self, step},
    toolchain::Toolchain,
    workspace,
};

/// How to build the agent.
#[derive(Args, Default)]
pub struct Options {
    /// Features of both sides, separated by commas: `ebpf-log` shows what the programs print
    #[arg(long, value_name = "LIST", default_value = "", hide_default_value = true)]
    pub features: String,
    /// Build without optimising, into target/debug/siskin: quicker to build, for a debugger
    #[arg(long)]
    pub debug: bool,
}

/// Builds both sides and returns the agent's path.
pub fn build(toolchain: &Toolchain, options: &Options) -> Result<PathBuf> {
    ebpf::build(toolchain, &ebpf::Options::for_host(&options.features))?;
    let folder = if options.debug { "debug" } else { "release" };
    let agent = workspace::path(&format!("target/{folder}/siskin"));
    step(&format!("building {}", workspace::shown(&agent)), || {
        let built = compile(toolchain, options, folder)?;
        workspace::install(&built, &agent)?;
        describe(&agent)
    })?;
    Ok(agent)
}

fn compile(toolchain: &Toolchain, options: &Options, folder: &str) -> Result<PathBuf> {
    let host = toolchain.host()?;
    let mut cargo = toolchain.cargo();
    cargo
        .args(["build", "--package", "siskin", "--bin", "siskin"])
        // Without a named target the flag would reach proc macros too, which must be dynamic.
        .args(["--target", &host])
        .args(["--features", &options.features])
        .env(target_variable(&host, "RUSTFLAGS"), STATIC);
    if !options.debug {
        cargo.arg("--release");
    }
    steps::run(&mut cargo)?;
    Ok(workspace::path(&format!("target/{host}/{folder}/siskin")))
}

/// What makes rustc link everything into the binary.
pub const STATIC: &str = "-C target-feature=+crt-static";

/// The variable by which cargo takes a setting for one target.
pub fn target_variable(triple: &str, setting: &str) -> String {
    let triple = triple.to_uppercase().replace(['-', '.'], "_");
    format!("CARGO_TARGET_{triple}_{setting}")
}

fn describe(agent: &Path) -> Result<()> {
    let file = fs::read(agent).with_context(|| format!("cannot read {}", agent.display()))?;
    let shown = workspace::shown(agent);
    if !elf::is_static(&file).with_context(|| format!("cannot understand {shown}"))? {
        bail!("{shown} is not static: it would not start in an empty container image");
    }
    let kib = file.len().div_ceil(1024);
    steps::say(&format!("{shown} is static, {kib} KiB"));
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_a_variable_as_cargo_does() {
        assert_eq!(
            super::target_variable("x86_64-unknown-linux-gnu", "RUNNER"),
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER"
        );
    }
}
