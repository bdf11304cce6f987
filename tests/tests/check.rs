//! `siskin check` says before the start what the start would say, and `--collector.strict` makes a start of it that fails.

use std::{fs, path::PathBuf, process::Command};

use siskin_tests::{
    agent::{Agent, binary},
    capability::{CAP_BPF, CAP_PERFMON, with_only},
    metrics::Sample,
};

/// Runs the binary to its end: exit code, stdout, stderr.
fn siskin(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(binary()).args(arguments).output().expect("the agent starts");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The line of a report that begins with this.
fn line<'a>(report: &'a str, begin: &str) -> &'a str {
    report
        .lines()
        .find(|line| line.starts_with(begin))
        .unwrap_or_else(|| panic!("no {begin:?} in:\n{report}"))
}

/// The second word of such a line.
fn state<'a>(report: &'a str, begin: &str) -> &'a str {
    line(report, begin).split_whitespace().nth(1).expect("a second word")
}

/// A label of a sample.
fn label<'a>(sample: &'a Sample, name: &str) -> &'a str {
    let label = sample.labels.iter().find(|(label, _)| label == name);
    label.expect("a label of this name").1.as_str()
}

/// The types of a kernel that is like this one, but has no `struct request`: that of one without block devices.
struct WithoutDisks(PathBuf);

impl WithoutDisks {
    fn new(test: &str) -> Self {
        let sysfs = std::env::temp_dir().join(format!("siskin-test-{test}-{}", std::process::id()));
        let mut types = fs::read("/sys/kernel/btf/vmlinux").expect("the kernel's types");
        let name = b"\0request\0";
        let at = types.windows(name.len()).position(|window| window == name).expect("a struct `request`");
        types[at + 1] = b'R';
        fs::create_dir_all(sysfs.join("kernel/btf")).expect("a directory of our own");
        fs::write(sysfs.join("kernel/btf/vmlinux"), types).expect("a file of our own");
        Self(sysfs)
    }

    fn flag(&self) -> String {
        format!("--path.sysfs={}", self.0.display())
    }
}

impl Drop for WithoutDisks {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_can_run_is_said_with_exit_code_0() {
    let (code, out, err) = siskin(&["check"]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert_eq!(line(&out, "privileges"), "privileges     ok       CAP_BPF and CAP_PERFMON");
    assert!(out.contains("every enabled probe can run\n"), "{out}");
    // It agrees with an agent that runs.
    let metrics = Agent::start(&[]).scrape();
    for probe in ["process", "tcp", "disk", "udp"] {
        let up = metrics.one("siskin_probe_up", &[("probe", probe)]);
        assert_eq!(state(&out, probe) == "ok", up == 1.0, "{out}");
    }
    for hook in metrics.find("siskin_probe_hook_info", &[("state", "attached")]) {
        let (_, point) = hook.labels.iter().find(|(label, _)| label == "hook").expect("a hook");
        let begin = format!("  {point} ");
        assert!(out.lines().any(|line| line.starts_with(&begin) && line.contains(" attached")), "{out}");
    }
}

#[test]
fn a_probe_that_is_turned_off_is_not_tried() {
    let (code, out, _) = siskin(&["check", "--no-collector.tcp"]);
    assert_eq!(code, Some(0), "{out}");
    assert_eq!(state(&out, "tcp"), "disabled");
    assert!(line(&out, "  tp_btf/inet_sock_set_state").ends_with(" disabled"), "{out}");
}

#[test]
fn missing_capabilities_are_named_with_exit_code_1() {
    for (capabilities, names) in
        [(&[][..], "CAP_BPF and CAP_PERFMON"), (&[CAP_PERFMON], "CAP_BPF"), (&[CAP_BPF], "CAP_PERFMON")]
    {
        let (code, out, err) = with_only(capabilities, || siskin(&["check"]));
        assert_eq!((code, err.as_str()), (Some(1), ""), "{out}");
        assert_eq!(state(&out, "privileges"), "missing");
        assert!(line(&out, "privileges").contains(&format!(" missing {names}; run Siskin as root")), "{out}");
        // What can be said without them is said.
        assert_eq!(line(&out, "kernel types"), "kernel types   ok       /sys/kernel/btf/vmlinux");
        assert!(out.ends_with("cannot run: cgroup, process, tcp, disk, udp\n"), "{out}");
    }
    let (code, out, _) = with_only(&[CAP_BPF, CAP_PERFMON], || siskin(&["check"]));
    assert_eq!(code, Some(0), "{out}");
}

#[test]
fn missing_kernel_types_are_named_with_exit_code_1() {
    let (code, out, err) = siskin(&["check", "--path.sysfs=/nowhere", "--path.cgroup=/nowhere"]);
    assert_eq!((code, err.as_str()), (Some(1), ""), "{out}");
    assert!(
        out.contains("no BTF at /nowhere/kernel/btf/vmlinux; Siskin needs CONFIG_DEBUG_INFO_BTF=y"),
        "{out}"
    );
    assert!(line(&out, "workloads").contains("no cgroup2 at /nowhere"), "{out}");
}

#[test]
fn a_probe_that_lacks_something_is_named_and_the_others_run() {
    let kernel = WithoutDisks::new("check");
    let (code, out, _) = siskin(&["check", &kernel.flag()]);
    assert_eq!(code, Some(1), "{out}");
    assert!(line(&out, "disk").ends_with(" cannot run"), "{out}");
    assert!(
        line(&out, "  tp_btf/block_rq_complete").ends_with("unsupported kernel BTF has no struct `request`"),
        "{out}"
    );
    assert!(out.ends_with("cannot run: disk\n"), "{out}");
    for probe in ["process", "tcp", "udp"] {
        assert_eq!(state(&out, probe), "ok", "{out}");
    }
    let (code, out, _) = siskin(&["check", &kernel.flag(), "--no-collector.disk"]);
    assert_eq!(code, Some(0), "{out}");
}

#[test]
fn strict_refuses_to_start_without_a_probe_and_lenient_says_what_is_missing() {
    let kernel = WithoutDisks::new("strict");
    let run = ["run", "--web.listen-address=127.0.0.1:0", &kernel.flag()];
    let (code, _, err) = siskin(&[&run[..], &["--collector.strict"]].concat());
    let lack = "disk tp_btf/block_rq_complete: kernel BTF has no struct `request`";
    assert_eq!(code, Some(1), "{err}");
    assert_eq!(
        err.lines().last(),
        Some(format!("siskin: --collector.strict is given, and this kernel lacks: {lack}").as_str())
    );
    let agent = Agent::start(&[&kernel.flag()]);
    let (status, page) = agent.get("/readyz");
    assert_eq!(status, 200, "what this kernel allows runs: {page}");
    assert!(page.starts_with("ready\ncgroup up\n"), "{page}");
    assert!(page.contains(&format!("\ndisk unsupported\n  {lack}\nudp up\n")), "{page}");
    let metrics = agent.scrape();
    assert_eq!(metrics.one("siskin_probe_up", &[("probe", "disk")]), 0.0);
    assert_eq!(metrics.sum("siskin_probe_up", &[]), 4.0);
    assert_eq!(
        metrics.one("siskin_probe_hook_info", &[("probe", "disk"), ("state", "unsupported")]),
        1.0,
        "its reason is a label"
    );
    // What is turned off is not missed.
    Agent::start(&[&kernel.flag(), "--no-collector.disk", "--collector.strict"]).scrape();
}

/// Every kernel is one or the other, as the agent itself says when it may start all the same.
#[test]
fn strict_starts_only_where_this_kernel_lacks_nothing() {
    let metrics = Agent::start(&[]).scrape();
    let lacks: Vec<_> = metrics
        .find("siskin_probe_hook_info", &[("state", "unsupported")])
        .map(|hook| ["probe", "hook", "reason"].map(|name| label(hook, name)))
        .map(|[probe, hook, reason]| format!("{probe} {hook}: {reason}"))
        .collect();
    let (checked, out, _) = siskin(&["check", "--collector.strict"]);
    if lacks.is_empty() {
        assert_eq!(checked, Some(0), "{out}");
        Agent::start(&["--collector.strict"]).scrape();
        return;
    }
    assert_eq!(checked, Some(1), "{out}");
    let (code, _, err) = siskin(&["run", "--web.listen-address=127.0.0.1:0", "--collector.strict"]);
    assert_eq!(code, Some(1), "{err}");
    let last = err.lines().last().expect("a line");
    println!("{last}");
    assert!(last.starts_with("siskin: --collector.strict is given, and this kernel lacks: "), "{err}");
    for lack in lacks {
        assert!(last.contains(&lack), "no {lack:?} in {last}");
    }
}

#[test]
fn readiness_names_all_that_this_kernel_lacks_and_wants_no_more() {
    let agent = Agent::start(&[]);
    let (status, page) = agent.get("/readyz");
    assert_eq!(status, 200, "{page}");
    let metrics = agent.scrape();
    let lacking: Vec<_> = metrics.find("siskin_probe_hook_info", &[("state", "unsupported")]).collect();
    for hook in &lacking {
        let of = |name| label(hook, name);
        let [probe, hook, reason] = ["probe", "hook", "reason"].map(of);
        let line = format!("\n  {probe} {hook}: {reason}\n");
        assert!(page.contains(&line), "no {line:?} in:\n{page}");
        let line = format!("probe {probe}: {hook} is unsupported: {reason}\n");
        assert!(agent.log().contains(&line), "no {line:?} in:\n{}", agent.log());
    }
    assert_eq!(page.lines().filter(|line| line.starts_with("  ")).count(), lacking.len(), "{page}");
}

#[test]
fn json_says_the_same() {
    let kernel = WithoutDisks::new("json");
    let (code, out, _) = siskin(&["check", "--json", &kernel.flag()]);
    assert_eq!(code, Some(1), "{out}");
    assert_eq!(out.matches('\n').count(), 1, "one object on one line");
    let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(report["can_run"], false);
    let probe = |name| {
        let probes = report["probes"].as_array().expect("probes");
        probes.iter().find(|probe| probe["probe"] == name).expect("the probe").clone()
    };
    assert_eq!(probe("disk")["state"], "cannot run");
    assert_eq!(probe("disk")["hooks"][0]["reason"], "kernel BTF has no struct `request`");
    assert_eq!(probe("process")["state"], "ok");
    assert_eq!(probe("process")["hooks"][0]["state"], "attached");
    let findings = report["findings"].as_array().expect("findings");
    assert!(findings.iter().any(|finding| finding["what"] == "privileges" && finding["state"] == "ok"));
}
