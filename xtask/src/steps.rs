//! Saying what is done and how long it took, and running other programs.

use std::{
    io,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

/// Prints one line of our own on stderr, told apart from cargo's by its prefix.
pub fn say(line: &str) {
    eprintln!("xtask: {line}");
}

/// Announces a step, does it, and says how long it took.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    say(what);
    let start = Instant::now();
    let outcome = work();
    let verb = if outcome.is_ok() { "done" } else { "failed" };
    say(&format!("{verb} in {:.1} s", start.elapsed().as_secs_f64()));
    outcome
}

/// Runs a program whose output the user sees; anything but success is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs a program and returns its stdout; stderr goes to the user.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| cannot_start(command))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", shown(command), output.status);
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` printed something other than UTF-8", shown(command)))
}

/// Runs a program only to learn what it prints; `None` when it is absent or fails.
pub fn ask(command: &mut Command) -> io::Result<Option<String>> {
    let output = match command.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(output.status.success().then_some(text))
}

/// The error's text for a program that does not start.
pub fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`", shown(command))
}

/// The command line alone: `Command`'s own debug form lists every variable it clears.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}
