//! The cluster that KUBECONFIG names, through kubectl.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::command::output;

/// What kubectl prints.
///
/// # Errors
/// What it says instead.
pub fn kubectl(arguments: &[&str]) -> Result<String> {
    output(Command::new("kubectl").args(arguments))
}

/// The same, when that is an object.
///
/// # Errors
/// What kubectl says, and when it prints something else.
pub fn kubectl_json(arguments: &[&str]) -> Result<Value> {
    serde_json::from_str(&kubectl(arguments)?).context("kubectl printed something other than JSON")
}

/// Applies an object.
///
/// # Errors
/// When the API server does not take it.
pub fn apply(object: &Value) -> Result<()> {
    given(&["apply", "--filename=-"], object).map(drop)
}

/// What kubectl prints that is given an object on its stdin.
///
/// # Errors
/// When the API server does not take it; why, kubectl has said on stderr.
pub fn given(arguments: &[&str], object: &Value) -> Result<String> {
    let mut child = Command::new("kubectl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start kubectl")?;
    let mut input = child.stdin.take().context("kubectl has no stdin")?;
    input.write_all(object.to_string().as_bytes())?;
    drop(input);
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "kubectl {} does not take {object}", arguments[0]);
    Ok(String::from_utf8(output.stdout)?)
}
