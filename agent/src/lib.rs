//! The library behind the binary `siskin`: an eBPF host telemetry agent.
//!
//! Data flows one way: kernel programs add to maps ([`kernel`]), a probe reads its maps into totals by workload
//! ([`probes`], [`workload`], [`flows`]), the totals are described as metrics ([`metrics`]) and served ([`http`]).

pub mod agent;
pub mod bounded;
pub mod budget;
pub mod cardinality;
pub mod check;
pub mod cli;
pub mod clock;
pub mod collect;
pub mod docs;
pub mod estimate;
pub mod exposition;
pub mod flows;
pub mod http;
pub mod kernel;
pub mod metrics;
pub mod page;
pub mod probes;
pub mod readiness;
pub mod ticks;
pub mod workload;
