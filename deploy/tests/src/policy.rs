//! The admission policies, evaluated.

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
