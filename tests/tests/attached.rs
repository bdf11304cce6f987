//! What the agent has in the kernel while it runs, and that nothing of it is left when it ends, however it ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    mem::offset_of,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use siskin_tests::agent::{Agent, binary};

/// The programs, as `bpftool prog` shows them.
const PROGRAMS: [&str; 12] = [
    "cgroup_mkdir",
    "cgroup_release",
    "process_exec",
    "process_fork",
    "process_exit",
    "tcp_state",
    "tcp_reset_sent",
    "tcp_reset_recv",
    "tcp_sweep",
    "tcp_listen",
    "tcp_adopt",
    "disk_complete",
];

/// Those of the UDP probe: on the returns of functions, or where nothing is attached to them on
/// tracepoints.
const ON_FUNCTIONS: [&str; 4] = ["udp_sendmsg", "udpv6_sendmsg", "udp_recvmsg", "udpv6_recvmsg"];
const ON_TRACEPOINTS: [&str; 2] = ["udp_send", "udp_receive"];

/// Programs and a map that are used once at start, and may be gone afterwards.
const AT_START: [&str; 3] = ["tcp_listen", "tcp_adopt", "tcp_listeners"];

/// The maps, as `bpftool map` shows them.
const MAPS: [&str; 28] = [
    "overload",
    // The read-only globals.
    ".rodata",
    "control",
    "program_stats",
    "cgroup_bank",
    "cgroup_notes",
    "cgroup_draft",
    "process_bank",
    "process_rows_a",
    "process_rows_b",
    "comm_rows_a",
    "comm_rows_b",
    "exited",
    "tcp_bank",
    "tcp_rows_a",
    "tcp_rows_b",
    "flow_rows_a",
    "flow_rows_b",
    "tcp_sockets",
    "tcp_by_address",
    "tcp_listeners",
    "disk_bank",
    "disk_rows",
    "disk_work_a",
    "disk_work_b",
    "udp_bank",
    "udp_rows_a",
    "udp_rows_b",
];

/// What the kernel has of eBPF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Program,
    Map,
    Link,
}

/// A kind and a number.
type Id = (Kind, u32);

// Commands of bpf(2), include/uapi/linux/bpf.h, 6.18.
const PROG_GET_NEXT_ID: libc::c_int = 11;
const MAP_GET_NEXT_ID: libc::c_int = 12;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const MAP_GET_FD_BY_ID: libc::c_int = 14;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const LINK_GET_NEXT_ID: libc::c_int = 31;

/// The start of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    code_bytes: [u32; 2],
    code: [u64; 2],
    load_time: u64,
    created_by: u32,
    map_ids_count: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// The start of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    numbers: [u32; 6],
    name: [u8; 16],
}

const _: () = assert!(offset_of!(ProgramInfo, name) == 64 && offset_of!(MapInfo, name) == 24);

fn bpf(command: libc::c_int, attributes: &mut [u32; 4]) -> io::Result<i32> {
    // SAFETY: the commands used here take at most 16 bytes, and write to them or to memory that the caller keeps.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(attributes)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// Everything that is there now.
fn all() -> BTreeSet<Id> {
    let mut ids = BTreeSet::new();
    let commands =
        [(Kind::Program, PROG_GET_NEXT_ID), (Kind::Map, MAP_GET_NEXT_ID), (Kind::Link, LINK_GET_NEXT_ID)];
    for (kind, command) in commands {
        let mut attributes = [0; 4];
        loop {
            match bpf(command, &mut attributes) {
                Ok(_) => ids.insert((kind, attributes[1])),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                Err(error) => panic!("cannot list {kind:?}s: {error}"),
            };
            attributes = [attributes[1], 0, 0, 0];
        }
    }
    ids
}

/// Fills the start of the kernel's description of a program or map.
fn describe<T>(command: libc::c_int, id: u32, info: &mut T) -> io::Result<()> {
    let fd = bpf(command, &mut [id, 0, 0, 0])?;
    // SAFETY: new and ours.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let address = std::ptr::from_mut(info) as u64;
    let mut attributes =
        [fd.as_raw_fd() as u32, size_of::<T>() as u32, address as u32, (address >> 32) as u32];
    bpf(OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(())
}

/// A program's name and the maps it uses. They stay with the program, also those that nobody has a descriptor of.
fn program(id: u32) -> io::Result<(String, Vec<Id>)> {
    let mut maps = [0u32; 64];
    let mut info = ProgramInfo {
        map_ids_count: maps.len() as u32,
        map_ids: maps.as_mut_ptr() as u64,
        ..Default::default()
    };
    describe(PROG_GET_FD_BY_ID, id, &mut info)?;
    let used = maps[..info.map_ids_count as usize].iter().map(|id| (Kind::Map, *id)).collect();
    Ok((text(info.name), used))
}

fn map_name(id: u32) -> io::Result<String> {
    let mut info = MapInfo::default();
    describe(MAP_GET_FD_BY_ID, id, &mut info)?;
    Ok(text(info.name))
}

fn text(name: [u8; 16]) -> String {
    String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned()
}

/// What a process has descriptors of, and the maps that its programs use.
fn held_by(pid: &str) -> BTreeSet<Id> {
    let mut ids = BTreeSet::new();
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return ids };
    for entry in entries.flatten() {
        // A process may end, or close a descriptor, while one looks.
        for line in fs::read_to_string(entry.path()).unwrap_or_default().lines() {
            let Some((field, value)) = line.split_once(':') else { continue };
            let kind = match field {
                "prog_id" => Kind::Program,
                "map_id" => Kind::Map,
                "link_id" => Kind::Link,
                _ => continue,
            };
            ids.insert((kind, value.trim().parse().expect("a number")));
        }
    }
    let programs: Vec<u32> =
        ids.iter().filter(|(kind, _)| *kind == Kind::Program).map(|(_, id)| *id).collect();
    for id in programs {
        ids.extend(program(id).map(|(_, maps)| maps).unwrap_or_default());
    }
    ids
}

/// Programs and maps with our names that came since `before` and that no living process holds.
fn orphans(before: &BTreeSet<Id>) -> BTreeSet<Id> {
    let is_ours = |(kind, id): &Id| match kind {
        Kind::Program => program(*id).is_ok_and(|(name, _)| {
            [&PROGRAMS[..], &ON_FUNCTIONS, &ON_TRACEPOINTS].concat().contains(&name.as_str())
        }),
        Kind::Map => map_name(*id).is_ok_and(|name| MAPS.contains(&name.as_str())),
        Kind::Link => false,
    };
    // Listed before the processes are looked at: what a new process makes meanwhile is not in the list.
    let mut ids: BTreeSet<Id> = all().difference(before).filter(|id| is_ours(id)).copied().collect();
    if ids.is_empty() {
        return ids;
    }
    for process in fs::read_dir("/proc").expect("processes").flatten() {
        let name = process.file_name().to_string_lossy().into_owned();
        if name.bytes().all(|byte| byte.is_ascii_digit()) {
            for id in held_by(&name) {
                ids.remove(&id);
            }
        }
    }
    ids
}

/// Runs an agent, ends it by `signal`, and sees that the kernel has what it had before. Other agents may come and go.
fn nothing_is_left_after(signal: i32) {
    let before = all();
    let agent = Agent::start(&[]);
    let metrics = agent.scrape();
    assert_eq!(metrics.sum("siskin_probe_up", &[]), 5.0);
    let held = held_by(&agent.pid().to_string());
    let kinds = [Kind::Program, Kind::Map, Kind::Link];
    let count = |kind| held.iter().filter(|(of, _)| *of == kind).count();
    assert!(kinds.into_iter().all(|kind| count(kind) > 0), "{held:?}");
    assert!(held.is_disjoint(&before), "{:?}", held.intersection(&before));

    agent.stop(signal);
    wait_until_gone(&held, &before);
}

/// The kernel frees a program after a grace period.
fn wait_until_gone(held: &BTreeSet<Id>, before: &BTreeSet<Id>) {
    let deadline = Instant::now() + Duration::from_secs(8);
    loop {
        let now = all();
        let left: Vec<_> = held.intersection(&now).collect();
        let orphans = orphans(before);
        if left.is_empty() && orphans.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left over: {left:?}; held by nobody: {orphans:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn nothing_is_left_in_the_kernel_after_sigterm() {
    nothing_is_left_after(libc::SIGTERM);
}

#[test]
fn nothing_is_left_in_the_kernel_after_sigint() {
    nothing_is_left_after(libc::SIGINT);
}

#[test]
fn nothing_is_left_in_the_kernel_after_sigkill() {
    nothing_is_left_after(libc::SIGKILL);
}

#[test]
fn nothing_is_left_in_the_kernel_after_a_check() {
    let before = all();
    let status = Command::new(binary()).arg("check").stdout(Stdio::null()).status().expect("a check");
    assert_eq!(status.code(), Some(0));
    wait_until_gone(&BTreeSet::new(), &before);
}

#[test]
fn programs_and_maps_have_their_whole_names_in_the_kernel() {
    let agent = Agent::start(&[]);
    let (mut programs, mut maps) = (BTreeMap::new(), BTreeMap::new());
    for (kind, id) in held_by(&agent.pid().to_string()) {
        match kind {
            Kind::Program => *programs.entry(program(id).expect("a program").0).or_insert(0) += 1,
            Kind::Map => *maps.entry(map_name(id).expect("a map")).or_insert(0) += 1,
            Kind::Link => {}
        }
    }
    let attached = [("hook", "fexit/udp_sendmsg"), ("state", "attached")];
    let udp = match agent.scrape().find("siskin_probe_hook_info", &attached).next() {
        Some(_) => &ON_FUNCTIONS[..],
        None => &ON_TRACEPOINTS[..],
    };
    let all = [&PROGRAMS[..], udp].concat();
    for (names, found) in [(&all[..], programs), (&MAPS[..], maps)] {
        // A name that was cut off is not among ours.
        assert!(found.keys().all(|name| names.contains(&name.as_str())), "{found:?}");
        for name in names.iter().filter(|name| !AT_START.contains(name)) {
            assert_eq!(found.get(*name), Some(&1), "{name}: {found:?}");
        }
    }
    assert!(all.iter().chain(&MAPS).all(|name| name.len() <= 15));
}
