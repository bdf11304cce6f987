//! The sweep over live connections. With many of them it takes longer than the budget can pay at
//! once, so it goes in slices, and on from one reading to the next.
//!
//! The kernel finds the place where a slice begins by walking there over all before it, so few long
//! slices are better than many short ones: one is as long as can be paid.
//!
//! A slice begins where the one before ended, by position. A connection that comes between two
//! slices moves the others on, so that one may be visited twice, and one that goes moves them back,
//! so that one may be missed. Its bytes are then counted by the next sweep, or at its end, and none
//! twice: only the number of open connections is off by as many as came or went meanwhile.

use std::{io, sync::Arc};

use crate::{
    budget::{meter::thread_seconds, purse::Purse},
    clock::unix_seconds,
    kernel::{
        control::Control,
        iter::{Iter, Walk},
    },
};

/// The part of what a reading may cost that its sweep may: the rest of it brings the numbers.
const SHARE: f64 = 0.5;
/// Sockets of the shortest slice.
const LEAST_SLICE: u64 = 4096;
/// Sockets of a slice that tells what one costs.
const TELLING: u64 = 256;
/// Seconds after which it goes on whatever that costs.
const LONG_SECONDS: f64 = 10.0;
/// CPU seconds that a socket is taken to cost before that was measured: to visit, and to pass by on
/// the way to where a slice begins.
const VISIT_SECONDS: f64 = 0.4e-6;
const PASS_SECONDS: f64 = 0.1e-6;

/// A sweep, again and again.
#[derive(Debug)]
pub struct Sweep {
    iter: Iter,
    control: Arc<Control>,
    walk: Option<Walk>,
    /// The number of the socket at which it stops next.
    stop: u64,
    pace: Pace,
    /// Unix time at which it went on in a reading.
    at_seconds: f64,
    /// Unix time at which it began.
    since_seconds: f64,
    is_over: bool,
    /// CPU seconds that it took so far.
    spent_seconds: f64,
}

impl Sweep {
    /// Sweeps by the iterator.
    pub fn new(iter: Iter, control: Arc<Control>) -> Self {
        Self {
            iter,
            control,
            walk: None,
            stop: 0,
            pace: Pace { visit_seconds: VISIT_SECONDS, pass_seconds: PASS_SECONDS },
            at_seconds: 0.0,
            since_seconds: 0.0,
            is_over: false,
            spent_seconds: 0.0,
        }
    }

    /// Sweeps in a reading that may cost so many CPU seconds: goes on with what is under way, or
    /// begins anew. Not at all when a slice costs more, unless it waits for long.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read(&mut self, now_seconds: f64, purse: Purse) -> io::Result<()> {
        let position = if self.walk.is_some() { self.stop } else { 0 };
        if !purse.can_pay(self.pace.next(position, self.left(position)))
            && now_seconds - self.at_seconds < LONG_SECONDS
        {
            return Ok(());
        }
        self.at_seconds = now_seconds;
        if self.walk.is_none() {
            self.walk = Some(self.iter.begin()?);
            (self.since_seconds, self.stop) = (now_seconds, 0);
        }
        self.go_on(purse.seconds() * SHARE)
    }

    /// Sweeps once between two readings. Returns `false` when one is under way, or not taken yet,
    /// that began before.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn whole(&mut self) -> io::Result<bool> {
        if self.is_over || self.walk.is_some() {
            return Ok(false);
        }
        self.read(unix_seconds(), Purse::UNLIMITED)?;
        Ok(true)
    }

    /// What it costs about to go on with one that is under way, in CPU seconds.
    pub fn next_seconds(&self) -> Option<f64> {
        self.walk.is_some().then(|| self.pace.next(self.stop, self.left(self.stop)))
    }

    /// About how many sockets it has not visited at a position.
    fn left(&self, position: u64) -> u64 {
        self.control.sockets().saturating_sub(position)
    }

    /// Goes on for about so many CPU seconds, one slice at least.
    ///
    /// # Errors
    /// When the kernel refuses; it begins anew then.
    pub fn go_on(&mut self, seconds: f64) -> io::Result<()> {
        let Some(mut walk) = self.walk.take() else { return Ok(()) };
        let began = thread_seconds();
        let mut spent = 0.0;
        let result = loop {
            let slice = self.pace.slice(self.stop, seconds - spent);
            self.control.set_sweep_stop(self.stop.saturating_add(slice));
            let result = walk.go_on();
            let before = std::mem::replace(&mut spent, thread_seconds() - began);
            tracing::debug!(
                "sweep: slice of {slice} sockets from {} on took {:.2} ms",
                self.stop,
                (spent - before) * 1e3
            );
            self.pace.took(self.stop, slice.min(self.left(self.stop)), spent - before);
            if !matches!(result, Ok(false)) {
                break result;
            }
            self.stop = self.stop.saturating_add(slice);
            if spent + self.pace.next(self.stop, self.left(self.stop)) > seconds {
                break Ok(false);
            }
        };
        self.spent_seconds += spent;
        self.is_over = result?;
        self.walk = (!self.is_over).then_some(walk);
        Ok(())
    }

    /// CPU seconds that sweeps took so far.
    pub fn spent_seconds(&self) -> f64 {
        self.spent_seconds
    }

    /// Takes the one that is over: the Unix time at which it began. What it counted has to be read
    /// before the next begins.
    pub fn take(&mut self) -> Option<f64> {
        std::mem::take(&mut self.is_over).then_some(self.since_seconds)
    }
}

/// What sockets cost.
#[derive(Clone, Copy, Debug)]
struct Pace {
    visit_seconds: f64,
    pass_seconds: f64,
}

impl Pace {
    /// CPU seconds of a slice of so many sockets that begins at a position.
    fn seconds(&self, position: u64, slice: u64) -> f64 {
        position as f64 * self.pass_seconds + slice as f64 * self.visit_seconds
    }

    /// CPU seconds of the shortest slice there, when so many sockets are left.
    fn next(&self, position: u64, left: u64) -> f64 {
        self.seconds(position, self.least(position).min(left))
    }

    /// Sockets of the shortest slice there: to visit them costs as much as the way.
    fn least(&self, position: u64) -> u64 {
        ((self.seconds(position, 0) / self.visit_seconds) as u64).max(LEAST_SLICE)
    }

    /// Sockets of a slice that may cost so many CPU seconds.
    fn slice(&self, position: u64, seconds: f64) -> u64 {
        let payable = (seconds - self.seconds(position, 0)) / self.visit_seconds;
        (payable as u64).max(self.least(position))
    }

    /// A slice that visited so many sockets took so many CPU seconds. The first one tells what a
    /// visit costs, the others what it costs to pass by. Few tell nothing.
    fn took(&mut self, position: u64, slice: u64, seconds: f64) {
        if slice < TELLING {
            return;
        }
        if position == 0 {
            self.visit_seconds = (seconds / slice as f64).max(1e-9);
        } else {
            self.pass_seconds = ((seconds - self.visit_seconds * slice as f64) / position as f64).max(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_as_long_as_can_be_paid_and_never_too_short() {
        let mut pace = Pace { visit_seconds: 0.5e-6, pass_seconds: 0.1e-6 };
        assert_eq!(pace.slice(0, 5e-3), 10_000);
        assert_eq!(pace.slice(20_000, 5e-3), 6_000, "on the way there 2 ms are spent");
        assert_eq!(pace.slice(100_000, 5e-3), 20_000, "not less than what the way costs");
        assert_eq!(pace.slice(0, -1.0), LEAST_SLICE);
        assert_eq!(pace.slice(0, f64::INFINITY), u64::MAX, "all at once");
        assert!((pace.next(0, 10) - 5e-6).abs() < 1e-12, "there are only ten");
        pace.took(0, 10, 4e-3);
        pace.took(0, 10_000, 4e-3);
        pace.took(10_000, 5_000, 4e-3);
        assert!((pace.seconds(20_000, 10_000) - 8e-3).abs() < 1e-9, "{pace:?}");
    }
}
