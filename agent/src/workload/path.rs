//! From a cgroup's path to what runs in it. Pure, and the only place that knows how kubelets, runtimes and systemd name cgroups.
//!
//! What is nested inside a container belongs to the container, so the outermost pod or container on the path counts. Only a pod that
//! is itself inside a plain container (a cluster of containers, such as kind makes) comes before it.

use std::fmt;

/// What a path says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A container, of a pod if the path says so.
    Container {
        /// Its pod.
        pod: Option<Uid>,
        /// Its id, as the runtime gave it.
        id: Box<str>,
    },
    /// In a pod, but in none of its containers: a runtime's monitor, say.
    Pod(Uid),
    /// Anything else: a systemd unit, or the path itself.
    Host(Box<str>),
}

/// A pod's unique id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid {
    value: u128,
    /// Pods from the API have a UUID, written with dashes; pods from a file on the node have a hash.
    is_hash: bool,
}

impl Uid {
    /// Reads a UUID, with the underscores that systemd's names have in place of dashes, or a hash of 32 digits.
    pub fn parse(text: &str) -> Option<Self> {
        let is_hash = text.len() == 32;
        let dash = |at: usize| !is_hash && matches!(at, 8 | 13 | 18 | 23);
        if !is_hash && text.len() != 36 {
            return None;
        }
        let mut value = 0;
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                b'-' | b'_' if dash(at) => {}
                b'0'..=b'9' | b'a'..=b'f' if !dash(at) => {
                    value = value << 4 | u128::from(char::from(byte).to_digit(16)?);
                }
                _ => return None,
            }
        }
        Some(Self { value, is_hash })
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", self.value);
        if self.is_hash {
            return formatter.write_str(&digits);
        }
        let (a, rest) = digits.split_at(8);
        let (b, rest) = rest.split_at(4);
        let (c, rest) = rest.split_at(4);
        let (d, e) = rest.split_at(4);
        write!(formatter, "{a}-{b}-{c}-{d}-{e}")
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Digits of a container id that people and tools show.
const SHORT_ID: usize = 12;

/// The first digits of a container id, as `docker ps` and `crictl ps` show it.
pub fn short(id: &str) -> &str {
    id.get(..SHORT_ID).unwrap_or(id)
}

/// What runs in the cgroup with this path.
pub fn place(path: &str) -> Place {
    in_pod(path).or_else(|| in_container(path)).unwrap_or_else(|| Place::Host(host(path).into()))
}

/// The outermost pod on the path.
fn in_pod(path: &str) -> Option<Place> {
    let mut kubepods = false;
    let mut components = path.split('/');
    while let Some(component) = components.next() {
        // Written by a runtime that uses cgroupfs under a kubelet that uses systemd: `SLICE:RUNTIME:ID` is one directory.
        let (slice, joined) = match component.split_once(':') {
            Some((slice, rest)) => (slice, Some(rest)),
            None => (component, None),
        };
        kubepods |= slice.contains("kubepods");
        let by_cgroupfs = component.strip_prefix("pod");
        let by_systemd = slice.strip_suffix(".slice").and_then(|name| Some(name.rsplit_once("-pod")?.1));
        let uid = by_systemd.or(by_cgroupfs).filter(|_| kubepods).and_then(Uid::parse);
        let Some(pod) = uid else { continue };
        let inner = match joined {
            Some(rest) => rest.rsplit_once(':').map(|(_, id)| id),
            None => components.next(),
        };
        return Some(match inner.and_then(container) {
            Some((runtime, id)) if !is_monitor(runtime) => Place::Container { pod: Some(pod), id: id.into() },
            _ => Place::Pod(pod),
        });
    }
    None
}

/// The outermost container on the path. Every runtime gives it 64 digits.
fn in_container(path: &str) -> Option<Place> {
    let mut ids = path.split('/').filter_map(container);
    ids.find(|(runtime, id)| id.len() == 64 && !is_monitor(runtime))
        .map(|(_, id)| Place::Container { pod: None, id: id.into() })
}

/// The runtime's prefix, without its dash, and the id in a container's component: `ID`, `RUNTIME-ID` or `RUNTIME-ID.scope`.
fn container(component: &str) -> Option<(&str, &str)> {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    let (runtime, id) = name.rsplit_once('-').unwrap_or(("", name));
    let is_hex = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (is_hex && (32..=64).contains(&id.len())).then_some((runtime, id))
}

/// Whether a prefix is that of the process that watches over a container from outside.
fn is_monitor(runtime: &str) -> bool {
    runtime.ends_with("conmon")
}

/// Unit types that hold processes, by how their cgroup's name ends (systemd.unit(5)).
const UNITS: [&str; 2] = [".service", ".scope"];

fn is_unit(component: &str) -> bool {
    UNITS.iter().any(|kind| component.ends_with(kind) && component.len() > kind.len())
}

/// The innermost systemd service or scope on the path, else the path itself. Cgroups that a service makes below its own belong to
/// the service. A whole machine (systemd-nspawn, LXC, libvirt) has units of its own, which are not the host's: it is one workload.
fn host(path: &str) -> &str {
    machine(path).or_else(|| unit(path)).unwrap_or(path)
}

/// The innermost unit. A user's is told from one of the system, whose name it may have: it begins at the user's manager.
fn unit(path: &str) -> Option<&str> {
    let mut unit: Option<(usize, usize)> = None;
    let mut of_user = None;
    let mut begin = 0;
    for component in path.split('/') {
        let end = begin + component.len();
        // The process of a manager is in a scope of this name below it.
        if is_unit(component) && (component != "init.scope" || unit.is_none()) {
            if component.starts_with("user@") {
                of_user.get_or_insert(begin);
            }
            unit = Some((of_user.unwrap_or(begin), end));
        }
        begin = end + 1;
    }
    unit.map(|(begin, end)| &path[begin..end])
}

/// The machine that the path is in.
fn machine(path: &str) -> Option<&str> {
    const LXC: &str = "/lxc/";
    if let Some(below) = path.strip_prefix("/machine.slice/") {
        return Some(first(below)).filter(|component| is_unit(component));
    }
    if let Some(below) = path.strip_prefix(LXC) {
        let name = first(below);
        return (!name.is_empty()).then(|| &path[..LXC.len() + name.len()]);
    }
    // Of a user, it is further down.
    path.split('/').find(|component| component.starts_with("lxc.payload."))
}

fn first(path: &str) -> &str {
    path.split('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UUID: &str = "4f8c0b1e-2d3a-4c5b-8e9f-0a1b2c3d4e5f";

    fn text(place: &Place) -> String {
        match place {
            Place::Container { pod: Some(pod), id } => format!("pod {pod} container {}", short(id)),
            Place::Container { pod: None, id } => format!("container {}", short(id)),
            Place::Pod(pod) => format!("pod {pod}"),
            Place::Host(name) => format!("host {name}"),
        }
    }

    /// Paths as runtimes and distributions make them, written by hand; a line each: the path, and what it says.
    #[test]
    fn the_corpus_is_read_as_written() {
        let corpus = include_str!("../../tests/cgroup_paths.txt");
        let mut lines = 0;
        for line in corpus.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (path, expected) = line.split_once(" => ").expect("a path and what it says");
            // 64 digits, so that the lines can be read.
            let path = path.replace("ID1", &"a1".repeat(32)).replace("ID2", &"b2".repeat(32));
            assert_eq!(text(&place(&path)), expected.trim(), "{path}");
            lines += 1;
        }
        assert!(lines >= 90, "{lines}");
    }

    #[test]
    fn a_uid_is_shown_as_the_kubelet_writes_it() {
        for uid in [UUID, "0123456789abcdef0123456789abcdef"] {
            assert_eq!(Uid::parse(uid).unwrap().to_string(), uid);
        }
        assert_eq!(Uid::parse(&UUID.replace('-', "_")), Uid::parse(UUID));
        for wrong in
            ["", "4f8c", &UUID[1..], &format!("{UUID}0"), &UUID.replace('4', "g"), &UUID.to_uppercase()]
        {
            assert_eq!(Uid::parse(wrong), None, "{wrong}");
        }
    }

    fn uid() -> impl Strategy<Value = Uid> {
        (any::<u128>(), any::<bool>()).prop_map(|(value, is_hash)| Uid { value, is_hash })
    }

    proptest! {
        #[test]
        fn any_uid_survives_being_written(uid in uid()) {
            prop_assert_eq!(Uid::parse(&uid.to_string()), Some(uid));
        }

        /// Every way to write a pod's container, below any prefix and with anything nested in it.
        #[test]
        fn a_container_is_found_however_it_is_written(
            uid in uid(),
            id in "[0-9a-f]{64}",
            prefix in prop::sample::select(vec!["", "/lab/node1", "/kubelet", "/docker/0123", "/a.slice/b.service"]),
            class in prop::sample::select(vec!["", "-burstable", "-besteffort"]),
            runtime in prop::sample::select(vec!["cri-containerd", "crio", "docker", "containerd"]),
            nested in "(/[a-z.]{1,12}){0,3}",
            by_systemd in any::<bool>(),
        ) {
            let path = if by_systemd {
                let uid = uid.to_string().replace('-', "_");
                format!("{prefix}/kubepods.slice/kubepods{class}.slice/kubepods{class}-pod{uid}.slice/{runtime}-{id}.scope{nested}")
            } else {
                format!("{prefix}/kubepods{}/pod{uid}/{id}{nested}", class.replace('-', "/"))
            };
            prop_assert_eq!(place(&path), Place::Container { pod: Some(uid), id: id.into() });
        }

        #[test]
        fn any_bytes_have_a_place_and_a_host_is_a_part_of_its_path(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let path = String::from_utf8_lossy(&bytes);
            if let Place::Host(name) = place(&path) {
                prop_assert!(path.contains(&*name));
            }
        }

        /// Paths made of the pieces that the parser looks for, in every order.
        #[test]
        fn any_order_of_meaningful_pieces_has_a_place(
            pieces in prop::collection::vec(
                prop::sample::select(vec![
                    "/", "kubepods", "kubepods.slice", "-pod", "pod", UUID, "4f8c0b1e_2d3a_4c5b_8e9f_0a1b2c3d4e5f", ".slice",
                    "cri-containerd", "crio-conmon", "-", ":", ".scope", ".service", "machine.slice", "lxc", "lxc.payload.",
                    "0123456789abcdef0123456789abcdef", "docker", "é", "\u{0}",
                ]),
                0..24,
            )
        ) {
            let path = pieces.concat();
            if let Place::Host(name) = place(&path) {
                prop_assert!(path.contains(&*name));
            }
        }
    }
}
