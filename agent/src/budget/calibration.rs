//! What a run costs besides what its body measures of itself: the tracepoint's dispatch, the program's prologue, the short path of an
//! event that is passed over. Measured at start with a trigger of our own: a message over a pair of local sockets passes both length
//! tracepoints, where the programs of the UDP probe turn it away.

use std::{io, os::unix::net::UnixDatagram, time::Instant};

/// What a run costs where it cannot be measured: the slowdown of a loop of system calls, on 6.18 on one x86_64 machine (91 to 98,
/// docs/overhead.md).
pub const DEFAULT_RUN_NS: u64 = 95;
/// What a run that is passed over costs more than one that is turned away: the draw. Measured like [`DEFAULT_RUN_NS`].
const DRAW_NS: f64 = 10.0;
/// What is believed of a measurement: less is no program, more is a machine that does something else.
const PLAUSIBLE_NS: std::ops::RangeInclusive<f64> = 20.0..=500.0;
/// Batches, of which the fastest counts: whatever disturbs makes a batch slower.
const BATCHES: usize = 64;
/// Messages in a batch.
const MESSAGES: u32 = 32;

/// A calibration that has begun.
#[derive(Debug)]
pub struct Calibration {
    sockets: (UnixDatagram, UnixDatagram),
    without_ns: f64,
}

impl Calibration {
    /// Measures the trigger before any program is attached.
    ///
    /// # Errors
    /// When the kernel gives no sockets.
    pub fn begin() -> io::Result<Self> {
        let sockets = UnixDatagram::pair()?;
        let without_ns = message_ns(&sockets)?;
        Ok(Self { sockets, without_ns })
    }

    /// Measures it again with the programs attached: nanoseconds of a run. `None` when that is not plausible, as where they are on
    /// other hooks.
    ///
    /// # Errors
    /// When the sockets fail.
    pub fn end(self) -> io::Result<Option<u64>> {
        let with_ns = message_ns(&self.sockets)?;
        tracing::debug!("a message takes {:.0} ns, and {with_ns:.0} ns with programs", self.without_ns);
        Ok(run_ns(with_ns, self.without_ns))
    }
}

/// Nanoseconds of a run that is passed over, from those of a message with and without programs, which is sent and received: two runs.
fn run_ns(with_ns: f64, without_ns: f64) -> Option<u64> {
    let run_ns = (with_ns - without_ns) / 2.0;
    PLAUSIBLE_NS.contains(&run_ns).then_some((run_ns + DRAW_NS) as u64)
}

/// Nanoseconds of a message in the fastest batch.
fn message_ns((here, there): &(UnixDatagram, UnixDatagram)) -> io::Result<f64> {
    let mut fastest = f64::INFINITY;
    for _ in 0..BATCHES {
        let begin = Instant::now();
        for _ in 0..MESSAGES {
            here.send(&[0])?;
            there.recv(&mut [0])?;
        }
        fastest = fastest.min(begin.elapsed().as_nanos() as f64 / f64::from(MESSAGES));
    }
    Ok(fastest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plausible_slowdown_is_believed() {
        assert_eq!(run_ns(760.0, 600.0), Some(80 + DRAW_NS as u64));
        for with_ns in [500.0, 600.0, 630.0, 5000.0] {
            assert_eq!(run_ns(with_ns, 600.0), None, "{with_ns}");
        }
    }

    #[test]
    fn the_trigger_is_a_message_that_takes_time() -> io::Result<()> {
        let calibration = Calibration::begin()?;
        assert!(calibration.without_ns > 0.0 && calibration.without_ns.is_finite());
        calibration.end().map(drop)
    }
}
