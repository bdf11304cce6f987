//! The agent's life: how it refuses to start, what it serves, which privileges it needs and keeps, and how it ends.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use siskin_tests::{
    agent::{Agent, binary, request},
    capability::{CAP_BPF, CAP_PERFMON, with_only},
    metrics::Metrics,
};

/// A process that is killed with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the binary to its end, which must come within ten seconds. Exit code and what it wrote to stderr.
fn ends(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(binary());
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Running(command.spawn().expect("the agent starts"));
    let deadline = Instant::now() + Duration::from_secs(10);
    let status = loop {
        if let Some(status) = child.0.try_wait().expect("the agent can be waited for") {
            break status;
        }
        assert!(Instant::now() < deadline, "{arguments:?} runs on");
        thread::sleep(Duration::from_millis(5));
    };
    let (mut out, mut err) = (String::new(), String::new());
    child.0.stdout.take().expect("stdout is piped").read_to_string(&mut out).expect("text");
    child.0.stderr.take().expect("stderr is piped").read_to_string(&mut err).expect("text");
    assert_eq!(out, "", "nothing goes to stdout");
    (status.code(), err)
}

/// Runs the agent, which must refuse to start with one line that begins like this.
fn refuses(flags: &[&str], begin: &str) {
    let (code, text) = ends(&[&["run", "--web.listen-address=127.0.0.1:0"], flags].concat());
    assert_eq!(code, Some(1), "{text}");
    assert!(text.starts_with(begin), "{text:?} does not begin with {begin:?}");
    assert_eq!(text.matches('\n').count(), 1, "{text:?}");
    assert!(text.ends_with('\n') && !text.contains('\x1b'), "{text:?}");
}

/// An empty directory, removed with the value.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("siskin-test-{name}-{}", std::process::id()));
        fs::create_dir(&path).expect("a directory of our own");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_taken_port_is_one_line_and_exit_code_1() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let (code, text) = ends(&["run", &format!("--web.listen-address={address}")]);
    assert_eq!(code, Some(1));
    assert_eq!(
        text,
        format!(
            "siskin: cannot listen on {address}: the port is taken; give another one with --web.listen-address\n"
        )
    );
}

#[test]
fn a_missing_privilege_is_one_line_and_exit_code_1() {
    let missing = |capabilities: &[u32], names: &str| {
        with_only(capabilities, || {
            refuses(&[], &format!("siskin: cannot load programs: missing {names}; run Siskin as root, or "));
        });
    };
    missing(&[], "CAP_BPF and CAP_PERFMON");
    missing(&[CAP_BPF], "CAP_PERFMON");
    missing(&[CAP_PERFMON], "CAP_BPF");
}

#[test]
fn missing_or_broken_kernel_types_are_one_line_and_exit_code_1() {
    let sysfs = Directory::new("sysfs");
    let flag = format!("--path.sysfs={}", sysfs.0.display());
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    let path = sysfs.0.join("kernel/btf/vmlinux");
    let begin =
        format!("siskin: cannot load programs: kernel {} has no BTF at {};", release.trim(), path.display());
    refuses(&[&flag], &begin);

    fs::create_dir_all(path.parent().expect("a directory")).expect("directories");
    let whole = fs::read("/sys/kernel/btf/vmlinux").expect("BTF");
    let begin = format!("siskin: cannot read kernel types from {}: BTF ", path.display());
    for broken in [&b""[..], b"no types at all, only a text", &whole[..100_000]] {
        fs::write(&path, broken).expect("a file");
        refuses(&[&flag], &begin);
    }
}

#[test]
fn too_small_a_budget_is_one_line_and_exit_code_1() {
    refuses(&["--budget.memory=1M"], "siskin: maps would take up to ");
    // As much as the message asks for is enough, and a byte less is not.
    let (_, text) = ends(&["run", "--web.listen-address=127.0.0.1:0", "--budget.memory=1"]);
    let bytes: u64 = text
        .strip_prefix("siskin: maps would take up to ")
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .expect("a number of bytes");
    refuses(&[&format!("--budget.memory={}", bytes - 1)], "siskin: maps would take up to ");
    let agent = Agent::start(&[&format!("--budget.memory={bytes}")]);
    let metrics = agent.scrape();
    assert_eq!(metrics.one("siskin_maps_memory_bytes", &[]), bytes as f64);
    assert_eq!(metrics.one("siskin_budget_memory_bytes", &[]), bytes as f64);
}

#[test]
fn wrong_usage_is_exit_code_2_and_names_the_flag() {
    for (arguments, begin) in [
        (&["run", "--no-such-flag"][..], "error: unexpected argument '--no-such-flag' found\n"),
        (&["run", "--log.level=loud"], "error: invalid value 'loud' for '--log.level <LEVEL>'\n"),
        (&["run", "--flows.max-series=0"], "error: invalid value '0' for '--flows.max-series <ROWS>': "),
        (
            &["run", "--collect.min-interval=soon"],
            "error: invalid value 'soon' for '--collect.min-interval <DURATION>': ",
        ),
        (
            &["run", "--web.listen-address=localhost"],
            "error: invalid value 'localhost' for '--web.listen-address <ADDRESS>': ",
        ),
        (&["walk"], "error: unrecognized subcommand 'walk'\n"),
    ] {
        let (code, text) = ends(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {text}");
        assert!(text.starts_with(begin), "{text:?} does not begin with {begin:?}");
    }
}

/// Ends the agent, which must be gone within a second.
fn ends_at_once(agent: Agent, signal: i32) {
    let (status, took) = agent.stop(signal);
    assert_eq!(status.code(), Some(0), "{status:?}");
    println!("took {took:?}");
    assert!(took < Duration::from_secs(1), "took {took:?}");
}

#[test]
fn sigterm_ends_it_within_a_second_with_exit_code_0() {
    ends_at_once(Agent::start(&[]), libc::SIGTERM);
}

#[test]
fn sigint_ends_it_within_a_second_with_exit_code_0() {
    ends_at_once(Agent::start(&[]), libc::SIGINT);
}

/// A connection that has been answered once and stays open.
fn kept_alive(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the agent accepts");
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: siskin\r\n\r\n").expect("a request");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200");
    stream
}

#[test]
fn sigterm_ends_it_within_a_second_while_connections_are_open_and_idle() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let agent = Agent::start(&[]);
        let silent = TcpStream::connect(agent.address).expect("the agent accepts");
        let half = TcpStream::connect(agent.address).expect("the agent accepts");
        (&half).write_all(b"GET /metrics HTTP/1.1\r\nHo").expect("half a request");
        let kept: Vec<_> = (0..4).map(|_| kept_alive(agent.address)).collect();
        ends_at_once(agent, signal);
        drop((silent, half, kept));
    }
}

#[test]
fn sigterm_ends_it_within_a_second_while_it_is_scraped() {
    let agent = Agent::start(&[]);
    let address = agent.address;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    // Refused or cut off once the agent ends.
                    let Ok(mut stream) = TcpStream::connect(address) else { continue };
                    let request = b"GET /metrics HTTP/1.1\r\nHost: siskin\r\nConnection: close\r\n\r\n";
                    let _ = stream.write_all(request).and_then(|()| stream.read_to_end(&mut Vec::new()));
                }
            });
        }
        thread::sleep(Duration::from_millis(300));
        let ended =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ends_at_once(agent, libc::SIGTERM)));
        over.store(true, Relaxed);
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn every_page_answers_as_documented() {
    let agent = Agent::start(&[]);
    assert_eq!(agent.get("/healthz"), (200, "ok\n".into()));
    let all = "ready\ncgroup up\nprocess up\ntcp up\ndisk up\nudp up\n";
    assert_eq!(agent.get("/readyz"), (200, all.into()));
    let (status, page) = agent.get("/");
    assert_eq!(status, 200);
    assert!(page.to_ascii_lowercase().starts_with("<!doctype html>"), "{page}");
    assert!(page.contains("/metrics"), "{page}");
    let (status, text) = agent.get("/metrics");
    assert_eq!(status, 200);
    assert!(text.starts_with("# HELP "), "{text}");
    for path in ["/nothing", "/metrics/", "/healthz/x", "//"] {
        assert_eq!(agent.get(path).0, 404, "{path}");
    }
    for (method, path) in [("POST", "/metrics"), ("PUT", "/"), ("DELETE", "/healthz"), ("POST", "/nothing")] {
        assert_eq!(request(agent.address, method, path).0, 405, "{method} {path}");
    }
    assert_eq!(request(agent.address, "HEAD", "/metrics"), (200, String::new()));
    assert_eq!(agent.get("/metrics?name=x").0, 200);
}

#[test]
fn the_path_of_the_metrics_can_be_chosen() {
    let agent = Agent::start(&["--web.telemetry-path=/else/where"]);
    let (status, text) = agent.get("/else/where");
    assert_eq!(status, 200);
    assert_eq!(Metrics::parse(&text).sum("siskin_probe_up", &[]), 5.0);
    assert_eq!(agent.get("/metrics").0, 404);
    assert!(agent.get("/").1.contains("/else/where"));
    assert!(
        agent.log().contains(&format!("serving on http://{}/else/where", agent.address)),
        "{}",
        agent.log()
    );
}

#[test]
fn a_probe_that_is_turned_off_has_no_series_and_is_called_disabled() {
    for (probe, prefixes) in [
        ("tcp", &["siskin_tcp_", "siskin_flow_connections_", "siskin_flow_retransmits_"][..]),
        ("process", &["siskin_process_"]),
        ("disk", &["siskin_disk_", "siskin_workload_disk_"]),
        ("udp", &["siskin_flow_datagrams_"]),
    ] {
        let agent = Agent::start(&[&format!("--no-collector.{probe}")]);
        let metrics = agent.scrape();
        let of_probe: BTreeSet<_> = metrics
            .samples
            .iter()
            .map(|sample| sample.name.as_str())
            .filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
            .collect();
        assert!(of_probe.is_empty(), "{probe}: {of_probe:?}");
        assert_eq!(metrics.one("siskin_probe_up", &[("probe", probe)]), 0.0);
        assert_eq!(metrics.sum("siskin_probe_up", &[]), 4.0);
        let labels = [("probe", probe)];
        let states: BTreeSet<_> = metrics
            .find("siskin_probe_hook_info", &labels)
            .map(|sample| {
                sample.labels.iter().find(|(label, _)| label == "state").expect("a state").1.as_str()
            })
            .collect();
        assert_eq!(states, BTreeSet::from(["disabled"]), "{probe}");
        let (status, page) = agent.get("/readyz");
        assert_eq!(status, 200, "the operator wants it so");
        assert!(page.contains(&format!("\n{probe} disabled\n")), "{page}");
    }
}

#[test]
fn scrapes_at_the_same_time_share_a_reading() {
    // The shared harness always reads anew.
    let mut command = Command::new(binary());
    command.args(["run", "--web.listen-address=127.0.0.1:0", "--collect.min-interval=10s"]);
    let mut child = Running(command.stderr(Stdio::piped()).spawn().expect("the agent starts"));
    let lines = BufReader::new(child.0.stderr.take().expect("stderr is piped")).lines();
    let address: SocketAddr = lines
        .map_while(Result::ok)
        .find_map(|line| line.split_once("serving on http://")?.1.split('/').next()?.parse().ok())
        .expect("the agent serves");
    let barrier = Barrier::new(20);
    let bodies: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    let (status, text) = request(address, "GET", "/metrics");
                    assert_eq!(status, 200);
                    text
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a scrape")).collect()
    });
    let heartbeat = |text: &str| Metrics::parse(text).one("siskin_heartbeat_timestamp_seconds", &[]);
    assert!(heartbeat(&bodies[0]) > 1.7e9);
    for body in &bodies[1..] {
        assert_eq!(heartbeat(body), heartbeat(&bodies[0]));
        assert_eq!(*body, bodies[0]);
    }
    // With the interval of nothing that the harness asks for, two scrapes are two readings.
    let agent = Agent::start(&[]);
    assert_ne!(heartbeat(&agent.get("/metrics").1), heartbeat(&agent.get("/metrics").1));
}

#[test]
fn log_lines_are_json_when_asked() {
    let agent = Agent::start(&["--log.format=json", "--no-collector.tcp"]);
    let log = agent.log();
    assert!(log.lines().count() >= 1);
    for line in log.lines() {
        assert!(line.starts_with("{\"timestamp\":\"") && line.ends_with('}'), "{line}");
        assert!(line.contains("\"level\":\"INFO\""), "{line}");
        assert!(line.contains("\"message\":\""), "{line}");
    }
}

/// A set of capabilities, of all threads of a process together.
fn capabilities(pid: u32, set: &str) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let of_thread = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        // A thread may end while one looks.
        let line = text.lines().find_map(|line| line.strip_prefix(set)?.strip_prefix(':')).unwrap_or("0");
        u64::from_str_radix(line.trim(), 16).expect("a number")
    };
    threads.flatten().map(of_thread).fold(0, |all, of| all | of)
}

/// The agent, which must do its work and hold no capability that it does not need: since 5.19 none.
fn works_without_capabilities(agent: &Agent) {
    let works = || {
        let metrics = agent.scrape();
        assert_eq!(metrics.sum("siskin_probe_up", &[]), 5.0);
        assert_eq!(metrics.sum("siskin_collect_success", &[]), 5.0);
        metrics.sum("siskin_process_execs_total", &[])
    };
    let before = works();
    assert_ne!(capabilities(agent.pid(), "CapBnd"), 0, "sets are found");
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(capabilities(agent.pid(), set) & !(1 << CAP_BPF), 0, "{set}");
    }
    assert!(Command::new("true").status().expect("true runs").success());
    assert!(works() > before);
    assert_eq!(agent.get("/readyz").0, 200);
}

#[test]
fn capabilities_are_given_up_after_start() {
    let agent = Agent::start(&[]);
    works_without_capabilities(&agent);
    if reads_maps_without_capabilities() {
        assert_eq!(capabilities(agent.pid(), "CapEff"), 0);
        assert_eq!(capabilities(agent.pid(), "CapPrm"), 0);
    }
}

/// Whether the kernel lets a process without capabilities read a map that it has a descriptor of (5.19).
fn reads_maps_without_capabilities() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    let mut numbers = release.split(['.', '-']).map_while(|number| number.trim().parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(19))
}

#[test]
fn two_capabilities_are_enough_for_every_probe() {
    let agent = with_only(&[CAP_BPF, CAP_PERFMON], || Agent::start(&[]));
    assert_eq!(capabilities(agent.pid(), "CapBnd"), 1 << CAP_BPF | 1 << CAP_PERFMON);
    works_without_capabilities(&agent);
}
