//! The admission policies, evaluated; and pods for them.

use cel::{Context, Program, Value as Cel};
use regorus::{Engine, Value as Rego};
use serde_json::{Value, json};

use crate::manifest;

/// What the ValidatingAdmissionPolicy says against a pod.
///
/// # Panics
/// When an expression is no CEL, or cannot be evaluated on this pod: an API server would refuse it for that.
pub fn admission(pod: &Value) -> Vec<String> {
    let policy: Value = manifest::object(
        &manifest::text("policy/validating-admission-policy.yaml"),
        "ValidatingAdmissionPolicy",
    );
    let mut context = Context::default();
    context.add_variable("object", pod).expect("a pod");
    let validations = policy["spec"]["validations"].as_array().expect("validations").iter();
    let failed = validations.filter(|validation| {
        let text = validation["expression"].as_str().expect("an expression");
        let program = Program::compile(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        match program.execute(&context) {
            Ok(Cel::Bool(holds)) => !holds,
            other => panic!("{text}: {other:?}"),
        }
    });
    failed.map(|validation| validation["message"].as_str().expect("a message").to_owned()).collect()
}

/// What the Gatekeeper constraint says against a pod.
///
/// # Panics
/// When the policy is no Rego, or does not run on this pod.
pub fn gatekeeper(pod: &Value) -> Vec<String> {
    let template: Value = manifest::object(&manifest::text("policy/gatekeeper.yaml"), "ConstraintTemplate");
    let rego = template.pointer("/spec/targets/0/rego").and_then(Value::as_str).expect("Rego");
    let mut engine = Engine::new();
    engine.set_rego_v0(true);
    engine.add_policy("siskinagent.rego".to_owned(), rego.to_owned()).expect("the policy is Rego");
    let input = json!({"review": {"object": pod}}).to_string();
    engine.set_input(Rego::from_json_str(&input).expect("JSON"));
    let violations = engine.eval_rule("data.siskinagent.violation".to_owned()).expect("the policy runs");
    let violations: Vec<Value> =
        serde_json::from_str(&violations.to_json_str().expect("JSON")).expect("JSON");
    violations.iter().map(|violation| violation["msg"].as_str().expect("a message").to_owned()).collect()
}

/// The DaemonSet's pod as the API server gives it to an admission policy.
///
/// # Panics
/// When there is no DaemonSet.
pub fn pod() -> Value {
    let set: Value = manifest::object(&manifest::text("daemonset.yaml"), "DaemonSet");
    let (template, namespace) = (&set["spec"]["template"], &set["metadata"]["namespace"]);
    let metadata =
        json!({"name": "siskin", "namespace": namespace, "labels": template["metadata"]["labels"]});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

/// A pod that takes a liberty more than the DaemonSet's.
pub struct Liberty {
    /// Which.
    pub what: String,
    /// The pod.
    pub pod: Value,
    /// How the message begins of the one rule that it breaks.
    pub against: &'static str,
}

/// One pod for each liberty.
///
/// # Panics
/// When the DaemonSet's pod is not of the form that they change.
pub fn liberties() -> Vec<Liberty> {
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
    let liberties = [
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
    ];
    let taken = liberties.into_iter().map(|(place, field, value, against)| {
        let (what, mut pod) = (format!("{place}/{field}={value}"), pod());
        let fields = pod.pointer_mut(place).and_then(Value::as_object_mut).expect("an object");
        // The API server leaves out what is not set.
        match value.is_null() {
            true => drop(fields.remove(field)),
            false => drop(fields.insert(field.to_owned(), value)),
        }
        Liberty { what, pod, against }
    });
    taken.collect()
}
