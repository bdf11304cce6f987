//! Following connections that are open and not followed: those older than the agent, and those that
//! the budget left out. It looks at every open file of every process, so it goes in slices, tick by
//! tick.

use std::io;

use crate::{
    budget::meter::thread_seconds,
    kernel::iter::{Iter, Walk},
};

/// Seconds without a connection left out after which those that were left out before are adopted.
const CALM_SECONDS: f64 = 1.0;
/// Seconds after which it goes on by a slice even in debt.
const LONG_SECONDS: f64 = 10.0;
/// Seconds between two adoptions while connections are left out: those that last are followed from
/// then on, with all that they moved before.
const EVERY_SECONDS: f64 = 5.0;

/// An adoption, again and again.
#[derive(Debug)]
pub struct Adoption {
    /// The iterators, by name, one after the other.
    iters: Vec<(&'static str, Iter)>,
    /// The one that is under way.
    at: usize,
    walk: Option<Walk>,
    /// When the last one began and ended, in seconds since the agent began; it is under way when it
    /// ended before.
    began_seconds: f64,
    ended_seconds: f64,
    /// When it last went on.
    at_seconds: f64,
}

impl Adoption {
    /// Adopts by these iterators.
    pub fn new(iters: Vec<(&'static str, Iter)>) -> Self {
        Self { iters, at: 0, walk: None, began_seconds: 0.0, ended_seconds: 0.0, at_seconds: 0.0 }
    }

    /// Adopts all at once.
    pub fn run(&mut self) {
        self.go_on(f64::INFINITY);
    }

    /// A tick ends while connections may be left out, the last one so long ago; it may spend so
    /// much on this. Goes on with what is under way, or begins when it is time. Returns, when all
    /// were looked at, whether none was left out since.
    pub fn tick(&mut self, now_seconds: f64, calm_seconds: f64, may_seconds: f64) -> Option<bool> {
        if self.began_seconds <= self.ended_seconds {
            let is_due = calm_seconds >= CALM_SECONDS || now_seconds - self.ended_seconds >= EVERY_SECONDS;
            if !is_due {
                return None;
            }
            (self.began_seconds, self.at_seconds) = (now_seconds, now_seconds);
        }
        if may_seconds <= 0.0 && now_seconds - self.at_seconds < LONG_SECONDS {
            return None;
        }
        self.at_seconds = now_seconds;
        if !self.go_on(may_seconds) {
            return None;
        }
        self.ended_seconds = now_seconds;
        Some(calm_seconds >= CALM_SECONDS + now_seconds - self.began_seconds)
    }

    /// Goes on for about so many CPU seconds, one slice at least; says whether that was the end.
    fn go_on(&mut self, seconds: f64) -> bool {
        let began = thread_seconds();
        while let Some((name, iter)) = self.iters.get(self.at) {
            match slices(iter, &mut self.walk, || thread_seconds() - began < seconds) {
                Ok(true) => self.at += 1,
                Ok(false) => return false,
                Err(error) => {
                    tracing::warn!("cannot adopt open connections: iterator `{name}`: {error}");
                    self.at += 1;
                }
            }
        }
        self.at = 0;
        true
    }
}

/// Walks on while `may` says so, one slice at least; says whether that was the end.
fn slices(iter: &Iter, walk: &mut Option<Walk>, may: impl Fn() -> bool) -> io::Result<bool> {
    let mut current = match walk.take() {
        Some(walk) => walk,
        None => iter.begin()?,
    };
    while !current.go_on()? {
        if !may() {
            *walk = Some(current);
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_done_when_it_is_calm_and_now_and_then_while_it_is_not() {
        let mut adoption = Adoption::new(Vec::new());
        assert_eq!(adoption.tick(1.0, 0.5, 1.0), None, "not calm, and not time");
        assert_eq!(adoption.tick(2.0, 1.5, 1.0), Some(true));
        assert_eq!(adoption.tick(6.0, 0.0, 1.0), None);
        assert_eq!(adoption.tick(7.0, 0.0, 1.0), Some(false), "some are left out still");
        assert_eq!(adoption.tick(12.0, 0.0, 0.0), None, "nothing to pay it with");
        assert_eq!(adoption.tick(21.0, 9.0, 0.0), None);
        assert_eq!(adoption.tick(22.0, 10.0, 0.0), Some(false), "it began while some were left out");
        assert_eq!(adoption.tick(23.0, 11.0, 1.0), Some(true));
    }
}
