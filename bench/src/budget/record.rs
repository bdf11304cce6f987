//! What a run recorded: a sample each second, and what lies between two of them.

use super::figure::{Estimate, FIGURE_COUNT, FIGURES, PROBES};
use crate::load::job::{Count, Counts};

/// Seconds of a step in which the agent may still be looking for its settings.
pub const SETTLING: usize = 2;

/// How the agent watches one probe.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch {
    /// Share of the events that are sampled while it is attached.
    pub ratio: f64,
    /// Share of the time for which it is attached.
    pub duty: f64,
    /// CPU seconds of one window's attach and detach; 0 when the agent does not say.
    pub attach_seconds: f64,
}

/// What was known at the end of a second. All that is counted is counted from the start of the run.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Seconds since the run began.
    pub at: f64,
    /// Which step.
    pub step: usize,
    /// Which second of it, from 1; 0 when its load had ended or not begun.
    pub second: usize,
    /// What the load generators did: all, and those of the first workload.
    pub truth: [Counts; 2],
    /// What the agent says of [`FIGURES`].
    pub estimates: [Option<Estimate>; FIGURE_COUNT],
    /// CPU seconds of the process by the agent's own meter.
    pub user: f64,
    /// CPU seconds of the programs by the agent's own meter.
    pub kernel: f64,
    /// CPU seconds by the kernel's clock of the process and its statistics of the programs.
    pub outside: f64,
    /// CPU seconds that may still be spent at once, by the agent.
    pub bucket: f64,
    /// CPU seconds that were spent too much, by the agent.
    pub debt: f64,
    /// The largest cost that cannot be divided, in CPU seconds, by the agent.
    pub largest_item: f64,
    /// The state of [`PROBES`].
    pub watches: [Watch; PROBES.len()],
    /// CPU seconds that each program's run costs when its event is skipped, where the agent says
    /// so.
    pub run_costs: Vec<(String, f64)>,
}

/// A run with one budget.
#[derive(Debug)]
pub struct Run {
    /// As it was given.
    pub cpu: String,
    /// In cores.
    pub cores: f64,
    /// From the start on; the first is before any load.
    pub samples: Vec<Sample>,
    /// Scrapes that brought older numbers, because the budget could not pay for a reading.
    pub unread: usize,
}

/// The time between two samples.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// Its begin.
    pub from: &'a Sample,
    /// Its end.
    pub to: &'a Sample,
}

/// An estimate beside the truth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compared {
    /// What the load generators counted.
    pub truth: f64,
    /// How far the estimate is from it.
    pub off: f64,
    /// The standard error that the agent claims; 0 when it claims that the number is exact.
    pub error: f64,
}

/// CPU seconds that were spent until a sample, by one measure.
pub type Cost = fn(&Sample) -> f64;

/// Both measures of the cost.
pub const MEASURES: [(&str, Cost); 2] = [("meter", Sample::meter), ("outside", |sample| sample.outside)];

impl Sample {
    /// CPU seconds by the agent's own meter.
    pub fn meter(&self) -> f64 {
        self.user + self.kernel
    }
}

impl Run {
    /// Seconds, one after the other, with the pauses between the steps.
    pub fn seconds(&self) -> impl Iterator<Item = Span<'_>> {
        self.samples.windows(2).map(|pair| Span { from: &pair[0], to: &pair[1] })
    }

    /// Every span of about so many seconds; they overlap.
    pub fn spans(&self, seconds: f64) -> impl Iterator<Item = Span<'_>> {
        let end = move |from: &Sample| {
            let later = self.samples.iter().find(|to| to.at - from.at >= seconds - JITTER);
            later.filter(|to| to.at - from.at < seconds + 1.0)
        };
        self.samples.iter().filter_map(move |from| Some(Span { from, to: end(from)? }))
    }

    /// A step from the end of its second `first` until its load ended: from its begin with 0.
    pub fn step(&self, index: usize, first: usize) -> Option<Span<'_>> {
        let to = self.samples.iter().rfind(|sample| sample.step == index && sample.second > 0)?;
        let from = if first == 0 {
            self.samples
                .iter()
                .rfind(|sample| sample.at < to.at && (sample.step < index || sample.second == 0))?
        } else {
            self.samples.iter().find(|sample| sample.step == index && sample.second >= first)?
        };
        (from.at < to.at).then_some(Span { from, to })
    }
}

/// Seconds by which a sample may come early.
const JITTER: f64 = 0.05;

impl Span<'_> {
    /// How long it is.
    pub fn seconds(&self) -> f64 {
        self.to.at - self.from.at
    }

    /// Cores by a measure of the cost.
    pub fn cores(&self, cost: Cost) -> f64 {
        (cost(self.to) - cost(self.from)) / self.seconds()
    }

    /// Cores by the agent's own meter.
    pub fn meter(&self) -> f64 {
        self.cores(Sample::meter)
    }

    /// Cores of the process by the agent's own meter.
    pub fn user(&self) -> f64 {
        self.cores(|sample| sample.user)
    }

    /// Cores as measured from outside.
    pub fn outside(&self) -> f64 {
        self.cores(|sample| sample.outside)
    }

    /// How many happened per second, in the first workload alone or in all.
    pub fn rate(&self, count: Count, is_workload: bool) -> f64 {
        let of = |sample: &Sample| sample.truth[usize::from(is_workload)].of(count);
        (of(self.to) - of(self.from)) / self.seconds()
    }

    /// A figure beside the truth; `None` when nothing happened or the agent does not serve it.
    pub fn compare(&self, figure: usize) -> Option<Compared> {
        let of = |sample: &Sample| FIGURES[figure].truth(&sample.truth);
        let truth = of(self.to) - of(self.from);
        let (from, to) = (self.from.estimates[figure].unwrap_or_default(), self.to.estimates[figure]?);
        let (estimate, variance) = (to.total - from.total, to.variance - from.variance);
        // A variance that fell says nothing of the time between.
        let error = variance.max(0.0).sqrt();
        (truth > 0.0 || estimate > 0.0).then_some(Compared { truth, off: estimate - truth, error })
    }
}

impl Compared {
    /// Whether the agent claims that the number is exact.
    pub fn is_exact(&self) -> bool {
        self.error == 0.0
    }

    /// Whether the estimate is the truth.
    pub fn is_equal(&self) -> bool {
        self.off.abs() < 0.5
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A sample in which nothing happened.
    pub fn sample(at: f64, step: usize, second: usize) -> Sample {
        Sample {
            at,
            step,
            second,
            truth: Default::default(),
            estimates: [None; FIGURE_COUNT],
            user: 0.0,
            kernel: 0.0,
            outside: 0.0,
            bucket: 0.0,
            debt: 0.0,
            largest_item: 0.0,
            watches: Default::default(),
            run_costs: Vec::new(),
        }
    }

    fn run() -> Run {
        let mut samples = vec![sample(0.0, 0, 0)];
        samples.extend((1..=3).map(|second| sample(f64::from(second), 0, second as usize)));
        samples.push(sample(4.2, 0, 0));
        samples.extend((1..=3).map(|second| sample(4.2 + f64::from(second), 1, second as usize)));
        samples.push(sample(8.4, 1, 0));
        Run { cpu: "5m".to_owned(), cores: 0.005, samples, unread: 0 }
    }

    #[test]
    fn steps_and_spans_find_their_ends() {
        let run = run();
        let ends = |span: Span<'_>| (span.from.at, span.to.at);
        assert_eq!(run.step(0, 0).map(ends), Some((0.0, 3.0)));
        assert_eq!(run.step(1, 0).map(ends), Some((4.2, 7.2)));
        assert_eq!(run.step(1, 2).map(ends), Some((6.2, 7.2)));
        assert!(run.step(1, 3).is_none() && run.step(2, 0).is_none());
        let spans: Vec<_> = run.spans(4.0).map(ends).collect();
        assert_eq!(spans[..2], [(0.0, 4.2), (1.0, 5.2)]);
        assert_eq!(run.seconds().count(), 8);
    }

    #[test]
    fn an_estimate_is_compared_with_what_was_added() {
        let (mut from, mut to) = (sample(0.0, 0, 0), sample(1.0, 0, 1));
        from.truth[0].0[Count::Execs as usize] = 100;
        to.truth[0].0[Count::Execs as usize] = 150;
        from.estimates[6] = Some(Estimate { total: 90.0, variance: 9.0 });
        to.estimates[6] = Some(Estimate { total: 145.0, variance: 25.0 });
        let span = Span { from: &from, to: &to };
        assert_eq!(span.compare(6), Some(Compared { truth: 50.0, off: 5.0, error: 4.0 }));
        assert_eq!(span.compare(0), None);
    }
}
