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
        let optimum = |step, span: &Span<'_>| {
            let mut samples = run.samples.iter().filter(|sample| sample.step == step);
            let has_windows = samples.any(|it| it.watches.iter().any(|watch| watch.duty < 1.0));
            Optimum::new(span, &calibrations[step], run.cores, has_windows)
        };
        let steps = 0..calibrations.len();
        let optima = steps.map(|step| Some(optimum(step, &run.step(step, SETTLING)?))).collect();
        let outcomes = outcomes(&run, calibrations.len(), optimum);
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

/// An error in one second, of what was compared and the optimum's.
type ErrorOf = fn(&(Compared, Option<f64>)) -> Option<f64>;

fn outcomes(run: &Run, steps: usize, optimum: impl Fn(usize, &Span<'_>) -> Optimum) -> Vec<Outcome> {
    let mut all = Vec::new();
    for step in 0..steps {
        let Some(span) = run.step(step, SETTLING) else { continue };
        // A load that changes is asked of the optimum as it was in each second.
        let seconds: Vec<_> = run
            .seconds()
            .filter(|it| it.to.step == step && it.to.second > SETTLING)
            .map(|it| (it, optimum(step, &it)))
            .collect();
        for figure in 0..FIGURES.len() {
            let Some(whole) = span.compare(figure).filter(|it| it.truth > 0.0) else { continue };
            let seconds = seconds.iter().filter_map(|(it, optimum)| {
                let compared = it.compare(figure).filter(|it| it.truth > 0.0)?;
                Some((compared, optimum.relative_error(figure, it, 1.0)))
            });
            let seconds: Vec<_> = seconds.collect();
            // Of errors that are independent from second to second.
            let total = |of: ErrorOf| {
                let errors: Option<Vec<_>> = seconds.iter().map(of).collect();
                errors.map(|errors| errors.iter().map(|error| error * error).sum::<f64>().sqrt())
            };
            let rms = |of: ErrorOf| total(of).map(|total| total / (seconds.len().max(1) as f64).sqrt());
            // A shorter step is scaled to ten seconds.
            let scale = (span.seconds() / SECONDS).sqrt() / whole.truth;
            let ten = Errors {
                optimum: total(|(it, optimum)| Some((*optimum)? * it.truth)).map(|total| total * scale),
                reported: whole.error * scale,
                actual: whole.off.abs() * scale,
            };
            let one = Errors {
                optimum: rms(|(_, optimum)| *optimum),
                reported: rms(|(it, _)| Some(it.error / it.truth)).unwrap_or_default(),
                actual: rms(|(it, _)| Some(it.off / it.truth)).unwrap_or_default(),
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
        let run = Run { cpu: String::new(), cores: 0.01, samples, unread: 0 };
        let honesty = honesty(run.seconds(), 6);
        assert_eq!((honesty.estimated, honesty.inside, honesty.exact, honesty.equal), (2, 1, 2, 1));
        assert!((honesty.ratio - (36.0 + 9.0) / 18.0).abs() < 1e-9);
        assert_eq!(honesty.unequal, [(0, 4, -1.0)]);
    }
}
