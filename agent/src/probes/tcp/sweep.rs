//! The sweep over live connections. With many of them it takes longer than the budget can pay at
//! once, so it goes in slices, and on from one reading to the next.
//!
//! A slice begins where the one before ended, by position. A connection that comes between two
//! slices moves the others on, so that one may be visited twice, and one that goes moves them back,
//! so that one may be missed. Its bytes are then counted by the next sweep, or at its end, and none
//! twice: only the number of open connections is off by as many as came or went meanwhile.

use std::io;

use crate::{
    budget::meter::thread_seconds,
    clock::unix_seconds,
    kernel::iter::{Iter, Walk},
};

/// The part of what a reading may cost that its sweep may: the rest of it brings the numbers.
const SHARE: f64 = 0.5;

/// A sweep, again and again.
#[derive(Debug)]
pub struct Sweep {
    iter: Iter,
    walk: Option<Walk>,
    /// Unix time at which it began.
    since_seconds: f64,
    is_over: bool,
    /// CPU seconds that it took so far.
    spent_seconds: f64,
}

impl Sweep {
    /// Sweeps by the iterator.
    pub fn new(iter: Iter) -> Self {
        Self { iter, walk: None, since_seconds: 0.0, is_over: false, spent_seconds: 0.0 }
    }

    /// Sweeps in a reading that may cost so many CPU seconds: goes on with what is under way, or
    /// begins anew.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read(&mut self, now_seconds: f64, purse_seconds: f64) -> io::Result<()> {
        if self.walk.is_none() {
            self.walk = Some(self.iter.begin()?);
            self.since_seconds = now_seconds;
        }
        self.go_on(purse_seconds * SHARE)
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
        self.read(unix_seconds(), f64::INFINITY)?;
        Ok(true)
    }

    /// Whether one is under way.
    pub fn is_under_way(&self) -> bool {
        self.walk.is_some()
    }

    /// Goes on for about so many CPU seconds, one slice at least.
    ///
    /// # Errors
    /// When the kernel refuses; it begins anew then.
    pub fn go_on(&mut self, seconds: f64) -> io::Result<()> {
        let Some(mut walk) = self.walk.take() else { return Ok(()) };
        let began = thread_seconds();
        let spent = || thread_seconds() - began;
        let result = loop {
            match walk.go_on() {
                Ok(false) if spent() < seconds => {}
                result => break result,
            }
        };
        self.spent_seconds += spent();
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
