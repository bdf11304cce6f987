//! `/proc/diskstats`: what the kernel counted of every disk and partition since it came. Pure.
//!
//! A line is `MAJOR MINOR NAME` and numbers: eleven, four more for discards since 4.18, and two
//! more for flushes since 5.5 (diskstats_show, block/genhd.c, 5.10 to 7.3). Requests and sectors
//! are `unsigned long`, so that they wrap on 32-bit kernels alone; the times and the requests in
//! flight, which are `unsigned int`, are not read.

use siskin_ebpf::DiskOp;

/// Requests and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// Requests.
    pub ios: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Added {
    /// What was added since `before`; `None` when either fell.
    pub fn since(self, before: Self) -> Option<Self> {
        Some(Self { ios: self.ios.checked_sub(before.ios)?, bytes: self.bytes.checked_sub(before.bytes)? })
    }

    /// Adds both.
    pub fn add(&mut self, other: Self) {
        self.ios = self.ios.saturating_add(other.ios);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// The operations that the kernel counts, in the order of [`Line::counters`].
pub const OPS: [DiskOp; 4] = [DiskOp::Read, DiskOp::Write, DiskOp::Discard, DiskOp::Flush];

/// What was counted of a device, by [`OPS`].
pub type Counters = [Added; OPS.len()];

/// A line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Major and minor number; 0:0 for a hidden disk before 6.1.
    pub numbers: (u32, u32),
    /// The device's name in `/dev`, which may have a slash in it (`cciss/c0d0`).
    pub name: &'a str,
    /// What was counted of it, by [`OPS`]. Flushes move no bytes.
    pub counters: Counters,
    /// Whether flushes are counted at all.
    pub has_flushes: bool,
}

/// The lines that are as the kernel writes them; others are left out.
pub fn parse(text: &str) -> impl Iterator<Item = Line<'_>> {
    text.lines().filter_map(line)
}

/// Most numbers of a line that are looked at. The kernel writes 17 (7.3).
const MAX_FIELDS: usize = 24;
/// Bytes of a sector here, whatever the device's own are.
const SECTOR_BYTES: u64 = 512;

fn line(line: &str) -> Option<Line<'_>> {
    let (major, rest) = line.trim().split_once(' ')?;
    let (minor, rest) = rest.trim_start().split_once(' ')?;
    let numbers = (major.parse().ok()?, minor.parse().ok()?);
    // From the end, because a name may have spaces.
    let (mut name, mut fields, mut first) = (rest.trim_start(), [0; MAX_FIELDS], MAX_FIELDS);
    while let Some((before, last)) = name.rsplit_once(' ') {
        let Ok(field) = last.parse() else { break };
        first = first.checked_sub(1)?;
        fields[first] = field;
        name = before.trim_end();
    }
    let fields: &[u64] = &fields[first..];
    let group = |ios: usize| match (fields.get(ios), fields.get(ios + 2)) {
        (Some(&ios), Some(sectors)) => Added { ios, bytes: sectors.saturating_mul(SECTOR_BYTES) },
        _ => Added::default(),
    };
    let flushes = Added { ios: fields.get(15).copied().unwrap_or(0), bytes: 0 };
    // One number too many may be the last word of a name; none of the kernel's formats has as many.
    let is_whole = matches!(fields.len(), 11 | 15 | 17 | 19..);
    (is_whole && !name.is_empty()).then_some(Line {
        numbers,
        name,
        counters: [group(0), group(4), group(11), flushes],
        has_flushes: fields.len() >= 17,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(text: &str) -> Line<'_> {
        let lines: Vec<_> = parse(text).collect();
        assert_eq!(lines.len(), 1, "{text}");
        lines[0]
    }

    const fn added(ios: u64, bytes: u64) -> Added {
        Added { ios, bytes }
    }

    #[test]
    fn lines_of_every_kernel_are_read() {
        // 6.18, 5.4, and before 4.18.
        let new = one(
            " 254       0 vda 9604 3364 3417610 5125 2490 25110 2661576 16392 0 3448 22250 5528 23 419256 729 58 3",
        );
        assert_eq!((new.numbers, new.name, new.has_flushes), ((254, 0), "vda", true));
        let [read, write, discard, flush] = new.counters;
        assert_eq!(
            (read, write, discard, flush),
            (
                added(9604, 3_417_610 * 512),
                added(2490, 2_661_576 * 512),
                added(5528, 419_256 * 512),
                added(58, 0)
            )
        );
        let middle = one("   8       0 sda 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15");
        let expected = [added(1, 3 * 512), added(5, 7 * 512), added(12, 14 * 512), added(0, 0)];
        assert_eq!((middle.counters, middle.has_flushes), (expected, false));
        let old = one("   8       0 sda 1 2 3 4 5 6 7 8 9 10 11");
        assert_eq!(old.counters, [added(1, 3 * 512), added(5, 7 * 512), added(0, 0), added(0, 0)]);
        let future = one("   8       0 sda 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20");
        assert_eq!(future.counters[3], added(16, 0));
    }

    #[test]
    fn names_may_be_odd() {
        let numbers = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17";
        for name in ["cciss/c0d0", "cciss!c0d0", "md_my array", "md_x 1 y", "nvme0c0n1", "7", "näme"] {
            let text = format!("   9     127 {name} {numbers}\n");
            let line = one(&text);
            assert_eq!((line.numbers, line.name), ((9, 127), name));
            assert_eq!((line.counters[0], line.counters[3]), (added(1, 3 * 512), added(16, 0)));
        }
    }

    #[test]
    fn odd_lines_are_left_out() {
        let numbers = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16";
        for text in [
            "",
            "\n\n",
            "8",
            "8 0",
            "8 0 sda",
            "8 0 sda 1 2 3 4",
            "x 0 sda 1 2 3 4 5 6 7 8 9 10 11",
            "8 -1 sda 1 2 3 4 5 6 7 8 9 10 11",
            "8 0 sda 1 2 3 4 5 6 7 8 9 10 x",
            "8 0 sda 1 2 3 4 5 6 7 8 9 10 99999999999999999999999",
            "8 0  1 2 3 4 5 6 7 8 9 10 11",
            // Either a name with a number in it, or a format that is not known.
            &format!("8 0 sda {numbers}"),
            &format!("8 0 my disk 1 {numbers} 17"),
            &format!("8 0 sda {numbers} {numbers} {numbers}"),
        ] {
            assert_eq!(parse(text).count(), 0, "{text}");
        }
        assert_eq!(one("  8 0 sda 1 2 18446744073709551615 4 5 6 7 8 9 10 11").counters[0].bytes, u64::MAX);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_left_out(text in "[ 0-9a-z\n!/-]{0,200}|\\PC{0,80}") {
            prop_assert!(parse(&text).count() <= text.lines().count());
        }

        #[test]
        fn what_the_kernel_writes_is_read_as_written(
            major in 0u32..4096,
            minor in 0u32..1 << 20,
            name in "[a-z][a-z0-9/!]{0,30}",
            fields in prop::collection::vec(0u64..1 << 54, 17),
            count in prop::sample::select(vec![11usize, 15, 17]),
        ) {
            let numbers: Vec<_> = fields[..count].iter().map(u64::to_string).collect();
            let text = format!("{major:4} {minor:7} {name} {}\n", numbers.join(" "));
            let field = |at: usize| if at < count { fields[at] } else { 0 };
            let line = one(&text);
            prop_assert_eq!((line.numbers, line.name, line.has_flushes), ((major, minor), name.as_str(), count == 17));
            let groups = [(0, 2), (4, 6), (11, 13)].map(|(ios, sectors)| added(field(ios), field(sectors) * 512));
            prop_assert_eq!(&line.counters[..3], &groups);
            prop_assert_eq!(line.counters[3], added(field(15), 0));
        }
    }
}
