//! The names that the kubelet gives log files: the only place on a node, besides the API, where ids and names meet.
//!
//! * `/var/log/pods/NAMESPACE_POD_UID/CONTAINER/` is made before the pod's first container, and goes with the pod.
//! * `/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log` is a link made right after a container started, by every kubelet and for
//!   every runtime (`logSymlink`, pkg/kubelet/kuberuntime/legacy.go); it goes with the container.
//!
//! Only names of directories and links are read, never a log.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{
    Labels,
    path::{Uid, short},
};

/// The label `container` of what runs in a pod outside its containers: the sandbox that holds its network, and monitors.
pub const PAUSE: &str = "pause";

/// A pod's directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Pod {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The directory's.
    pub directory: String,
}

/// The names on this node, as of the last look.
#[derive(Debug)]
pub struct Logs {
    pods: Directory,
    links: Directory,
    by_uid: HashMap<Uid, Pod>,
    by_container: HashMap<String, Labels>,
    /// Grows whenever names may have changed.
    pub generation: u64,
}

/// A directory that is listed again when it changed.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    /// What it said it was changed at, when it was listed, and when that was.
    listed: Option<(SystemTime, SystemTime)>,
}

/// A change this shortly before a listing may not be in it: time stamps are as coarse as the kernel's timer.
const COARSE: Duration = Duration::from_secs(1);

impl Directory {
    fn new(path: PathBuf) -> Self {
        Self { path, listed: None }
    }

    /// Its entries' names, if they may have changed since the last call. A directory that is not there is empty.
    fn changed(&mut self) -> Option<Vec<String>> {
        let modified = fs::metadata(&self.path).and_then(|metadata| metadata.modified()).ok();
        if let (Some(modified), Some((before, at))) = (modified, self.listed)
            && modified == before
            && modified + COARSE < at
        {
            return None;
        }
        if modified.is_none() && self.listed.is_none() {
            return None;
        }
        self.listed = modified.map(|modified| (modified, SystemTime::now()));
        Some(names(&self.path))
    }
}

/// The names in a directory that are text.
fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

impl Logs {
    /// The names in these two directories, usually `/var/log/pods` and `/var/log/containers`. Neither need be there.
    pub fn new(pods: PathBuf, containers: PathBuf) -> Self {
        Self {
            pods: Directory::new(pods),
            links: Directory::new(containers),
            by_uid: HashMap::new(),
            by_container: HashMap::new(),
            generation: 0,
        }
    }

    /// Looks whether names have changed.
    pub fn refresh(&mut self) {
        if let Some(names) = self.pods.changed() {
            self.generation += 1;
            self.by_uid = names.into_iter().filter_map(pod).collect();
        }
        if let Some(names) = self.links.changed() {
            self.generation += 1;
            self.by_container = names.iter().filter_map(|name| link(name)).collect();
        }
    }

    /// The labels of a container, and whether they will not get better. `is_first` says that it is the oldest container of its
    /// pod: that is the sandbox, unless a link says otherwise.
    ///
    /// Without a link the only container that has logs is taken to be this one. What has no name is called by its id.
    pub fn container(&self, pod: Option<Uid>, id: &str, is_first: bool) -> (Labels, bool) {
        if let Some(labels) = self.by_container.get(id) {
            return (labels.clone(), true);
        }
        let Some(uid) = pod else {
            let labels = Labels { container: short(id).to_owned(), ..Labels::default() };
            return (labels, self.links.listed.is_none());
        };
        let (mut labels, _) = self.pod(uid);
        if !is_first {
            let only = self.by_uid.get(&uid).and_then(|pod| self.only_container(pod));
            labels.container = only.unwrap_or_else(|| short(id).to_owned());
        }
        (labels, false)
    }

    /// The labels of what runs in a pod outside its containers, and whether they will not get better.
    pub fn pod(&self, uid: Uid) -> (Labels, bool) {
        let container = PAUSE.to_owned();
        match self.by_uid.get(&uid) {
            Some(Pod { namespace, name, .. }) => {
                (Labels { namespace: namespace.clone(), pod: name.clone(), container }, true)
            }
            None => (Labels { namespace: String::new(), pod: uid.to_string(), container }, false),
        }
    }

    /// The container of a pod that has only one with logs.
    fn only_container(&self, pod: &Pod) -> Option<String> {
        match <[String; 1]>::try_from(names(&self.pods.path.join(&pod.directory))) {
            Ok([only]) => Some(only),
            Err(_) => None,
        }
    }
}

/// What a directory in `/var/log/pods` is named after: `NAMESPACE_POD_UID`.
pub fn pod(directory: String) -> Option<(Uid, Pod)> {
    let (namespace, rest) = directory.split_once('_')?;
    let (name, uid) = rest.split_once('_')?;
    let pod = Pod { namespace: namespace.to_owned(), name: name.to_owned(), directory: directory.clone() };
    (!namespace.is_empty() && !name.is_empty()).then_some((Uid::parse(uid)?, pod))
}

/// What a link in `/var/log/containers` is named after: `POD_NAMESPACE_CONTAINER-ID.log`.
pub fn link(name: &str) -> Option<(String, Labels)> {
    let mut parts = name.strip_suffix(".log")?.splitn(3, '_');
    let (pod, namespace, rest) = (parts.next()?, parts.next()?, parts.next()?);
    let (container, id) = rest.rsplit_once('-')?;
    let [namespace, pod, container] = [namespace, pod, container].map(str::to_owned);
    let is_whole = ![&namespace, &pod, &container].iter().any(|part| part.is_empty()) && !id.is_empty();
    is_whole.then(|| (id.to_owned(), Labels { namespace, pod, container }))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use proptest::prelude::*;

    const UID: &str = "4f8c0b1e-2d3a-4c5b-8e9f-0a1b2c3d4e5f";

    fn labels(namespace: &str, pod: &str, container: &str) -> Labels {
        let [namespace, pod, container] = [namespace, pod, container].map(str::to_owned);
        Labels { namespace, pod, container }
    }

    #[test]
    fn a_directory_names_its_pod() {
        let (uid, of) = pod(format!("shop_cart-7d9f_{UID}")).unwrap();
        assert_eq!((uid.to_string().as_str(), &*of.namespace, &*of.name), (UID, "shop", "cart-7d9f"));
        for wrong in
            ["", "shop", "shop_cart", "shop_cart_4f8c", &format!("_cart_{UID}"), &format!("shop__{UID}")]
        {
            assert_eq!(pod(wrong.to_owned()), None, "{wrong}");
        }
    }

    #[test]
    fn a_link_names_its_container() {
        let id = "0".repeat(64);
        let name = format!("kube-proxy-6xsx9_kube-system_kube-proxy-{id}.log");
        assert_eq!(link(&name), Some((id.clone(), labels("kube-system", "kube-proxy-6xsx9", "kube-proxy"))));
        for wrong in ["", ".log", "a_b_c.log", "a_b_c-.log", "a_b_-0.log", "a__c-0.log", "a_b_c-0"] {
            assert_eq!(link(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names_get_better_as_the_kubelet_writes_them() -> io::Result<()> {
        let root = std::env::temp_dir().join(format!("siskin-logs-{}", std::process::id()));
        let uid = Uid::parse(UID).unwrap();
        let (id, sandbox) = ("a".repeat(64), "b".repeat(64));
        let mut logs = Logs::new(root.join("pods"), root.join("containers"));
        logs.refresh();
        assert_eq!(logs.generation, 0);
        assert_eq!(logs.container(Some(uid), &id, false), (labels("", UID, "aaaaaaaaaaaa"), false));
        // Outside Kubernetes, and no kubelet that could name it.
        assert_eq!(logs.container(None, &id, false), (labels("", "", "aaaaaaaaaaaa"), true));

        let pod = root.join(format!("pods/shop_cart_{UID}"));
        fs::create_dir_all(pod.join("setup"))?;
        logs.refresh();
        assert_eq!(logs.container(Some(uid), &sandbox, true), (labels("shop", "cart", PAUSE), false));
        assert_eq!(logs.container(Some(uid), &id, false), (labels("shop", "cart", "setup"), false));
        assert_eq!(logs.pod(uid), (labels("shop", "cart", PAUSE), true));

        fs::create_dir(pod.join("web"))?;
        assert_eq!(logs.container(Some(uid), &id, false), (labels("shop", "cart", "aaaaaaaaaaaa"), false));

        fs::create_dir(root.join("containers"))?;
        std::os::unix::fs::symlink("/dev/null", root.join(format!("containers/cart_shop_web-{id}.log")))?;
        logs.refresh();
        for pod in [Some(uid), None] {
            assert_eq!(logs.container(pod, &id, true), (labels("shop", "cart", "web"), true));
        }
        fs::remove_dir_all(&root)?;
        logs.refresh();
        assert_eq!(logs.container(Some(uid), &id, false), (labels("", UID, "aaaaaaaaaaaa"), false));
        Ok(())
    }

    proptest! {
        #[test]
        fn any_pod_and_any_link_survive_being_written(
            namespace in "[a-z0-9-]{1,63}",
            name in "[a-z0-9.-]{1,120}",
            container in "[a-z0-9-]{1,63}",
            id in "[0-9a-f]{64}",
            uid in any::<u128>(),
        ) {
            let uid = Uid::parse(&format!("{uid:032x}")).unwrap();
            let (read, of) = pod(format!("{namespace}_{name}_{uid}")).unwrap();
            prop_assert_eq!((read, &of.namespace, &of.name), (uid, &namespace, &name));
            let read = link(&format!("{name}_{namespace}_{container}-{id}.log"));
            prop_assert_eq!(read, Some((id, labels(&namespace, &name, &container))));
        }

        #[test]
        fn any_name_is_read_or_refused(name in "[a-z_.-]{0,80}|\\PC{0,80}") {
            let (_, _) = (pod(name.clone()), link(&name));
        }
    }
}
