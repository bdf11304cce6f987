//! From variances to standard errors. Pure.

/// The variance of a total in its own unit, from one of draws kept in `unit`s squared and one of clusters.
///
/// At ratio 1 every weight is 1 and there are no clusters, so the variance is 0 and the total is exact.
pub fn variance(draws: f64, unit: f64, clusters: f64) -> f64 {
    draws * unit * unit + clusters
}

/// N sums of words of the kernel, which wrap: read often, each reading adds what came since.
#[derive(Clone, Copy, Debug)]
pub struct Sums<const N: usize> {
    last: [u64; N],
    sums: [f64; N],
}

impl<const N: usize> Default for Sums<N> {
    fn default() -> Self {
        Self { last: [0; N], sums: [0.0; N] }
    }
}

impl<const N: usize> Sums<N> {
    /// Takes a newer reading; returns what it adds.
    pub fn read(&mut self, words: [u64; N]) -> [f64; N] {
        let mut added = [0.0; N];
        for (n, word) in words.into_iter().enumerate() {
            added[n] = word.wrapping_sub(self.last[n]) as f64;
            self.sums[n] += added[n];
            self.last[n] = word;
        }
        added
    }

    /// The n-th sum so far.
    pub fn of(&self, n: usize) -> f64 {
        self.sums[n]
    }
}

/// What the kernel notes of the draws of a program: words that grow.
#[derive(Clone, Copy, Debug)]
pub struct Draws<const N: usize> {
    /// The sum of D²(N-1) over all events: [`siskin_ebpf::Sampler::spread`].
    pub spread: u64,
    /// The sum of D²N(N-1) over the taken events.
    pub count: u64,
    /// The sums of D²N(N-1) v² over the taken events, for each value v.
    pub values: [u64; N],
}

/// Variances of a count and of the sums of N values of the same events.
///
/// The count's variance is known: each event adds D²(N-1), taken or not. That of a sum would need the values of events that
/// were passed over; it is the count's, times the mean square of the values of events that were taken lately. So an error is
/// right also over a time in which nothing was taken, and it jumps less than the sum over the taken events alone.
#[derive(Clone, Copy, Debug)]
pub struct Variances<const N: usize> {
    spread: Sums<1>,
    count: Sums<1>,
    values: Sums<N>,
    recent_count: f64,
    recent_values: [f64; N],
    pending: f64,
    sums: [f64; N],
}

/// How much of what was taken before still tells about values when something newer was taken.
const MEMORY: f64 = 0.9;

impl<const N: usize> Default for Variances<N> {
    fn default() -> Self {
        Self {
            spread: Sums::default(),
            count: Sums::default(),
            values: Sums::default(),
            recent_count: 0.0,
            recent_values: [0.0; N],
            pending: 0.0,
            sums: [0.0; N],
        }
    }
}

impl<const N: usize> Variances<N> {
    /// Takes a newer reading.
    pub fn read(&mut self, draws: Draws<N>) {
        let [spread] = self.spread.read([draws.spread]);
        let [count] = self.count.read([draws.count]);
        let values = self.values.read(draws.values);
        if count > 0.0 {
            self.recent_count = self.recent_count * MEMORY + count;
            for (recent, value) in self.recent_values.iter_mut().zip(values) {
                *recent = *recent * MEMORY + value;
            }
        }
        // Until something was taken nothing is known of the values.
        self.pending += spread;
        if self.recent_count > 0.0 {
            for (sum, value) in self.sums.iter_mut().zip(self.recent_values) {
                *sum += self.pending * value / self.recent_count;
            }
            self.pending = 0.0;
        }
    }

    /// The count's variance so far.
    pub fn count(&self) -> f64 {
        self.spread.of(0)
    }

    /// The variance of the sum of the n-th value so far, in the unit of its words.
    pub fn sum(&self, n: usize) -> f64 {
        self.sums[n]
    }
}

/// How a probe is being watched that is attached for a share of the time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch {
    /// It is attached for 1 in 2^this of the time; 0 is all of it.
    pub duty_log2: u64,
    /// Whether it is attached now.
    pub is_open: bool,
    /// Windows that ended so far.
    pub windows: u64,
    /// Seconds since the last one ended.
    pub age_seconds: f64,
    /// Seconds from one to the next.
    pub cycle_seconds: f64,
    /// Seconds that the last one stands for.
    pub window_seconds: f64,
    /// Seconds since the agent began.
    pub now_seconds: f64,
    /// The tick, when one ends now.
    pub tick: Option<Tick>,
}

/// A tick that ends.
#[derive(Clone, Copy, Debug)]
pub struct Tick {
    /// Seconds that it took.
    pub seconds: f64,
    /// Share of what the probe saw since the last tick that was looked at which it saw in this one: ticks in which it is not busy are not.
    pub share: f64,
}

/// Variances of N totals of a probe that is attached for a share of the time.
///
/// One window in D is watched, at a random place. A window's total x, standing for D windows, is an estimate X = D x of its
/// cycle's total; when nothing is known of the other windows its variance is estimated by (D²-D) x² = (1-1/D) X², as if
/// each window were drawn alone. That is the worst case, and right for a load that comes in bursts.
///
/// A window that saw less than the one before tells little: the load may have stood still for just these milliseconds. Its estimate's square counts
/// for no less than half of what that of the last one counted for.
///
/// What came since the last window is not in the total yet: the error is wider by as much as came in so long a time before. So it is right
/// at every moment, also in a second without a window.
#[derive(Clone, Copy, Debug)]
pub struct Clusters<const N: usize> {
    last: [u64; N],
    duty_log2: u64,
    windows: u64,
    /// Of windows that are over.
    closed: [f64; N],
    /// Of one that is not, and of what came since the last.
    open: [f64; N],
    /// What comes in a second, squared.
    rate: [f64; N],
}

impl<const N: usize> Default for Clusters<N> {
    fn default() -> Self {
        Self { last: [0; N], duty_log2: 0, windows: 0, closed: [0.0; N], open: [0.0; N], rate: [0.0; N] }
    }
}

impl<const N: usize> Clusters<N> {
    /// Takes the totals as they stand.
    pub fn read(&mut self, totals: [u64; N], watch: &Watch) {
        self.close(totals, watch);
        self.open = [0.0; N];
        if watch.duty_log2 == 0 {
            return;
        }
        let added = self.added(totals);
        let age_seconds = watch.age_seconds.min(MOST_CYCLES * watch.cycle_seconds);
        for ((open, added), rate) in self.open.iter_mut().zip(added).zip(self.rate) {
            *open = between_windows(watch.duty_log2) * added * added + rate * age_seconds * age_seconds;
        }
    }

    /// Ends a window that is over, or a tick in which the probe was attached all the time.
    fn close(&mut self, totals: [u64; N], watch: &Watch) {
        // The share of the time may have ended with its last window.
        let duty_log2 = self.duty_log2.max(watch.duty_log2);
        let is_window = watch.windows != self.windows && !watch.is_open && duty_log2 > 0;
        let (share, seconds) = match watch.tick {
            _ if is_window && watch.duty_log2 > 0 => (1.0, watch.window_seconds.max(1e-3)),
            Some(tick) if watch.duty_log2 == 0 => (tick.share, tick.seconds.max(1e-3)),
            _ => return,
        };
        let is_window = is_window || watch.windows != self.windows && watch.duty_log2 == 0;
        let added = self.added(totals);
        for (n, added) in added.into_iter().enumerate() {
            let rate = (added * share / seconds).powi(2);
            self.rate[n] = if is_window { rate.max(self.rate[n] / 2.0) } else { rate };
            if is_window {
                self.closed[n] += between_windows(duty_log2) * self.rate[n] * seconds * seconds;
            }
        }
        (self.last, self.windows, self.duty_log2) = (totals, watch.windows, watch.duty_log2);
    }

    /// The variance of the n-th total so far.
    pub fn variance(&self, n: usize) -> f64 {
        self.closed[n] + self.open[n]
    }

    fn added(&self, totals: [u64; N]) -> [f64; N] {
        std::array::from_fn(|n| totals[n].wrapping_sub(self.last[n]) as f64)
    }
}

/// For so many cycles without a window the load is taken to be what it was; later ones come after an agent that could not run.
const MOST_CYCLES: f64 = 2.0;

/// The share of an estimate's square that is its variance, from a window in 2^`duty_log2`.
fn between_windows(duty_log2: u64) -> f64 {
    1.0 - (-(duty_log2 as f64)).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At the end of a tick, half a second after the start.
    const fn tick(duty_log2: u64, is_open: bool, windows: u64, age_seconds: f64) -> Watch {
        Watch {
            duty_log2,
            is_open,
            windows,
            age_seconds,
            cycle_seconds: 1.0,
            window_seconds: 1.0,
            now_seconds: 0.0,
            tick: Some(Tick { seconds: 0.5, share: 1.0 }),
        }
    }

    /// In the middle of one.
    const fn scrape(duty_log2: u64, is_open: bool, windows: u64, age_seconds: f64) -> Watch {
        Watch { tick: None, ..tick(duty_log2, is_open, windows, age_seconds) }
    }

    #[test]
    fn a_burst_after_a_long_time_without_ticks_is_as_fast_as_it_was() {
        // A hundred a second for an hour, exact and without a tick that was looked at; then a thousand in ten milliseconds, and windows.
        let mut clusters = Clusters::default();
        let burst = Tick { seconds: 0.01, share: 1000.0 / 361_000.0 };
        clusters.read([361_000], &Watch { tick: Some(burst), ..tick(0, true, 0, 0.0) });
        clusters.read([361_000], &scrape(3, false, 0, 1.0));
        assert!((clusters.variance(0).sqrt() - 100_000.0).abs() < 1.0, "{}", clusters.variance(0).sqrt());
    }

    #[test]
    fn watching_half_of_the_time_errs_as_half_the_windows_do() {
        // Windows of 10 events, each watched or not by the toss of a coin: an estimate of 20 or 0, variance 100.
        let mut clusters = Clusters::default();
        for number in 1..=1000 {
            clusters.read([20 * (number / 2)], &tick(1, false, number / 2, 0.0));
        }
        assert_eq!(clusters.variance(0), 500.0 * 200.0);
        clusters.read([20 * 500 + 7], &tick(0, true, 500, 9.0));
        assert_eq!(clusters.variance(0), 500.0 * 200.0, "all of the time is no cluster");
    }

    #[test]
    fn a_window_that_a_tick_or_a_scrape_falls_into_is_one_window() {
        let mut clusters = Clusters::default();
        clusters.read([400], &tick(2, true, 0, 0.0));
        assert_eq!(clusters.variance(0), 0.75 * 160_000.0);
        clusters.read([1000], &scrape(2, false, 1, 0.0));
        assert_eq!(clusters.variance(0), 0.75 * 1e6);
        clusters.read([1000], &tick(2, false, 1, 0.0));
        assert_eq!(clusters.variance(0), 0.75 * 1e6);
    }

    #[test]
    fn what_came_since_the_last_window_is_in_the_error() {
        let mut clusters = Clusters::default();
        // 500 in half a second of being attached all the time; then nothing is seen for a second.
        clusters.read([500], &tick(0, true, 0, 0.0));
        assert_eq!(clusters.variance(0), 0.0);
        for age_seconds in [0.5, 1.0, 9.0] {
            clusters.read([500], &tick(3, false, 0, age_seconds));
            let missing = 1000.0 * age_seconds.min(2.0);
            assert_eq!(clusters.variance(0), missing * missing);
        }
    }

    #[test]
    fn a_window_that_saw_nothing_tells_little_and_many_tell_that_there_is_no_load() {
        let mut clusters = Clusters::default();
        clusters.read([500], &tick(0, true, 0, 0.0));
        let mut last = 0.0;
        for windows in 1..=20 {
            clusters.read([500], &tick(3, false, windows, 0.0));
            assert!(clusters.variance(0) > last);
            last = clusters.variance(0);
        }
        // 1,000 a second before: a half and a quarter and so on of its square.
        assert!((0.9..=1.0).contains(&(last / (0.875 * 1e6))), "{last}");
    }

    #[test]
    fn an_error_covers_the_truth_in_the_middle_of_cycles_too() {
        // A steady load of 1000 in a cycle of a second; each has one window of an eighth at a random place, looked at by ticks of half a second
        // and at random moments.
        let mut random = fastrand::Rng::with_seed(1);
        let (mut clusters, mut total, mut windows, mut ended) = (Clusters::default(), 0, 0, 0.0);
        clusters.read([500], &tick(0, true, 0, 0.0));
        let (mut inside, mut looks) = (0, 0);
        for cycle in 0..2000 {
            let end = f64::from(cycle) + (f64::from(random.u32(0..8)) + 1.0) / 8.0;
            for half in 0..2 {
                let end_of_tick = f64::from(cycle) + f64::from(half + 1) / 2.0;
                let moment = end_of_tick - 0.5 * random.f64();
                for (at, watch) in [(moment, scrape as fn(_, _, _, _) -> _), (end_of_tick, tick)] {
                    if end <= at && ended < end {
                        (total, windows, ended) = (total + 1000, windows + 1, end);
                    }
                    clusters.read([500 + total], &watch(3, false, windows, at - ended));
                    if at == moment {
                        let off = at * 1000.0 - total as f64;
                        looks += 1;
                        inside += i32::from(off.abs() <= 1.96 * clusters.variance(0).sqrt());
                    }
                }
            }
        }
        assert!(f64::from(inside) >= 0.95 * f64::from(looks), "{inside} of {looks}");
    }

    #[test]
    fn a_word_that_wraps_goes_on_adding() {
        let mut sums = Sums::default();
        for word in [u64::MAX - 9, 10, 30] {
            sums.read([word]);
        }
        assert_eq!(sums.of(0), (u64::MAX - 9) as f64 + 20.0 + 20.0);
    }

    #[test]
    fn a_time_in_which_nothing_was_taken_has_an_error_too() {
        let mut variances = Variances::default();
        // At 1 in 4, eight events of value 5 of which two are taken; then eight of which none is.
        let taken = Draws { spread: 8 * 3, count: 2 * 12, values: [2 * 12 * 25] };
        variances.read(taken);
        assert_eq!((variances.count(), variances.sum(0)), (24.0, 24.0 * 25.0));
        variances.read(Draws { spread: 16 * 3, ..taken });
        assert_eq!((variances.count(), variances.sum(0)), (48.0, 48.0 * 25.0));
    }

    #[test]
    fn what_was_passed_over_before_anything_was_taken_is_accounted_for_later() {
        let mut variances = Variances::default();
        variances.read(Draws { spread: 24, count: 0, values: [0] });
        assert_eq!((variances.count(), variances.sum(0)), (24.0, 0.0));
        variances.read(Draws { spread: 27, count: 12, values: [12 * 9] });
        assert_eq!(variances.sum(0), 27.0 * 9.0);
    }
}
