//! Whether this is a machine that `cargo xtask vm` made: its disk is a scratch disk, and its CPUs may be emulated.

use std::fs;

/// Says so by its kernel's command line.
///
/// # Panics
/// Without /proc.
pub fn is_guest() -> bool {
    let line = fs::read_to_string("/proc/cmdline").expect("the kernel's command line");
    line.split_whitespace().any(|word| word == "vmtest=1")
}
