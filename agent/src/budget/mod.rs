//! The CPU budget: what Siskin costs.

pub mod meter;
