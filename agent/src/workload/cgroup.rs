//! The cgroup trees: every living cgroup's id, which is the inode of its directory, and its path.

use std::{
    fs, io,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use super::Hierarchy;

/// Where the trees are.
#[derive(Debug)]
pub struct Trees {
    /// Where cgroups are mounted, usually `/sys/fs/cgroup`.
    pub mount: PathBuf,
    /// Where procfs is: it says which v1 hierarchy has which number.
    pub procfs: PathBuf,
}

impl Trees {
    /// Calls `each` with the hierarchy, id and path of every cgroup there is now. One that goes away meanwhile is left out.
    pub fn scan(&self, mut each: impl FnMut(Hierarchy, u64, &str)) {
        for (hierarchy, root) in hierarchies(&self.mount, &self.procfs) {
            let walked = fs::metadata(&root).and_then(|metadata| {
                each(hierarchy, metadata.ino(), "/");
                walk(&root, &mut String::new(), &mut |id, path| each(hierarchy, id, path))
            });
            if let Err(error) = walked {
                tracing::debug!("cannot scan cgroups in {}: {error}", root.display());
            }
        }
    }
}

/// Visits what is below a directory, whose path inside its hierarchy is `path`.
fn walk(directory: &Path, path: &mut String, each: &mut impl FnMut(u64, &str)) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let Ok(entry) = entry else { continue };
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let length = path.len();
        path.push('/');
        path.push_str(&entry.file_name().to_string_lossy());
        each(entry.ino(), path);
        // A directory's links are its own two and one for each directory in it. Most cgroups have none, and some sixty files
        // that need not be listed.
        if !entry.metadata().is_ok_and(|metadata| metadata.nlink() == 2) {
            // Gone again, or not ours to see: the others are still worth naming.
            let _ = walk(&entry.path(), path, each);
        }
        path.truncate(length);
    }
    Ok(())
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
pub fn v1_number(proc_cgroups: &str, controller: &str) -> Option<u32> {
    let line = proc_cgroups.lines().find(|line| line.split_whitespace().next() == Some(controller))?;
    let number = line.split_whitespace().nth(1)?.parse().ok()?;
    (number != 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

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
    fn both_trees_of_a_hybrid_host_are_named_by_inode() -> io::Result<()> {
        let root = std::env::temp_dir().join(format!("siskin-cgroup-{}", std::process::id()));
        fs::create_dir_all(root.join("unified/a.slice/b.service"))?;
        fs::create_dir_all(root.join("blkio/batch"))?;
        fs::write(root.join("unified/cgroup.controllers"), "")?;
        fs::write(root.join("cgroups"), PROC_CGROUPS)?;
        let mut seen = HashMap::new();
        Trees { mount: root.clone(), procfs: root.clone() }
            .scan(|hierarchy, id, path| assert_eq!(seen.insert((hierarchy, id), path.to_owned()), None));
        let mut expected = HashMap::new();
        for (hierarchy, tree, path) in [
            (Hierarchy::CGROUP2, "unified", "/"),
            (Hierarchy::CGROUP2, "unified", "/a.slice"),
            (Hierarchy::CGROUP2, "unified", "/a.slice/b.service"),
            (Hierarchy(7), "blkio", "/"),
            (Hierarchy(7), "blkio", "/batch"),
        ] {
            let inode = fs::metadata(root.join(tree).join(&path[1..]))?.ino();
            expected.insert((hierarchy, inode), path.to_owned());
        }
        fs::remove_dir_all(root)?;
        assert_eq!(seen, expected);
        Ok(())
    }
}
