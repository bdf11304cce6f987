//! `cargo xtask`: what building, running and testing Siskin takes beyond plain cargo.

mod admission;
mod agent;
mod bench;
mod check;
mod container;
mod docs;
mod e2e;
mod ebpf;
mod elf;
mod freshness;
mod fuzz;
mod image;
mod licences;
mod machine;
mod monitoring;
mod privilege;
mod run;
mod steps;
mod tally;
mod test;
mod toolchain;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, runs and tests Siskin.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the kernel side into target/bpf/siskin.bpf.o
    BuildEbpf(ebpf::Options),
    /// Build the kernel side and the agent, one static binary, into target/release/siskin
    Build(agent::Options),
    /// Build, then run the agent on this machine as root
    Run(run::Options),
    /// Build, then run every test that this machine can run
    Test(test::Options),
    /// Build, then run the agent and the tests on stock kernels in virtual machines
    Vm(vm::Options),
    /// Build, then measure what the agent costs on this machine as root
    Bench(bench::Options),
    /// Build the container image
    Image(image::Options),
    /// Build the image, then run it with podman as the manifest says, and with less
    Container(container::Options),
    /// Run the manifest on the cluster that KUBECONFIG names, from apply to delete
    E2e(e2e::Options),
    /// Ask Kubernetes's own admission plugin what the admission policy says to pods
    Admission,
    /// Check rules and dashboards with promtool and on a real Prometheus that scrapes a real agent
    Monitoring,
    /// Collect the licences of all that is in the agent, in target/licences
    Licences,
    /// Look for inputs that break parsers or the bounded table, guided by coverage
    Fuzz(fuzz::Options),
    /// Check formatting, lints, documentation and generated files
    Check,
    /// Write what is made from code: docs/metrics.md, docs/flags.md, dashboards, the PrometheusRule
    Docs(docs::Options),
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            steps::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<()> {
    let toolchain = toolchain::Toolchain::ensure()?;
    match command {
        Command::BuildEbpf(options) => ebpf::build(&toolchain, &options).map(drop),
        Command::Build(options) => agent::build(&toolchain, &options).map(drop),
        Command::Run(options) => run::run(&toolchain, &options),
        Command::Test(options) => test::test(&toolchain, &options),
        Command::Vm(options) => vm::vm(&toolchain, &options),
        Command::Bench(options) => bench::bench(&toolchain, &options),
        Command::Image(options) => image::image(&toolchain, &options),
        Command::Container(options) => container::container(&toolchain, &options),
        Command::E2e(options) => e2e::e2e(&toolchain, &options),
        Command::Admission => admission::admission(&toolchain),
        Command::Monitoring => monitoring::monitoring(&toolchain),
        Command::Licences => licences::licences(&toolchain),
        Command::Fuzz(options) => fuzz::fuzz(&toolchain, &options),
        Command::Check => check::check(&toolchain),
        Command::Docs(options) => docs::docs(&toolchain, &options),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
