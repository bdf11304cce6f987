//! The admission policies, evaluated: they let the DaemonSet's pod in, and turn away each pod that takes a liberty more.

use serde_json::{Value, json};
use siskin_deploy_tests::{
    manifest,
    policy::{admission, gatekeeper},
};

/// A pod as the API server gives it to an admission policy.
fn pod() -> Value {
    let set: Value = manifest::object(&manifest::text("daemonset.yaml"), "DaemonSet");
    let template = &set["spec"]["template"];
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]})
}

#[test]
fn the_daemonsets_pod_is_let_in() {
    assert_eq!(admission(&pod()), [""; 0]);
    assert_eq!(gatekeeper(&pod()), [""; 0]);
}

#[test]
fn every_liberty_is_turned_away_by_both() {
    let container = "/spec/containers/0";
    let security = "/spec/containers/0/securityContext";
    let hidden = json!({"name": "root", "hostPath": {"path": "/"}});
    let other = json!([{"name": "other", "image": "ghcr.io/siskin-agent/siskin:0.1.0"}]);
    let (image, init, capabilities, privileged, seccomp, volumes, token) = (
        "only the image",
        "neither init",
        "containers drop ALL",
        "containers are not privileged",
        "pods have the seccomp",
        "volumes are",
        "pods have no token",
    );
    for (place, field, value, against) in [
        (container, "image", json!("example.org/other:1"), image),
        (container, "image", json!("ghcr.io/siskin-agent/siskin-evil:1"), image),
        ("/spec", "initContainers", other.clone(), init),
        ("/spec", "ephemeralContainers", other, init),
        (security, "capabilities", json!({"drop": ["ALL"], "add": ["BPF", "SYS_ADMIN"]}), capabilities),
        (security, "capabilities", json!({"drop": ["CHOWN"], "add": ["BPF"]}), capabilities),
        (security, "capabilities", json!({"add": ["BPF"]}), capabilities),
        (security, "privileged", json!(true), privileged),
        (security, "allowPrivilegeEscalation", json!(true), privileged),
        (security, "allowPrivilegeEscalation", json!(null), privileged),
        (security, "readOnlyRootFilesystem", json!(false), privileged),
        ("/spec", "securityContext", json!({"seccompProfile": {"type": "Unconfined"}}), seccomp),
        ("/spec", "securityContext", json!({}), seccomp),
        (security, "seccompProfile", json!({"type": "Unconfined"}), seccomp),
        ("/spec", "volumes", json!([hidden]), volumes),
        ("/spec", "volumes", json!([{"name": "any", "emptyDir": {}}]), volumes),
        ("/spec/containers/0/volumeMounts/0", "readOnly", json!(false), volumes),
        ("/spec/containers/0/volumeMounts/1", "readOnly", json!(null), volumes),
        ("/spec", "automountServiceAccountToken", json!(true), token),
        ("/spec", "automountServiceAccountToken", json!(null), token),
        ("/spec", "hostIPC", json!(true), token),
    ] {
        let mut pod = pod();
        let fields = pod.pointer_mut(place).and_then(Value::as_object_mut).expect("an object");
        // The API server leaves out what is not set.
        match value.is_null() {
            true => drop(fields.remove(field)),
            false => drop(fields.insert(field.to_owned(), value.clone())),
        }
        for said in [admission(&pod), gatekeeper(&pod)] {
            assert!(said.len() == 1 && said[0].starts_with(against), "{place} {field}={value}: {said:?}");
        }
    }
}
