//! Loads: threads that make events of every kind and count exactly what they did.

pub mod disk;
pub mod generators;
pub mod homes;
pub mod inet;
pub mod job;
pub mod network;
pub mod pacer;
pub mod process;
