//! Steps beside their optimum, and errors beside what they claim to be.

use super::{
    calibration::Calibration,
    figure::FIGURES,
    optimum::Optimum,
    record::{Compared, Run, SETTLING, Span},
};

/// What relative errors of steps are scaled to.
const SECONDS: f64 = 10.0;

/// A relative standard error as reported, and as it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Errors {
    /// What the budget allows; `None` where that is not known.
    pub optimum: Option<f64>,
    /// What the agent claims.
    pub reported: f64,
    /// How far the estimate was off.
    pub actual: f64,
}

/// A figure in a step.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which step.
    pub step: usize,
    /// Which of [`FIGURES`].
    pub figure: usize,
    /// Over ten seconds.
    pub ten: Errors,
    /// Over one, root mean squares.
    pub one: Errors,
}

/// A run beside what it could have been.
#[derive(Debug)]
pub struct Measured {
    /// The run.
    pub run: Run,
    /// By step; `None` for one that is too short.
    pub optima: Vec<Option<Optimum>>,
    /// Every figure of every step in which it happened, from the third second on.
    pub outcomes: Vec<Outcome>,
}

impl Measured {
    /// Puts a run beside its optimum, by what each step asks of the agent.
    pub fn new(run: Run, calibrations: &[Calibration]) -> Self {
        let optimum = |(step, calibration)| {
            let mut samples = run.samples.iter().filter(|sample| sample.step == step);
            let has_windows = samples.any(|it| it.watches.iter().any(|watch| watch.duty < 1.0));
            Some(Optimum::new(&run.step(step, SETTLING)?, calibration, run.cores, has_windows))
        };
        let optima: Vec<_> = calibrations.iter().enumerate().map(optimum).collect();
        let outcomes = outcomes(&run, &optima);
        Self { run, optima, outcomes }
    }
}

impl Errors {
    /// What is claimed, in units of what the budget allows; infinite where it allows to be exact.
    pub fn ratio(&self) -> Option<f64> {
        let optimum = self.optimum?;
        Some(if self.reported == 0.0 { 0.0 } else { self.reported / optimum })
    }
}

fn outcomes(run: &Run, optima: &[Option<Optimum>]) -> Vec<Outcome> {
    let mut all = Vec::new();
    for (step, optimum) in optima.iter().enumerate() {
        let (Some(optimum), Some(span)) = (optimum, run.step(step, SETTLING)) else { continue };
        for figure in 0..FIGURES.len() {
            let Some(compared) = span.compare(figure).filter(|it| it.truth > 0.0) else { continue };
            // A shorter step is scaled to ten seconds.
            let scale = (span.seconds() / SECONDS).sqrt() / compared.truth;
            let ten = Errors {
                optimum: optimum.relative_error(figure, &span, SECONDS),
                reported: compared.error * scale,
                actual: compared.off.abs() * scale,
            };
            let seconds = run.seconds().filter(|it| it.to.step == step && it.to.second > SETTLING);
            let compared: Vec<_> =
                seconds.filter_map(|it| it.compare(figure)).filter(|it| it.truth > 0.0).collect();
            let rms = |of: fn(&Compared) -> f64| {
                let squares = compared.iter().map(|it| (of(it) / it.truth).powi(2)).sum::<f64>();
                (squares / compared.len().max(1) as f64).sqrt()
            };
            let one = Errors {
                optimum: optimum.relative_error(figure, &span, 1.0),
                reported: rms(|it| it.error),
                actual: rms(|it| it.off),
            };
            all.push(Outcome { step, figure, ten, one });
        }
    }
    all
}

/// How the errors of one figure compare with what they claim to be.
#[derive(Clone, Debug, Default)]
pub struct Honesty {
    /// Intervals in which an error was claimed.
    pub estimated: usize,
    /// Sum of squared errors over the sum of squared standard errors there.
    pub ratio: f64,
    /// How many of them were inside of 1.96 standard errors.
    pub inside: usize,
    /// Intervals in which none was claimed.
    pub exact: usize,
    /// How many of them were right.
    pub equal: usize,
    /// Those that were not: step, second, by how much.
    pub unequal: Vec<(usize, usize, f64)>,
}

/// Looks at a figure over these spans.
pub fn honesty<'a>(spans: impl Iterator<Item = Span<'a>>, figure: usize) -> Honesty {
    let mut honesty = Honesty::default();
    let (mut errors, mut claims) = (0.0, 0.0);
    for span in spans {
        let Some(compared) = span.compare(figure) else { continue };
        if !compared.is_exact() {
            errors += compared.off.powi(2);
            claims += compared.error.powi(2);
            honesty.estimated += 1;
            honesty.inside += usize::from(compared.off.abs() <= 1.96 * compared.error);
        } else {
            honesty.exact += 1;
            if compared.is_equal() {
                honesty.equal += 1;
            } else {
                honesty.unequal.push((span.to.step, span.to.second, compared.off));
            }
        }
    }
    honesty.ratio = errors / claims;
    honesty
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        budget::{figure::Estimate, record::tests::sample},
        load::job::Count,
    };

    #[test]
    fn claims_are_checked_apart_from_exact_figures() {
        let total = |at: f64, truth: u64, total: f64, variance: f64| {
            let mut sample = sample(at, 0, at as usize);
            sample.truth[0].0[Count::Execs as usize] = truth;
            sample.estimates[6] = Some(Estimate { total, variance });
            sample
        };
        let samples = vec![
            total(0.0, 0, 0.0, 0.0),
            total(1.0, 100, 100.0, 0.0),
            total(2.0, 200, 206.0, 9.0),
            total(3.0, 300, 303.0, 18.0),
            total(4.0, 400, 402.0, 18.0),
        ];
        let run = Run { cpu: String::new(), cores: 0.01, samples };
        let honesty = honesty(run.seconds(), 6);
        assert_eq!((honesty.estimated, honesty.inside, honesty.exact, honesty.equal), (2, 1, 2, 1));
        assert!((honesty.ratio - (36.0 + 9.0) / 18.0).abs() < 1e-9);
        assert_eq!(honesty.unequal, [(0, 4, -1.0)]);
    }
}
