//! Whether a built object is as new as its sources; agent/build.rs includes this file too.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// A source in a crate's `src` folder, or its manifest, that changed after the object was written.
pub fn newer_source(object: &Path, crate_folder: &Path) -> io::Result<Option<PathBuf>> {
    let built = fs::metadata(object)?.modified()?;
    match newer_in(&crate_folder.join("Cargo.toml"), built)? {
        Some(manifest) => Ok(Some(manifest)),
        None => newer_in(&crate_folder.join("src"), built),
    }
}

fn newer_in(path: &Path, built: SystemTime) -> io::Result<Option<PathBuf>> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_dir() {
        return Ok((metadata.modified()? > built).then(|| path.to_owned()));
    }
    for entry in fs::read_dir(path)? {
        if let Some(newer) = newer_in(&entry?.path(), built)? {
            return Ok(Some(newer));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn write(path: &Path, modified: SystemTime) -> io::Result<()> {
        fs::File::create(path)?.set_modified(modified)
    }

    #[test]
    fn names_the_newer_source() -> io::Result<()> {
        let folder = std::env::temp_dir().join(format!("xtask-freshness-{}", std::process::id()));
        fs::create_dir_all(folder.join("src/deep"))?;
        let (object, source) = (folder.join("object"), folder.join("src/deep/main.rs"));
        let now = SystemTime::now();
        let before = now - Duration::from_secs(60);
        write(&folder.join("Cargo.toml"), before)?;
        write(&source, before)?;
        write(&object, now)?;
        assert_eq!(newer_source(&object, &folder)?, None);
        write(&source, now + Duration::from_secs(60))?;
        assert_eq!(newer_source(&object, &folder)?, Some(source));
        fs::remove_file(&object)?;
        assert!(newer_source(&object, &folder).is_err());
        fs::remove_dir_all(&folder)
    }
}
