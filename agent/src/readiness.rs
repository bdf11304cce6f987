//! Whether everything runs that this kernel allows. Pure.
//!
//! What a kernel does not have makes no agent unready: nothing that a restart or an older version could do would bring it, and a
//! rollout over nodes with different kernels would stop at the first of them. A program that the kernel refused does, and so does a
//! reading that failed.

use std::fmt::Write as _;

use siskin_ebpf::Probe;

use crate::kernel::hook::{HookState, State};

/// How a probe fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    /// Whole.
    Up,
    /// It runs, without something that this kernel does not have.
    Limited,
    /// This kernel does not have what it needs.
    Unsupported,
    /// The kernel refused a program, or the last reading.
    Failed,
    /// The operator turned it off.
    Disabled,
}

impl Condition {
    /// Of a probe with hooks in such states.
    fn of(states: &[&State], is_read: bool) -> Self {
        let any = |wanted: fn(&State) -> bool| states.iter().any(|state| wanted(state));
        if any(|state| matches!(state, State::Disabled)) {
            Self::Disabled
        } else if !is_read || any(|state| matches!(state, State::Failed(_))) {
            Self::Failed
        } else if !any(|state| matches!(state, State::Limited(_) | State::Unsupported(_))) {
            Self::Up
        } else if any(|state| matches!(state, State::Attached)) {
            Self::Limited
        } else {
            Self::Unsupported
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Limited => "limited",
            Self::Unsupported => "unsupported",
            Self::Failed => "failed",
            Self::Disabled => "disabled",
        }
    }
}

/// How every probe fares.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Vec<Fares>);

/// A probe, how it fares, and what it lacks.
#[derive(Clone, Debug)]
struct Fares {
    probe: Probe,
    condition: Condition,
    lacks: Vec<String>,
}

impl Readiness {
    /// With hooks in such states, and probes whose last reading did or did not succeed.
    pub fn of(hooks: &[HookState], is_read: impl Fn(Probe) -> bool) -> Self {
        let fares = |probe| {
            let hooks: Vec<_> = hooks.iter().filter(|of| of.hook.probe == probe).collect();
            let states: Vec<_> = hooks.iter().map(|of| &of.state).collect();
            let mut lacks: Vec<_> = hooks.iter().filter_map(|of| of.lack()).collect();
            if !is_read(probe) {
                lacks.push(format!("{}: the last reading failed", probe.name()));
            }
            Fares { probe, condition: Condition::of(&states, is_read(probe)), lacks }
        };
        Self(Probe::ALL.into_iter().map(fares).collect())
    }

    /// Whether everything runs that this kernel allows, and that is not nothing.
    pub fn is_ready(&self) -> bool {
        let any = |wanted: &[Condition]| self.0.iter().any(|of| wanted.contains(&of.condition));
        let nothing = any(&[Condition::Unsupported]) && !any(&[Condition::Up, Condition::Limited]);
        !any(&[Condition::Failed]) && !nothing
    }

    /// What is lacking, in a line each.
    pub fn lacks(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|of| &of.lacks).map(String::as_str)
    }

    /// Whether it is ready, then every probe with what it lacks.
    pub fn text(&self) -> String {
        let mut text = String::from(if self.is_ready() { "ready\n" } else { "not ready\n" });
        // Writing to a String cannot fail.
        for Fares { probe, condition, lacks } in &self.0 {
            let _ = writeln!(text, "{} {}", probe.name(), condition.name());
            for lack in lacks {
                let _ = writeln!(text, "  {lack}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kernel::hook::Hook, probes};

    /// A hook of the probe. Which one is all the same.
    fn hook(probe: Probe) -> Hook {
        let mut hooks = probes::groups().into_iter().flat_map(|group| group.hooks());
        *hooks.find(|hook| hook.probe == probe).expect("every probe has one")
    }

    /// Two hooks for each probe, all attached but those of the disk.
    fn readiness(disk: [State; 2]) -> Readiness {
        let mut disk = disk.into_iter();
        let mut hooks = Vec::new();
        for probe in Probe::ALL {
            for _ in 0..2 {
                let state = if probe == Probe::Disk { disk.next() } else { None };
                hooks.push(HookState { hook: hook(probe), state: state.unwrap_or(State::Attached) });
            }
        }
        Readiness::of(&hooks, |_| true)
    }

    fn no() -> String {
        "no such thing".into()
    }

    #[test]
    fn what_a_kernel_does_not_have_leaves_the_agent_ready_and_is_listed() {
        let reason = format!("  disk {}: no such thing\n", hook(Probe::Disk).point.name());
        for (states, condition, lacks) in [
            ([State::Attached, State::Attached], "up", 0),
            ([State::Attached, State::Replaced(no())], "up", 0),
            ([State::Attached, State::Unsupported(no())], "limited", 1),
            ([State::Attached, State::Limited(no())], "limited", 1),
            ([State::Unsupported(no()), State::Unsupported(no())], "unsupported", 2),
            ([State::Disabled, State::Disabled], "disabled", 0),
        ] {
            let readiness = readiness(states);
            let text = readiness.text();
            assert!(readiness.is_ready(), "{text}");
            let disk = format!("disk {condition}\n{}", reason.repeat(lacks));
            assert_eq!(text, format!("ready\ncgroup up\nprocess up\ntcp up\n{disk}udp up\n"));
            assert_eq!(readiness.lacks().count(), lacks);
        }
    }

    #[test]
    fn what_the_kernel_refused_makes_it_unready() {
        for other in [State::Attached, State::Failed(no()), State::Unsupported(no())] {
            let readiness = readiness([State::Failed(no()), other]);
            assert!(!readiness.is_ready());
            let text = readiness.text();
            assert!(text.starts_with("not ready\ncgroup up\n") && text.contains("\ndisk failed\n"), "{text}");
        }
    }

    #[test]
    fn a_reading_that_failed_makes_it_unready() {
        let hooks: Vec<HookState> = Vec::new();
        let readiness = Readiness::of(&hooks, |probe| probe != Probe::Tcp);
        assert!(!readiness.is_ready());
        assert!(readiness.text().contains("\ntcp failed\n  tcp: the last reading failed\n"));
    }

    #[test]
    fn an_agent_in_which_nothing_runs_is_not_ready() {
        let all = |state: State| {
            let hooks: Vec<_> = Probe::ALL
                .into_iter()
                .map(|probe| HookState { hook: hook(probe), state: state.clone() })
                .collect();
            Readiness::of(&hooks, |_| true).is_ready()
        };
        assert!(!all(State::Unsupported(no())));
        assert!(all(State::Disabled), "the operator wants it so");
    }
}
