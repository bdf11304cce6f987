//! A node of a test's own, as far as a kubelet writes it down: cgroups in the shape of pods and containers, and the directories of
//! their logs. No kubelet runs, and the machine's own `/var/log` is not touched.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::Duration,
};

use crate::cgroup::{Cgroup, unified};

/// How a kubelet names cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// `/kubepods/burstable/podUID/ID`.
    Cgroupfs,
    /// `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/cri-containerd-ID.scope`.
    Systemd,
}

/// The node. Its cgroups and directories go with the value.
#[derive(Debug)]
pub struct Kubelet {
    driver: Driver,
    /// The cgroup that all of it is below.
    root: PathBuf,
    /// Where its log directories are.
    logs: PathBuf,
}

/// A pod of the node.
#[derive(Debug)]
pub struct Pod<'a> {
    node: &'a Kubelet,
    namespace: String,
    name: String,
    uid: String,
    cgroup: PathBuf,
}

static NUMBER: AtomicU64 = AtomicU64::new(1);

/// A number that no other call in this process gives, and that differs between processes.
fn number() -> u128 {
    u128::from(std::process::id()) << 64 | u128::from(NUMBER.fetch_add(1, Relaxed))
}

impl Kubelet {
    /// Makes a node without pods.
    ///
    /// # Panics
    /// When the machine has no cgroup2 mount.
    pub fn new(name: &str, driver: Driver) -> Self {
        let name = format!("siskin-test-{name}-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let (root, logs) = (unified().join(&name), std::env::temp_dir().join(&name));
        for directory in [&root, &logs.join("pods"), &logs.join("containers")] {
            fs::create_dir_all(directory).expect("a directory of our own");
        }
        Self { driver, root, logs }
    }

    /// The flags that tell the agent where the logs are.
    pub fn flags(&self) -> [String; 2] {
        let logs = self.logs.display();
        [format!("--path.pod-logs={logs}/pods"), format!("--path.container-logs={logs}/containers")]
    }

    /// The cgroup that all pods are below.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes a pod with its log directory and its sandbox, as a kubelet and a runtime do before its first container.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn pod(&self, namespace: &str, name: &str) -> Pod<'_> {
        let digits = format!("{:032x}", number());
        let uid = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]).join("-");
        let cgroup = self.root.join(match self.driver {
            Driver::Cgroupfs => format!("kubepods/burstable/pod{uid}"),
            Driver::Systemd => format!(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice",
                uid.replace('-', "_")
            ),
        });
        fs::create_dir_all(&cgroup).expect("the pod's cgroup");
        let pod = Pod { node: self, namespace: namespace.into(), name: name.into(), uid, cgroup };
        fs::create_dir(pod.logs()).expect("the pod's logs");
        // Stays as long as the pod does.
        let _ = fs::create_dir(pod.container_cgroup(&format!("{:064x}", number())));
        pod
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        remove(&self.root);
        let _ = fs::remove_dir_all(&self.logs);
    }
}

/// Removes a cgroup with all that are below it.
fn remove(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    // Processes that ended stay for a moment.
    for _ in 0..100 {
        match fs::remove_dir(cgroup) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                thread::sleep(Duration::from_millis(10))
            }
            _ => return,
        }
    }
}

impl Pod<'_> {
    fn logs(&self) -> PathBuf {
        self.node.logs.join(format!("pods/{}_{}_{}", self.namespace, self.name, self.uid))
    }

    fn container_cgroup(&self, id: &str) -> PathBuf {
        self.cgroup.join(match self.node.driver {
            Driver::Cgroupfs => id.to_owned(),
            Driver::Systemd => format!("cri-containerd-{id}.scope"),
        })
    }

    /// Makes a container: first its log directory, then its cgroup, and at last the link to its log, as a kubelet does.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn container(&self, name: &str) -> Cgroup {
        let id = format!("{:064x}", number());
        let cgroup = self.container_without_link(name, &id);
        self.link(name, &id);
        cgroup
    }

    /// Makes a container whose start the kubelet has not heard of yet.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn container_without_link(&self, name: &str, id: &str) -> Cgroup {
        fs::create_dir_all(self.logs().join(name)).expect("the container's logs");
        Cgroup::of_pod(self.container_cgroup(id), [&self.namespace, &self.name, name])
    }

    /// Makes the link to a container's log.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn link(&self, name: &str, id: &str) {
        let link = format!("containers/{}_{}_{name}-{id}.log", self.name, self.namespace);
        symlink(self.logs().join(name).join("0.log"), self.node.logs.join(link)).expect("a link");
    }

    /// Removes the pod as a kubelet does: its cgroups, the links to its logs, its logs.
    ///
    /// # Panics
    /// When they cannot be removed.
    pub fn remove(self) {
        remove(&self.cgroup);
        let begin = format!("{}_{}_", self.name, self.namespace);
        for entry in fs::read_dir(self.node.logs.join("containers")).expect("links").flatten() {
            if entry.file_name().to_string_lossy().starts_with(&begin) {
                fs::remove_file(entry.path()).expect("a link of our own");
            }
        }
        fs::remove_dir_all(self.logs()).expect("logs of our own");
    }
}
