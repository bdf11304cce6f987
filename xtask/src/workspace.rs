//! Where things are in the workspace, and putting a built file in its place.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The workspace's root folder.
pub fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// A path below the root.
pub fn path(relative: &str) -> PathBuf {
    root().join(relative)
}

/// The path as a reader at the root would type it.
pub fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Copies a file to its place in one rename.
///
/// A plain copy would write through the hard link that cargo keeps to its own artifact, and would
/// be refused while the old binary runs.
pub fn install(from: &Path, to: &Path) -> Result<()> {
    let partial = to.with_extension("partial");
    let what = || format!("cannot copy {} to {}", shown(from), shown(to));
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(what)?;
    }
    fs::copy(from, &partial).with_context(what)?;
    fs::rename(&partial, to).with_context(what)
}

/// Puts a file in its place in one rename.
pub fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    let partial = file.with_extension("partial");
    let what = || format!("cannot write {}", shown(file));
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(what)?;
    }
    fs::write(&partial, bytes).with_context(what)?;
    fs::rename(&partial, file).with_context(what)
}
