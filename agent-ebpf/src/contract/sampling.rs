//! Weighted sampling: which events are taken, and what a taken event stands for. The programs run this on a slot of
//! their own per CPU; statistical tests run the same code on simulated streams.
//!
//! Every event is taken by an independent draw with probability 1/N, N a power of two. That is the same as a countdown
//! over random gaps with mean N (the gaps are geometric), needs no logarithm, has no gap that outlives a change of N, and
//! counts all events on the way. N depends only on what happened before the event, so a taken event's weight N makes
//! every total unbiased whatever N did meanwhile; the sum of N(N-1)v² over taken events estimates the variance of a
//! total of v (Horvitz and Thompson's estimator for independent draws).

/// Largest period, as a power of two: one event in a million.
pub const MAX_PERIOD_LOG2: u64 = 20;

/// What the operator's budget says at the moment; the same for all CPUs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    /// The period N as a power of two.
    pub period_log2: u64,
    /// The program is attached for 1 in 2^this of the time: what it takes then stands for the rest as well.
    pub duty_log2: u64,
    /// Number of the controller's tick. A CPU's allowance begins anew with each.
    pub tick: u64,
    /// Events that one CPU takes per tick before it doubles its own period; 0 is no limit.
    pub allowance: u64,
    /// Runs of a program on one CPU within a tick at which it rings the alarm; 0 is never.
    pub alarm_runs: u64,
}

/// One program's sampling state on one CPU. Only that program writes it, and a program does not interrupt itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Sampler {
    /// State of the random numbers; 0 before the first event.
    pub random: u64,
    /// Events seen, taken or not.
    pub events: u64,
    /// Events taken.
    pub taken: u64,
    /// The tick that `spent` and `doublings` are about.
    pub tick: u64,
    /// Events taken since the period last changed within the tick.
    pub spent: u64,
    /// How often the period was doubled within the tick because the allowance was spent.
    pub doublings: u64,
    /// The variance of the count that the taken events stand for: the sum of D²(N-1) over all events seen, taken or not. It is
    /// known and not estimated, so a count's error is right also when nothing was taken.
    pub spread: u64,
}

impl Sampler {
    /// The period for the next event on this CPU, as a power of two.
    #[inline(always)]
    pub fn period_log2(&self, rate: &Rate) -> u64 {
        if self.tick == rate.tick { rate.period_log2 + self.doublings } else { rate.period_log2 }
    }

    /// Takes the event, with the logarithm of its weight, or passes it over. `seed` is asked once.
    ///
    /// A burst inside a tick is bounded: each time a CPU has taken its allowance it doubles its period, so the taken events
    /// of a tick grow with the logarithm of the burst only.
    #[inline(always)]
    pub fn take(&mut self, rate: &Rate, seed: impl FnOnce() -> u64) -> Option<u64> {
        self.events = self.events.wrapping_add(1);
        let weight_log2 = self.period_log2(rate);
        if self.tick != rate.tick {
            self.tick = rate.tick;
            self.spent = 0;
            self.doublings = 0;
        }
        if weight_log2 == 0 && rate.allowance == 0 {
            self.taken += 1;
            return Some(rate.duty_log2);
        }
        // At most MAX_PERIOD_LOG2, and where the verifier sees it.
        let weight_log2 = if weight_log2 < MAX_PERIOD_LOG2 { weight_log2 } else { MAX_PERIOD_LOG2 };
        self.spread = self.spread.wrapping_add(((1 << weight_log2) - 1) << (2 * (rate.duty_log2 & 15)));
        // xorshift64 (Marsaglia 2003) with a multiplication to mix the low bits into the high ones (Vigna 2016).
        let mut random = if self.random == 0 { seed() | 1 } else { self.random };
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        self.random = random;
        if random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 44 & ((1 << weight_log2) - 1) != 0 {
            return None;
        }
        self.taken += 1;
        self.spent += 1;
        if rate.allowance != 0 && self.spent >= rate.allowance {
            self.spent = 0;
            self.doublings += 1;
        }
        Some(weight_log2 + rate.duty_log2)
    }
}

/// What a taken event adds to a variance: N(N-1) v², with N given as its logarithm; at most 2^62.
#[inline(always)]
pub const fn variance(weight_log2: u64, value: u64) -> u64 {
    const MOST: u64 = 1 << 62;
    let value = if value < 1 << 31 { value } else { (1 << 31) - 1 };
    let square = value * value;
    // Without a multiplication of 128 bits, which BPF has not.
    if square > MOST >> (2 * weight_log2) {
        return MOST;
    }
    (square << (2 * weight_log2)) - (square << weight_log2)
}
