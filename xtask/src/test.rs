//! Every test that this machine can run, and one honest sum.

use std::{
    io::{self, IsTerminal as _},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    agent,
    machine::{self, Lack, Tests},
    privilege::Privilege,
    steps::{self, step},
    tally::Tally,
    toolchain::Toolchain,
};

/// The package whose tests load programs into the kernel; all others run as the ordinary user.
const KERNEL_TESTS: &str = "siskin-tests";

/// Which tests, and how strict.
#[derive(Args)]
pub struct Options {
    /// Run only tests whose name contains this
    filter: Option<String>,
    /// Succeed although the machine lacks something that tests need
    #[arg(long)]
    allow_missing: bool,
}

/// Builds the agent, runs the tests, prints the sum.
pub fn test(toolchain: &Toolchain, options: &Options) -> Result<()> {
    let start = Instant::now();
    let privilege = Privilege::find()?;
    let lacks = machine::lacks(privilege)?;
    for lack in &lacks {
        steps::say(&lack.line());
    }
    let agent = agent::build(toolchain, &agent::Options::default())?;
    let mut tally = step("testing on the host", || host(toolchain, options, &lacks))?;
    if lacks.iter().all(|lack| lack.tests != Tests::Kernel) {
        tally.add(step("testing on the real kernel, as root", || {
            kernel(toolchain, options, privilege, &lacks, &agent)
        })?);
    }
    println!("elapsed {:.0} s, {} ignored", start.elapsed().as_secs_f64(), tally.ignored);
    println!("{tally}");
    verdict(tally, &lacks, options.allow_missing)
}

fn verdict(tally: Tally, lacks: &[Lack], allow_missing: bool) -> Result<()> {
    if tally.failed > 0 {
        bail!("{} failed", tally.failed);
    }
    if tally.passed == 0 {
        bail!("no test ran");
    }
    if !lacks.is_empty() && !allow_missing {
        bail!("not all tests could run (see `could not run` above); --allow-missing accepts that");
    }
    Ok(())
}

fn host(toolchain: &Toolchain, options: &Options, lacks: &[Lack]) -> Result<Tally> {
    let mut cargo = toolchain.cargo();
    cargo.args(["test", "--no-fail-fast", "--workspace"]);
    cargo.args(["--exclude", KERNEL_TESTS]);
    harness(&mut cargo, options, lacks);
    count(&mut cargo)
}

fn kernel(
    toolchain: &Toolchain,
    options: &Options,
    privilege: Privilege,
    lacks: &[Lack],
    agent: &Path,
) -> Result<Tally> {
    let mut cargo = toolchain.cargo();
    cargo.args(["test", "--no-fail-fast", "--package", KERNEL_TESTS]);
    cargo.env("SISKIN_BIN", agent);
    if let Some(runner) = privilege.runner() {
        cargo.env(agent::target_variable(&toolchain.host()?, "RUNNER"), runner);
    }
    harness(&mut cargo, options, lacks);
    // One at a time: each looks at what the whole machine does.
    cargo.arg("--test-threads=1");
    count(&mut cargo)
}

/// Starts the harness's own arguments: what to run, and what this machine cannot.
fn harness(cargo: &mut Command, options: &Options, lacks: &[Lack]) {
    cargo.arg("--").args(&options.filter);
    for lack in lacks {
        if let Tests::Named(word) = lack.tests {
            cargo.args(["--skip", word]);
        }
    }
    if io::stdout().is_terminal() {
        // It sees our pipe and would not colour by itself.
        cargo.arg("--color=always");
    }
}

/// Runs cargo's tests; a run that breaks without naming a failed test counts as one failure.
fn count(cargo: &mut Command) -> Result<Tally> {
    let mut child = cargo.stdout(Stdio::piped()).spawn().with_context(|| steps::cannot_start(cargo))?;
    let output = child.stdout.take().context("cargo has no stdout")?;
    let mut tally = Tally::read(output, io::stdout()).context("cannot copy the tests' output")?;
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() && tally.failed == 0 {
        let command = steps::shown(cargo);
        steps::say(&format!("`{command}` failed ({status}): counted as 1 failed"));
        tally.failed = 1;
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_passed_tests_make_a_success() {
        let tally = |passed, failed| Tally { passed, failed, ignored: 3 };
        assert!(verdict(tally(1, 0), &[], false).is_ok());
        assert!(verdict(tally(0, 0), &[], true).is_err());
        assert!(verdict(tally(9, 1), &[], true).is_err());
    }

    #[test]
    fn a_run_that_breaks_is_a_failure() -> Result<()> {
        let mut broken = Command::new("sh");
        broken.args(["-c", "exit 101"]);
        assert_eq!(count(&mut broken)?.failed, 1);
        Ok(())
    }
}
