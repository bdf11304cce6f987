//! The contract between Siskin's kernel programs and its user space: the layout of every map value, the
//! names of maps and programs, the kernel fields the programs read, and the arithmetic of histograms.
//!
//! Everything here is plain data without dependencies, so that both sides compile it. All values are made
//! of `u64` words: user space adds and subtracts them word by word (see [`Words`]), without knowing a row's meaning.
#![no_std]

mod contract;

pub use contract::*;
