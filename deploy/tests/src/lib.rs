//! What the tests of `deploy/` share.
//!
//! `tests/` needs nothing but `kubectl kustomize`: manifests against the schemas of two Kubernetes versions, against the code's
//! own constants, and against the admission policies. `src/bin/container.rs` (`cargo xtask container`) runs the image with
//! podman as the manifest says; `src/bin/cluster.rs` (`cargo xtask e2e`) runs the manifest on a cluster.

pub mod command;
pub mod http;
pub mod kubectl;
pub mod manifest;
pub mod neighbour;
pub mod policy;
pub mod wait;
