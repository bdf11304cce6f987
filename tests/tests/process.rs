//! The process probe against processes that the test starts.

use std::{process::Command, time::Duration};

use siskin_tests::{agent::Agent, cgroup::Cgroup};

/// Runs a shell in the cgroup that ends with what `script` says.
fn run(cgroup: &Cgroup, script: &str) -> Command {
    let mut command = cgroup.command("/bin/sh");
    command.args(["-c", script]);
    command
}

#[test]
fn every_exec_and_every_exit_is_counted_by_its_outcome_in_its_cgroup() {
    let cgroup = Cgroup::new("outcome");
    let agent = Agent::start(&[]);
    let before = agent.scrape();
    for (count, script) in [(40, "exit 0"), (25, "exit 3"), (15, "kill -TERM $$")] {
        for _ in 0..count {
            run(&cgroup, script).status().expect("sh runs");
        }
    }
    let after = agent.scrape();
    let w = cgroup.labels();
    assert_eq!(after.one("siskin_process_execs_total", &w), 80.0);
    for (outcome, count) in [("success", 40.0), ("failure", 25.0), ("signal", 15.0)] {
        let labels = [&w[..], &[("outcome", outcome)]].concat();
        assert_eq!(after.one("siskin_process_exits_total", &labels), count, "{outcome}");
    }
    let name = "siskin_process_comm_execs_total";
    assert!(after.sum(name, &[("comm", "sh")]) - before.sum(name, &[("comm", "sh")]) >= 80.0);
    let name = "siskin_process_lifetime_seconds_count";
    assert!(after.one(name, &[]) - before.one(name, &[]) >= 80.0);
}

#[test]
fn forks_are_counted_without_threads() {
    let cgroup = Cgroup::new("forks");
    let agent = Agent::start(&[]);
    // Thirty children of one shell: the shell itself was forked outside the cgroup.
    let script = "i=0; while [ $i -lt 30 ]; do (exit 0); i=$((i+1)); done";
    assert!(run(&cgroup, script).status().expect("sh runs").success());
    let w = cgroup.labels();
    let metrics = agent.scrape();
    assert_eq!(metrics.one("siskin_process_forks_total", &w), 30.0);
    assert_eq!(metrics.one("siskin_process_execs_total", &w), 1.0);
    assert_eq!(metrics.sum("siskin_process_exits_total", &w), 31.0);
}

#[test]
fn a_lifetime_is_as_long_as_the_process_lived() {
    let agent = Agent::start(&[]);
    let before = agent.scrape().one("siskin_process_lifetime_seconds_sum", &[]);
    let status = Command::new("sleep").arg("0.4").status().expect("sleep runs");
    assert!(status.success());
    let after = agent.scrape().one("siskin_process_lifetime_seconds_sum", &[]);
    assert!(after - before >= Duration::from_millis(400).as_secs_f64(), "{}", after - before);
}
