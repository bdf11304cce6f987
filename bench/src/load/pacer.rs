//! When a load generator works, and what it counted, shared with who started it.

use std::{
    sync::atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Relaxed, SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use super::job::{COUNTS, Count, Counts, Pace, SLICE};

/// What a load generator shares with who started it.
#[derive(Debug, Default)]
pub struct Shared {
    stop: AtomicBool,
    pause: AtomicBool,
    is_paused: AtomicBool,
    counts: [AtomicU64; COUNTS],
}

impl Shared {
    /// Ends the work.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Whether the work is to end.
    pub fn is_over(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Holds the work up, or lets it go on.
    pub fn pause(&self, pause: bool) {
        self.pause.store(pause, SeqCst);
    }

    /// Whether nothing happens while [`pause`](Self::pause) holds the work up.
    pub fn is_paused(&self) -> bool {
        self.is_paused.load(SeqCst)
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        Counts(std::array::from_fn(|index| self.counts[index].load(Relaxed)))
    }
}

/// How long a load generator sleeps before it looks again whether there is something to do.
const NAP: Duration = Duration::from_millis(1);
/// The same while it is paused.
const SHORT_NAP: Duration = Duration::from_micros(100);

/// Tells one load generator when to work.
#[derive(Debug)]
pub struct Pacer<'a> {
    shared: &'a Shared,
    pace: Pace,
    begin: Instant,
    turns: u64,
}

impl<'a> Pacer<'a> {
    /// A pacer whose time begins now.
    pub fn new(shared: &'a Shared, pace: Pace) -> Self {
        Self { shared, pace, begin: Instant::now(), turns: 0 }
    }

    /// Waits until it is time for another turn; `false` when there is none.
    pub fn next(&mut self) -> bool {
        while !self.shared.is_over() {
            if self.shared.pause.load(SeqCst) {
                self.shared.is_paused.store(true, SeqCst);
                thread::sleep(SHORT_NAP);
            } else if self.shared.is_paused.load(Relaxed) {
                self.shared.is_paused.store(false, SeqCst);
                // Whoever paused again meanwhile may have seen the old value: look once more.
            } else if self.is_due() {
                self.turns += 1;
                return true;
            } else {
                thread::sleep(NAP);
            }
        }
        false
    }

    fn is_due(&self) -> bool {
        match self.pace {
            Pace::Full => true,
            Pace::PerSecond(rate) => (self.turns as f64) < self.begin.elapsed().as_secs_f64() * rate,
            Pace::Slice { index, slices } => {
                self.begin.elapsed().as_secs() / SLICE.as_secs() % slices == index
            }
        }
    }

    /// Counts what happened.
    pub fn add(&self, count: Count, number: u64) {
        // Only the load generator's own thread writes it.
        let counter = &self.shared.counts[count as usize];
        counter.store(counter.load(Relaxed) + number, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_happens_during_a_pause_and_a_pace_is_kept_over_it() {
        let shared = Shared::default();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut pacer = Pacer::new(&shared, Pace::PerSecond(2000.0));
                while pacer.next() {
                    pacer.add(Count::Execs, 1);
                }
            });
            for _ in 0..10 {
                thread::sleep(Duration::from_millis(20));
                shared.pause(true);
                while !shared.is_paused() {
                    thread::yield_now();
                }
                let before = shared.counts();
                thread::sleep(Duration::from_millis(5));
                assert_eq!(shared.counts(), before);
                shared.pause(false);
            }
            thread::sleep(Duration::from_millis(20));
            shared.stop();
        });
        let turns = shared.counts().of(Count::Execs);
        assert!((400.0..2000.0).contains(&turns), "{turns}");
    }
}
