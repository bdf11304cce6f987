//! Asking until there is an answer.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

/// Asks until there is an answer, for at most `patience`.
///
/// # Errors
/// When a question fails, or when there was no answer in time.
pub fn wait<T>(patience: Duration, what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        ensure!(begin.elapsed() < patience, "waited {patience:?} for {what}");
        thread::sleep(Duration::from_millis(50));
    }
}
