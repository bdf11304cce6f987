//! Which directories of cgroup2 a workload's counters are in. Pure.
//!
//! The kernel adds a cgroup's counters to those of every cgroup above it. So a workload's own are
//! the sum over its topmost cgroups, less what cgroups inside these are that are another workload.

use std::{
    cmp::Reverse,
    collections::HashMap,
    path::{Path, PathBuf},
};

use super::Id;

/// A directory whose counters are a part of a workload's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Directory {
    /// The cgroup's id, which is the directory's inode. Another cgroup may have come with the same
    /// path.
    pub cgroup: u64,
    /// Where it is, with the mount.
    pub path: PathBuf,
    /// Whether its counters are added; else they are another workload's inside this one, and
    /// subtracted.
    pub is_own: bool,
    /// Whether the agent saw it being made, so that its counters began at 0 then.
    pub is_new: bool,
}

/// A cgroup of cgroup2 that lives.
#[derive(Clone, Debug)]
pub struct Cgroup {
    /// Its id.
    pub id: u64,
    /// Its path in the hierarchy.
    pub path: Box<str>,
    /// Whether the agent saw it being made.
    pub is_new: bool,
    /// Its workload, when it did something.
    pub workload: Option<Id>,
}

/// The directories of every workload, below `mount`. `name` finds the workload of a cgroup that did
/// nothing yet, if there is one with its labels; it is asked only for those inside the cgroup of a
/// workload.
///
/// The root has no directory: all of the host is inside it.
pub fn directories(
    mount: &Path,
    mut cgroups: Vec<Cgroup>,
    mut name: impl FnMut(u64) -> Option<Id>,
) -> HashMap<Id, Vec<Directory>> {
    cgroups.retain(|cgroup| cgroup.path.len() > 1);
    // What is above comes first. Of two with the same path the older one is gone.
    let depth = |cgroup: &Cgroup| cgroup.path.bytes().filter(|byte| *byte == b'/').count();
    cgroups.sort_by_cached_key(|cgroup| (depth(cgroup), Reverse(cgroup.id)));

    let mut owners: HashMap<&str, Option<Id>> = HashMap::with_capacity(cgroups.len());
    let mut directories: HashMap<Id, Vec<Directory>> = HashMap::new();
    for cgroup in &cgroups {
        if owners.contains_key(&*cgroup.path) {
            continue;
        }
        let outer = above(&cgroup.path).find_map(|path| owners.get(path)).copied().flatten();
        let inner = cgroup.workload.or_else(|| outer.and_then(|_| name(cgroup.id)));
        owners.insert(&cgroup.path, inner);
        if inner == outer {
            continue;
        }
        for (owner, is_own) in [(inner, true), (outer, false)] {
            let Some(owner) = owner else { continue };
            directories.entry(owner).or_default().push(Directory {
                cgroup: cgroup.id,
                path: mount.join(cgroup.path.trim_start_matches('/')),
                is_own,
                is_new: cgroup.is_new,
            });
        }
    }
    directories
}

/// The paths above a path, but for the root, innermost first.
fn above(path: &str) -> impl Iterator<Item = &str> {
    let slashes = path.rmatch_indices('/').map(|(at, _)| at);
    slashes.filter(|at| *at > 0).map(|at| &path[..at])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Id = Id(1);
    const B: Id = Id(2);
    const C: Id = Id(3);

    fn cgroup(id: u64, path: &str, workload: Option<Id>) -> Cgroup {
        Cgroup { id, path: path.into(), is_new: false, workload }
    }

    /// A workload's own directories, and those inside it that are others'.
    fn of(directories: &HashMap<Id, Vec<Directory>>, id: Id) -> (Vec<&str>, Vec<&str>) {
        let all = directories.get(&id).map_or(&[][..], Vec::as_slice);
        let paths = |is_own| {
            let mut paths: Vec<_> = all
                .iter()
                .filter(|directory| directory.is_own == is_own)
                .map(|directory| directory.path.to_str().unwrap())
                .collect();
            paths.sort_unstable();
            paths
        };
        (paths(true), paths(false))
    }

    #[test]
    fn topmost_cgroups_count_less_what_is_anothers() {
        let cgroups = vec![
            cgroup(1, "/", Some(C)),
            cgroup(7, "/a/x/y", Some(B)),
            cgroup(2, "/a", Some(A)),
            cgroup(3, "/a-b", Some(A)),
            cgroup(4, "/a/x", Some(A)),
            cgroup(5, "/a/x/y/z", Some(A)),
            // Its parent is not known.
            cgroup(6, "/a/x/y/z/q/r", Some(C)),
            cgroup(8, "/s", None),
            cgroup(9, "/s/b", Some(B)),
        ];
        let found = directories(Path::new("/m"), cgroups, |_| unreachable!());
        assert_eq!(of(&found, A), (vec!["/m/a", "/m/a-b", "/m/a/x/y/z"], vec!["/m/a/x/y", "/m/a/x/y/z/q/r"]));
        assert_eq!(of(&found, B), (vec!["/m/a/x/y", "/m/s/b"], vec!["/m/a/x/y/z"]));
        assert_eq!(of(&found, C), (vec!["/m/a/x/y/z/q/r"], vec![]), "the root has no directory");
    }

    #[test]
    fn what_did_nothing_is_asked_for_inside_a_workload_only() {
        let cgroups = vec![
            cgroup(1, "/a", Some(A)),
            cgroup(2, "/a/same", None),
            cgroup(3, "/a/known", None),
            cgroup(4, "/a/other", None),
            cgroup(5, "/a/other/below", None),
            cgroup(6, "/elsewhere", None),
        ];
        let mut asked = Vec::new();
        let found = directories(Path::new("/m"), cgroups, |id| {
            asked.push(id);
            match id {
                2 => Some(A),
                3 => Some(B),
                _ => None,
            }
        });
        asked.sort_unstable();
        assert_eq!(asked, [2, 3, 4]);
        assert_eq!(of(&found, A), (vec!["/m/a"], vec!["/m/a/known", "/m/a/other"]));
        assert_eq!(of(&found, B), (vec!["/m/a/known"], vec![]));
    }

    #[test]
    fn of_two_with_one_path_the_newer_one_is_there() {
        let cgroups = vec![cgroup(5, "/a", Some(A)), cgroup(9, "/a", Some(B))];
        let found = directories(Path::new("/m"), cgroups, |_| None);
        assert_eq!((of(&found, A).0.len(), found[&B][0].cgroup), (0, 9));
    }

    proptest! {
        /// Whatever tree: the directories of a workload add up to exactly what its cgroups did
        /// themselves.
        #[test]
        fn directories_add_up_to_what_a_workload_did(
            nodes in prop::collection::vec((any::<prop::sample::Index>(), 0u64..4, 0u64..1000), 1..40),
        ) {
            let mut paths = vec![String::new()];
            let (mut cgroups, mut did) = (Vec::new(), HashMap::new());
            for (id, (parent, workload, bytes)) in nodes.into_iter().enumerate() {
                let path = format!("{}/{id}", paths[parent.index(paths.len())]);
                paths.push(path.clone());
                let workload = (workload > 0).then_some(Id(workload));
                cgroups.push(cgroup(id as u64 + 1, &path, workload));
                did.insert(path, (workload, bytes));
            }
            // As the kernel counts: with everything below.
            let counted = |path: &str| -> i64 {
                let is_below = |other: &str| other == path || other.starts_with(&format!("{path}/"));
                did.iter().filter(|(other, _)| is_below(other)).map(|(_, (_, bytes))| *bytes as i64).sum()
            };
            let found = directories(Path::new("/"), cgroups, |_| None);
            for id in [A, B, C] {
                let all = found.get(&id).map_or(&[][..], Vec::as_slice);
                let sum: i64 = all
                    .iter()
                    .map(|directory| (if directory.is_own { 1 } else { -1 }) * counted(directory.path.to_str().unwrap()))
                    .sum();
                let own: i64 = did.values().filter(|(of, _)| *of == Some(id)).map(|(_, bytes)| *bytes as i64).sum();
                prop_assert_eq!(sum, own);
            }
        }
    }
}
