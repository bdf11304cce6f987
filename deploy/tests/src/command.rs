//! Running other programs.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// What a program prints.
///
/// # Errors
/// When it does not start, or fails; the error has what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let ran = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !ran.status.success() {
        bail!("{command:?}: {}\n{}", ran.status, String::from_utf8_lossy(&ran.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}
