//! Atomic operations on words of map values.
//!
//! A program can be interrupted on its CPU by another of ours (softirq, hard interrupt), so a plain `+=` could lose a
//! count even in a per-CPU map. Every access by the programs to a word that changes goes through here. The standard
//! library offers no atomic arithmetic for the BPF target, which it takes to have none; the intrinsics do.
//!
//! All functions take pointers into map values: 8-byte aligned, valid while the program runs.

use core::intrinsics::{AtomicOrdering::Relaxed, atomic_cxchg, atomic_xadd, atomic_xchg};

/// Adds `amount`, modulo 2^64.
#[inline(always)]
pub fn add(word: *mut u64, amount: u64) {
    // SAFETY: a word of a map value. The result is not used, so this is an instruction of every kernel (BPF_XADD).
    unsafe { atomic_xadd::<u64, u64, { Relaxed }>(word, amount) };
}

/// Reads the word. An aligned load of eight bytes is one instruction; the BPF back end selects no other for atomic loads.
#[inline(always)]
pub fn get(word: *const u64) -> u64 {
    // SAFETY: a word of a map value.
    unsafe { word.read_volatile() }
}

/// Writes the word.
#[inline(always)]
pub fn set(word: *mut u64, value: u64) {
    // SAFETY: a word of a map value.
    unsafe { word.write_volatile(value) };
}

/// Writes the word and returns what it was. Needs a 5.12 kernel.
#[inline(always)]
pub fn swap(word: *mut u64, value: u64) -> u64 {
    // SAFETY: a word of a map value.
    unsafe { atomic_xchg::<u64, { Relaxed }>(word, value) }
}

/// Writes the word if it is still `before`; says whether it was. Needs a 5.12 kernel.
#[inline(always)]
pub fn replace(word: *mut u64, before: u64, value: u64) -> bool {
    // SAFETY: a word of a map value.
    unsafe { atomic_cxchg::<u64, { Relaxed }, { Relaxed }>(word, before, value).1 }
}
