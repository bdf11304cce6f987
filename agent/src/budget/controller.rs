//! The controller: from what the last tick cost to how the next one samples. Pure.
//!
//! Twice a second, at the end of a tick, it learns how often each hot probe's programs ran, how many events they were offered, and what a full
//! run takes. From these it plans the next tick as if the load stayed:
//!
//! * **Shedding** is immediate. While the plan is over the target, the period of one probe is doubled: the one where the
//!   doubling saves most per information lost. Doubling N saves half of the probe's cost of full runs and adds N/n to
//!   the relative variance of its totals, n being its events per tick.
//! * When all periods are at their limit, or the runs that are passed over alone cost too much, a probe is attached for a
//!   share of the time only: a power of two, so that weights stay powers of two.
//! * **Recovery** is slow: one step of one probe at a time, at most half of the way, only when the plan with that step stays below a lower mark or
//!   saves the windows (a probe with little to do costs less when it stays attached), and only after [`CALM_TICKS`] such ticks in a row.
//!
//! **Why it does not oscillate.** A shedding step at most halves the cost, so the plan after shedding lies not far below
//! the target. Before a recovery step is taken the plan is evaluated with the step before it is taken and must lie below
//! [`RECOVER`] of the budget, or not above the plan without it, while shedding begins at [`TARGET`]: at a constant load a step that recovery takes is never
//! one that shedding takes back. In windows the period follows from the load alone (`TAKING`), which adds an eighth to their cost at most. A load that swings within the calm ticks is met by its highest cost.

use siskin_ebpf::{MAX_PERIOD_LOG2, Probe};

use super::windows::{MIN_DUTY_LOG2, cycle, least_gap};

/// Share of the budget that shedding plans for; the rest is for what grows within a tick.
pub const TARGET: f64 = 0.8;
/// Share of the budget that hot probes have in any case: when the fixed cost alone is over the target, shedding more of
/// them would lose what they see and save next to nothing.
pub const LEAST_HOT: f64 = 0.1;
/// Share of the budget that a step of shedding must save: a probe without load is left alone, also when the target is out of reach.
pub const LEAST_SAVING: f64 = 1e-3;
/// What taking events in a window may cost beside passing them over.
const TAKING: f64 = 0.125;
/// Share of the budget that a plan with one step less shedding must stay below.
pub const RECOVER: f64 = 0.65;
/// Ticks in a row in which it must: three seconds.
pub const CALM_TICKS: u32 = 6;
/// Smallest share of the time that a probe is attached for, as a power of two.
pub const MAX_DUTY_LOG2: u64 = 8;

/// What a hot probe was asked to do in the last tick, scaled to a probe that is attached all the time.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The probe.
    pub probe: Probe,
    /// Runs of its programs per second.
    pub runs: f64,
    /// Runs per second of the one of them that ran most.
    pub most_runs: f64,
    /// Events per second among them that could be taken.
    pub events: f64,
    /// Seconds that taking one costs.
    pub event_seconds: f64,
    /// What its information is worth beside that of others.
    pub worth: f64,
    /// Seconds of CPU that attaching and detaching it for a window takes; infinite when it stays attached.
    pub switch_seconds: f64,
}

/// What the last tick cost.
#[derive(Clone, Debug, Default)]
pub struct Cost {
    /// Cores that cannot be shed: the process without what windows take, and the programs that count every event.
    pub fixed_cores: f64,
    /// Cores that hot probes took of this second before an alarm: what comes after it has so much less.
    pub spent_cores: f64,
    /// Seconds that a run costs whose event is passed over.
    pub run_seconds: f64,
    /// The hot probes.
    pub loads: Vec<Load>,
}

/// How a hot probe samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The probe.
    pub probe: Probe,
    /// One in 2^this many events is taken.
    pub period_log2: u64,
    /// It is attached for 1/2^this of the time.
    pub duty_log2: u64,
    /// Whether it is detached altogether, because there is no budget.
    pub detached: bool,
}

/// The controller's memory.
#[derive(Clone, Debug)]
pub struct Controller {
    budget_cores: f64,
    settings: Vec<Setting>,
    calm: u32,
}

impl Controller {
    /// A controller for these hot probes that begins with every event taken.
    pub fn new(budget_cores: f64, probes: &[Probe]) -> Self {
        let setting = |probe: &Probe| Setting {
            probe: *probe,
            period_log2: 0,
            duty_log2: 0,
            detached: budget_cores <= 0.0,
        };
        Self { budget_cores, settings: probes.iter().map(setting).collect(), calm: 0 }
    }

    /// Changes the budget; what follows from it is decided at the next tick.
    pub fn set_budget(&mut self, budget_cores: f64) {
        self.budget_cores = budget_cores;
        for setting in &mut self.settings {
            setting.detached = budget_cores <= 0.0;
        }
    }

    /// The budget in cores.
    pub fn budget_cores(&self) -> f64 {
        self.budget_cores
    }

    /// How every hot probe samples now.
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// Decides how the next tick samples. Returns whether anything changed.
    pub fn step(&mut self, cost: &Cost) -> bool {
        if self.budget_cores <= 0.0 {
            return false;
        }
        if self.relieve(cost) {
            return true;
        }
        match self.recovery(cost) {
            Some(settings) => {
                self.calm += 1;
                if self.calm < CALM_TICKS {
                    return false;
                }
                self.settings = settings;
                true
            }
            None => {
                self.calm = 0;
                false
            }
        }
    }

    /// Sheds as much as it takes, and does not recover: what a tick that an alarm ended early tells is not enough for that. Returns whether anything
    /// changed.
    pub fn relieve(&mut self, cost: &Cost) -> bool {
        if self.budget_cores <= 0.0 {
            return false;
        }
        let before = self.settings.clone();
        let target = (self.budget_cores * TARGET).max(cost.fixed_cores + self.budget_cores * LEAST_HOT);
        // Half of the budget is left in any case: when an alarm comes late, the second is lost, and shedding all that can be shed saves nothing of it.
        let spent = cost.spent_cores.min((target - cost.fixed_cores).max(0.0) / 2.0);
        while self.plan(cost, &self.settings) + spent > target {
            if !self.shed(cost) {
                break;
            }
        }
        self.refine(cost);
        let changed = self.settings != before;
        if changed {
            self.calm = 0;
        }
        changed
    }

    /// Has windows take more of what passes through them where that costs little beside passing it over: the period that was doubled before there
    /// were windows saves nothing any more.
    fn refine(&mut self, cost: &Cost) {
        for index in 0..self.settings.len() {
            let setting = self.settings[index];
            let Some(load) = load_of(cost, setting.probe).filter(|_| setting.duty_log2 > 0) else { continue };
            for period_log2 in (0..setting.period_log2).rev() {
                let taken = load.events * (-(period_log2 as f64)).exp2() * load.event_seconds;
                if taken >= load.runs * cost.run_seconds * TAKING {
                    break;
                }
                self.settings[index].period_log2 = period_log2;
            }
        }
    }

    /// Cores that the next tick would cost with these settings: in a second that sees most windows, because each second counts.
    fn plan(&self, cost: &Cost, settings: &[Setting]) -> f64 {
        let of = |setting: &Setting| {
            let Some(load) = load_of(cost, setting.probe) else { return 0.0 };
            let taken = load.events * (-(setting.period_log2 as f64)).exp2() * load.event_seconds;
            let runs = load.runs * cost.run_seconds + taken;
            if setting.duty_log2 == 0 {
                return runs;
            }
            // A second sees one window of a probe at most, and all of that. Those that come more rarely hardly ever come all in the same: what attaching
            // takes is shared by the seconds.
            let share = (-(setting.duty_log2 as f64)).exp2();
            let window = runs * share * cycle(setting.duty_log2).as_secs_f64();
            window + load.switch_seconds / least_gap(setting.duty_log2).as_secs_f64()
        };
        cost.fixed_cores + settings.iter().map(of).sum::<f64>()
    }

    /// Takes the shedding step that saves most per information lost. `false` when there is none left.
    fn shed(&mut self, cost: &Cost) -> bool {
        let plan = self.plan(cost, &self.settings);
        let mut best: Option<(f64, usize, Setting)> = None;
        for (index, setting) in self.settings.iter().enumerate() {
            let Some(load) = load_of(cost, setting.probe) else { continue };
            for step in steps(setting) {
                let mut settings = self.settings.clone();
                settings[index] = step;
                let saved = plan - self.plan(cost, &settings);
                let lost = variance(load, &step) - variance(load, setting);
                let worth = saved / lost.max(f64::MIN_POSITIVE);
                if saved > self.budget_cores * LEAST_SAVING
                    && best.as_ref().is_none_or(|(other, _, _)| worth > *other)
                {
                    best = Some((worth, index, step));
                }
            }
        }
        let Some((_, index, step)) = best else { return false };
        self.settings[index] = step;
        true
    }

    /// The settings with one step less shedding that a plan below the lower mark allows and that brings back most.
    fn recovery(&self, cost: &Cost) -> Option<Vec<Setting>> {
        let allowed =
            (self.budget_cores * RECOVER).max(self.plan(cost, &self.settings) * (1.0 - LEAST_SAVING));
        let mut best: Option<(f64, Vec<Setting>)> = None;
        for (index, setting) in self.settings.iter().enumerate() {
            for step in steps_back(setting) {
                let mut settings = self.settings.clone();
                settings[index] = step;
                if self.plan(cost, &settings) >= allowed {
                    continue;
                }
                // A probe without load gains nothing and costs nothing: last, but still.
                let gained = load_of(cost, setting.probe)
                    .map_or(0.0, |load| variance(load, setting) - variance(load, &step));
                if best.as_ref().is_none_or(|(other, _)| gained > *other) {
                    best = Some((gained, settings));
                }
            }
        }
        best.map(|(_, settings)| settings)
    }
}

fn load_of(cost: &Cost, probe: Probe) -> Option<&Load> {
    cost.loads.iter().find(|load| load.probe == probe)
}

/// The next steps of shedding. A smaller share of the time comes with clustered events, so it costs more information than
/// a period of the same weight; `variance` knows.
fn steps(setting: &Setting) -> impl Iterator<Item = Setting> {
    let longer = Setting { period_log2: setting.period_log2 + 1, ..*setting };
    let rarer = Setting { duty_log2: (setting.duty_log2 + 1).max(MIN_DUTY_LOG2), ..*setting };
    [longer, rarer].into_iter().filter(|step| {
        step.period_log2 + step.duty_log2 <= MAX_PERIOD_LOG2 && step.duty_log2 <= MAX_DUTY_LOG2
    })
}

/// The steps back: by one, or by half of the way when the plan allows that much; and from windows to being attached all the time.
fn steps_back(setting: &Setting) -> impl Iterator<Item = Setting> {
    let of = |log2: u64| [log2.checked_sub(1), (log2 > 1).then_some(log2 / 2)].into_iter().flatten();
    let shorter = of(setting.period_log2).map(|period_log2| Setting { period_log2, ..*setting });
    let oftener = of(setting.duty_log2).filter(|duty_log2| *duty_log2 >= MIN_DUTY_LOG2);
    let oftener = oftener.map(|duty_log2| Setting { duty_log2, ..*setting });
    let always = (setting.duty_log2 > 0).then_some(Setting { duty_log2: 0, ..*setting });
    shorter.chain(oftener).chain(always)
}

/// What a probe's estimates lose: the relative variance of its total over a tick, times its worth. The variance is (N-1)/n for the period, and (D-1) for a share 1/D of the time,
/// as if each tick's events came in one lump: the worst case.
fn variance(load: &Load, setting: &Setting) -> f64 {
    let period = (setting.period_log2 as f64).exp2();
    let duty = (setting.duty_log2 as f64).exp2();
    load.worth * ((period - 1.0) * duty / load.events.max(1.0) + (duty - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBES: [Probe; 2] = [Probe::Disk, Probe::Udp];

    /// What a machine would cost in a tick: events per second of both probes against the settings.
    fn cost(disk: f64, udp: f64) -> Cost {
        Cost {
            fixed_cores: 0.001,
            spent_cores: 0.0,
            run_seconds: 60e-9,
            loads: vec![
                Load {
                    probe: Probe::Disk,
                    runs: disk,
                    most_runs: disk,
                    events: disk,
                    event_seconds: 600e-9,
                    worth: 1.0,
                    switch_seconds: 5e-4,
                },
                Load {
                    probe: Probe::Udp,
                    runs: udp,
                    most_runs: udp / 2.0,
                    events: udp,
                    event_seconds: 300e-9,
                    worth: 1.0,
                    switch_seconds: 5e-4,
                },
            ],
        }
    }

    /// Runs ticks of a load and returns the cost of each, as the settings of its beginning make it.
    fn simulate(
        controller: &mut Controller,
        ticks: usize,
        load: impl Fn(usize) -> Cost,
    ) -> Vec<(f64, Vec<Setting>)> {
        (0..ticks)
            .map(|tick| {
                let cost = load(tick);
                let cores = controller.plan(&cost, controller.settings());
                let settings = controller.settings().to_vec();
                controller.step(&cost);
                (cores, settings)
            })
            .collect()
    }

    #[test]
    fn a_step_is_met_after_one_tick_at_any_height() {
        for budget in [0.005, 0.01, 0.05] {
            for rate in [1e3, 1e4, 1e5, 1e6, 2e6] {
                let mut controller = Controller::new(budget, &PROBES);
                let run = simulate(&mut controller, 20, |tick| {
                    if tick < 3 { cost(0.0, 0.0) } else { cost(rate / 10.0, rate) }
                });
                for (tick, (cores, settings)) in run.iter().enumerate().filter(|(tick, _)| *tick != 3) {
                    assert!(*cores <= budget, "{cores} of {budget} at {rate}/s, tick {tick}: {settings:?}");
                }
            }
        }
    }

    #[test]
    fn a_constant_load_never_oscillates() {
        for exponent in 30..70 {
            let rate = 1.3f64.powi(exponent);
            let mut controller = Controller::new(0.01, &PROBES);
            let run = simulate(&mut controller, 200, |_| cost(rate / 7.0, rate));
            let last = &run[199].1;
            assert!(run[60..].iter().all(|(_, settings)| settings == last), "still moving at {rate}/s");
        }
    }

    #[test]
    fn an_oscillating_load_is_met_by_its_peaks() {
        let mut controller = Controller::new(0.01, &PROBES);
        let run = simulate(&mut controller, 100, |tick| cost(0.0, if tick % 2 == 0 { 1e5 } else { 1e3 }));
        for (cores, _) in &run[1..] {
            assert!(*cores <= 0.01, "{cores}");
        }
    }

    #[test]
    fn a_ramp_is_followed_down_again() {
        let mut controller = Controller::new(0.01, &PROBES);
        let rate = |tick: usize| 2e5 * (1.0 - (tick as f64 / 60.0 - 1.0).abs()).max(0.0);
        let run = simulate(&mut controller, 200, |tick| cost(0.0, rate(tick)));
        for (cores, _) in &run {
            assert!(*cores <= 0.011, "{cores}");
        }
        let (_, settings) = &run[199];
        assert!(
            settings.iter().all(|setting| setting.period_log2 == 0 && setting.duty_log2 == 0),
            "{settings:?}"
        );
    }

    #[test]
    fn a_load_that_no_sampling_affords_gets_a_share_of_the_time() {
        let mut controller = Controller::new(0.005, &PROBES);
        // 3 million runs cost 0.18 cores before one event is taken.
        let run = simulate(&mut controller, 20, |_| cost(0.0, 3e6));
        let (cores, settings) = &run[19];
        assert!(*cores <= 0.005, "{cores}");
        assert!(settings[1].duty_log2 >= 5, "{settings:?}");
        assert_eq!(settings[0].duty_log2, 0, "the probe without load keeps watching: {settings:?}");
    }

    #[test]
    fn windows_take_as_many_events_as_cost_little() {
        let mut controller = Controller::new(0.005, &PROBES);
        let run = simulate(&mut controller, 20, |_| cost(0.0, 3e6));
        let (_, settings) = &run[19];
        // Taking one costs five times as much as passing it over.
        let dear = 1.0 / (TAKING / 5.0);
        let period = (settings[1].period_log2 as f64).exp2();
        assert!((dear..4.0 * dear).contains(&period), "1 in {period}: {settings:?}");
    }

    #[test]
    fn an_early_end_of_a_tick_sheds_and_never_recovers() {
        let mut controller = Controller::new(0.01, &PROBES);
        assert!(controller.relieve(&cost(0.0, 1e6)));
        let shed = controller.settings().to_vec();
        for _ in 0..10 * CALM_TICKS {
            assert!(!controller.relieve(&cost(0.0, 10.0)));
        }
        assert_eq!(controller.settings(), shed);
    }

    #[test]
    fn what_a_second_took_before_an_alarm_is_missing_to_the_rest_of_it() {
        let share = |spent_cores| {
            let mut controller = Controller::new(0.005, &PROBES);
            controller.relieve(&Cost { spent_cores, ..cost(0.0, 1.5e6) });
            controller.settings().to_vec()
        };
        let [fresh, late, too_late] = [0.0, 0.001, 1.0].map(share);
        assert!(late[1].duty_log2 > fresh[1].duty_log2, "{late:?} {fresh:?}");
        assert!(too_late[1].duty_log2 < MAX_DUTY_LOG2 && too_late[0].duty_log2 == 0, "{too_late:?}");
    }

    #[test]
    fn windows_that_cost_more_than_they_save_are_given_up_also_above_the_lower_mark() {
        let mut controller = Controller::new(0.005, &PROBES);
        let of = |rate| Cost { fixed_cores: 0.0028, ..cost(rate, rate) };
        let run = simulate(&mut controller, 60, |tick| of(if tick < 20 { 3e6 } else { 10.0 }));
        let windows = |settings: &[Setting]| settings.iter().filter(|setting| setting.duty_log2 > 0).count();
        assert_eq!(windows(&run[19].1), 2, "{:?}", run[19]);
        // What two windows and the process cost lies above the mark.
        assert!(run[25].0 > 0.005 * RECOVER, "{:?}", run[25]);
        assert_eq!(windows(&run[59].1), 0, "{:?}", run[59]);
    }

    #[test]
    fn a_probe_that_cannot_be_detached_is_drawn_from_and_no_more() {
        let mut controller = Controller::new(0.005, &PROBES);
        let run = simulate(&mut controller, 20, |_| {
            let mut cost = cost(1e3, 3e6);
            cost.loads[1].switch_seconds = f64::INFINITY;
            cost
        });
        let (cores, settings) = &run[19];
        assert!(cores.is_finite());
        assert_eq!(settings[1].duty_log2, 0, "{settings:?}");
        assert!(settings[1].period_log2 >= 10, "{settings:?}");
    }

    #[test]
    fn a_process_that_is_over_the_budget_by_itself_does_not_blind_the_probes() {
        let mut controller = Controller::new(0.01, &PROBES);
        let run = simulate(&mut controller, 5, |_| Cost { fixed_cores: 0.05, ..cost(0.0, 1e4) });
        let (_, settings) = &run[4];
        assert_eq!(settings[1].duty_log2, 0, "{settings:?}");
        assert!(settings[1].period_log2 > 0, "{settings:?}");
    }

    #[test]
    fn the_probe_with_more_events_is_shed_first() {
        let mut controller = Controller::new(0.01, &PROBES);
        simulate(&mut controller, 5, |_| cost(5e3, 2e4));
        let [disk, udp] = controller.settings() else { panic!("two probes") };
        assert!(udp.period_log2 > disk.period_log2, "{udp:?} {disk:?}");
    }

    #[test]
    fn a_budget_can_change_and_be_nothing() {
        let mut controller = Controller::new(0.05, &PROBES);
        simulate(&mut controller, 10, |_| cost(0.0, 1e5));
        let generous = controller.settings()[1].period_log2;
        controller.set_budget(0.01);
        let run = simulate(&mut controller, 10, |_| cost(0.0, 1e5));
        assert!(run[1].0 <= 0.01 && controller.settings()[1].period_log2 > generous);
        controller.set_budget(0.0);
        assert!(controller.settings().iter().all(|setting| setting.detached));
        assert!(!controller.step(&cost(1e5, 1e5)));
        controller.set_budget(0.05);
        assert!(controller.settings().iter().all(|setting| !setting.detached));
    }
}
