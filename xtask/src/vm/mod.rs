//! `cargo xtask vm`: the agent and the kernel tests on stock kernels, each in an emulated machine.
//!
//! A kernel is a package of the distribution (`kernel.rs`). Its first file system (`cpio.rs`) has the agent, the test
//! binaries and `init.sh`, which runs them and says on a serial line how each ended (`guest.rs`). What the agent could do
//! there (`survey.rs`) is compared with what is committed in `tests/vm` (`report.rs`).

mod arch;
mod cpio;
mod guest;
mod host;
mod kernel;
pub mod measure;
mod packages;
mod report;
mod survey;
mod tests;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use self::{
    arch::Arch,
    guest::{Content, Ended, Outcome, Said},
    kernel::{Kernel, Series},
    tests::{Rules, Suite, Todo},
};
use crate::{
    agent,
    steps::{self, step},
    toolchain::Toolchain,
};

/// Which kernels and which tests.
#[derive(Args)]
pub struct Options {
    /// A kernel of the matrix, as `6.1` or `6.12-arm64`; may be given several times [default: all]
    #[arg(long = "kernel", value_name = "VERSION")]
    kernels: Vec<String>,
    /// How many machines run at once [default: as many as there are CPUs]
    #[arg(long)]
    jobs: Option<usize>,
    /// Write docs/kernels.md and tests/vm/support.txt from what was found on all kernels
    #[arg(long, conflicts_with = "kernels")]
    write: bool,
    /// Run only tests whose name, BINARY::NAME, contains one of these
    #[arg(last = true, value_name = "FILTER")]
    filter: Vec<String>,
}

/// What came of a kernel.
pub struct Outcomes {
    /// `6.1`.
    pub series: String,
    /// What the guest said, or why nothing came of it.
    pub said: Result<Said>,
    /// How long it took in all.
    pub took: Duration,
}

/// Builds, fetches, boots, prints what was found; fails when anything is not as it should be.
pub fn vm(toolchain: &Toolchain, options: &Options) -> Result<()> {
    let start = Instant::now();
    let series: Vec<&'static Series> = match options.kernels.as_slice() {
        [] => kernel::SERIES.iter().collect(),
        some => some.iter().map(|name| kernel::find(name)).collect::<Result<_>>()?,
    };
    let archs = archs(&series);
    // First: the shell also unpacks modules.
    host::ensure(&archs)?;
    let kernels: Vec<Kernel> = series.into_iter().map(kernel::fetch).collect::<Result<_>>()?;
    let contents = contents(toolchain, &archs)?;
    let content = |kernel: &Kernel| {
        let content = contents.iter().find(|content| content.arch == kernel.series.arch);
        content.with_context(|| format!("nothing was built for {}", kernel.series.name))
    };
    let rules = Rules::read()?;
    let plan = |filter: &[String]| -> Result<Vec<Plan>> {
        kernels.iter().map(|of| plan(&content(of)?.suite, &rules, filter, of.series.name)).collect()
    };
    let plans = plan(&options.filter)?;
    let kvm = contents.iter().any(|content| content.kvm);
    let jobs = options
        .jobs
        .map_or_else(|| thread::available_parallelism().map_or(1, usize::from), |jobs| jobs.max(1));
    let what = format!(
        "running {} tests on {} kernels, {jobs} at a time, {}",
        plans.iter().map(|plan| plan.todo.lines().count()).sum::<usize>(),
        kernels.len(),
        if kvm { "with KVM" } else { "emulated: KVM does not work here" },
    );
    let outcomes = step(&what, || {
        let boot = |index: usize| {
            let (kernel, plan) = (&kernels[index], &plans[index]);
            let heard = |ended: &Ended| steps::say(&progress(kernel.series.name, ended));
            guest::run(kernel, content(kernel)?, &plan.todo, heard)
        };
        Ok(all(&kernels, jobs, boot))
    })?;

    for line in left(&plans) {
        println!("not run: {line}");
    }
    print!("{}", report::table(&outcomes));
    if options.write && report::failures(&outcomes).is_empty() {
        report::write(&outcomes, &left(&plan(&[])?))?;
    }
    let wrong = report::wrong(&outcomes)?;
    for line in &wrong {
        println!("wrong: {line}");
    }
    println!(
        "elapsed {:.0} s, {} kernels, {} wrong",
        start.elapsed().as_secs_f64(),
        outcomes.len(),
        wrong.len()
    );
    if !wrong.is_empty() {
        bail!("the kernels are not as they should be (see `wrong` above)");
    }
    Ok(())
}

/// The architectures among kernels, this machine's own last.
fn archs(series: &[&'static Series]) -> Vec<&'static Arch> {
    let mut archs: Vec<&'static Arch> = Vec::new();
    for Series { arch, .. } in series {
        if !archs.contains(arch) {
            archs.push(arch);
        }
    }
    archs.sort_by_key(|arch| arch.is_host());
    archs
}

/// Builds what runs in the guests. This machine's own architecture comes last: the object of its kernel side is then the one that other
/// builds find.
fn contents(toolchain: &Toolchain, archs: &[&'static Arch]) -> Result<Vec<Content>> {
    let own = Suite::build(toolchain)?;
    let content = |arch: &'static Arch| {
        let options = agent::Options { arch: Some(arch.name.to_owned()), ..agent::Options::default() };
        let agent = agent::build(toolchain, &options)?;
        let suite = if arch.is_host() { own.clone() } else { own.for_arch(toolchain, arch)? };
        Ok(Content { arch, shell: host::shell(arch)?, agent, suite, kvm: host::has_kvm(arch) })
    };
    archs.iter().copied().map(content).collect()
}

/// What a guest is to do.
struct Plan {
    series: String,
    /// A line for each test: what it needs, its binary, its name.
    todo: String,
    /// The tests that are left out, with the reason.
    left: Vec<(String, String)>,
}

fn plan(suite: &Suite, rules: &Rules, filter: &[String], series: &str) -> Result<Plan> {
    let mut plan = Plan { series: series.to_owned(), todo: String::new(), left: Vec::new() };
    for (test, binary) in suite.tests(filter) {
        match rules.todo(&test, series)? {
            Todo::Run(needs) => plan.todo.push_str(&format!("{needs} {} {test}\n", binary.display())),
            Todo::Leave(reason) => plan.left.push((test, reason.to_owned())),
        }
    }
    Ok(plan)
}

/// The tests that are left out, on which kernels and why.
fn left(plans: &[Plan]) -> Vec<String> {
    let mut kernels: BTreeMap<&(String, String), Vec<&str>> = BTreeMap::new();
    for plan in plans {
        for left in &plan.left {
            kernels.entry(left).or_default().push(&plan.series);
        }
    }
    let line = |((test, reason), on): (&(String, String), Vec<&str>)| {
        let on = if on.len() == plans.len() { "every kernel".to_owned() } else { on.join(", ") };
        format!("{test} on {on}: {reason}")
    };
    kernels.into_iter().map(line).collect()
}

/// Boots every kernel, some at a time, in the order given.
fn all(kernels: &[Kernel], jobs: usize, boot: impl Fn(usize) -> Result<Said> + Sync) -> Vec<Outcomes> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..jobs.min(kernels.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Relaxed);
                    let Some(kernel) = kernels.get(index) else { return };
                    let begin = Instant::now();
                    let name = kernel.series.name;
                    let said = boot(index).with_context(|| format!("kernel {name}"));
                    let outcomes = Outcomes { series: name.to_owned(), said, took: begin.elapsed() };
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((index, outcomes));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, outcomes)| outcomes).collect()
}

fn progress(series: &str, ended: &Ended) -> String {
    let Ended { test, outcome, took } = ended;
    let seconds = took.as_secs_f64();
    match outcome {
        Outcome::Passed => format!("{series:<10} passed {seconds:5.1} s  {test}"),
        Outcome::Unsupported(lacks) => format!("{series:<10} unsupported     {test}: needs {lacks}"),
        Outcome::Failed(status, printed) => {
            format!("{series:<10} FAILED {seconds:5.1} s  {test}: {status}\n{printed}")
        }
    }
}
