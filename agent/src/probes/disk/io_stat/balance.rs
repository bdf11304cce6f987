//! A counter that grows by estimates, and from time to time by what is known. Pure.
//!
//! A counter cannot fall. When it was given more than it should have, that much is withheld from
//! what comes later; when it was given less, it catches up at once.

/// How far a counter is from what is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// What the counter has beyond its value that was last known.
    ahead: u64,
    /// What it should have beyond that value, by estimates.
    estimated: u64,
}

/// How much a value grew since it was last known. What is not known of it is left to the estimate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// Bytes; less than 0 when parts that are subtracted were read later than the whole.
    pub bytes: i128,
    /// It may have grown more.
    pub or_more: bool,
    /// It may have grown less.
    pub or_less: bool,
}

impl Balance {
    /// Takes a further estimate.
    pub fn estimate(&mut self, bytes: u64) {
        self.estimated = self.estimated.saturating_add(bytes);
    }

    /// What the counter is to grow by now, when nothing more is known than the estimates.
    pub fn give(&mut self) -> u64 {
        let given = self.estimated.saturating_sub(self.ahead);
        self.ahead += given;
        given
    }

    /// What the counter is to grow by now that it is known how much it should have grown.
    pub fn settle(&mut self, growth: Growth) -> u64 {
        let (estimated, ahead) = (i128::from(self.estimated), i128::from(self.ahead));
        let growth = match (growth.or_more, growth.or_less) {
            (false, false) => growth.bytes,
            (true, false) => growth.bytes.max(estimated),
            (false, true) => growth.bytes.min(estimated),
            (true, true) => estimated,
        };
        let given = (growth - ahead).max(0);
        let in_range = |bytes: i128| u64::try_from(bytes).unwrap_or(u64::MAX);
        *self = Self { ahead: in_range(ahead + given - growth), estimated: 0 };
        in_range(given)
    }

    /// What was estimated since the value was last known.
    pub fn estimated(&self) -> u64 {
        self.estimated
    }

    /// What the counter has beyond its value that was last known.
    #[cfg(test)]
    pub fn ahead(&self) -> u64 {
        self.ahead
    }

    /// Whether the counter is at its value that was last known.
    pub fn is_settled(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn known(bytes: i128) -> Growth {
        Growth { bytes, ..Growth::default() }
    }

    #[test]
    fn what_was_too_much_is_withheld_and_what_was_too_little_comes_at_once() {
        let mut balance = Balance::default();
        balance.estimate(100);
        assert_eq!((balance.give(), balance.give()), (100, 0));
        assert_eq!(balance.settle(known(70)), 0);
        assert!(!balance.is_settled(), "30 too much");
        balance.estimate(20);
        assert_eq!(balance.give(), 0);
        balance.estimate(15);
        assert_eq!(balance.give(), 5);
        assert_eq!(balance.settle(known(50)), 15);
        assert!(balance.is_settled());
        assert_eq!(balance.settle(known(-4)), 0);
        assert_eq!(balance.settle(known(10)), 6);
    }

    #[test]
    fn what_is_not_known_is_left_to_the_estimate() {
        for (estimated, bytes, or_more, or_less, expected) in [
            (10, 30, true, false, 30),
            (10, 3, true, false, 10),
            (10, 30, false, true, 10),
            (10, 3, false, true, 3),
            (10, 30, true, true, 10),
            (10, 3, false, false, 3),
        ] {
            let mut balance = Balance::default();
            balance.estimate(estimated);
            assert_eq!(balance.settle(Growth { bytes, or_more, or_less }), expected);
            assert!(balance.is_settled());
        }
    }

    proptest! {
        /// The counter is never below what is known and at it unless more was given; the error is
        /// at most what was estimated since the value was known, or before that since it was known
        /// the time before.
        #[test]
        fn the_error_is_at_most_what_was_estimated_since_the_value_was_known(
            steps in prop::collection::vec((0u64..1000, 0u64..1000, any::<bool>()), 1..100)
        ) {
            let mut balance = Balance::default();
            let (mut value, mut counter, mut value_known) = (0u64, 0u64, 0u64);
            // The most that was estimated between two times at which the value was known.
            let mut most = 0;
            for (grown, estimate, is_known) in steps {
                value += grown;
                balance.estimate(estimate);
                most = most.max(balance.estimated());
                if is_known {
                    counter += balance.settle(known(i128::from(value - value_known)));
                    value_known = value;
                    prop_assert!(counter >= value);
                    prop_assert_eq!(counter == value, balance.is_settled());
                } else {
                    counter += balance.give();
                    prop_assert!(counter >= value_known);
                    prop_assert!(counter - value_known >= balance.estimated());
                }
                prop_assert!(counter - value_known <= most);
            }
        }

        #[test]
        fn nothing_overflows(
            steps in prop::collection::vec((any::<u64>(), any::<i64>(), any::<[bool; 3]>()), 1..20)
        ) {
            let mut balance = Balance::default();
            for (estimate, bytes, [is_known, or_more, or_less]) in steps {
                balance.estimate(estimate);
                if is_known {
                    balance.settle(Growth { bytes: bytes.into(), or_more, or_less });
                } else {
                    balance.give();
                }
            }
        }
    }
}
