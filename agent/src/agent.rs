//! The agent's life: load, attach, serve, let go.

use std::{io, os::fd::AsFd as _, path::PathBuf, sync::Arc};

use anyhow::{Context as _, anyhow, bail};
use siskin_ebpf::{Probe, Rate, Slots, map};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};

use crate::{
    budget::{
        Budget, cores,
        meter::Meter,
        windows::{TICK, Windows},
    },
    cli::{Paths, Run, Sizes},
    collect::{Collector, State, Wanted},
    flows::FlowTable,
    http::{self, Site},
    kernel::{
        hook::{HookState, State as Became},
        loader::{Kernel, Request, possible_cpus},
        privileges,
        rows::Bank,
        sys,
    },
    probes,
    workload::{Workloads, notes::Notes},
};

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start: the address is taken, a privilege or BTF is missing, maps are over their budget.
pub fn run(flags: &Run) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Readings take turns behind one lock; a second thread waits for the lock so that scrapes share a reading.
        .max_blocking_threads(2)
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(flags))
}

async fn serve(flags: &Run) -> anyhow::Result<()> {
    // First, so that a signal during start is not lost.
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    let listener = listen(flags).await?;
    let address = listener.local_addr()?;

    // Kept alive: the kernel keeps statistics as long as the descriptor is open.
    let _statistics = if flags.program_stats {
        Some(
            sys::enable_stats()
                .context("cannot turn on program statistics: this needs CAP_SYS_ADMIN and a 5.8 kernel")?,
        )
    } else {
        None
    };
    let state = start(flags)?;
    give_back_memory();
    let site = Site {
        collector: Collector::new(state, flags.min_interval),
        telemetry_path: flags.telemetry_path.clone(),
    };
    let site = Arc::new(site);
    tracing::info!("serving on http://{address}{}", flags.telemetry_path);

    let ticker = tokio::spawn(tick(Arc::clone(&site)));
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
    ticker.abort();
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

/// Loads the programs and attaches them.
///
/// # Errors
/// When nothing can run: no privilege, no BTF, maps over their budget.
pub fn load(enabled: &[Probe], sizes: &Sizes, paths: &Paths) -> anyhow::Result<Kernel> {
    let limits = sizes.limits();
    Kernel::load(&Request {
        sysfs: &paths.sysfs,
        enabled,
        groups: &probes::groups(),
        plans: &probes::plans(&limits),
        memory_limit_bytes: sizes.memory,
        sockets_limit: limits.sockets.into(),
    })
}

/// Loads the programs, attaches them and gives up what privileges are not needed any more.
fn start(flags: &Run) -> anyhow::Result<State> {
    let limits = flags.sizes.limits();
    let enabled = flags.collectors.enabled();
    let mut kernel = load(&enabled, &flags.sizes, &flags.paths)?;
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
            readers.push(probes::reader(*probe, &mut kernel, &limits)?);
        }
    }
    let names: Vec<_> = readers.iter().map(|reader| reader.probe().name()).collect();
    tracing::info!(
        "probes {}: maps take at most {} of {} bytes",
        names.join(", "),
        kernel.maps_bytes,
        flags.sizes.memory
    );
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
    let flows = FlowTable::new(limits.flows as usize);
    let cpus = possible_cpus()?;
    let meter = Meter::new(Bank::new(kernel.map(map::SLOTS)?, size_of::<Slots>(), cpus));
    let running: Vec<_> = readers.iter().map(|reader| reader.probe()).collect();
    let cores = match (flags.sampling_period, &flags.cpu_file) {
        (Some(_), _) => None,
        (None, Some(file)) => Some(cores::read(file).map_err(anyhow::Error::msg)?),
        (None, None) => Some(flags.cpu),
    };
    let budget = Budget::new(meter, cores, flags.cpu_strict, &running, cpus);
    if let Some(period) = flags.sampling_period {
        let rate = Rate { period_log2: period.ilog2().into(), ..Rate::default() };
        for probe in [Probe::Disk, Probe::Udp] {
            kernel.control.set_rate(probe, &rate);
        }
    }
    let plans = probes::plans(&limits).into_iter().map(|(_, plan)| plan).collect();
    let wanted = Wanted { plans, memory_limit_bytes: flags.sizes.memory, enabled };
    Ok(State::new(kernel, readers, workloads, flows, budget, wanted))
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

/// Ends a tick every half second: empties tables that fill up, lets the budget decide, and attaches each probe for the share of the
/// tick that it may have.
async fn tick(site: Arc<Site>) {
    // The first tick ends a whole tick from now.
    let mut ticks = interval_at(Instant::now() + TICK, TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut windows = Windows::default();
    // Without a budget nothing stays attached even for the first tick.
    let mut settings = blocking(&site, Collector::settings).await.unwrap_or_default();
    loop {
        for setting in &settings {
            windows.plan(setting, Instant::now());
        }
        while let Some(switch) = windows.take_next() {
            sleep_until(switch.at).await;
            let work = move |collector: &Collector| collector.attach(switch.probe, switch.duty_log2);
            let worked = blocking(&site, work).await.unwrap_or(false);
            windows.done(&switch, worked, Instant::now());
        }
        ticks.tick().await;
        let next = blocking(&site, |collector| {
            collector.relieve();
            collector.tick()
        });
        settings = next.await.unwrap_or_default();
    }
}

/// Runs work that takes the collector's lock away from the thread that serves.
async fn blocking<T: Send + 'static>(
    site: &Arc<Site>,
    work: impl FnOnce(&Collector) -> T + Send + 'static,
) -> Option<T> {
    let site = Arc::clone(site);
    let done = tokio::task::spawn_blocking(move || work(&site.collector)).await;
    done.inspect_err(|error| tracing::error!("a reading failed: {error}")).ok()
}

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
