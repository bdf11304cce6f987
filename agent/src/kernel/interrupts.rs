//! What attaching and detaching costs the other CPUs. The kernel rewrites its own code and
//! interrupts each of them for it, more than once (smp_text_poke_batch_finish,
//! arch/x86/kernel/alternative.c, 6.18), which no clock of ours counts.
//!
//! A thread on another CPU does nothing but read the clock meanwhile: when it lacks a few
//! microseconds, the CPU was interrupted. That takes a millisecond, when there is least to spare,
//! so three measurements stand for all programs.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

/// Between two readings of the clock less than this is not an interrupt, and more is somebody
/// else's turn on the CPU.
const INTERRUPT: std::ops::Range<Duration> = Duration::from_nanos(700)..Duration::from_micros(60);
/// The thread reads the clock for so long at most.
const MOST: Duration = Duration::from_millis(1);
/// For so long it reads the clock before the work begins, to learn what is interrupted in any case.
const BEFORE: Duration = Duration::from_micros(100);
/// So often it is measured.
const TRIES: usize = 3;
/// What attaching or detaching a program is taken to cost one other CPU before that was measured,
/// in seconds.
const PRIOR_SECONDS: f64 = 5e-6;

/// What attaching or detaching one program costs one other CPU; the same for all probes.
#[derive(Debug, Default)]
pub struct Interrupts(Mutex<Measured>);

#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    tries: usize,
    /// The least: others interrupt that CPU, too.
    program_seconds: Option<f64>,
}

impl Interrupts {
    /// Seconds that attaching or detaching so many programs takes from all other CPUs together.
    pub fn seconds(&self, programs: usize) -> f64 {
        let seconds = self.lock().program_seconds.unwrap_or(PRIOR_SECONDS);
        online_cpus().saturating_sub(1) as f64 * programs as f64 * seconds
    }

    /// Does the work, which detaches so many programs, and measures it if it was not measured
    /// often enough yet.
    pub fn detach(&self, programs: usize, work: impl FnOnce()) {
        if programs == 0 || self.lock().tries >= TRIES {
            return work();
        }
        let ((), seconds) = interrupted(work);
        let mut measured = self.lock();
        measured.tries += 1;
        if let Some(seconds) = seconds.map(|seconds| seconds / programs as f64) {
            let least = measured.program_seconds.map_or(seconds, |least| least.min(seconds));
            measured.program_seconds = Some(least);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Measured> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// CPUs that are online, whatever part of them this process may use.
pub fn online_cpus() -> usize {
    // SAFETY: takes no addresses.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1).max(1)
}

/// Does the work and says how many seconds it took from one of the other CPUs; `None` when that
/// could not be seen.
fn interrupted<T>(work: impl FnOnce() -> T) -> (T, Option<f64>) {
    let cpus = online_cpus();
    if cpus < 2 {
        return (work(), None);
    }
    let other = (sched_getcpu() + 1) % cpus;
    let (is_ready, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let watch = thread::Builder::new().spawn_scoped(scope, || {
            let seconds = watch(other, &is_ready, &is_over);
            // Also when it could not watch: nobody is to wait for it.
            is_ready.store(true, Relaxed);
            seconds
        });
        let Ok(watch) = watch else { return (work(), None) };
        let begin = Instant::now();
        while !is_ready.load(Relaxed) && begin.elapsed() < MOST {
            thread::yield_now();
        }
        let result = work();
        is_over.store(true, Relaxed);
        (result, watch.join().ok().flatten())
    })
}

/// Seconds that the CPU was interrupted for while the work was done, less what it is in any case.
/// `None` when there was no time before the work to learn that.
fn watch(cpu: usize, is_ready: &AtomicBool, is_over: &AtomicBool) -> Option<f64> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).ok()?;
    let begin = Instant::now();
    let (mut last, mut gaps, mut before) = (begin, Duration::ZERO, None);
    while !is_over.load(Relaxed) && last - begin < MOST {
        let now = Instant::now();
        if INTERRUPT.contains(&(now - last)) {
            gaps += now - last;
        }
        last = now;
        if before.is_none() && now - begin >= BEFORE {
            before = Some((gaps, now));
            is_ready.store(true, Relaxed);
        }
    }
    let (usual, since) = before?;
    let usual = usual.as_secs_f64() / (since - begin).as_secs_f64() * (last - since).as_secs_f64();
    Some(((gaps - before?.0).as_secs_f64() - usual).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_interrupts_nobody_costs_the_others_next_to_nothing() {
        // A busy machine may interrupt the other CPU for its own reasons, but not each time.
        let measured: Vec<_> = (0..20).filter_map(|_| interrupted(|| ()).1).collect();
        let least = measured.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(measured.is_empty() || least < 20e-6, "{measured:?} s");
    }
}
