//! Building the agent: one static binary with the kernel side inside.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
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
    /// Architecture of the machine that will run the agent [default: this one's]; needs that architecture's C compiler to
    /// link, and the agent then lies in target/TRIPLE/release/siskin
    #[arg(long)]
    pub arch: Option<String>,
}

/// Builds both sides and returns the agent's path.
pub fn build(toolchain: &Toolchain, options: &Options) -> Result<PathBuf> {
    let host = toolchain.host()?;
    let target = Target::of(options.arch.as_deref(), &host);
    ebpf::build(toolchain, &ebpf::Options { features: options.features.clone(), arch: target.arch.clone() })?;
    let folder = if options.debug { "debug" } else { "release" };
    let built = workspace::path(&format!("target/{}/{folder}/siskin", target.triple));
    let agent = if target.triple == host {
        workspace::path(&format!("target/{folder}/siskin"))
    } else {
        toolchain.add_target(&target.triple)?;
        built.clone()
    };
    step(&format!("building {}", workspace::shown(&agent)), || {
        compile(toolchain, options, &target.triple, &host)?;
        if built != agent {
            workspace::install(&built, &agent)?;
        }
        describe(&agent)
    })?;
    Ok(agent)
}

/// What the agent is built for.
#[derive(Debug, PartialEq)]
struct Target {
    arch: String,
    triple: String,
}

impl Target {
    /// The host's target with another architecture, if one is named.
    fn of(arch: Option<&str>, host: &str) -> Self {
        let arch = arch.or(host.split('-').next()).unwrap_or(host);
        Self { arch: arch.to_owned(), triple: triple(arch, host) }
    }
}

/// The host's target with this architecture.
pub fn triple(arch: &str, host: &str) -> String {
    let system = host.split_once('-').map_or("unknown-linux-gnu", |(_, system)| system);
    format!("{arch}-{system}")
}

fn compile(toolchain: &Toolchain, options: &Options, triple: &str, host: &str) -> Result<()> {
    let mut cargo = toolchain.cargo();
    cargo
        .args(["build", "--package", "siskin", "--bin", "siskin"])
        // Without a named target the flag would reach proc macros too, which must be dynamic.
        .args(["--target", triple])
        .args(["--features", &options.features])
        .env(target_variable(triple, "RUSTFLAGS"), STATIC);
    if triple != host {
        link_with(&mut cargo, triple)?;
    }
    if !options.debug {
        cargo.arg("--release");
    }
    steps::run(&mut cargo)
}

/// Has cargo link for another architecture, with its C compiler as distributions name it.
pub fn link_with(cargo: &mut Command, triple: &str) -> Result<()> {
    let linker = triple.replacen("-unknown-", "-", 1) + "-gcc";
    if steps::ask(Command::new(&linker).arg("--version"))?.is_none() {
        bail!(
            "cannot link for {triple}: `{linker}` is not on PATH; on Debian it is in the package gcc-{}, with \
             libc6-dev-*-cross for its C library",
            triple.replacen("-unknown-", "-", 1)
        );
    }
    cargo.env(target_variable(triple, "LINKER"), linker);
    Ok(())
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
    use super::*;

    #[test]
    fn another_architecture_changes_the_first_word_of_the_target() {
        let host = "x86_64-unknown-linux-gnu";
        let of = |arch: &str, triple: &str| Target { arch: arch.to_owned(), triple: triple.to_owned() };
        assert_eq!(Target::of(None, host), of("x86_64", host));
        assert_eq!(Target::of(Some("aarch64"), host), of("aarch64", "aarch64-unknown-linux-gnu"));
    }

    #[test]
    fn names_a_variable_as_cargo_does() {
        assert_eq!(
            target_variable("x86_64-unknown-linux-gnu", "RUNNER"),
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER"
        );
    }
}
