//! A cgroup of a test's own: what runs in it is what the test started, so its counts are the test's.

use std::{
    fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::Duration,
};

/// A cgroup of the unified hierarchy. Removed with the value.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    namespace: String,
    pod: String,
    /// The label `container` of what runs in it.
    pub container: String,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Cgroup {
    /// Makes a cgroup with a name of its own that contains `name`.
    ///
    /// # Panics
    /// When the machine has no cgroup2 mount, or the cgroup cannot be made.
    pub fn new(name: &str) -> Self {
        let container =
            format!("/siskin-test-{name}-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        Self::under(&unified(), &container)
    }

    /// Makes a cgroup in the hierarchy mounted at `root`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn under(root: &Path, container: &str) -> Self {
        Self::of_pod(root.join(&container[1..]), ["", "", container])
    }

    /// Makes the cgroup of a pod's container: its directory, and its labels namespace, pod and container.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn of_pod(path: PathBuf, labels: [&str; 3]) -> Self {
        fs::create_dir(&path)
            .unwrap_or_else(|error| panic!("cannot make cgroup {}: {error}", path.display()));
        let [namespace, pod, container] = labels.map(str::to_owned);
        Self { path, namespace, pod, container }
    }

    /// The labels of what runs in it.
    pub fn labels(&self) -> [(&str, &str); 3] {
        [("namespace", &self.namespace), ("pod", &self.pod), ("container", &self.container)]
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets a command run in this cgroup from its first instruction: the fork is charged to the caller's cgroup, the
    /// exec and the exit to this one.
    ///
    /// # Panics
    /// When the cgroup has no file of processes.
    pub fn command(&self, program: &str) -> Command {
        let procs =
            fs::OpenOptions::new().write(true).open(self.path.join("cgroup.procs")).expect("cgroup.procs");
        let mut command = Command::new(program);
        // SAFETY: only a write to an open file between fork and exec.
        unsafe { command.pre_exec(move || io::Write::write_all(&mut &procs, b"0")) };
        command
    }

    /// Moves the calling process here. Sockets that it makes from now on belong to this cgroup.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn enter(&self) {
        fs::write(self.path.join("cgroup.procs"), "0").expect("this process moves");
    }
}

/// Moves the calling process back to the root cgroup of the unified hierarchy.
///
/// # Panics
/// When the kernel refuses.
pub fn leave() {
    fs::write(unified().join("cgroup.procs"), "0").expect("this process moves");
}

/// Where cgroup2 is mounted.
///
/// # Panics
/// When it is not mounted in either usual place.
pub fn unified() -> PathBuf {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .map(PathBuf::from)
        .find(|root| root.join("cgroup.controllers").exists())
        .expect("cgroup2 is mounted")
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Processes that ended stay for a moment.
        for _ in 0..100 {
            match fs::remove_dir(&self.path) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    thread::sleep(Duration::from_millis(10))
                }
                _ => return,
            }
        }
    }
}
