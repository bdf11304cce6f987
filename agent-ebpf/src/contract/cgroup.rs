//! The cgroup probe's keys and values: what user space is told of cgroups that come and go.

use super::{LOSSES, words::made_of_words};

made_of_words!(CgroupNote, CgroupBank);

/// Words of a path, with its final zero. The longest that systemd and a nested cluster make is about 330 bytes.
pub const CGROUP_PATH_WORDS: usize = 63;

/// A cgroup. The id alone tells cgroups of one hierarchy apart for as long as the machine runs: its lower half is used again
/// only with another upper half (`kernfs_new_node`, fs/kernfs/dir.c, 5.10 to 6.18).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CgroupKey {
    /// Its id, which is the inode of its directory.
    pub id: u64,
    /// The hierarchy: 0 for cgroup2, else the number of the cgroup v1 hierarchy that has `blkio`.
    pub hierarchy: u64,
}

/// What happened to a cgroup since user space last looked.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CgroupNote {
    /// 1 when nothing refers to it any more: no process, no socket, no page that is still to be written. It will count nothing.
    pub released: u64,
    /// Its path in its hierarchy as bytes, with a final zero; empty when it was made before the agent looked last.
    pub path: [u64; CGROUP_PATH_WORDS],
}

/// The cgroup probe's per-CPU bank.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CgroupBank {
    /// Losses by [`Loss`](crate::Loss).
    pub lost: [u64; LOSSES],
}
