//! Hooks: where a program is attached, what does its work where that cannot be, and what became of it.

use siskin_ebpf::Probe;

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A tracepoint, with arguments typed by BTF.
    Tracepoint(&'static str),
    /// The return of a kernel function, with arguments typed by BTF.
    Exit(&'static str),
    /// The entry of a kernel function, with arguments that are numbers: a kprobe.
    Entry(&'static str),
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
            Self::Exit(name) => format!("fexit/{name}"),
            Self::Entry(name) => format!("kprobe/{name}"),
            Self::Iterator(name) | Self::MapIterator(name, _) => format!("iter/{name}"),
        }
    }

    /// Whether programs run there by themselves, and not when user space asks.
    pub const fn is_event(&self) -> bool {
        matches!(self, Self::Tracepoint(_) | Self::Exit(_) | Self::Entry(_))
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
    /// What a kernel without this point lacks.
    pub requires: &'static str,
    /// What is not told where the next way is used instead; `None` when that tells the same truth.
    pub limitation: Option<&'static str>,
    /// Whether the program has to see every event, and is never detached.
    pub always_attached: bool,
}

/// Work that hooks can do in more than one way.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// The ways, the cheapest first. The last is taken when nothing of what the others need is there.
    pub ways: &'static [Way],
}

/// Hooks that work together.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// What they need. Found out before anything is loaded.
    pub needs: Needs,
    /// The hooks.
    pub hooks: &'static [Hook],
    /// The maps that only they use.
    pub maps: &'static [&'static str],
}

impl Way {
    /// Hooks that need nothing else, or that nothing replaces.
    pub const fn any(hooks: &'static [Hook]) -> Self {
        Self { needs: Needs::Nothing, hooks, maps: &[] }
    }
}

impl Group {
    /// Every hook, whichever way it belongs to.
    pub fn hooks(&self) -> impl Iterator<Item = &'static Hook> + use<> {
        self.ways.iter().flat_map(|way| way.hooks)
    }
}

/// What hooks need of a kernel beyond being there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: loading them tells.
    Nothing,
    /// This BTF tracepoint.
    Tracepoint(&'static str),
    /// Programs on the return of functions, all of these.
    Exits(&'static [&'static str]),
    /// Atomic instructions that return what was there (5.12).
    FetchingAtomics,
}

/// What became of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The program runs.
    Attached,
    /// Others tell the same truth in its place, for this reason.
    Replaced(String),
    /// Others do its work for this reason, and tell less.
    Limited(String),
    /// This kernel does not have what the program needs.
    Unsupported(String),
    /// The kernel refused the program.
    Failed(String),
    /// The operator turned the probe off.
    Disabled,
}

impl State {
    /// The value of the label `state`. A hook that is replaced has no series: those in its place have.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Replaced(_) => "replaced",
            Self::Limited(_) | Self::Unsupported(_) => "unsupported",
            Self::Failed(_) => "failed",
            Self::Disabled => "disabled",
        }
    }

    /// The value of the label `reason`: why something is lacking, empty when nothing is.
    pub fn reason(&self) -> &str {
        match self {
            Self::Limited(reason) | Self::Unsupported(reason) | Self::Failed(reason) => reason,
            Self::Attached | Self::Replaced(_) | Self::Disabled => "",
        }
    }

    /// What becomes of a hook in whose place others are used, because of `lack`.
    pub fn replaced(hook: &Hook, instead: &[Hook], lack: &str) -> Self {
        let points: Vec<_> = instead.iter().map(|hook| hook.point.name()).collect();
        let reason = format!("{lack}; {} instead", points.join(" and "));
        match hook.limitation {
            Some(limitation) => Self::Limited(format!("{reason}: {limitation}")),
            None => Self::Replaced(reason),
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

impl HookState {
    /// One line about what is lacking; `None` when nothing is.
    pub fn lack(&self) -> Option<String> {
        let reason = self.state.reason();
        (!reason.is_empty())
            .then(|| format!("{} {}: {reason}", self.hook.probe.name(), self.hook.point.name()))
    }
}
