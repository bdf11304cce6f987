//! Loads the eBPF object: facts from BTF, memory within its budget, then each program on its hook. A hook that fails costs
//! its own series only.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use aya::{
    Btf as AyaBtf, Ebpf, EbpfLoader, Endianness, include_bytes_aligned,
    maps::Map,
    programs::{BtfTracePoint, Iter as IterProgram, ProgramError, tp_btf::BtfTracePointLinkId},
};
use siskin_ebpf::{Control as Shared, Probe, Slots, map};

use super::{
    btf::Btf,
    control::Control,
    facts,
    iter::Iter,
    memory::{self, Kind, Plan},
    privileges,
    program::Program,
    sys,
};

/// The object that `cargo xtask build-ebpf` built.
pub static OBJECT: &[u8] = include_bytes_aligned!(env!("SISKIN_EBPF_OBJECT"));

/// The maps that belong to no probe.
pub const COMMON_MAPS: [Plan; 2] = [
    common(map::CONTROL, Kind::Array, size_of::<Shared>()),
    common(map::SLOTS, Kind::PerCpuArray, size_of::<Slots>()),
];

const fn common(name: &'static str, kind: Kind, value_bytes: usize) -> Plan {
    Plan { name, kind, key_bytes: 4, value_bytes: value_bytes as u64, entries: 1 }
}

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A tracepoint, with arguments typed by BTF.
    Tracepoint(&'static str),
    /// An iterator over kernel objects, run by user space.
    Iterator(&'static str),
    /// An iterator over the elements of a map.
    MapIterator(&'static str, &'static str),
}

impl Point {
    /// The hook's name in labels and logs.
    pub fn name(&self) -> String {
        match self {
            Self::Tracepoint(name) => format!("tp_btf/{name}"),
            Self::Iterator(name) | Self::MapIterator(name, _) => format!("iter/{name}"),
        }
    }
}

/// A program and where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// The probe it is part of.
    pub probe: Probe,
    /// The program's name.
    pub program: &'static str,
    /// Where it is attached.
    pub point: Point,
}

/// What became of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The program runs.
    Attached,
    /// This kernel does not have what the program needs.
    Unsupported(String),
    /// The kernel refused the program.
    Failed(String),
    /// The operator turned the probe off.
    Disabled,
}

impl State {
    /// The value of the label `state`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Unsupported(_) => "unsupported",
            Self::Failed(_) => "failed",
            Self::Disabled => "disabled",
        }
    }

    /// The value of the label `reason`.
    pub fn reason(&self) -> &str {
        match self {
            Self::Unsupported(reason) | Self::Failed(reason) => reason,
            Self::Attached | Self::Disabled => "",
        }
    }
}

/// A hook with its state.
#[derive(Clone, Debug)]
pub struct HookState {
    /// The hook.
    pub hook: Hook,
    /// What became of it.
    pub state: State,
}

/// What to load.
#[derive(Debug)]
pub struct Request<'a> {
    /// Where sysfs is mounted.
    pub sysfs: &'a Path,
    /// Probes to run.
    pub enabled: &'a [Probe],
    /// All hooks.
    pub hooks: &'a [Hook],
    /// The maps of every probe.
    pub plans: &'a [(Probe, Plan)],
    /// The most kernel memory that maps may take.
    pub memory_limit_bytes: u64,
    /// TCP sockets that may be followed at once.
    pub sockets_limit: u64,
}

/// The loaded object. Dropping it detaches everything.
#[derive(Debug)]
pub struct Kernel {
    ebpf: Ebpf,
    /// The map shared with the programs.
    pub control: Control,
    /// What became of every hook.
    pub hooks: Vec<HookState>,
    /// The programs that are loaded.
    pub programs: Vec<Program>,
    /// The most kernel memory that the maps take, in bytes.
    pub maps_bytes: u64,
    sysfs: PathBuf,
    iterators: Vec<(&'static str, Iter)>,
    links: HashMap<&'static str, BtfTracePointLinkId>,
}

impl Kernel {
    /// Loads and attaches what `request` asks for.
    ///
    /// # Errors
    /// When nothing can run: no privilege, no BTF, maps over their budget, or an object that the kernel refuses whole.
    pub fn load(request: &Request<'_>) -> anyhow::Result<Self> {
        privileges::check()?;
        let path = request.sysfs.join("kernel/btf/vmlinux");
        let bytes = read_btf(&path)?;
        let btf = Btf::parse(&bytes)
            .with_context(|| format!("cannot read kernel types from {}", path.display()))?;
        let facts = facts::resolve(&btf);
        let runs = |probe: Probe| request.enabled.contains(&probe) && facts.missing(probe).is_none();

        let cpus = possible_cpus()? as u64;
        let mut plans = COMMON_MAPS.to_vec();
        plans.extend(request.plans.iter().map(|(probe, plan)| {
            // The object makes every map; those of a probe that does not run are as small as can be.
            Plan { entries: if runs(*probe) { plan.entries } else { 1 }, ..*plan }
        }));
        let maps_bytes = memory::total_bytes(&plans, cpus);
        if maps_bytes > request.memory_limit_bytes {
            bail!(
                "maps would take up to {maps_bytes} bytes on {cpus} CPUs, more than --budget.memory={}; raise it, or lower \
                 --flows.max-series, --workloads.max-series, --disk.max-devices or --tcp.max-sockets",
                request.memory_limit_bytes
            );
        }

        raise_memlock();
        let aya_btf = AyaBtf::parse(&bytes, Endianness::default()).context("cannot parse kernel types")?;
        drop(btf);
        drop(bytes);
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&aya_btf));
        for (global, value) in &facts.globals {
            loader.override_global(global, value, true);
        }
        for plan in plans.iter().filter(|plan| plan.kind != Kind::SocketStorage) {
            loader.map_max_entries(plan.name, plan.entries);
        }
        let ebpf = loader.load(OBJECT).context("cannot create maps")?;

        let control = Control::map(&map_fd(&ebpf, map::CONTROL)?).context("cannot map the control map")?;
        // Before any program runs: they follow no more sockets than this.
        control.limit_sockets(request.sockets_limit);
        let mut kernel = Self {
            ebpf,
            control,
            hooks: Vec::new(),
            programs: Vec::new(),
            maps_bytes,
            sysfs: request.sysfs.to_owned(),
            iterators: Vec::new(),
            links: HashMap::new(),
        };
        for hook in request.hooks {
            let state = if !request.enabled.contains(&hook.probe) {
                State::Disabled
            } else if let Some(reason) = facts.missing(hook.probe) {
                State::Unsupported(reason.to_owned())
            } else {
                kernel.attach(hook, &aya_btf)
            };
            kernel.hooks.push(HookState { hook: *hook, state });
        }
        Ok(kernel)
    }

    fn attach(&mut self, hook: &Hook, btf: &AyaBtf) -> State {
        match self.try_attach(hook, btf) {
            Ok(()) => State::Attached,
            Err(error) => match error.downcast_ref::<ProgramError>() {
                Some(ProgramError::Btf(_)) => {
                    State::Unsupported(format!("this kernel has no {}", hook.point.name()))
                }
                Some(ProgramError::LoadError { io_error, verifier_log }) => {
                    tracing::debug!("verifier log of {}: {verifier_log}", hook.program);
                    let log = verifier_log.to_string();
                    // The log ends with statistics; what the verifier objects to stands above them.
                    let statistics = ["processed ", "stack depth ", "verification time "];
                    let last = log
                        .lines()
                        .rev()
                        .find(|line| {
                            !statistics.iter().any(|start| line.starts_with(start)) && !line.is_empty()
                        })
                        .unwrap_or_default();
                    State::Failed(format!("cannot load program `{}`: {io_error}: {last}", hook.program))
                }
                _ => State::Failed(format!("cannot attach program `{}`: {error:#}", hook.program)),
            },
        }
    }

    fn try_attach(&mut self, hook: &Hook, btf: &AyaBtf) -> anyhow::Result<()> {
        let name = hook.program;
        let map = match hook.point {
            Point::MapIterator(_, map) => Some(self.map(map)?),
            Point::Tracepoint(_) | Point::Iterator(_) => None,
        };
        let program = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| anyhow!("the object has no program `{name}`; rebuild it"))?;
        let fd = match hook.point {
            Point::Tracepoint(tracepoint) => {
                let program: &mut BtfTracePoint = program.try_into()?;
                program.load(tracepoint, btf)?;
                let link = program.attach()?;
                self.links.insert(name, link);
                program.fd()?.as_fd().try_clone_to_owned()?
            }
            Point::Iterator(target) | Point::MapIterator(target, _) => {
                let program: &mut IterProgram = program.try_into()?;
                program.load(target, btf)?;
                let fd = program.fd()?.as_fd().try_clone_to_owned()?;
                let link = sys::link_iter(fd.as_fd(), map.as_ref().map(OwnedFd::as_fd))?;
                self.iterators.push((name, Iter::new(link)));
                fd
            }
        };
        self.programs.push(Program::new(hook.probe, name, fd));
        Ok(())
    }

    /// A descriptor of a map, of our own.
    ///
    /// # Errors
    /// When the object has no such map, or the process no more descriptors.
    pub fn map(&self, name: &str) -> anyhow::Result<OwnedFd> {
        map_fd(&self.ebpf, name)
    }

    /// Where sysfs is mounted.
    pub fn sysfs(&self) -> &Path {
        &self.sysfs
    }

    /// Takes a linked iterator out, to run it or to drop it.
    pub fn take_iterator(&mut self, program: &str) -> Option<Iter> {
        let index = self.iterators.iter().position(|(name, _)| *name == program)?;
        Some(self.iterators.swap_remove(index).1)
    }

    /// Detaches the probe's programs from their tracepoints; they stay loaded.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn pause(&mut self, probe: Probe) -> anyhow::Result<()> {
        for name in self.tracepoint_programs(probe) {
            if let Some(link) = self.links.remove(name) {
                self.tracepoint(name)?.detach(link)?;
            }
        }
        Ok(())
    }

    /// Attaches the programs that [`Self::pause`] detached.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn resume(&mut self, probe: Probe) -> anyhow::Result<()> {
        for name in self.tracepoint_programs(probe) {
            if !self.links.contains_key(name) {
                let link = self.tracepoint(name)?.attach()?;
                self.links.insert(name, link);
            }
        }
        Ok(())
    }

    fn tracepoint_programs(&self, probe: Probe) -> Vec<&'static str> {
        let attached = self.hooks.iter().filter(|state| {
            state.hook.probe == probe
                && state.state == State::Attached
                && matches!(state.hook.point, Point::Tracepoint(_))
        });
        attached.map(|state| state.hook.program).collect()
    }

    fn tracepoint(&mut self, name: &str) -> anyhow::Result<&mut BtfTracePoint> {
        let program = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| anyhow!("the object has no program `{name}`; rebuild it"))?;
        Ok(program.try_into()?)
    }

    /// Whether every hook of a probe is attached.
    pub fn is_up(&self, probe: Probe) -> bool {
        self.hooks
            .iter()
            .filter(|state| state.hook.probe == probe)
            .all(|state| state.state == State::Attached)
    }

    /// Sends what the programs print to the log, when they were built to print.
    #[cfg(feature = "ebpf-log")]
    pub fn log_programs(&mut self) -> anyhow::Result<()> {
        let logger = aya_log::EbpfLogger::init(&mut self.ebpf)?;
        let mut logger = tokio::io::unix::AsyncFd::with_interest(logger, tokio::io::Interest::READABLE)?;
        tokio::task::spawn(async move {
            while let Ok(mut guard) = logger.readable_mut().await {
                guard.get_inner_mut().flush();
                guard.clear_ready();
            }
        });
        Ok(())
    }
}

fn map_fd(ebpf: &Ebpf, name: &str) -> anyhow::Result<OwnedFd> {
    let map = ebpf.map(name).ok_or_else(|| anyhow!("the object has no map `{name}`; rebuild it"))?;
    let (Map::Array(data)
    | Map::HashMap(data)
    | Map::LruHashMap(data)
    | Map::PerCpuArray(data)
    | Map::PerCpuHashMap(data)
    | Map::SkStorage(data)) = map
    else {
        bail!("map `{name}` is of a kind that Siskin does not read");
    };
    Ok(data.fd().as_fd().try_clone_to_owned()?)
}

fn read_btf(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow!(
            "cannot load programs: kernel {} has no BTF at {}; Siskin needs CONFIG_DEBUG_INFO_BTF=y",
            rustix::system::uname().release().to_string_lossy(),
            path.display()
        ),
        _ => anyhow!("cannot read kernel types from {}: {error}", path.display()),
    })
}

/// CPUs that may ever come online: per-CPU maps have a value for each.
///
/// # Errors
/// When the kernel's list cannot be read.
pub fn possible_cpus() -> anyhow::Result<usize> {
    aya::util::nr_cpus()
        .map_err(|(path, error)| anyhow!("cannot read {}: {error}", PathBuf::from(path).display()))
}

/// Before 5.11 map memory counts against RLIMIT_MEMLOCK. Failing is fine: newer kernels do not look at it, and on
/// older ones making the maps fails with its own message.
fn raise_memlock() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    if let Err(error) = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }) {
        tracing::debug!("cannot raise RLIMIT_MEMLOCK: {error}");
    }
}
