//! Manifests parsed as two Kubernetes versions do, strictly: a field that either does not know is an error.

use serde::de::DeserializeOwned;
use serde_json::Value;
use siskin_deploy_tests::manifest;

/// One version's types.
macro_rules! version {
    ($name:ident, $k8s:ident) => {
        mod $name {
            use super::*;
            use $k8s::api::{
                admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
                apps::v1::DaemonSet,
                core::v1::{Namespace, ServiceAccount},
            };

            /// Fields of the object that this version does not know; `None` when it is none of Kubernetes's own kinds.
            pub fn unknown(object: &Value) -> Option<Vec<String>> {
                Some(match object["kind"].as_str().expect("a kind") {
                    "DaemonSet" => ignored::<DaemonSet>(object),
                    "Namespace" => ignored::<Namespace>(object),
                    "ServiceAccount" => ignored::<ServiceAccount>(object),
                    "ValidatingAdmissionPolicy" => ignored::<ValidatingAdmissionPolicy>(object),
                    "ValidatingAdmissionPolicyBinding" => ignored::<ValidatingAdmissionPolicyBinding>(object),
                    _ => return None,
                })
            }
        }
    };
}

version!(v1_30, k8s_oldest);
version!(v1_37, k8s_newest);

fn ignored<T: DeserializeOwned>(object: &Value) -> Vec<String> {
    let mut ignored = Vec::new();
    let read = serde_ignored::deserialize(object, |path| ignored.push(path.to_string().replace(".?", "")));
    let _: T = read.unwrap_or_else(|error| panic!("{error} in {object}"));
    ignored
}

/// Strictly, by both versions. Returns how many objects there were.
fn check(yaml: &str) -> usize {
    let objects = manifest::objects(yaml);
    for object in &objects {
        for unknown in [v1_30::unknown(object), v1_37::unknown(object)] {
            let unknown = unknown.unwrap_or_else(|| panic!("a kind without a schema: {}", object["kind"]));
            assert!(unknown.is_empty(), "{}: unknown fields {unknown:?}", object["kind"]);
        }
    }
    objects.len()
}

#[test]
fn the_daemonset_is_known_to_both_versions() {
    assert_eq!(check(&manifest::text("daemonset.yaml")), 3);
}

#[test]
fn the_admission_policy_is_known_to_both_versions() {
    assert_eq!(check(&manifest::text("policy/validating-admission-policy.yaml")), 2);
}

#[test]
fn kustomize_renders_what_both_versions_know() {
    for (folder, objects) in
        [("base", 3), ("overlays/edge", 3), ("overlays/control-plane", 3), ("overlays/canary", 2)]
    {
        assert_eq!(check(&manifest::rendered(folder)), objects, "{folder}");
    }
}

#[test]
fn a_misspelt_field_and_a_wrong_type_are_found() {
    let misspelt = manifest::text("daemonset.yaml").replace("hostPID:", "hostPid:");
    let object = &manifest::objects(&misspelt)[2];
    for unknown in [v1_30::unknown(object), v1_37::unknown(object)] {
        assert_eq!(unknown.expect("a DaemonSet"), ["spec.template.spec.hostPid"]);
    }
    let wrong = manifest::text("daemonset.yaml").replace("hostPID: true", "hostPID: maybe");
    let wrong = manifest::objects(&wrong).remove(2);
    assert!(serde_json::from_value::<k8s_newest::api::apps::v1::DaemonSet>(wrong).is_err());
}
