//! Manifests as they lie in `deploy/`, and as kustomize renders them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use k8s_newest::api::{
    apps::v1::DaemonSet,
    core::v1::{Container, PodSpec},
};
use serde::{Deserialize as _, de::DeserializeOwned};
use serde_json::Value;

use crate::command::output;

/// A file in `deploy/`.
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// Its text.
///
/// # Panics
/// When it cannot be read.
pub fn text(name: &str) -> String {
    let path = path(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// What kustomize makes of a folder in `deploy/kustomize`.
///
/// # Panics
/// When kubectl is missing or refuses it.
pub fn rendered(folder: &str) -> String {
    output(Command::new("kubectl").arg("kustomize").arg(path("kustomize").join(folder)))
        .unwrap_or_else(|error| panic!("{error:#}"))
}

/// The objects in a YAML text.
///
/// # Panics
/// When it is not YAML.
pub fn objects(yaml: &str) -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(yaml)
        .map(|document| Value::deserialize(document).expect("YAML"))
        .filter(|document| !document.is_null())
        .collect()
}

/// The one object of a kind.
///
/// # Panics
/// When there is none or more than one, or it is not of that kind's form.
pub fn object<T: DeserializeOwned>(yaml: &str, kind: &str) -> T {
    let mut found: Vec<_> = objects(yaml).into_iter().filter(|object| object["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{kind}");
    serde_json::from_value(found.remove(0)).unwrap_or_else(|error| panic!("{kind}: {error}"))
}

/// The pod of the DaemonSet in a YAML text.
///
/// # Panics
/// When there is no DaemonSet with a pod.
pub fn pod(yaml: &str) -> PodSpec {
    let daemon_set: DaemonSet = object(yaml, "DaemonSet");
    daemon_set.spec.template.spec.expect("a pod")
}

/// The one container of a pod.
///
/// # Panics
/// When it has more.
pub fn container(pod: &PodSpec) -> &Container {
    assert_eq!(pod.containers.len(), 1);
    &pod.containers[0]
}

/// The one port of a container.
///
/// # Panics
/// When it has more.
pub fn port(container: &Container) -> u16 {
    let ports = container.ports.as_deref().unwrap_or_default();
    assert_eq!(ports.len(), 1);
    ports[0].container_port.try_into().expect("a port")
}
