//! What a reading may cost: what the bucket holds at that moment. Pure.

/// The part of the bucket that has to be filled for something that costs more than it can hold:
/// such a thing is paid later, and nothing is bought until then.
const FULL: f64 = 0.9;

/// CPU seconds that may be spent on parts of a reading.
#[derive(Clone, Copy, Debug)]
pub struct Purse {
    seconds: f64,
    is_full: bool,
}

impl Purse {
    /// A purse from a bucket that holds `level_seconds`, less than zero in debt, and can hold
    /// `capacity_seconds`.
    pub fn new(level_seconds: f64, capacity_seconds: f64) -> Self {
        Self { seconds: level_seconds, is_full: level_seconds >= FULL * capacity_seconds }
    }

    /// Without a limit.
    pub const UNLIMITED: Self = Self { seconds: f64::INFINITY, is_full: true };

    /// Whether something can be paid. What costs more than ever can be saved can, when nothing was
    /// bought before.
    pub fn can_pay(&self, cost_seconds: f64) -> bool {
        self.is_full || cost_seconds <= self.seconds
    }

    /// Takes out what something will cost that is bought in any case.
    pub fn reserve(&mut self, cost_seconds: f64) {
        self.seconds -= cost_seconds;
    }

    /// Takes out what something cost.
    pub fn pay(&mut self, cost_seconds: f64) {
        self.seconds -= cost_seconds;
        self.is_full &= self.seconds.is_infinite() || cost_seconds <= 0.0;
    }

    /// CPU seconds that are left, 0 at least.
    pub fn seconds(&self) -> f64 {
        self.seconds.max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_can_be_spent_and_no_more() {
        let mut purse = Purse::new(0.008, 0.01);
        assert!(purse.can_pay(0.008) && !purse.can_pay(0.009));
        purse.pay(0.005);
        assert!(purse.can_pay(0.003) && !purse.can_pay(0.004));
        purse.pay(0.005);
        assert_eq!(purse.seconds(), 0.0);
    }

    #[test]
    fn what_costs_more_than_the_bucket_holds_is_bought_first_from_a_full_one() {
        let mut purse = Purse::new(0.0095, 0.01);
        assert!(purse.can_pay(0.05));
        purse.reserve(0.002);
        assert!(purse.can_pay(0.05));
        purse.pay(0.001);
        assert!(!purse.can_pay(0.05), "something was bought already");
        assert!(!Purse::new(-0.02, 0.01).can_pay(0.0));
    }

    #[test]
    fn without_a_limit_everything_can_be_paid() {
        let mut purse = Purse::UNLIMITED;
        purse.pay(1e9);
        assert!(purse.can_pay(1e9));
    }
}
