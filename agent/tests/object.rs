//! The embedded object against the lists that user space goes by, and the facts against BTF of several kernels.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use siskin::{
    kernel::{
        btf::Btf,
        facts,
        features::Features,
        hook::{Needs, State},
        loader::{COMMON_MAPS, OBJECT},
        memory::Kind,
    },
    probes::{self, Limits},
};
use siskin_ebpf::Probe;

const LIMITS: Limits = Limits {
    workloads: 10,
    flows: 10,
    devices: 10,
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
    let hooks = groups.iter().flat_map(|group| [group.hooks, group.instead].concat());
    let hooked: BTreeSet<_> = hooks.map(|hook| hook.program.to_owned()).collect();
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
            5 => Kind::PerCpuHash,
            6 => Kind::PerCpuArray,
            24 => Kind::SocketStorage,
            27 => Kind::Ring,
            other => panic!("{} is of kind {other}", plan.name),
        };
        assert_eq!(kind, plan.kind, "{}", plan.name);
    }
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
    let fetching = groups.iter().filter(|group| group.needs == Needs::FetchingAtomics);
    let may: BTreeSet<_> = fetching.flat_map(|group| group.hooks).map(|hook| hook.program).collect();
    for (name, program) in &object.programs {
        let function = &object.functions[&program.function_key()];
        let fetches = function.instructions.iter().any(|it| BPF_STX_ATOMIC.contains(&it.code) && it.imm != 0);
        assert!(!fetches || may.contains(name.as_str()), "{name}");
    }
}

#[test]
fn a_kernel_without_fetching_atomics_follows_sockets_by_address_and_says_what_it_does_not_tell() {
    let bytes = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/btf/5.10.btf")).unwrap();
    let features = Features { btf: &Btf::parse(&bytes).unwrap(), fetching_atomics: false };
    let groups = probes::groups();
    let group = groups.iter().find(|group| group.hooks[0].program == "tcp_state").unwrap();
    let lack = features.lack(group).unwrap();
    let states: Vec<_> =
        group.hooks.iter().map(|hook| State::replaced(hook, group.instead, &lack).name()).collect();
    assert_eq!(states, ["replaced", "unsupported", "replaced", "unsupported"]);
    let newer = Features { btf: features.btf, fetching_atomics: true };
    assert_eq!(newer.lack(group), None);
}

#[test]
fn a_kernel_without_the_length_tracepoints_gets_the_returns_of_functions_instead() {
    let udp_points = |kernel: &str| -> Vec<String> {
        let bytes =
            fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/btf/{kernel}.btf"))).unwrap();
        let features = Features { btf: &Btf::parse(&bytes).unwrap(), fetching_atomics: true };
        let groups = probes::groups();
        let chosen = groups.iter().flat_map(|group| match features.lack(group) {
            None => group.hooks,
            Some(_) => group.instead,
        });
        chosen.filter(|hook| hook.probe == Probe::Udp).map(|hook| hook.point.name()).collect()
    };
    let exits = ["fexit/udp_sendmsg", "fexit/udpv6_sendmsg", "fexit/udp_recvmsg", "fexit/udpv6_recvmsg"];
    for kernel in ["5.10", "6.1"] {
        assert_eq!(udp_points(kernel), exits, "{kernel}");
    }
    for kernel in ["6.12", "6.18", "7.3"] {
        assert_eq!(udp_points(kernel), ["tp_btf/sock_send_length", "tp_btf/sock_recv_length"], "{kernel}");
    }
}

#[test]
fn a_field_that_is_not_there_stops_only_the_probes_that_read_it() {
    // A kernel without block devices.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/btf/6.18.btf");
    let mut bytes = fs::read(path).unwrap();
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
