//! Adding up what the test harness says at the end of each binary.

use std::{
    fmt,
    io::{self, BufRead, Write},
};

/// Tests by outcome, summed over test binaries.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Ran and held.
    pub passed: u64,
    /// Ran and did not hold.
    pub failed: u64,
    /// Marked `#[ignore]`: did not run.
    pub ignored: u64,
}

impl Tally {
    /// Adds another tally.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// Copies a harness's output line by line as it comes, and adds up what it reports.
    pub fn read(output: impl io::Read, mut copy: impl Write) -> io::Result<Self> {
        let mut tally = Self::default();
        let mut output = io::BufReader::new(output);
        let mut line = Vec::new();
        // By bytes: what a test prints need not be UTF-8.
        while output.read_until(b'\n', &mut line)? > 0 {
            copy.write_all(&line)?;
            copy.flush()?;
            if let Some(result) = parse(&String::from_utf8_lossy(&line)) {
                tally.add(result);
            }
            line.clear();
        }
        Ok(tally)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// Reads `test result: ok. 5 passed; 0 failed; 1 ignored; ...`, where `ok` may be coloured.
fn parse(line: &str) -> Option<Tally> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |outcome: &str| {
        let mut parts = counts.split(';');
        parts.find_map(|part| part.trim().strip_suffix(outcome)?.trim().parse().ok())
    };
    Some(Tally { passed: count("passed")?, failed: count("failed")?, ignored: count("ignored")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &[u8] = b"running 2 tests\ntest a ... ok\n\xff\n\n\
        test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.00s\n\
        test result: \x1b[31mFAILED\x1b[m. 7 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n\
        the test result: ok. 9 passed; 9 failed; 9 ignored\n\
        test result: nonsense\nlast";

    #[test]
    fn sums_every_binary_and_copies_all() -> io::Result<()> {
        let mut copy = Vec::new();
        let tally = Tally::read(RUN, &mut copy)?;
        assert_eq!(copy, RUN);
        let expected = Tally { passed: 9, failed: 2, ignored: 1 };
        assert_eq!(tally, expected);
        assert_eq!(tally.to_string(), "9 passed, 2 failed");
        Ok(())
    }
}
