//! What a workload is known by: its number, and its labels.

use crate::metrics;

/// A cgroup hierarchy: 0 is cgroup2, others are the kernel's numbers of cgroup v1 hierarchies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hierarchy(pub u32);

impl Hierarchy {
    /// The unified hierarchy.
    pub const CGROUP2: Self = Self(0);
}

/// A workload's number. One that is gone does not give it to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub(super) u64);

impl Id {
    /// What could not be attributed.
    pub const UNKNOWN: Self = Self(0);
}

/// The labels of a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels {
    /// Kubernetes namespace; empty for a host service.
    pub namespace: String,
    /// Pod; empty for a host service.
    pub pod: String,
    /// Container, systemd unit or cgroup path.
    pub container: String,
}

impl Labels {
    /// The same in labels that are no longer than `metrics` allows.
    pub(super) fn fit(self) -> Self {
        let Self { namespace, pod, container } = self;
        Self {
            namespace: metrics::fit(&namespace, metrics::NAMESPACE_BYTES).into_owned(),
            pod: metrics::fit(&pod, metrics::POD_BYTES).into_owned(),
            container: metrics::fit(&container, metrics::CONTAINER_BYTES).into_owned(),
        }
    }
}
