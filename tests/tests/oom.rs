//! OOM kills, in a memory cgroup of the test's own.

use std::{
    fs, io,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
};

use siskin_tests::{
    agent::Agent,
    cgroup::{Cgroup, unified},
};

/// Most memory of the group.
const LIMIT: &str = "16777216";

/// The cgroup that limits memory: of the v1 hierarchy, or for cgroup2 the workload's own. Of the second kind there may be
/// no swap either.
fn limited(workload: &Cgroup) -> Option<Cgroup> {
    let v1 = Path::new("/sys/fs/cgroup/memory");
    if v1.join("cgroup.procs").exists() {
        let group = Cgroup::under(v1, &workload.container);
        fs::write(group.path().join("memory.limit_in_bytes"), LIMIT).expect("a limit");
        fs::write(group.path().join("memory.swappiness"), "0").expect("no swap");
        return Some(group);
    }
    if !workload.path().join("memory.max").exists() {
        fs::write(unified().join("cgroup.subtree_control"), "+memory").expect("memory can be limited");
    }
    fs::write(workload.path().join("memory.max"), LIMIT).expect("a limit");
    // Not there without swap accounting.
    let _ = fs::write(workload.path().join("memory.swap.max"), "0");
    None
}

#[test]
fn a_process_that_the_oom_killer_ends_is_one_oom_kill_and_ends_by_a_signal() {
    let workload = Cgroup::new("oom");
    let memory = limited(&workload);
    let agent = Agent::start(&[]);
    // Takes a buffer of 64 MiB and fills it.
    let mut command = workload.command("dd");
    command.args(["if=/dev/zero", "of=/dev/null", "bs=64M", "count=1", "status=none"]);
    if let Some(memory) = &memory {
        let procs = fs::OpenOptions::new().write(true).open(memory.path().join("cgroup.procs"));
        let procs = procs.expect("cgroup.procs");
        // SAFETY: only a write to an open file between fork and exec.
        unsafe { command.pre_exec(move || io::Write::write_all(&mut &procs, b"0")) };
    }
    for kills in [1.0, 2.0] {
        let status = command.status().expect("dd runs");
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{status:?}");
        let metrics = agent.scrape();
        let w = workload.labels();
        assert_eq!(metrics.one("siskin_process_oom_kills_total", &w), kills);
        for (outcome, count) in [("signal", kills), ("success", 0.0), ("failure", 0.0)] {
            let labels = [&w[..], &[("outcome", outcome)]].concat();
            assert_eq!(metrics.one("siskin_process_exits_total", &labels), count, "{outcome}");
        }
    }
}

#[test]
fn a_process_that_a_signal_kills_is_no_oom_kill() {
    let workload = Cgroup::new("no-oom");
    let agent = Agent::start(&[]);
    let status = workload.command("sh").args(["-c", "kill -KILL $$"]).status().expect("sh runs");
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    assert_eq!(agent.scrape().one("siskin_process_oom_kills_total", &workload.labels()), 0.0);
}
