//! Where things are, reading them, and keeping those that are made up to date.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{dashboards, rules};

/// The hand-written rule files, in the order in which they are evaluated.
pub const RULE_FILES: [&str; 2] =
    ["deploy/monitoring/recording.rules.yaml", "deploy/monitoring/alerts.rules.yaml"];
/// The folder of the dashboards.
pub const DASHBOARDS: &str = "deploy/dashboards";
/// The folder of promtool's unit tests.
pub const UNIT_TESTS: &str = "deploy/monitoring/tests";
/// The folder of the runbooks.
pub const RUNBOOKS: &str = "docs/runbooks";
/// The scrape configuration for plain Prometheus.
pub const SCRAPE: &str = "deploy/monitoring/scrape.yaml";
/// The operator's rules, made from [`RULE_FILES`].
const PROMETHEUS_RULE: &str = "deploy/monitoring/prometheusrule.yaml";

/// A path below the workspace's root.
pub fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(relative)
}

/// The text of a file below the workspace's root.
///
/// # Errors
/// When it cannot be read.
pub fn read(relative: &str) -> Result<String> {
    fs::read_to_string(path(relative)).with_context(|| format!("cannot read {relative}"))
}

/// The files of a folder below the workspace's root whose names end so, by name.
///
/// # Errors
/// When the folder cannot be read.
pub fn list(folder: &str, suffix: &str) -> Result<Vec<String>> {
    let what = || format!("cannot list {folder}");
    let mut names = Vec::new();
    for entry in fs::read_dir(path(folder)).with_context(what)? {
        let name = entry.with_context(what)?.file_name().to_string_lossy().into_owned();
        if name.ends_with(suffix) {
            names.push(format!("{folder}/{name}"));
        }
    }
    names.sort();
    Ok(names)
}

/// Every file that is made, with what is to be in it.
///
/// # Errors
/// When a file that it is made from cannot be read.
pub fn generated() -> Result<Vec<(String, String)>> {
    let sources = RULE_FILES.map(read).into_iter().collect::<Result<Vec<_>>>()?;
    let mut made = vec![(PROMETHEUS_RULE.to_owned(), rules::prometheus_rule(&sources)?)];
    for (name, dashboard) in dashboards::all() {
        made.push((format!("{DASHBOARDS}/{name}.json"), format!("{dashboard:#}\n")));
    }
    Ok(made)
}

/// Writes every file that is made; returns those that were not as they should be.
///
/// # Errors
/// When one cannot be written.
pub fn write() -> Result<Vec<String>> {
    let stale = stale()?;
    for (file, text) in &stale {
        let path = path(file);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make the folder of {file}"))?;
        }
        fs::write(path, text).with_context(|| format!("cannot write {file}"))?;
    }
    Ok(stale.into_iter().map(|(file, _)| file).collect())
}

/// Fails when a made file is not as it should be, or a dashboard is there that nothing makes.
///
/// # Errors
/// That.
pub fn check() -> Result<()> {
    let mut wrong: Vec<_> = stale()?.into_iter().map(|(file, _)| file).collect();
    let made = generated()?;
    let extra = list(DASHBOARDS, ".json")?.into_iter();
    wrong.extend(extra.filter(|file| !made.iter().any(|(name, _)| name == file)));
    if !wrong.is_empty() {
        let files = wrong.join(" and ");
        bail!("stale: {files}; run `cargo xtask docs` and commit what it writes");
    }
    Ok(())
}

fn stale() -> Result<Vec<(String, String)>> {
    // A missing file is a stale one.
    let current = |file: &str| read(file).unwrap_or_default();
    Ok(generated()?.into_iter().filter(|(file, text)| current(file) != *text).collect())
}
