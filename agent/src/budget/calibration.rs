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
/// What is believed of a measurement: less is no program, or a neighbour of this CPU that came to rest in between; more is a machine that does
/// something else.
const PLAUSIBLE_NS: std::ops::RangeInclusive<f64> = 35.0..=500.0;
/// Batches, of which the fastest counts: whatever disturbs makes a batch slower.
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
    without_ns: f64,
}

impl Calibration {
    /// Measures the trigger before any program is attached.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn begin() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let without_ns = call_ns(&socket)?;
        Ok(Self { socket, without_ns })
    }

    /// Measures it again with the programs attached: nanoseconds of a run. `None` when that is not plausible, as where they are on
    /// other hooks.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn end(self) -> io::Result<Option<u64>> {
        let with_ns = call_ns(&self.socket)?;
        tracing::debug!("a call takes {:.0} ns, and {with_ns:.0} ns with a program", self.without_ns);
        Ok(run_ns(with_ns, self.without_ns))
    }
}

/// Nanoseconds of a run that is passed over, from those of a call with and without a program.
fn run_ns(with_ns: f64, without_ns: f64) -> Option<u64> {
    let turned_ns = with_ns - without_ns;
    PLAUSIBLE_NS.contains(&turned_ns).then_some((turned_ns * PASSED_TO_TURNED) as u64)
}

/// Nanoseconds of a call in the fastest batch.
fn call_ns(socket: &UnixDatagram) -> io::Result<f64> {
    let mut fastest = f64::INFINITY;
    for number in 0..TIMES * BATCHES {
        if number > 0 && number % BATCHES == 0 {
            thread::sleep(PAUSE);
        }
        let begin = Instant::now();
        for _ in 0..CALLS {
            match socket.recv(&mut [0]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
                Ok(_) => return Err(io::Error::other("a socket without a name got a message")),
            }
        }
        fastest = fastest.min(begin.elapsed().as_nanos() as f64 / f64::from(CALLS));
    }
    Ok(fastest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plausible_slowdown_is_believed() {
        assert_eq!(run_ns(280.0, 220.0), Some(90));
        for with_ns in [100.0, 220.0, 250.0, 5000.0] {
            assert_eq!(run_ns(with_ns, 220.0), None, "{with_ns}");
        }
    }

    #[test]
    fn the_trigger_is_a_call_that_takes_time() -> io::Result<()> {
        let calibration = Calibration::begin()?;
        assert!(calibration.without_ns > 0.0 && calibration.without_ns.is_finite());
        calibration.end().map(drop)
    }
}
