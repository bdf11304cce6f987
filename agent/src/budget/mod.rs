//! The CPU budget: what Siskin costs, and what it sheds so that it stays within the budget.

pub mod controller;
pub mod meter;
