//! Two workloads inside one process: threads in cgroups of their own.
//!
//! With one workload alone, an estimate of its share is always right: the second one makes the
//! errors by workload real.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use siskin_tests::cgroup::unified;

use super::job::Workload;

/// The hierarchy that charges disk I/O on machines with cgroup v1.
const BLKIO: &str = "/sys/fs/cgroup/blkio";
const NAMES: [&str; 2] = ["first", "second"];

/// A cgroup with two threaded ones inside (Documentation/admin-guide/cgroup-v2.rst, "Threads"), and
/// the same in `blkio` where the machine has it. The calling process is in the outer one. Removed
/// with the value.
#[derive(Debug)]
pub struct Homes {
    /// Its path below the root of each hierarchy.
    path: String,
    /// Each hierarchy's root, and where in it the process was.
    hierarchies: Vec<(PathBuf, PathBuf)>,
}

impl Homes {
    /// Makes them and moves this process there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new() -> Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").context("cannot read this process's cgroups")?;
        let place = |controller: &str| {
            let path = own.lines().find_map(|line| {
                let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
                controllers.split(',').any(|other| other == controller).then_some(path)
            });
            path.unwrap_or("/")[1..].to_owned()
        };
        let mut hierarchies = vec![(unified(), unified().join(place("")))];
        let blkio = Path::new(BLKIO);
        if blkio.join("cgroup.procs").exists() {
            hierarchies.push((blkio.to_owned(), blkio.join(place("blkio"))));
        }
        let homes = Self { path: format!("/siskin-bench-{}", std::process::id()), hierarchies };
        for (index, (root, _)) in homes.hierarchies.iter().enumerate() {
            let outer = homes.outer(root);
            let make =
                |path: &Path| fs::create_dir(path).with_context(|| format!("cannot make {}", path.display()));
            make(&outer)?;
            for name in NAMES {
                make(&outer.join(name))?;
                if index == 0 {
                    fs::write(outer.join(name).join("cgroup.type"), "threaded")
                        .context("the kernel makes no threaded cgroup")?;
                }
            }
            fs::write(outer.join("cgroup.procs"), "0").context("this process cannot enter a cgroup")?;
        }
        Ok(homes)
    }

    fn outer(&self, root: &Path) -> PathBuf {
        root.join(&self.path[1..])
    }

    /// The label `container` of a workload; the other workload labels are empty.
    pub fn container(&self, workload: Workload) -> String {
        format!("{}/{}", self.path, NAMES[workload as usize])
    }

    /// Moves the calling thread to a workload. Processes that it starts and sockets that it makes
    /// from now on belong there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self, workload: Workload) -> Result<()> {
        for (index, (root, _)) in self.hierarchies.iter().enumerate() {
            let threads = if index == 0 { "cgroup.threads" } else { "tasks" };
            let path = self.outer(root).join(NAMES[workload as usize]).join(threads);
            fs::write(&path, "0").with_context(|| format!("cannot write to {}", path.display()))?;
        }
        Ok(())
    }
}

impl Drop for Homes {
    fn drop(&mut self) {
        for (root, before) in &self.hierarchies {
            // A folder that stays is empty and costs nothing.
            let _ = fs::write(before.join("cgroup.procs"), "0");
            let outer = self.outer(root);
            for path in [outer.join(NAMES[0]), outer.join(NAMES[1]), outer] {
                // Threads and processes that ended stay for a moment.
                for _ in 0..100 {
                    match fs::remove_dir(&path) {
                        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                            thread::sleep(Duration::from_millis(10));
                        }
                        _ => break,
                    }
                }
            }
        }
    }
}
