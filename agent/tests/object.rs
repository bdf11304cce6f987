//! The embedded object against the lists that user space goes by, and the facts against BTF of several kernels.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use siskin::{
    cli::Sizes,
    kernel::{
        btf::Btf,
        facts,
        features::Features,
        hook::{Group, Needs, State},
        loader::{COMMON_MAPS, OBJECT},
        memory::{Kind, total_bytes},
    },
    probes::{self, Limits},
};
use siskin_ebpf::Probe;

const LIMITS: Limits = Limits {
    workloads: 10,
    flows: 10,
    devices: 10,
    shards: 2,
    sockets: 10,
    comms: 10,
    min_idle: Duration::ZERO,
    max_idle: Duration::ZERO,
    started: 0,
};

fn object() -> aya_obj::Object {
    aya_obj::Object::parse(OBJECT).expect("the object parses")
}

#[test]
fn every_program_of_the_object_has_a_hook_and_every_hook_a_program() {
    let built: BTreeSet<_> = object().programs.keys().cloned().collect();
    let groups = probes::groups();
    let hooked: BTreeSet<_> =
        groups.iter().flat_map(Group::hooks).map(|hook| hook.program.to_owned()).collect();
    assert_eq!(built, hooked);
}

#[test]
fn every_map_of_the_object_is_planned_with_its_true_sizes() {
    let object = object();
    let plans: Vec<_> = probes::plans(&LIMITS).into_iter().map(|(_, plan)| plan).chain(COMMON_MAPS).collect();
    let planned: BTreeSet<_> = plans.iter().map(|plan| plan.name.to_owned()).collect();
    // The read-only globals are a map that nobody sizes.
    let built: BTreeSet<_> = object.maps.keys().filter(|name| !name.starts_with('.')).cloned().collect();
    assert_eq!(built, planned);
    for plan in plans {
        let built = &object.maps[plan.name];
        assert_eq!(u64::from(built.key_size()), plan.key_bytes, "{}", plan.name);
        assert_eq!(u64::from(built.value_size()), plan.value_bytes, "{}", plan.name);
        // include/uapi/linux/bpf.h, enum bpf_map_type.
        let kind = match built.map_type() {
            1 | 9 => Kind::Hash,
            2 => Kind::Array,
            6 => Kind::PerCpuArray,
            24 => Kind::SocketStorage,
            27 => Kind::Ring,
            other => panic!("{} is of kind {other}", plan.name),
        };
        assert_eq!(kind, plan.kind, "{}", plan.name);
    }
}

#[test]
fn the_defaults_start_on_a_thousand_cpus_and_keyed_tables_do_not_grow_with_them() {
    let sizes = Sizes::default();
    let plans = |cpus: usize| -> Vec<_> {
        let plans = probes::plans(&sizes.limits(cpus)).into_iter().map(|(_, plan)| plan);
        plans.chain(COMMON_MAPS).collect()
    };
    let keyed = |cpus: usize| {
        let keyed = plans(cpus).into_iter().filter(|plan| plan.kind != Kind::PerCpuArray).collect::<Vec<_>>();
        total_bytes(&keyed, cpus as u64)
    };
    let all = |cpus: usize| total_bytes(&plans(cpus), cpus as u64);
    for cpus in [2, 16, 32, 64, 256, 1024] {
        println!("{cpus} CPUs: {} bytes, of which keyed tables {}", all(cpus), keyed(cpus));
    }
    assert!(keyed(64) <= 2 * keyed(2), "{} and {}", keyed(64), keyed(2));
    assert!(all(1024) <= sizes.memory, "{}", all(1024));
}

/// Kernels before 6.4, where stable updates did not reach them, panic when a load faults in a program that calls functions:
/// which of the program and its first function answers for the fault is a matter of luck, and only one of them can
/// (kernel/bpf/verifier.c, "bpf: ensure main program has an extable").
#[test]
fn programs_call_no_functions() {
    const CALL: u8 = 0x85;
    const PSEUDO_CALL: u8 = 1;
    let object = object();
    for (name, program) in &object.programs {
        let function = &object.functions[&program.function_key()];
        let calls = |code: u8, source: u8| code == CALL && source == PSEUDO_CALL;
        let calls = function.instructions.iter().filter(|it| calls(it.code, it.src_reg())).count();
        assert_eq!(calls, 0, "{name}");
    }
}

#[test]
fn names_are_short_enough_for_the_kernel_to_keep_whole() {
    let object = object();
    for name in object.programs.keys().chain(object.maps.keys()) {
        assert!(name.len() <= 15, "{name}");
    }
}

#[test]
fn every_probe_finds_its_facts_on_every_kernel_since_5_10() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/btf");
    let mut kernels = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "btf") {
            let bytes = fs::read(&path).unwrap();
            let facts = facts::resolve(&Btf::parse(&bytes).unwrap());
            assert!(facts.missing.is_empty(), "{}: {:?}", path.display(), facts.missing);
            kernels += 1;
        }
    }
    assert_eq!(kernels, 5);
}

/// Before 5.12 the verifier refuses them wherever they stand, also in code that is never reached.
#[test]
fn only_programs_that_others_can_replace_need_atomic_instructions_that_return_what_was_there() {
    const BPF_STX_ATOMIC: [u8; 2] = [0xc3, 0xdb];
    let object = object();
    let groups = probes::groups();
    let ways = groups.iter().flat_map(|group| group.ways);
    let fetching = ways.filter(|way| way.needs == Needs::FetchingAtomics);
    let may: BTreeSet<_> = fetching.flat_map(|way| way.hooks).map(|hook| hook.program).collect();
    for (name, program) in &object.programs {
        let function = &object.functions[&program.function_key()];
        let fetches = function.instructions.iter().any(|it| BPF_STX_ATOMIC.contains(&it.code) && it.imm != 0);
        assert!(!fetches || may.contains(name.as_str()), "{name}");
    }
}

/// The kernel's types, cut down.
fn types(kernel: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/btf/{kernel}.btf"))).expect("types")
}

/// What becomes of the hooks of a probe that would be cheaper than those chosen, and those chosen, on a kernel with these features.
fn chosen(probe: Probe, features: &Features<'_>) -> (Vec<State>, Vec<String>) {
    let (mut states, mut points) = (Vec::new(), Vec::new());
    for group in probes::groups().iter().filter(|group| group.hooks().any(|hook| hook.probe == probe)) {
        let choice = features.choose(group).expect("a way");
        for (way, lack) in &choice.passed {
            states.extend(way.hooks.iter().map(|hook| State::replaced(hook, choice.way.hooks, lack)));
        }
        points.extend(choice.way.hooks.iter().map(|hook| hook.point.name()));
    }
    (states, points)
}

#[test]
fn a_kernel_without_fetching_atomics_follows_sockets_by_address_and_says_what_it_does_not_tell() {
    let types = types("5.10");
    let btf = Btf::parse(&types).unwrap();
    let with = |fetching_atomics| {
        let features = Features { btf: &btf, fetching_atomics, attaches_exits: |_| unreachable!() };
        chosen(Probe::Tcp, &features)
    };
    let (states, points) = with(false);
    let states: Vec<_> = states.iter().map(State::name).collect();
    assert_eq!(states, ["replaced", "unsupported", "replaced", "unsupported"]);
    assert_eq!(points[..2], ["tp_btf/inet_sock_set_state", "iter/tcp"]);
    let (states, points) = with(true);
    assert_eq!(states, []);
    assert_eq!(points[1], "iter/bpf_sk_storage_map");
}

#[test]
fn udp_sits_on_returns_of_functions_else_on_tracepoints_else_on_kprobes() {
    let udp = |kernel, attaches_exits| {
        let types = types(kernel);
        let features = Features { btf: &Btf::parse(&types).unwrap(), fetching_atomics: true, attaches_exits };
        let (states, points) = chosen(Probe::Udp, &features);
        (states.iter().map(State::name).collect::<Vec<_>>(), points)
    };
    let exits = ["fexit/udp_sendmsg", "fexit/udpv6_sendmsg", "fexit/udp_recvmsg", "fexit/udpv6_recvmsg"];
    let entries = ["kprobe/ip_send_skb", "kprobe/ip6_send_skb", "kprobe/skb_consume_udp"];
    for kernel in ["5.10", "6.1", "6.12", "6.18", "7.3"] {
        let (states, points) = udp(kernel, |function| function != 0);
        assert!(states.is_empty(), "{kernel}");
        assert_eq!(points, exits, "{kernel}");
    }
    for kernel in ["5.10", "6.1"] {
        let (states, points) = udp(kernel, |_| false);
        assert_eq!(points, entries, "{kernel}");
        // What is handed to IP is not quite what was sent; what is received is.
        let [sends, receives] = [["replaced", "replaced", "unsupported"], ["replaced"; 3]];
        assert_eq!(states, [sends, receives].concat(), "{kernel}");
    }
    for kernel in ["6.12", "6.18", "7.3"] {
        let (states, points) = udp(kernel, |_| false);
        assert_eq!(states, ["replaced"; 4], "{kernel}");
        assert_eq!(points, ["tp_btf/sock_send_length", "tp_btf/sock_recv_length"], "{kernel}");
    }
}

#[test]
fn a_field_that_is_not_there_stops_only_the_probes_that_read_it() {
    // A kernel without block devices.
    let mut bytes = types("6.18");
    let name = b"\0request\0";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[at + 1] = b'R';
    let facts = facts::resolve(&Btf::parse(&bytes).unwrap());
    assert_eq!(facts.missing(Probe::Disk), Some("kernel BTF has no struct `request`"));
    assert_eq!(facts.missing(Probe::Tcp), None);
    assert_eq!(facts.missing(Probe::Process), None);
}

#[test]
fn the_running_kernel_has_every_fact() {
    let bytes = fs::read("/sys/kernel/btf/vmlinux").unwrap();
    let facts = facts::resolve(&Btf::parse(&bytes).unwrap());
    assert!(facts.missing.is_empty(), "{:?}", facts.missing);
}
