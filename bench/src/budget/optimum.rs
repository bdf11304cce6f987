//! The best that the budget allows for each step: from what happened, and from what each probe's
//! work on it costs.

use siskin::budget::allocation::{
    Demand, PRIOR_WINDOW_VARIANCE, Setting, allocate, cost_cores, relative_variance,
};
use siskin_ebpf::Probe;

use super::{
    calibration::{Calibration, UNITS, activity},
    figure::{FIGURES, PROBES},
    record::Span,
};
use crate::load::job::Count;

/// The probes in the order of [`PROBES`].
const PROBE_OF: [Probe; PROBES.len()] = [Probe::Udp, Probe::Disk, Probe::Process, Probe::Tcp];
/// Events that are sampled apart, of the program of each probe that sees most, for one of
/// [`UNITS`]: of a datagram sent and received one each, of a connection one for each end.
const EVENTS_PER_UNIT: [f64; PROBES.len()] = [0.5, 1.0, 1.0, 2.0];
/// What a run costs whose event is skipped, when the agent does not say.
const PRIOR_RUN_SECONDS: f64 = 95e-9;
/// What attaching and detaching a probe costs, likewise.
const PRIOR_ATTACH_SECONDS: f64 = 500e-6;
/// Seconds over which [`relative_variance`] is.
const VARIANCE_SECONDS: f64 = 10.0;

/// The best settings for a step.
#[derive(Clone, Debug)]
pub struct Optimum {
    /// What may be spent on the probes, in cores.
    pub spend_cores: f64,
    /// What of that the settings take.
    pub cost_cores: f64,
    /// By [`PROBES`].
    parts: [(Demand, Setting); PROBES.len()],
}

impl Optimum {
    /// The optimum for what happened in a span, with a budget of so many cores. `has_windows` says
    /// whether any probe was attached for a share of the time.
    pub fn new(span: &Span<'_>, calibration: &Calibration, budget_cores: f64, has_windows: bool) -> Self {
        // Attaching is the process's work too, and the optimum has windows of its own: the process
        // is then what it is without a limit.
        let process = if has_windows { span.user().min(calibration.process_cores) } else { span.user() };
        let demands: [Demand; PROBES.len()] = std::array::from_fn(|index| demand(index, span, calibration));
        let spend_cores = (budget_cores - process).max(0.0);
        let settings = allocate(&demands, spend_cores, budget_cores);
        let parts = demands.map(|demand| {
            let setting = settings.iter().copied().find(|setting| setting.probe == demand.probe);
            (demand, setting.unwrap_or(Setting::exact(demand.probe)))
        });
        let cost_cores = parts.iter().map(|(demand, setting)| cost_cores(demand, setting)).sum();
        Self { spend_cores, cost_cores, parts }
    }

    /// The best setting of one of [`PROBES`].
    pub fn setting(&self, probe: usize) -> &Setting {
        &self.parts[probe].1
    }

    /// The relative standard error of a figure over so many seconds; `None` where it is not known:
    /// bytes of TCP while connections are sampled depend on how they are divided between
    /// connections.
    pub fn relative_error(&self, figure: usize, span: &Span<'_>, seconds: f64) -> Option<f64> {
        let figure = &FIGURES[figure];
        let rate = |count| span.rate(count, figure.is_workload);
        let all: f64 = figure.counts.iter().map(|(count, each)| rate(*count) * each).sum();
        if figure.is_kernels || all <= 0.0 {
            return Some(0.0);
        }
        let mut variance = 0.0;
        for (count, each) in figure.counts.iter().filter(|(count, _)| rate(*count) > 0.0) {
            // Events per second, and how much more unequal sizes weigh.
            let (events, unequal) = match count {
                Count::DatagramBytes => {
                    let datagrams = rate(Count::Datagrams);
                    (datagrams / 2.0, datagrams * rate(Count::DatagramSquares) / rate(*count).powi(2))
                }
                Count::DiskBytes => {
                    let requests = rate(Count::Requests);
                    (requests, requests * rate(Count::DiskSquares) / rate(*count).powi(2))
                }
                Count::TcpBytes => {
                    let tcp = &self.parts[TCP];
                    if tcp.1 != Setting::exact(tcp.0.probe) {
                        return None;
                    }
                    continue;
                }
                _ => (rate(*count) * each, 1.0),
            };
            let (demand, setting) = self.parts[figure.probe];
            let demand = Demand { events_per_second: events, ..demand };
            let of_windows = relative_variance(&demand, &Setting { period: 1, ..setting });
            let of_sampling = relative_variance(&demand, &setting) - of_windows;
            variance += (of_windows + of_sampling * unequal) * (rate(*count) * each / all).powi(2);
        }
        Some((variance * VARIANCE_SECONDS / seconds).sqrt())
    }
}

/// The place of the TCP probe in [`PROBES`].
const TCP: usize = 3;

/// What a probe is asked to do in a span.
fn demand(index: usize, span: &Span<'_>, calibration: &Calibration) -> Demand {
    let events = span.rate(UNITS[index], false);
    let cost = &calibration.probes[index];
    let run_seconds = |program: &str| {
        let said = span.to.run_costs.iter().chain(&calibration.run_costs);
        let said =
            said.filter(|(name, seconds)| name == program && *seconds > 0.0).map(|(_, seconds)| *seconds);
        said.into_iter().next().unwrap_or(PRIOR_RUN_SECONDS)
    };
    // CPU seconds of all runs of the calibration, had their events been skipped.
    let skip_seconds: f64 = cost.runs.iter().map(|(program, runs)| runs * run_seconds(program)).sum();
    let per = |seconds: f64, number: f64| if number > 0.0 { seconds.max(0.0) / number } else { 0.0 };
    let activity = activity(index, |count| span.rate(count, false));
    let attach_seconds = span.to.watches[index].attach_seconds;
    Demand {
        probe: PROBE_OF[index],
        events_per_second: events * EVENTS_PER_UNIT[index],
        skip_cores: activity * per(skip_seconds, cost.activity),
        sample_cores: events * per(cost.seconds - skip_seconds, cost.events),
        attach_seconds: if attach_seconds > 0.0 { attach_seconds } else { PRIOR_ATTACH_SECONDS },
        window_variance: PRIOR_WINDOW_VARIANCE,
        periods: 1,
        worth: 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{calibration::ProbeCost, record::tests::sample};

    /// A disk at 40,000 requests a second of 4 KiB, half of them the first workload's, at 400 ns
    /// each and 100 ns when skipped.
    #[test]
    fn a_storm_is_sampled_and_its_error_follows_from_the_rate() {
        let (from, mut to) = (sample(0.0, 0, 2), sample(10.0, 0, 12));
        for (scope, requests) in [(0, 400_000u64), (1, 200_000)] {
            let counts = &mut to.truth[scope].0;
            counts[Count::Requests as usize] = requests;
            counts[Count::DiskBytes as usize] = requests * 4096;
            counts[Count::DiskSquares as usize] = requests * 4096 * 4096;
        }
        to.run_costs = vec![("disk_complete".to_owned(), 100e-9)];
        let mut calibration = Calibration::default();
        let runs = [("disk_complete".to_owned(), 1e6)].into();
        calibration.probes[1] = ProbeCost { events: 1e6, activity: 1e6, runs, seconds: 0.4 };
        let span = Span { from: &from, to: &to };
        let ample = Optimum::new(&span, &calibration, 0.05, false);
        assert_eq!(ample.relative_error(11, &span, 10.0), Some(0.0));
        let scarce = Optimum::new(&span, &calibration, 0.006, false);
        assert!(scarce.cost_cores <= scarce.spend_cores, "{scarce:?}");
        let error = |figure| scarce.relative_error(figure, &span, 10.0).unwrap();
        // Sizes are equal, so bytes err as requests do; half of the events, the square root of two
        // more.
        assert!(error(11) > 0.0 && (error(11) - error(12)).abs() < 1e-12);
        assert!((error(11) / error(4)).powi(2) > 1.5, "{} {}", error(11), error(4));
        assert_eq!(error(3), 0.0, "the kernel's own total");
    }
}
