//! Loads the eBPF object: facts from BTF, memory within its budget, then each program on its hook. A hook that fails costs
//! its own series only.

use std::{
    fs, io, mem,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, anyhow, bail};
use aya::{
    Btf as AyaBtf, Ebpf, EbpfLoader, Endianness, include_bytes_aligned,
    maps::{Map, MapData, RingBuf},
    programs::{Iter as IterProgram, Program as AyaProgram, ProgramError},
};
use siskin_ebpf::{AllStats, Control as Shared, Probe, map};

use super::{
    attachment::Attachment,
    btf::Btf,
    control::Control,
    facts::{self, Facts},
    features::{Choice, Features},
    hook::{Group, Hook, HookState, Point, State},
    interrupts::Interrupts,
    iter::Iter,
    memory::{self, Kind, Plan},
    privileges,
    program::Program,
    sys,
};

/// The object that `cargo xtask build-ebpf` built.
pub static OBJECT: &[u8] = include_bytes_aligned!(env!("SISKIN_EBPF_OBJECT"));

/// The maps that belong to no probe.
pub const COMMON_MAPS: [Plan; 3] = [
    common(map::CONTROL, Kind::Array, size_of::<Shared>()),
    common(map::PROGRAM_STATS, Kind::PerCpuArray, size_of::<AllStats>()),
    // A page, or what takes the place of one: aya rounds it up to the machine's.
    Plan { name: map::OVERLOAD, kind: Kind::Ring, key_bytes: 0, value_bytes: 0, entries: 4096 },
];

const fn common(name: &'static str, kind: Kind, value_bytes: usize) -> Plan {
    Plan { name, kind, key_bytes: 4, value_bytes: value_bytes as u64, entries: 1 }
}

/// What to load.
#[derive(Debug)]
pub struct Request<'a> {
    /// Where sysfs is mounted.
    pub sysfs: &'a Path,
    /// Probes to run.
    pub enabled: &'a [Probe],
    /// All hooks.
    pub groups: &'a [Group],
    /// The maps of every probe.
    pub plans: &'a [(Probe, Plan)],
    /// The most kernel memory that maps may take.
    pub memory_limit_bytes: u64,
    /// Whether programs may be attached to the return of functions, where the kernel does that.
    pub may_attach_exits: bool,
    /// TCP sockets that may be followed at once.
    pub sockets_limit: u64,
}

/// The loaded object. Dropping it detaches everything.
#[derive(Debug)]
pub struct Kernel {
    ebpf: Ebpf,
    /// The map shared with the programs.
    pub control: Arc<Control>,
    /// What became of every hook.
    pub hooks: Vec<HookState>,
    /// The programs that are loaded.
    pub programs: Vec<Program>,
    /// The most kernel memory that the maps take, in bytes.
    pub maps_bytes: u64,
    sysfs: PathBuf,
    iterators: Vec<(&'static str, Iter)>,
    attachments: Vec<Attachment>,
    interrupts: Arc<Interrupts>,
    /// Whether this kernel attaches a program to a function more than once; `None` until one is there to be tried.
    exits_attach_again: Option<bool>,
}

impl Kernel {
    /// Loads and attaches what `request` asks for.
    ///
    /// # Errors
    /// When nothing can run: no privilege, no BTF, maps over their budget, or an object that the kernel refuses whole.
    pub fn load(request: &Request<'_>) -> anyhow::Result<Self> {
        privileges::check()?;
        let path = types_path(request.sysfs);
        let bytes = read_types(&path)?;
        let btf = parse_types(&bytes, &path)?;
        let facts = facts::resolve(&btf);
        let mut features = Features::probe(&btf);
        if !request.may_attach_exits {
            features.attaches_exits = |_| false;
        }
        let choices: Vec<_> = request.groups.iter().filter_map(|group| features.choose(group)).collect();

        let cpus = possible_cpus()? as u64;
        let plans = plans(request, &facts, &choices);
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
        // The capabilities were looked at before.
        let ebpf = loader.load(OBJECT).context(
            "cannot create maps (if that is not permitted: a seccomp profile or a security module forbids bpf(2), or, before \
             Linux 5.11, the limit on locked memory is too low)",
        )?;

        let control = Control::map(&map_fd(&ebpf, map::CONTROL)?).context("cannot map the control map")?;
        // Before any program runs: they follow no more sockets than this.
        control.limit_sockets(request.sockets_limit);
        control.set_cpus(cpus as u32);
        let mut kernel = Self {
            ebpf,
            control: Arc::new(control),
            hooks: Vec::new(),
            programs: Vec::new(),
            maps_bytes,
            sysfs: request.sysfs.to_owned(),
            iterators: Vec::new(),
            attachments: Vec::new(),
            interrupts: Arc::default(),
            exits_attach_again: None,
        };
        for choice in &choices {
            kernel.attach_group(choice, request.enabled, &facts, &aya_btf);
        }
        Ok(kernel)
    }

    /// Attaches the hooks that were chosen for a group, and notes what became of all.
    fn attach_group(&mut self, choice: &Choice, enabled: &[Probe], facts: &Facts, btf: &AyaBtf) {
        let Choice { way, passed } = choice;
        let put = |kernel: &mut Self, hook: &Hook, lack: Option<&str>| {
            let state = if !enabled.contains(&hook.probe) {
                State::Disabled
            } else if let Some(reason) = facts.missing(hook.probe) {
                State::Unsupported(reason.to_owned())
            } else if let Some(lack) = lack {
                State::replaced(hook, way.hooks, lack)
            } else {
                kernel.attach(hook, btf)
            };
            kernel.hooks.push(HookState { hook: *hook, state });
        };
        for (way, lack) in passed {
            way.hooks.iter().for_each(|hook| put(self, hook, Some(lack)));
        }
        way.hooks.iter().for_each(|hook| put(self, hook, None));
    }

    fn attach(&mut self, hook: &Hook, btf: &AyaBtf) -> State {
        let Err(error) = self.try_attach(hook, btf) else { return State::Attached };
        let Hook { program, requires, .. } = hook;
        let point = hook.point.name();
        match error.downcast_ref::<ProgramError>() {
            Some(ProgramError::Btf(_)) => {
                State::Unsupported(format!("this kernel has no {point}; it needs {requires}"))
            }
            Some(ProgramError::LoadError { io_error, verifier_log }) => {
                tracing::debug!("verifier log of {program}: {verifier_log}");
                refused(hook, io_error, &verifier_log.to_string())
            }
            _ if matches!(errno(&error), Some(ENOTSUPP | libc::ENOENT)) => {
                State::Unsupported(format!("this kernel attaches nothing to {point}; it needs {requires}"))
            }
            _ => State::Failed(format!("cannot attach program `{program}`: {error:#}")),
        }
    }

    fn try_attach(&mut self, hook: &Hook, btf: &AyaBtf) -> anyhow::Result<()> {
        let name = hook.program;
        let map = match hook.point {
            Point::MapIterator(_, map) => Some(self.map(map)?),
            Point::Tracepoint(_) | Point::Exit(_) | Point::Entry(_) | Point::Iterator(_) => None,
        };
        let program = program(&mut self.ebpf, name)?;
        let mut always_attached = hook.always_attached;
        match hook.point {
            Point::Tracepoint(tracepoint) => {
                let AyaProgram::BtfTracePoint(program) = program else { bail!(OTHER_KIND) };
                program.load(tracepoint, btf)?;
            }
            Point::Exit(function) => {
                let AyaProgram::FExit(program) = program else { bail!(OTHER_KIND) };
                program.load(function, btf)?;
                let again = match self.exits_attach_again {
                    Some(again) => again,
                    None => {
                        let again = sys::attaches_again(program.fd()?.as_fd())?;
                        if !again {
                            // That was the only time for this one.
                            program.unload()?;
                            program.load(function, btf)?;
                        }
                        *self.exits_attach_again.insert(again)
                    }
                };
                always_attached |= !again;
            }
            Point::Entry(_) => {
                let AyaProgram::KProbe(program) = program else { bail!(OTHER_KIND) };
                program.load()?;
            }
            Point::Iterator(target) | Point::MapIterator(target, _) => {
                let program: &mut IterProgram = program.try_into()?;
                program.load(target, btf)?;
                let link = sys::link_iter(program.fd()?.as_fd(), map.as_ref().map(OwnedFd::as_fd))?;
                self.iterators.push((name, Iter::new(link)));
            }
        }
        let fd = program.fd()?.as_fd().try_clone_to_owned()?;
        if hook.point.is_event() {
            let index = self.attachments.iter().position(|of| of.probe == hook.probe).unwrap_or_else(|| {
                self.attachments.push(Attachment::new(hook.probe, Arc::clone(&self.interrupts)));
                self.attachments.len() - 1
            });
            let link = match hook.point {
                Point::Entry(function) => sys::attach_entry(fd.as_fd(), function, kprobes(&self.sysfs)?)?,
                _ => sys::attach(fd.as_fd())?,
            };
            self.attachments[index].add(name, fd.try_clone()?, link, always_attached);
        }
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

    /// Takes out the ring that wakes user space when programs ran too often.
    ///
    /// # Errors
    /// When the object has none, or the kernel does not map it.
    pub fn take_overload(&mut self) -> anyhow::Result<RingBuf<MapData>> {
        let map =
            self.ebpf.take_map(map::OVERLOAD).context("the object has no map `overload`; rebuild it")?;
        RingBuf::try_from(map).context("cannot map the ring `overload`")
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

    /// Takes out what is attached, probe by probe.
    pub fn take_attachments(&mut self) -> Vec<Attachment> {
        mem::take(&mut self.attachments)
    }

    /// Whether nothing of a probe is lacking.
    pub fn is_up(&self, probe: Probe) -> bool {
        self.hooks.iter().filter(|state| state.hook.probe == probe).all(|state| match state.state {
            State::Attached | State::Replaced(_) => true,
            State::Limited(_) | State::Unsupported(_) | State::Failed(_) | State::Disabled => false,
        })
    }

    /// The hooks of a probe whose programs run on events.
    pub fn event_points(&self, probe: Probe) -> impl Iterator<Item = Point> + '_ {
        let attached = move |of: &&HookState| of.hook.probe == probe && of.state == State::Attached;
        self.hooks.iter().filter(attached).map(|of| of.hook.point).filter(Point::is_event)
    }

    /// Whether a probe has anything attached.
    pub fn runs(&self, probe: Probe) -> bool {
        self.hooks.iter().any(|state| state.hook.probe == probe && state.state == State::Attached)
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

/// The maps to make. The object makes every map; those that nobody will use are as small as can be.
fn plans(request: &Request<'_>, facts: &Facts, choices: &[Choice]) -> Vec<Plan> {
    let runs = |probe| request.enabled.contains(&probe) && facts.missing(probe).is_none();
    let is_of_a_way =
        |name| request.groups.iter().flat_map(|group| group.ways).any(|way| way.maps.contains(&name));
    let is_chosen = |name| choices.iter().any(|choice| choice.way.maps.contains(&name));
    let is_used = |name| is_chosen(name) || !is_of_a_way(name);
    let of_probes = request.plans.iter().map(|(probe, plan)| Plan {
        entries: if runs(*probe) && is_used(plan.name) { plan.entries } else { 1 },
        ..*plan
    });
    COMMON_MAPS.into_iter().chain(of_probes).collect()
}

/// The number by which `perf_event_open(2)` knows kprobes; where there are none it is not there (`ENOENT`).
fn kprobes(sysfs: &Path) -> anyhow::Result<u32> {
    let path = sysfs.join("bus/event_source/devices/kprobe/type");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    text.trim().parse().with_context(|| format!("{} has no number: {text}", path.display()))
}

/// What the kernel says when it cannot do a thing on this architecture (include/linux/errno.h, 6.18); libc has no name for it.
const ENOTSUPP: i32 = 524;

const OTHER_KIND: &str = "the program in the object is of another kind; rebuild it";

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut AyaProgram> {
    ebpf.program_mut(name).ok_or_else(|| anyhow!("the object has no program `{name}`; rebuild it"))
}

/// What the kernel answered to a call of ours.
fn errno(error: &anyhow::Error) -> Option<i32> {
    error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error)
}

/// What becomes of a hook whose program the kernel does not load.
fn refused(hook: &Hook, error: &io::Error, log: &str) -> State {
    let Hook { program, requires, .. } = hook;
    let what = format!("cannot load program `{program}` for {}: {error}", hook.point.name());
    match objection(log) {
        Some(objection) => State::Failed(format!("{what}: {objection}")),
        // The capabilities are there: a security module forbids it. That is nothing that the kernel lacks.
        None if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => State::Failed(what),
        // The verifier did not even look at it.
        None => State::Unsupported(format!("{what}; it needs {requires}")),
    }
}

/// What the verifier objects to. Its log ends with statistics; the objection stands above them.
fn objection(log: &str) -> Option<&str> {
    const STATISTICS: [&str; 3] = ["processed ", "stack depth ", "verification time "];
    log.lines().rev().find(|line| !line.is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start)))
}

fn map_fd(ebpf: &Ebpf, name: &str) -> anyhow::Result<OwnedFd> {
    let map = ebpf.map(name).ok_or_else(|| anyhow!("the object has no map `{name}`; rebuild it"))?;
    let (Map::Array(data)
    | Map::HashMap(data)
    | Map::LruHashMap(data)
    | Map::PerCpuArray(data)
    | Map::SkStorage(data)) = map
    else {
        bail!("map `{name}` is of a kind that Siskin does not read");
    };
    Ok(data.fd().as_fd().try_clone_to_owned()?)
}

/// Where the kernel's types are.
pub fn types_path(sysfs: &Path) -> PathBuf {
    sysfs.join("kernel/btf/vmlinux")
}

/// Reads the kernel's types.
///
/// # Errors
/// When there are none, or they cannot be read.
pub fn read_types(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow!(
            "cannot load programs: kernel {} has no BTF at {}; Siskin needs CONFIG_DEBUG_INFO_BTF=y, \
             and sysfs where --path.sysfs says",
            rustix::system::uname().release().to_string_lossy(),
            path.display()
        ),
        _ => anyhow!("cannot read kernel types from {}: {error}", path.display()),
    })
}

/// Understands the kernel's types.
///
/// # Errors
/// When they are no BTF.
pub fn parse_types<'a>(bytes: &'a [u8], path: &Path) -> anyhow::Result<Btf<'a>> {
    Btf::parse(bytes).with_context(|| format!("cannot read kernel types from {}", path.display()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes;

    #[test]
    fn what_the_kernel_lacks_is_told_from_what_it_refuses() {
        let hook = probes::udp::GROUPS[0].ways[1].hooks[0];
        let refused = |errno, log| refused(&hook, &io::Error::from_raw_os_error(errno), log);
        let what = format!("cannot load program `{}` for {}: ", hook.program, hook.point.name());
        // The log's first line is the objection, the second statistics.
        let verifier = refused(libc::EACCES, "R1 invalid mem access\nprocessed 9 insns\n");
        assert!(matches!(&verifier, State::Failed(reason) if reason.starts_with(&what)), "{verifier:?}");
        assert!(verifier.reason().ends_with("(os error 13): R1 invalid mem access"), "{verifier:?}");
        let lacking = refused(libc::EINVAL, "processed 0 insns\n");
        assert!(matches!(&lacking, State::Unsupported(_)), "{lacking:?}");
        let needs = format!("(os error 22); it needs {}", hook.requires);
        assert!(lacking.reason().ends_with(&needs), "{lacking:?}");
        let forbidden = refused(libc::EPERM, "");
        assert!(matches!(&forbidden, State::Failed(_)), "{forbidden:?}");
    }
}
