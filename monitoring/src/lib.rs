//! What watches the agents: rules, dashboards and runbooks, and how they are held to what the agent exports.
//!
//! The rules in deploy/monitoring are written by hand; the PrometheusRule and the dashboards are made from here by
//! `cargo xtask docs`. `cargo xtask monitoring` runs every expression on a real Prometheus ([`live`]).

pub mod dashboards;
pub mod files;
pub mod live;
pub mod prometheus;
pub mod promql;
pub mod rules;
