//! `siskin check`: what this kernel and these privileges allow. Attaches what `siskin run` would attach, with the same code, and
//! lets it go again.

use std::fmt::Write as _;

use serde_json::{Value, json};
use siskin_ebpf::Probe;

use crate::{
    agent,
    cli::Check,
    kernel::{
        facts::{self, Facts},
        hook::{HookState, State},
        loader::{self, Kernel},
        privileges,
    },
    probes,
    workload::{Hierarchy, cgroup},
};

/// Something that all probes depend on.
#[derive(Debug)]
struct Finding {
    what: &'static str,
    /// `ok`, `missing` where no probe can run without it, or `limited` where numbers lack something without it.
    state: &'static str,
    text: String,
}

impl Finding {
    fn new(what: &'static str, outcome: Result<String, String>, otherwise: &'static str) -> Self {
        let state = if outcome.is_ok() { "ok" } else { otherwise };
        Self { what, state, text: outcome.unwrap_or_else(|text| text) }
    }
}

/// What became of a hook, or would.
#[derive(Debug)]
struct Tried {
    program: &'static str,
    point: String,
    state: &'static str,
    reason: String,
    /// Instructions that the verifier looked at, where the kernel tells (5.16).
    verified_instructions: Option<u32>,
}

/// A probe with its hooks.
#[derive(Debug)]
struct Checked {
    probe: Probe,
    verdict: Verdict,
    hooks: Vec<Tried>,
}

/// What a probe can do here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Everything.
    Whole,
    /// Its work, told with less than everything.
    Limited,
    /// Not what it is for.
    Cannot,
    /// The operator turned it off.
    Disabled,
}

impl Verdict {
    fn of(states: &[&State]) -> Self {
        states.iter().fold(Self::Whole, |verdict, state| match (state, verdict) {
            (State::Disabled, _) => Self::Disabled,
            (State::Unsupported(_) | State::Failed(_), _) | (_, Self::Cannot) => Self::Cannot,
            (State::Limited(_), _) | (_, Self::Limited) => Self::Limited,
            (State::Attached | State::Replaced(_), verdict) => verdict,
        })
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Whole => "ok",
            Self::Limited => "limited",
            Self::Cannot => "cannot run",
            Self::Disabled => "disabled",
        }
    }
}

/// What `siskin check` found.
#[derive(Debug)]
pub struct Report {
    release: String,
    machine: String,
    findings: Vec<Finding>,
    probes: Vec<Checked>,
    /// Whether every enabled probe can run; with `--collector.strict`, whether none lacks anything.
    pub can_run: bool,
}

/// Looks at the kernel that runs.
pub fn check(flags: &Check) -> Report {
    let uname = rustix::system::uname();
    let (findings, probes) = look(flags);
    let can_run = probes.iter().all(|checked| match checked.verdict {
        Verdict::Whole | Verdict::Disabled => true,
        Verdict::Limited => !flags.collectors.strict,
        Verdict::Cannot => false,
    });
    Report {
        release: uname.release().to_string_lossy().into_owned(),
        machine: uname.machine().to_string_lossy().into_owned(),
        findings,
        probes,
        can_run,
    }
}

fn look(flags: &Check) -> (Vec<Finding>, Vec<Checked>) {
    let enabled = flags.collectors.enabled();
    let path = loader::types_path(&flags.paths.sysfs);
    let resolved = loader::read_types(&path)
        .and_then(|bytes| loader::parse_types(&bytes, &path).map(|btf| facts::resolve(&btf)));
    let loaded = agent::load(&enabled, &flags.sizes, &flags.paths, true);
    let allowed = privileges::check().map(|()| privileges::names(&privileges::NEEDED));

    let text = |error: &anyhow::Error| format!("{error:#}");
    let types = resolved.as_ref().map(|_| path.display().to_string()).map_err(text);
    let cgroups = cgroup::hierarchies(&flags.paths.cgroup_mount, &flags.paths.procfs);
    let cgroup2 = cgroups.into_iter().find(|(hierarchy, _)| *hierarchy == Hierarchy::CGROUP2);
    let cgroup2 = cgroup2.map(|(_, root)| format!("cgroup2 at {}", root.display())).ok_or_else(|| {
        let place = flags.paths.cgroup_mount.display();
        format!("no cgroup2 at {place}: workloads will be `unknown`; mount it or give --path.cgroup")
    });
    let mut findings = vec![
        Finding::new("privileges", allowed.map_err(|error| text(&error)), "missing"),
        Finding::new("kernel types", types, "missing"),
        Finding::new("workloads", cgroup2, "limited"),
    ];
    let probes = match &loaded {
        Ok(kernel) => {
            let bytes = format!("maps take at most {} of {} bytes", kernel.maps_bytes, flags.sizes.memory);
            findings.push(Finding::new("memory", Ok(bytes), "missing"));
            Probe::ALL.into_iter().map(|probe| tried(probe, kernel)).collect()
        }
        Err(error) => {
            let said = findings.iter().any(|finding| finding.text == text(error));
            if !said {
                findings.push(Finding::new("loading", Err(text(error)), "missing"));
            }
            let facts = resolved.unwrap_or_default();
            Probe::ALL.into_iter().map(|probe| untried(probe, enabled.contains(&probe), &facts)).collect()
        }
    };
    (findings, probes)
}

/// What became of a probe's hooks.
fn tried(probe: Probe, kernel: &Kernel) -> Checked {
    let hooks: Vec<_> = kernel.hooks.iter().filter(|state| state.hook.probe == probe).collect();
    let verdict = Verdict::of(&hooks.iter().map(|state| &state.state).collect::<Vec<_>>());
    let tried = hooks.into_iter().map(|HookState { hook, state }| {
        let program = kernel.programs.iter().find(|program| program.name == hook.program);
        let verified = program.and_then(|program| program.counted().ok()).map(|it| it.verified_instructions);
        Tried {
            program: hook.program,
            point: hook.point.name(),
            state: state.name(),
            reason: match state {
                State::Replaced(reason) => reason.clone(),
                other => other.reason().to_owned(),
            },
            verified_instructions: verified.filter(|instructions| *instructions != 0),
        }
    });
    Checked { probe, verdict, hooks: tried.collect() }
}

/// What can be said of a probe's hooks without loading anything.
fn untried(probe: Probe, enabled: bool, facts: &Facts) -> Checked {
    let groups = probes::groups();
    let hooks = groups.iter().filter_map(|group| group.ways.first()).flat_map(|way| way.hooks);
    let hooks = hooks.filter(|hook| hook.probe == probe);
    let missing = facts.missing(probe);
    let tried = hooks.map(|hook| Tried {
        program: hook.program,
        point: hook.point.name(),
        state: match (enabled, missing) {
            (false, _) => "disabled",
            (true, Some(_)) => "unsupported",
            (true, None) => "not tried",
        },
        reason: missing.filter(|_| enabled).unwrap_or_default().to_owned(),
        verified_instructions: None,
    });
    let verdict = if enabled { Verdict::Cannot } else { Verdict::Disabled };
    Checked { probe, verdict, hooks: tried.collect() }
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!("Linux {}, {}\n\n", self.release, self.machine);
        // Writing to a String cannot fail.
        for Finding { what, state, text: found } in &self.findings {
            let _ = writeln!(text, "{what:<14} {state:<8} {found}");
        }
        for Checked { probe, verdict, hooks } in &self.probes {
            let _ = writeln!(text, "\n{:<14} {}", probe.name(), verdict.name());
            for Tried { program, point, state, reason, .. } in hooks {
                let line = format!("  {point:<32} {program:<15} {state:<11} {reason}");
                let _ = writeln!(text, "{}", line.trim_end());
            }
        }
        let of = |wanted| {
            let probes = self.probes.iter().filter(|checked| checked.verdict == wanted);
            probes.map(|checked| checked.probe.name()).collect::<Vec<_>>().join(", ")
        };
        let (cannot, limited) = (of(Verdict::Cannot), of(Verdict::Limited));
        text.push('\n');
        if cannot.is_empty() {
            text.push_str("every enabled probe can run\n");
        } else {
            let _ = writeln!(text, "cannot run: {cannot}");
        }
        if !limited.is_empty() {
            let _ = writeln!(text, "limited: {limited}");
        }
        text
    }

    /// For programs: one object on one line.
    pub fn json(&self) -> String {
        let findings: Vec<_> = self
            .findings
            .iter()
            .map(|Finding { what, state, text }| json!({ "what": what, "state": state, "text": text }))
            .collect();
        let probes: Vec<_> = self
            .probes
            .iter()
            .map(|Checked { probe, verdict, hooks }| {
                let hooks: Vec<_> = hooks.iter().map(Tried::json).collect();
                json!({ "probe": probe.name(), "state": verdict.name(), "hooks": hooks })
            })
            .collect();
        let report = json!({
            "release": self.release,
            "machine": self.machine,
            "can_run": self.can_run,
            "findings": findings,
            "probes": probes,
        });
        format!("{report}\n")
    }
}

impl Tried {
    fn json(&self) -> Value {
        let Self { program, point, state, reason, verified_instructions } = self;
        json!({
            "hook": point,
            "program": program,
            "state": state,
            "reason": reason,
            "verified_instructions": verified_instructions,
        })
    }
}
