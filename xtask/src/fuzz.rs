//! Looking for inputs that break what must hold of parsers and of the bounded table: the targets in `fuzz/`, under libFuzzer.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    ebpf,
    steps::{self, step},
    toolchain::Toolchain,
    workspace,
};

/// What to look at, and for how long.
#[derive(Args)]
pub struct Options {
    /// Only these targets
    targets: Vec<String>,
    /// Seconds for each
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// The release build, for speed, but with the checks and names that make a finding readable, and without an hour of linking.
const PROFILE: [(&str, &str); 4] =
    [("OPT_LEVEL", "3"), ("LTO", "off"), ("CODEGEN_UNITS", "16"), ("STRIP", "none")];

/// Longest input in bytes, longer than a cgroup's path can be.
const LONGEST: u32 = 1024;

/// Runs each target from its seeds and from what earlier runs found; ends at the first input that breaks one, which libFuzzer then names.
pub fn fuzz(toolchain: &Toolchain, options: &Options) -> Result<()> {
    // The agent embeds it, whatever of the agent is run.
    ebpf::build(toolchain, &ebpf::Options::for_host(""))?;
    let listed = steps::capture(command(toolchain)?.args(["list", "--fuzz-dir", "fuzz"]))?;
    let all: Vec<_> = listed.lines().map(str::to_owned).collect();
    for target in &options.targets {
        ensure!(all.contains(target), "there is no target `{target}`; there are {}", all.join(", "));
    }
    let targets = if options.targets.is_empty() { &all } else { &options.targets };
    for target in targets {
        let seeds = format!("fuzz/seeds/{target}");
        let found = format!("target/fuzz/found/{target}");
        for folder in [&seeds, &found] {
            fs::create_dir_all(workspace::path(folder)).with_context(|| format!("cannot make {folder}"))?;
        }
        step(&format!("fuzzing {target} for {} s", options.seconds), || {
            let mut cargo = command(toolchain)?;
            cargo.args([
                "run",
                "--fuzz-dir",
                "fuzz",
                "--features",
                "libfuzzer",
                "--target-dir",
                "target/fuzz",
            ]);
            // What it finds goes to the first folder.
            cargo.args([target, &found, &seeds, "--", "-print_final_stats=1"]);
            cargo.arg(format!("-max_total_time={}", options.seconds)).arg(format!("-max_len={LONGEST}"));
            steps::run(cargo.arg(format!("-artifact_prefix=target/fuzz/broken-{target}-")))
        })?;
    }
    Ok(())
}

fn command(toolchain: &Toolchain) -> Result<Command> {
    let mut cargo = toolchain.cargo_fuzz()?;
    // Coverage and the address sanitizer are not stable.
    cargo.env("RUSTC_BOOTSTRAP", "1");
    for (name, value) in PROFILE {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{name}"), value);
    }
    Ok(cargo)
}
