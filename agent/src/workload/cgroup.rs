//! The cgroup trees: from a cgroup's id, which is the inode of its directory, to its path.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use super::Hierarchy;

/// The paths of all living cgroups, as of the last scan.
#[derive(Debug)]
pub struct Tree {
    mount: PathBuf,
    procfs: PathBuf,
    paths: HashMap<(Hierarchy, u64), String>,
}

impl Tree {
    /// A tree that was not scanned yet. `mount` is where cgroups are mounted, usually `/sys/fs/cgroup`.
    pub fn new(mount: PathBuf, procfs: PathBuf) -> Self {
        Self { mount, procfs, paths: HashMap::new() }
    }

    /// The path of a cgroup inside its hierarchy.
    pub fn path(&self, hierarchy: Hierarchy, id: u64) -> Option<&str> {
        self.paths.get(&(hierarchy, id)).map(String::as_str)
    }

    /// Looks at every cgroup there is now. A cgroup that goes away meanwhile is left out.
    pub fn scan(&mut self) {
        self.paths.clear();
        for (hierarchy, root) in hierarchies(&self.mount, &self.procfs) {
            let walk = fs::metadata(&root).and_then(|metadata| {
                self.paths.insert((hierarchy, metadata.ino()), "/".to_owned());
                self.walk(hierarchy, &root, "")
            });
            if let Err(error) = walk {
                tracing::debug!("cannot scan cgroups in {}: {error}", root.display());
            }
        }
    }

    fn walk(&mut self, hierarchy: Hierarchy, directory: &Path, path: &str) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let Ok(entry) = entry else { continue };
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let child = format!("{path}/{}", entry.file_name().to_string_lossy());
                // Gone again, or not ours to see: the others are still worth naming.
                let _ = self.walk(hierarchy, &entry.path(), &child);
                self.paths.insert((hierarchy, entry.ino()), child);
            }
        }
        Ok(())
    }
}

/// The mounts of the hierarchies that the programs charge to: cgroup2 (the whole mount, or `unified` on hybrid hosts), and the
/// v1 hierarchy of `blkio` where there is one.
pub fn hierarchies(mount: &Path, procfs: &Path) -> Vec<(Hierarchy, PathBuf)> {
    let mut found = Vec::new();
    // Only cgroup2 has this file in its root (Documentation/admin-guide/cgroup-v2.rst, 6.18).
    let unified = [mount.to_owned(), mount.join("unified")];
    if let Some(root) = unified.into_iter().find(|root| root.join("cgroup.controllers").exists()) {
        found.push((Hierarchy::CGROUP2, root));
    }
    let controllers = fs::read_to_string(procfs.join("cgroups")).unwrap_or_default();
    if let Some(number) = v1_number(&controllers, "blkio") {
        found.push((Hierarchy(number), mount.join("blkio")));
    }
    found
}

/// The number of the v1 hierarchy that has a controller, from `/proc/cgroups`; `None` when it is on cgroup2.
fn v1_number(proc_cgroups: &str, controller: &str) -> Option<u32> {
    let line = proc_cgroups.lines().find(|line| line.split_whitespace().next() == Some(controller))?;
    let number = line.split_whitespace().nth(1)?.parse().ok()?;
    (number != 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROC_CGROUPS: &str =
        "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t1\t1\nblkio\t7\t3\t1\nio_x\t8\t1\t1\n";

    #[test]
    fn the_v1_hierarchy_of_a_controller_is_found_by_its_whole_name() {
        assert_eq!(v1_number(PROC_CGROUPS, "blkio"), Some(7));
        assert_eq!(v1_number(PROC_CGROUPS, "io"), None);
        assert_eq!(v1_number("blkio\t0\t120\t1\n", "blkio"), None);
        assert_eq!(v1_number("blkio\tx", "blkio"), None);
    }

    #[test]
    fn a_directory_tree_is_named_by_inode() -> io::Result<()> {
        let root = std::env::temp_dir().join(format!("siskin-cgroup-{}", std::process::id()));
        fs::create_dir_all(root.join("a.slice/b.service"))?;
        fs::write(root.join("cgroup.controllers"), "")?;
        let mut tree = Tree::new(root.clone(), root.clone());
        tree.scan();
        let inode = fs::metadata(root.join("a.slice/b.service"))?.ino();
        let path = tree.path(Hierarchy::CGROUP2, inode).map(str::to_owned);
        let top = tree.path(Hierarchy::CGROUP2, fs::metadata(&root)?.ino()).map(str::to_owned);
        fs::remove_dir_all(root)?;
        assert_eq!(path.as_deref(), Some("/a.slice/b.service"));
        assert_eq!(top.as_deref(), Some("/"));
        Ok(())
    }
}
