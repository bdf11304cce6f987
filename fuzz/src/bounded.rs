//! The bounded table under any history.

use std::{collections::BTreeMap, time::Duration};

use siskin::bounded::{Bounded, Key, Limits};

/// A key of one of two groups.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Name(u8);

impl Key for Name {
    const GROUPS: usize = 2;

    fn group(&self) -> usize {
        usize::from(self.0 % 2)
    }
}

/// Three bytes of limits, then three for each step: what happens, to whom, and how much. Whatever happens, sums are exact, nothing
/// falls, there are no more rows than allowed, and no row goes before its last value was served.
pub fn bounded(data: &[u8]) {
    let Some(([rows, min_idle, max_idle], steps)) = data.split_first_chunk::<3>() else { return };
    let limits = Limits {
        rows: usize::from(rows % 8),
        min_idle: Duration::from_secs(u64::from(*min_idle)),
        max_idle: Duration::from_secs(u64::from(*max_idle) * 16),
        first_departure: 1000,
    };
    let mut table = Bounded::<Name, 1>::new(limits);
    let (mut now, mut truth) = (Duration::ZERO, [0u64; 2]);
    let mut served = BTreeMap::new();
    let (mut other, mut departed) = ([0; 2], [None; 2]);
    for [action, name, amount] in steps.as_chunks().0 {
        let (name, amount) = (Name(name % 32), u64::from(*amount) << (action >> 4));
        match action % 8 {
            0 => {
                let group = name.group();
                table.add_other(group, &[amount]);
                truth[group] += amount;
            }
            1 => table.retire(|of| *of == name),
            2 | 3 => {
                let scrape: BTreeMap<_, _> =
                    table.rows().map(|(name, [total])| (name.clone(), *total)).collect();
                assert!(scrape.len() <= limits.rows && scrape.len() == table.len());
                for group in [0, 1] {
                    let rows: u64 =
                        scrape.iter().filter(|(name, _)| name.group() == group).map(|(_, total)| total).sum();
                    let gone = table.departed(group).map(|(number, [total])| (number, *total));
                    let [rest] = *table.other(group);
                    assert_eq!(
                        rows + rest + gone.map_or(0, |(_, total)| total),
                        truth[group],
                        "sums are exact"
                    );
                    assert!(rest >= other[group]);
                    if let (Some((before, was)), Some((number, is))) = (departed[group], gone) {
                        assert!(number > before || is == was, "a number has one value");
                    }
                    other[group] = rest;
                    departed[group] = gone;
                }
                // Everything that had a row after the last scrape is there, and is no less.
                for (name, total) in &served {
                    assert!(scrape.get(name).is_some_and(|now| now >= total), "{name:?} left unseen or fell");
                }
                now += Duration::from_secs(amount % 4000);
                table.scraped(now);
                served = table.rows().map(|(name, [total])| (name.clone(), *total)).collect();
                for (name, total) in &served {
                    assert!(
                        scrape.get(name).is_none_or(|was| was == total),
                        "{name:?} changed by being served"
                    );
                }
            }
            _ => {
                truth[name.group()] += amount;
                table.add(name, &[amount]);
            }
        }
    }
}
