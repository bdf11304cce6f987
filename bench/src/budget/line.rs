//! A line for each second while it is measured.

use super::{
    figure::{FIGURES, PROBES},
    record::{Span, Watch},
};
use crate::load::job::Count;

/// The head over the lines of [`line()`].
pub fn head() -> String {
    let probes: String = PROBES.iter().map(|probe| format!(" {:>11}", format!("{probe} N,D"))).collect();
    format!(
        "{:<19} {:>2} {:>8} {:>6} {:>6} {:>6} {:>6} | {:>6} {:>6} {:>6} {:>7} {:>5} {:>7} |{probes} | off (standard error), %",
        "step",
        "s",
        "dgram/s",
        "io/s",
        "exec/s",
        "conn/s",
        "xchg/s",
        "user",
        "kernel",
        "meter",
        "outside",
        "of it",
        "bucket",
    )
}

/// One second. `cores` is the budget.
pub fn line(span: &Span<'_>, label: &str, cores: f64) -> String {
    let rate = |count| span.rate(count, false);
    let sampled =
        |watch: &Watch| format!(" {:>11}", format!("{:.0},{:.1}", 1.0 / watch.ratio, 1.0 / watch.duty));
    let watches: String = span.to.watches.iter().map(sampled).collect();
    let off = |index: usize| {
        let compared =
            span.compare(index).filter(|it| it.truth > 0.0 && !(it.is_exact() && it.is_equal()))?;
        let percent = |value: f64| 100.0 * value / compared.truth;
        Some(format!(
            "{} {:+.2} ({:.2})",
            FIGURES[index].label(),
            percent(compared.off),
            percent(compared.error)
        ))
    };
    let offs: Vec<_> = (0..FIGURES.len()).filter_map(off).collect();
    format!(
        "{label:<19} {:>2} {:>8.0} {:>6.0} {:>6.0} {:>6.0} {:>6.0} | {:>6.2} {:>6.2} {:>6.2} {:>7.2} {:>5.2} {:>5.1}ms |{watches} | {}",
        span.to.second,
        rate(Count::Datagrams),
        rate(Count::Requests),
        rate(Count::Execs),
        rate(Count::Connections),
        rate(Count::Exchanges),
        span.user() * 1e3,
        (span.meter() - span.user()) * 1e3,
        span.meter() * 1e3,
        span.outside() * 1e3,
        span.meter() / cores,
        (span.to.bucket - span.to.debt) * 1e3,
        offs.join(", "),
    )
}
