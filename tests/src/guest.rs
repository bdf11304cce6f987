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

/// Measures up to three times until no event was missed, and returns the last measurement either
/// way: the caller's assertion then says what was wrong. Kernels of some hosts' virtual machines run
/// no tracing program while the machine's first process is the current task, and count no miss: an
/// interrupt that ends a request may come just then. In a guest it is measured once.
pub fn until_whole<T>(mut measure: impl FnMut() -> T, is_whole: impl Fn(&T) -> bool) -> T {
    let mut measured = measure();
    for _ in 0..2 {
        if is_guest() || is_whole(&measured) {
            break;
        }
        measured = measure();
    }
    measured
}
