//! The agent's life: load, attach, serve, let go.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, anyhow, bail};
use siskin_ebpf::{AllStats, PROBES, PROGRAMS, Probe, Program, Rate, map};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

use crate::{
    budget::{
        Allowed, Budget, cores,
        meter::{Meter, dispatch},
    },
    cardinality,
    cli::{Paths, Run, Sizes},
    collect::{Asked, Collector, State},
    flows::FlowTable,
    http::{self, Site},
    kernel::{
        attachment::Attachment,
        hook::{HookState, Point, State as Became},
        interrupts::online_cpus,
        loader::{Kernel, Request, possible_cpus},
        privileges,
        rows::Bank,
        sys,
    },
    probes,
    ticks::{blocking, keep_attached, tick},
    workload::{Workloads, notes::Notes},
};

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start: the address is taken, a privilege or BTF is missing, maps are over their budget.
pub fn run(flags: &Run) -> anyhow::Result<()> {
    share_memory();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Readings take turns behind one lock: one thread reads, a second one waits so that scrapes share a reading. Each probe may
        // wait to be attached, and for what it detached.
        .max_blocking_threads(2 + 2 * PROBES)
        .build()
        .context("cannot start the runtime")?;
    let served = runtime.block_on(serve(flags));
    // A probe may be in its window, and nobody waits for that: its programs are detached when the process ends.
    runtime.shutdown_background();
    served
}

async fn serve(flags: &Run) -> anyhow::Result<()> {
    // First, so that a signal during start is not lost.
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    let listener = listen(flags).await?;
    let address = listener.local_addr()?;

    let (mut state, attachments, _statistics) = start(flags)?;
    let overload = state.kernel.take_overload()?;
    // SAFETY: the ring owns its descriptor, which stays open and the same until the registration takes it along.
    let overload = unsafe { AsyncFd::register_with_interest(overload, Interest::READABLE) }
        .context("cannot wait for the programs' notifications")?;
    let control = Arc::clone(&state.kernel.control);
    give_back_memory();
    let site = Site {
        collector: Collector::new(state, flags.min_interval),
        telemetry_path: flags.telemetry_path.clone(),
    };
    let site = Arc::new(site);
    tracing::info!("serving on http://{address}{}", flags.telemetry_path);

    let (tell, settings) = watch::channel(site.collector.settings());
    let mut tasks = JoinSet::new();
    tasks.spawn(tick(Arc::clone(&site), overload, tell));
    for attachment in attachments {
        tasks.spawn(keep_attached(Arc::clone(&site), Arc::clone(&control), attachment, settings.clone()));
    }
    if let Some(file) = flags.cpu_file.clone() {
        tokio::spawn(reload(Arc::clone(&site), file, hangup));
    }
    let shutdown = async {
        let signal = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!("{signal}: detaching and leaving");
    };
    let served = http::run(listener, site, shutdown).await.context("the server broke");
    tasks.abort_all();
    served
}

async fn listen(flags: &Run) -> anyhow::Result<TcpListener> {
    let address = flags.listen_address;
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            anyhow!(
                "cannot listen on {address}: the port is taken; give another one with --web.listen-address"
            )
        }
        _ => anyhow!("cannot listen on {address}: {error}"),
    })
}

/// Loads the programs and attaches them, to returns of functions if that may be.
///
/// # Errors
/// When nothing can run: no privilege, no BTF, maps over their budget.
pub fn load(
    enabled: &[Probe],
    sizes: &Sizes,
    paths: &Paths,
    may_attach_exits: bool,
) -> anyhow::Result<Kernel> {
    let limits = sizes.limits(possible_cpus()?);
    Kernel::load(&Request {
        sysfs: &paths.sysfs,
        enabled,
        groups: &probes::groups(),
        plans: &probes::plans(&limits),
        memory_limit_bytes: sizes.memory,
        may_attach_exits,
        sockets_limit: limits.sockets.into(),
    })
}

/// Loads the programs, attaches them and gives up what privileges are not needed any more.
fn start(flags: &Run) -> anyhow::Result<(State, Vec<Attachment>, Option<OwnedFd>)> {
    let peers = flags.peers.peers().map_err(anyhow::Error::msg)?;
    let limits = flags.sizes.limits(possible_cpus()?);
    let enabled = flags.collectors.enabled();
    if let Some(off) = flags.exact.iter().find(|probe| !enabled.contains(probe)) {
        bail!("--budget.exact names the probe {0}, which --no-collector.{0} turns off", off.name());
    }
    let cores = match (flags.sampling_period, &flags.cpu_file) {
        (Some(_), _) => None,
        (None, Some(file)) => Some(cores::read(file).map_err(anyhow::Error::msg)?),
        (None, None) => Some(flags.cpu),
    };
    let mut kernel = load(&enabled, &flags.sizes, &flags.paths, !flags.no_function_returns)?;
    // Kept alive: the kernel keeps statistics as long as the descriptor is open.
    let statistics = if flags.program_stats {
        Some(
            sys::enable_stats()
                .context("cannot turn on program statistics: this needs CAP_SYS_ADMIN and a 5.8 kernel")?,
        )
    } else {
        None
    };
    #[cfg(feature = "ebpf-log")]
    kernel.log_programs().context("cannot read the programs' messages")?;
    report(&kernel.hooks);
    let lacks: Vec<_> = kernel.hooks.iter().filter_map(HookState::lack).collect();
    if flags.collectors.strict && !lacks.is_empty() {
        bail!("--collector.strict is given, and this kernel lacks: {}", lacks.join("; "));
    }
    let mut readers = Vec::new();
    for probe in &enabled {
        if kernel.runs(*probe) {
            readers.push(probes::reader(*probe, &mut kernel, &limits, &flags.paths.procfs)?);
        }
    }
    let names: Vec<_> = readers.iter().map(|reader| reader.probe().name()).collect();
    tracing::info!(
        "probes {}: maps take at most {} of {} bytes",
        names.join(", "),
        kernel.maps_bytes,
        flags.sizes.memory
    );
    let bound = cardinality::bound(&limits, &peers, &enabled);
    tracing::info!("a scrape brings at most {} series in {} bytes", bound.series, bound.bytes);
    let control_map = kernel.map(map::CONTROL)?;
    // Reading any map tells whether reading maps still works.
    let works = || sys::lookup(control_map.as_fd(), &0u32.to_ne_bytes(), &mut [0; CONTROL_WORDS]).is_ok();
    let kept = privileges::drop_all_but_needed(works)?;
    tracing::debug!("capabilities kept: {kept:?}");
    let mut workloads = Workloads::new(flags.paths.roots(), limits.workloads as usize);
    if kernel.is_up(Probe::Cgroup) {
        workloads.watch(Notes::new(kernel.map(map::CGROUP_NOTES)?));
    }
    // Now, after the programs were attached: cgroups that are there and gone before the first reading have a name too.
    workloads.begin();
    let flows = FlowTable::new(limits.bounded(limits.flows), peers);
    let cpus = possible_cpus()?;
    let bank = Bank::new(kernel.map(map::PROGRAM_STATS)?, size_of::<AllStats>(), cpus);
    let meter = Meter::new(bank, dispatch_ns(&kernel));
    let running: Vec<_> = readers.iter().map(|reader| reader.probe()).collect();
    if !flags.exact.is_empty() {
        let names: Vec<_> = flags.exact.iter().map(|probe| probe.name()).collect();
        tracing::info!("never sampled, and not counted to the CPU budget: {}", names.join(", "));
    }
    let allowed = Allowed { cores, exact: flags.exact.clone() };
    let attachments = kernel.take_attachments();
    let mut budget = Budget::new(meter, allowed, &running, online_cpus());
    let always: Vec<_> = attachments.iter().filter(|of| of.is_always_attached()).map(|of| of.probe).collect();
    budget.set_always_attached(&always);
    budget.begin(&kernel.control);
    if let Some(period) = flags.sampling_period {
        let rate = Rate { period, ..Rate::default() };
        for probe in [Probe::Disk, Probe::Udp] {
            kernel.control.set_rate(probe, &rate);
        }
    }
    let plans = probes::plans(&limits).into_iter().map(|(_, plan)| plan).collect();
    let asked = Asked { plans, memory_limit_bytes: flags.sizes.memory, enabled, bound };
    Ok((State::new(kernel, readers, workloads, flows, budget, asked), attachments, statistics))
}

/// What the dispatch of each program's hook costs, in nanoseconds.
fn dispatch_ns(kernel: &Kernel) -> [f64; PROGRAMS] {
    Program::ALL.map(|program| {
        let ns = kernel.event_points(program.probe()).map(|point| match point {
            Point::Exit(_) => dispatch::EXIT_NS,
            Point::Entry(_) => dispatch::ENTRY_NS,
            Point::Tracepoint(_) | Point::Iterator(_) | Point::MapIterator(..) => dispatch::TRACEPOINT_NS,
        });
        ns.fold(dispatch::TRACEPOINT_NS, f64::max)
    })
}

/// Logs what is lacking, and what stands in for it.
fn report(hooks: &[HookState]) {
    for HookState { hook, state } in hooks {
        let (probe, point) = (hook.probe.name(), hook.point.name());
        match state {
            Became::Attached | Became::Disabled => {}
            Became::Replaced(reason) => tracing::info!("probe {probe}: {point} is replaced: {reason}"),
            Became::Limited(reason) | Became::Unsupported(reason) | Became::Failed(reason) => {
                tracing::warn!("probe {probe}: {point} is {}: {reason}", state.name());
            }
        }
    }
}

/// All threads take memory from one place: they take turns, and what one gave back serves the next.
fn share_memory() {
    // SAFETY: takes no addresses; no other thread runs yet. glibc only.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// Reading the kernel's types took tens of megabytes in many small pieces; the allocator would keep them.
fn give_back_memory() {
    // SAFETY: takes no addresses. glibc only; other allocators return large blocks by themselves.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Words of the element of the `control` map.
const CONTROL_WORDS: usize = size_of::<siskin_ebpf::Control>() / 8;

/// Reads the CPU budget again on SIGHUP.
async fn reload(site: Arc<Site>, file: PathBuf, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        match cores::read(&file) {
            Ok(cores) => {
                tracing::info!("SIGHUP: CPU budget is now {cores} cores");
                blocking(&site, move |collector| collector.set_budget(cores)).await;
            }
            Err(error) => tracing::warn!("SIGHUP: the CPU budget stays as it is: {error}"),
        }
    }
}
