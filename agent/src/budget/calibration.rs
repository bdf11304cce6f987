//! What a run costs besides what its body measures of itself: the tracepoint's dispatch, the program's prologue, the short path of an
//! event that is passed over. Measured at start with a trigger of our own: a socket that is asked for a message when there is none
//! passes the tracepoint of receiving, where a program of the UDP probe turns it away. A message that is really sent would do too,
//! but its memory is taken from where the kernel finds it first: its time changes by more than a run takes.

use std::{
    io::{self, ErrorKind},
    os::unix::net::UnixDatagram,
    thread,
    time::{Duration, Instant},
};

/// What a run costs where it cannot be measured: the slowdown of a loop of system calls, on 6.18 on one x86_64 machine (91 to 98,
/// docs/overhead.md).
pub const DEFAULT_RUN_NS: u64 = 95;
/// A run that is passed over to one that is turned away: it looks at the socket more closely and draws. Measured like [`DEFAULT_RUN_NS`],
/// beside 61 ns for this trigger.
const PASSED_TO_TURNED: f64 = 1.5;
/// What is believed of a measurement: less is no program; more is a machine that does something else.
const PLAUSIBLE_NS: std::ops::RangeInclusive<f64> = 35.0..=500.0;
/// Batches, of which the one in the middle counts.
const BATCHES: usize = 64;
/// Times that there are so many batches, and the pause between: a neighbour of this CPU is busy for milliseconds on end.
const TIMES: usize = 4;
const PAUSE: Duration = Duration::from_millis(5);
/// Calls in a batch.
const CALLS: u32 = 32;

/// A calibration that has begun.
#[derive(Debug)]
pub struct Calibration {
    socket: UnixDatagram,
    without: Calls,
}

/// Nanoseconds of a call in the batch in the middle.
#[derive(Clone, Copy, Debug)]
struct Calls {
    /// Of the trigger.
    trigger_ns: f64,
    /// Of a call that passes no program. A CPU that is slower for all of a measurement, because of its clock or of a neighbour, is slower for
    /// both.
    reference_ns: f64,
}

impl Calibration {
    /// Measures the trigger before any program is attached.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn begin() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let without = measure(&socket)?;
        Ok(Self { socket, without })
    }

    /// Measures it again with the programs attached: nanoseconds of a run. `None` when that is not plausible, as where they are on
    /// other hooks.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn end(self) -> io::Result<Option<u64>> {
        let with = measure(&self.socket)?;
        let run_ns = run_ns(&with, &self.without);
        tracing::debug!(
            "without programs {:.0?}, with them {with:.0?}: a run takes {run_ns:?} ns",
            self.without
        );
        Ok(run_ns)
    }
}

/// Nanoseconds of a run that is passed over, from those of calls with and without a program.
fn run_ns(with: &Calls, without: &Calls) -> Option<u64> {
    let turned_ns = with.trigger_ns - without.trigger_ns * with.reference_ns / without.reference_ns;
    PLAUSIBLE_NS.contains(&turned_ns).then_some((turned_ns * PASSED_TO_TURNED) as u64)
}

/// Measures both kinds of calls in turns.
fn measure(socket: &UnixDatagram) -> io::Result<Calls> {
    let (mut triggers, mut references) = (Vec::new(), Vec::new());
    for number in 0..TIMES * BATCHES {
        if number > 0 && number % BATCHES == 0 {
            thread::sleep(PAUSE);
        }
        triggers.push(batch_ns(|| match socket.recv(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(io::Error::other("a socket without a name got a message")),
        })?);
        references.push(batch_ns(|| socket.take_error().map(drop))?);
    }
    let middle = |mut batches: Vec<f64>| {
        batches.sort_by(f64::total_cmp);
        batches[batches.len() / 2]
    };
    Ok(Calls { trigger_ns: middle(triggers), reference_ns: middle(references) })
}

/// Nanoseconds of a call in one batch.
fn batch_ns(mut call: impl FnMut() -> io::Result<()>) -> io::Result<f64> {
    let begin = Instant::now();
    for _ in 0..CALLS {
        call()?;
    }
    Ok(begin.elapsed().as_nanos() as f64 / f64::from(CALLS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plausible_slowdown_is_believed() {
        let without = Calls { trigger_ns: 220.0, reference_ns: 100.0 };
        let run_ns = |trigger_ns| run_ns(&Calls { trigger_ns, ..without }, &without);
        assert_eq!(run_ns(280.0), Some(90));
        for trigger_ns in [100.0, 220.0, 250.0, 5000.0] {
            assert_eq!(run_ns(trigger_ns), None, "{trigger_ns}");
        }
    }

    #[test]
    fn a_cpu_that_got_slower_meanwhile_is_no_slowdown_by_a_program() {
        let without = Calls { trigger_ns: 220.0, reference_ns: 100.0 };
        let with = Calls { trigger_ns: (220.0 + 60.0) * 1.5, reference_ns: 150.0 };
        assert_eq!(run_ns(&with, &without), Some(135));
    }

    #[test]
    fn the_trigger_is_a_call_that_takes_time() -> io::Result<()> {
        let calibration = Calibration::begin()?;
        for ns in [calibration.without.trigger_ns, calibration.without.reference_ns] {
            assert!(ns > 0.0 && ns.is_finite());
        }
        calibration.end().map(drop)
    }
}
