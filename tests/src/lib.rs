//! What the integration tests share: a running agent, its metrics, and makers of load whose truth is known.
//!
//! Every test needs root and a kernel with BTF; `cargo xtask test` sees to both. Load stays on loopback and in cgroups,
//! network namespaces and loop devices that a test made itself.

pub mod agent;
pub mod capability;
pub mod cgroup;
pub mod disk;
pub mod guest;
pub mod kubelet;
pub mod metrics;
pub mod mounts;
pub mod netns;
pub mod pair;
pub mod sweep;
pub mod tcp;
pub mod udp;
