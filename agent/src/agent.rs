//! The agent's life: load, attach, serve, let go.

use std::{io, os::fd::AsFd as _, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
use siskin_ebpf::{Probe, Rate, Slots, map};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

use crate::{
    budget::meter::Meter,
    cli::Run,
    collect::{Collector, State},
    flows::FlowTable,
    http::{self, Site},
    kernel::{
        loader::{Kernel, Request, State as HookState, possible_cpus},
        privileges,
        rows::Bank,
        sys,
    },
    probes,
    workload::Workloads,
};

/// Probes whose events are sampled.
const HOT: [Probe; 2] = [Probe::Disk, Probe::Udp];

/// How often tables are looked at between scrapes.
const TICK: Duration = Duration::from_secs(1);

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

    let ticker = tokio::spawn(relieve(Arc::clone(&site)));
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

/// Loads the programs, attaches them and gives up what privileges are not needed any more.
fn start(flags: &Run) -> anyhow::Result<State> {
    let limits = flags.sizes.limits();
    let enabled = flags.collectors.enabled();
    let hooks = probes::hooks();
    let plans = probes::plans(&limits);
    let mut kernel = Kernel::load(&Request {
        sysfs: &flags.paths.sysfs,
        enabled: &enabled,
        hooks: &hooks,
        plans: &plans,
        memory_limit_bytes: flags.memory,
        sockets_limit: limits.sockets.into(),
    })?;
    #[cfg(feature = "ebpf-log")]
    kernel.log_programs().context("cannot read the programs' messages")?;
    for state in &kernel.hooks {
        if !state.state.reason().is_empty() {
            let (probe, point) = (state.hook.probe.name(), state.hook.point.name());
            tracing::warn!("probe {probe}: {point} is {}: {}", state.state.name(), state.state.reason());
        }
    }
    let mut readers = Vec::new();
    for probe in &enabled {
        if kernel.hooks.iter().any(|state| state.hook.probe == *probe && state.state == HookState::Attached) {
            readers.push(probes::reader(*probe, &mut kernel, &limits)?);
        }
    }
    let names: Vec<_> = readers.iter().map(|reader| reader.probe().name()).collect();
    tracing::info!(
        "probes {}: maps take at most {} of {} bytes",
        names.join(", "),
        kernel.maps_bytes,
        flags.memory
    );
    let control_map = kernel.map(map::CONTROL)?;
    // Reading any map tells whether reading maps still works.
    let works = || sys::lookup(control_map.as_fd(), &0u32.to_ne_bytes(), &mut [0; CONTROL_WORDS]).is_ok();
    let kept = privileges::drop_all_but_needed(works)?;
    tracing::debug!("capabilities kept: {kept:?}");
    let workloads =
        Workloads::new(flags.paths.cgroup.clone(), flags.paths.procfs.clone(), limits.workloads as usize);
    let flows = FlowTable::new(limits.flows as usize);
    let slots = Bank::new(kernel.map(map::SLOTS)?, size_of::<Slots>(), possible_cpus()?);
    let rate = Rate { period_log2: flags.sampling_period.ilog2().into(), ..Rate::default() };
    for probe in HOT {
        kernel.control.set_rate(probe, &rate);
    }
    let plans = plans.into_iter().map(|(_, plan)| plan).collect();
    Ok(State::new(kernel, readers, workloads, flows, Meter::new(slots), plans, flags.memory, enabled))
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

/// Keeps tables from filling up between scrapes.
async fn relieve(site: Arc<Site>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let site = Arc::clone(&site);
        if let Err(error) = tokio::task::spawn_blocking(move || site.collector.relieve()).await {
            tracing::error!("a reading failed: {error}");
        }
    }
}
