//! The contract of the budget: over any T seconds the cost is at most budget x (T + 1 s), and the
//! largest item that cannot be divided.

/// CPU seconds spent until then.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    /// Seconds since the run began.
    pub at: f64,
    /// CPU seconds.
    pub cost: f64,
}

/// What the contract allows.
#[derive(Clone, Copy, Debug)]
pub struct Contract {
    /// The budget in cores.
    pub cores: f64,
    /// CPU seconds of the largest item.
    pub item: f64,
}

/// An interval that cost more than was allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Breach {
    /// When it began.
    pub from: f64,
    /// When it ended.
    pub to: f64,
    /// CPU seconds above what was allowed.
    pub excess: f64,
}

/// What came of looking at every interval of one length.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// How many there were.
    pub intervals: usize,
    /// The highest cost, as a share of what was allowed.
    pub highest_share: f64,
    /// The highest cost, as a share of the budget alone.
    pub highest_of_budget: f64,
    /// Those that cost too much.
    pub breaches: Vec<Breach>,
}

/// Seconds by which a reading may come early.
const JITTER: f64 = 0.05;

impl Contract {
    /// Looks at every interval between two readings that is the first to last so many seconds. A
    /// longer one is allowed more: what counts is how long it was.
    pub fn check(&self, spent: &[Spent], seconds: f64) -> Verdict {
        let mut verdict = Verdict::default();
        for (index, from) in spent.iter().enumerate() {
            let Some(to) = spent[index..].iter().find(|to| to.at - from.at >= seconds - JITTER) else {
                break;
            };
            let (time, cost) = (to.at - from.at, to.cost - from.cost);
            let allowed = self.cores * (time + 1.0) + self.item;
            verdict.intervals += 1;
            verdict.highest_share = verdict.highest_share.max(cost / allowed);
            verdict.highest_of_budget = verdict.highest_of_budget.max(cost / (self.cores * time));
            if cost > allowed {
                verdict.breaches.push(Breach { from: from.at, to: to.at, excess: cost - allowed });
            }
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_exceeds_the_bucket_is_a_breach() {
        let contract = Contract { cores: 0.01, item: 0.001 };
        // 10 ms each second, and once 24 ms within a second.
        let mut cost = 0.0;
        let spent: Vec<_> = (0..30)
            .map(|second| {
                cost += if second == 10 { 0.024 } else { 0.010 };
                Spent { at: f64::from(second), cost }
            })
            .collect();
        let second = contract.check(&spent, 1.0);
        assert_eq!((second.intervals, second.breaches.len()), (29, 1));
        assert!((second.breaches[0].excess - 0.003).abs() < 1e-9, "{second:?}");
        assert_eq!(second.breaches[0].from, 9.0);
        let ten = contract.check(&spent, 10.0);
        assert_eq!(ten.intervals, 20);
        assert!(ten.breaches.iter().all(|breach| (breach.excess - 0.003).abs() < 1e-9), "{ten:?}");
        assert_eq!(contract.check(&spent, 60.0), Verdict::default());
    }
}
