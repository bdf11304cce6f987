//! What `siskin::kernel::btf` says about five real kernels (cut down by `examples/cut_btf.rs`, see
//! `btf/README.md`), the running one, made-up BTF for the rest of the format, and broken BTF.

use std::fs;

use siskin::kernel::btf::{Btf, BtfError, Field, Param};

const V5_10: &[u8] = include_bytes!("btf/5.10.btf");
const V6_1: &[u8] = include_bytes!("btf/6.1.btf");
const V6_12: &[u8] = include_bytes!("btf/6.12.btf");
const V6_18: &[u8] = include_bytes!("btf/6.18.btf");
const V7_3: &[u8] = include_bytes!("btf/7.3.btf");
const ALL: [(&str, &[u8]); 5] =
    [("5.10", V5_10), ("6.1", V6_1), ("6.12", V6_12), ("6.18", V6_18), ("7.3", V7_3)];

/// Members that all of these kernels have, with their sizes in bytes.
const EVERYWHERE: &[(&str, &str, u32)] = &[
    ("task_struct", "pid", 4),
    ("task_struct", "tgid", 4),
    ("task_struct", "start_time", 8),
    ("task_struct", "group_leader", 8),
    ("task_struct", "signal", 8),
    ("task_struct", "exit_code", 4),
    ("task_struct", "cgroups", 8),
    ("signal_struct", "live", 4),
    ("signal_struct", "flags", 4),
    ("signal_struct", "group_exit_code", 4),
    ("signal_struct", "oom_mm", 8),
    ("css_set", "dfl_cgrp", 8),
    ("cgroup", "kn", 8),
    ("cgroup", "root", 8),
    ("cgroup_root", "hierarchy_id", 4),
    ("kernfs_node", "id", 8),
    ("sock", "__sk_common.skc_family", 2),
    ("sock", "__sk_common.skc_state", 1),
    ("sock", "__sk_common.skc_num", 2),
    ("sock", "__sk_common.skc_dport", 2),
    ("sock", "__sk_common.skc_daddr", 4),
    ("sock", "__sk_common.skc_v6_daddr", 16),
    ("sock", "__sk_common.skc_net.net", 8),
    ("sock", "__sk_common.skc_flags", 8),
    ("sock", "sk_protocol", 2),
    ("sock", "sk_type", 2),
    ("sock", "sk_err", 4),
    ("sock", "sk_shutdown", 1),
    ("sock", "sk_cgrp_data.cgroup", 8),
    ("sock", "sk_lock.owned", 4),
    ("sock", "sk_lock.slock.rlock.raw_lock.val.counter", 4),
    ("net", "ns.inum", 4),
    ("inet_sock", "inet_sport", 2),
    ("tcp_sock", "bytes_sent", 8),
    ("tcp_sock", "bytes_received", 8),
    ("tcp_sock", "bytes_retrans", 8),
    ("tcp_sock", "total_retrans", 4),
    ("tcp_sock", "srtt_us", 4),
    ("socket", "sk", 8),
    ("request", "q", 8),
    ("request", "cmd_flags", 4),
    ("request", "rq_flags", 4),
    ("request", "__data_len", 4),
    ("request", "bio", 8),
    ("request", "start_time_ns", 8),
    ("request", "io_start_time_ns", 8),
    ("request", "part", 8),
    ("gendisk", "major", 4),
    ("gendisk", "first_minor", 4),
    ("gendisk", "disk_name", 32),
    ("bio", "bi_blkg", 8),
    ("blkcg_gq", "blkcg", 8),
    ("cgroup_subsys_state", "cgroup", 8),
];

const TRACEPOINTS: &[&str] = &[
    "sched_process_exec",
    "sched_process_fork",
    "sched_process_exit",
    "mark_victim",
    "inet_sock_set_state",
    "tcp_send_reset",
    "tcp_receive_reset",
    "block_rq_complete",
    "block_rq_issue",
    "block_rq_error",
];

const ENUMERATORS: &[&str] =
    &["SOCK_DONE", "__RQF_FLUSH_SEQ", "REQ_OP_READ", "__REQ_PREFLUSH", "TCP_ESTABLISHED"];

fn parse(bytes: &[u8]) -> Btf<'_> {
    Btf::parse(bytes).expect("the blob is BTF")
}

fn plain(offset_bytes: u32, bytes: u32) -> Field {
    Field { offset_bytes, bit_offset: 0, size_bits: 8 * bytes, is_bitfield: false }
}

fn bits(offset_bytes: u32, bit_offset: u32, size_bits: u32) -> Field {
    Field { offset_bytes, bit_offset, size_bits, is_bitfield: true }
}

fn pointer(to: &str) -> Param<'_> {
    Param::Pointer { to: Some(to) }
}

const INT: Param<'_> = Param::Int { bytes: 4, is_bool: false };

mod real_kernels {
    use super::*;

    #[test]
    fn fields_that_do_not_depend_on_the_kernel_are_in_all_of_them() {
        for (kernel, bytes) in ALL {
            let btf = parse(bytes);
            for (structure, path, size) in EVERYWHERE {
                let field = btf.field(structure, path).unwrap_or_else(|error| panic!("{kernel}: {error}"));
                assert_eq!(field, plain(field.offset_bytes, *size), "{kernel}: {structure}.{path}");
            }
        }
    }

    /// The numbers are those of `bpftool btf dump`, by hand.
    #[test]
    fn offsets_are_those_that_bpftool_shows() {
        let offsets = [
            ("task_struct", "start_time", [2536, 2776, 2776, 1552, 3216]),
            ("task_struct", "cgroups", [3328, 3600, 3584, 2376, 4072]),
            ("signal_struct", "oom_mm", [1016, 1032, 1024, 1064, 1080]),
            ("css_set", "dfl_cgrp", [120, 128, 128, 112, 128]),
            ("kernfs_node", "id", [104, 104, 96, 96, 96]),
            ("sock", "__sk_common.skc_dport", [12; 5]),
            ("sock", "__sk_common.skc_num", [14; 5]),
            ("sock", "__sk_common.skc_net.net", [48; 5]),
            ("sock", "sk_cgrp_data.cgroup", [664, 648, 672, 672, 688]),
            ("sock", "sk_lock.owned", [140, 156, 324, 324, 320]),
            ("sock", "sk_lock.slock.rlock.raw_lock.val.counter", [136, 152, 320, 320, 324]),
            ("net", "ns.inum", [144, 144, 136, 176, 280]),
            ("tcp_sock", "bytes_received", [1408, 1448, 1784, 1752, 1864]),
            ("tcp_sock", "srtt_us", [1632, 1672, 1728, 1680, 1784]),
            ("request", "__data_len", [40, 44, 44, 44, 44]),
            ("request", "start_time_ns", [184, 104, 104, 104, 104]),
            ("bio", "bi_blkg", [72, 72, 72, 72, 80]),
        ];
        for (structure, path, expected) in offsets {
            let found = ALL.map(|(_, bytes)| parse(bytes).field(structure, path).unwrap().offset_bytes);
            assert_eq!(found, expected, "{structure}.{path}");
        }
    }

    #[test]
    fn a_request_knows_its_disk_in_5_10_and_through_its_queue_since_6_1() {
        let direct = ALL.map(|(_, bytes)| parse(bytes).field("request", "rq_disk").is_ok());
        let by_queue = ALL.map(|(_, bytes)| parse(bytes).field("request_queue", "disk").is_ok());
        assert_eq!(direct, [true, false, false, false, false]);
        assert_eq!(by_queue, [false, true, true, true, true]);
        let error = parse(V6_1).field("request", "rq_disk").unwrap_err();
        assert_eq!(error.to_string(), "struct `request` has no field `rq_disk`");
    }

    #[test]
    fn sockets_are_shown_in_batches_since_6_1_and_no_kernel_here_is_a_real_time_one() {
        let found = |structure, path| ALL.map(|(_, bytes)| parse(bytes).field(structure, path).is_ok());
        assert_eq!(found("bpf_tcp_iter_state", "batch"), [false, true, true, true, true]);
        assert_eq!(found("sock", "sk_lock.slock.lock.owner"), [false; 5]);
    }

    #[test]
    fn a_process_exit_says_whether_it_is_the_last_thread_in_6_18_and_later() {
        for (kernel, bytes) in ALL {
            let mut expected = vec![pointer("task_struct")];
            if matches!(kernel, "6.18" | "7.3") {
                expected.push(Param::Int { bytes: 1, is_bool: true });
            }
            assert_eq!(parse(bytes).tracepoint("sched_process_exit").unwrap(), expected, "{kernel}");
        }
    }

    #[test]
    fn a_completed_request_has_an_errno_in_5_10_and_a_block_status_since_6_1() {
        for (kernel, bytes) in ALL {
            let status = if kernel == "5.10" { INT } else { Param::Int { bytes: 1, is_bool: false } };
            let arguments = parse(bytes).tracepoint("block_rq_complete").unwrap();
            assert_eq!(arguments, [pointer("request"), status, INT], "{kernel}");
        }
    }

    #[test]
    fn failed_requests_have_no_tracepoint_in_5_10() {
        let found = ALL.map(|(_, bytes)| parse(bytes).tracepoint("block_rq_error").is_ok());
        assert_eq!(found, [false, true, true, true, true]);
        let error = parse(V5_10).tracepoint("block_rq_error").unwrap_err();
        assert_eq!(error.to_string(), "no tracepoint `block_rq_error`");
    }

    #[test]
    fn a_sent_reset_says_why_in_6_12_and_later() {
        for (kernel, bytes) in ALL {
            let mut expected = vec![pointer("sock"), pointer("sk_buff")];
            if !matches!(kernel, "5.10" | "6.1") {
                expected.push(Param::Enum { bytes: 4 });
            }
            assert_eq!(parse(bytes).tracepoint("tcp_send_reset").unwrap(), expected, "{kernel}");
        }
    }

    #[test]
    fn the_other_tracepoints_are_the_same_everywhere() {
        for (kernel, bytes) in ALL {
            let arguments = |name| parse(bytes).tracepoint(name).unwrap();
            let (task, socket) = (pointer("task_struct"), pointer("sock"));
            assert_eq!(arguments("sched_process_exec"), [task, INT, pointer("linux_binprm")], "{kernel}");
            assert_eq!(arguments("sched_process_fork"), [task, task], "{kernel}");
            assert_eq!(arguments("mark_victim"), [task, INT], "{kernel}");
            assert_eq!(arguments("inet_sock_set_state"), [socket, INT, INT], "{kernel}");
            assert_eq!(arguments("tcp_receive_reset"), [socket], "{kernel}");
            assert_eq!(arguments("block_rq_issue"), [pointer("request")], "{kernel}");
        }
    }

    #[test]
    fn request_flags_are_macros_before_they_are_an_enumeration() {
        let found = ALL.map(|(_, bytes)| parse(bytes).enumerator("__RQF_FLUSH_SEQ").ok());
        assert_eq!(found, [None, None, Some(1), Some(1), Some(1)]);
        for (kernel, bytes) in ALL {
            let value = |name| parse(bytes).enumerator(name).unwrap();
            assert_eq!(value("SOCK_DONE"), 1, "{kernel}");
            assert_eq!(value("REQ_OP_READ"), 0, "{kernel}");
            assert_eq!(value("REQ_OP_WRITE"), 1, "{kernel}");
            assert_eq!(value("__REQ_PREFLUSH"), 18, "{kernel}");
            assert_eq!(value("TCP_ESTABLISHED"), 1, "{kernel}");
        }
    }

    #[test]
    fn subreaper_flags_are_bit_fields_until_they_become_bools() {
        for (kernel, bytes) in ALL {
            let expected = match kernel {
                "5.10" => [bits(120, 0, 1), bits(120, 1, 1)],
                "7.3" => [plain(128, 1), plain(129, 1)],
                _ => [bits(128, 0, 1), bits(128, 1, 1)],
            };
            let found = ["is_child_subreaper", "has_child_subreaper"]
                .map(|name| parse(bytes).field("signal_struct", name).unwrap());
            assert_eq!(found, expected, "{kernel}");
        }
    }

    /// `udp_recvmsg` in net/ipv4/udp.c of each: before 5.19 with `noblock`, and lately without `addr_len`.
    #[test]
    fn arguments_of_functions_are_counted() {
        for (kernel, bytes) in ALL {
            let counts = ["udp_sendmsg", "udpv6_sendmsg", "udp_recvmsg", "udpv6_recvmsg"].map(|name| {
                parse(bytes).function(name).unwrap_or_else(|error| panic!("{kernel}: {error}")).len()
            });
            let receive = match kernel {
                "5.10" => 6,
                "6.1" | "6.12" => 5,
                _ => 4,
            };
            assert_eq!(counts, [3, 3, receive, receive], "{kernel}");
        }
    }

    #[test]
    fn iterators_are_functions() {
        for (kernel, bytes) in ALL {
            let btf = parse(bytes);
            for iterator in ["task_file", "bpf_sk_storage_map", "tcp"] {
                assert!(btf.function(&format!("bpf_iter_{iterator}")).is_ok(), "{kernel}: {iterator}");
            }
            assert!(btf.function("bpf_iter_task").is_err(), "{kernel}: a prefix is not the name");
            assert!(btf.function("btf_trace_mark_victim").is_err(), "{kernel}: a typedef is not a function");
        }
    }

    #[test]
    fn a_path_does_not_follow_pointers() {
        let error = parse(V6_18).field("request", "q.disk").unwrap_err();
        assert_eq!(error.to_string(), "struct `request`: `q.disk` does not stay inside of it");
        let error = parse(V6_18).field("sock", "__sk_common.skc_net.ns").unwrap_err();
        assert_eq!(error.to_string(), "struct `sock` has no field `__sk_common.skc_net.ns`");
    }
}

mod running_kernel {
    use super::*;

    fn with(check: impl FnOnce(Btf<'_>)) {
        match fs::read("/sys/kernel/btf/vmlinux") {
            Ok(bytes) => check(parse(&bytes)),
            Err(error) => eprintln!("skipped: /sys/kernel/btf/vmlinux: {error}"),
        }
    }

    #[test]
    fn neighbours_in_the_source_are_neighbours_in_its_btf() {
        with(|btf| {
            let field = |structure, path| btf.field(structure, path).unwrap();
            let at = |structure, path| field(structure, path).offset_bytes;
            assert_eq!(at("task_struct", "tgid"), at("task_struct", "pid") + 4);
            // struct sock_common keeps its first members for good: lookups compare them as pairs.
            assert_eq!(field("sock", "__sk_common").offset_bytes, 0);
            assert_eq!(field("sock_common", "skc_addrpair"), plain(0, 8));
            assert_eq!(field("sock_common", "skc_daddr"), plain(0, 4));
            assert_eq!(field("sock_common", "skc_portpair"), plain(12, 4));
            assert_eq!(field("sock_common", "skc_dport"), plain(12, 2));
            assert_eq!(field("sock_common", "skc_num"), plain(14, 2));
            assert_eq!(at("sock", "__sk_common.skc_num"), at("sock_common", "skc_num"));
            assert_eq!(field("sock_common", "skc_reuse"), bits(at("sock_common", "skc_state") + 1, 0, 4));
            // Every kind of socket starts with the more general one.
            for (special, general) in
                [("tcp_sock", "inet_conn"), ("inet_connection_sock", "icsk_inet"), ("inet_sock", "sk")]
            {
                assert_eq!(at(special, general), 0, "{special}");
            }
            assert_eq!(at("tcp_sock", "inet_conn.icsk_inet.inet_sport"), at("inet_sock", "inet_sport"));
            let (outer, inner) = (field("net", "ns"), field("net", "ns.inum"));
            assert_eq!(inner.offset_bytes - outer.offset_bytes, at("ns_common", "inum"));
            assert!(inner.offset_bytes + 4 <= outer.offset_bytes + outer.size_bits / 8);
        });
    }

    #[test]
    fn it_has_all_that_siskin_asks_for() {
        with(|btf| {
            for (structure, path, size) in EVERYWHERE {
                assert_eq!(btf.field(structure, path).unwrap().size_bits, 8 * size, "{structure}.{path}");
            }
        });
    }

    #[test]
    fn enumerators_that_user_space_knows_too_have_the_same_values() {
        with(|btf| {
            assert_eq!(btf.enumerator("TCP_ESTABLISHED"), Ok(1)); // include/net/tcp_states.h, seen in /proc/net/tcp
            assert_eq!(btf.enumerator("TCP_LISTEN"), Ok(10));
            assert_eq!(btf.enumerator("BPF_MAP_TYPE_HASH"), Ok(1)); // include/uapi/linux/bpf.h
            assert_eq!(btf.enumerator("BPF_MAP_LOOKUP_BATCH"), Ok(24));
        });
    }

    /// `/proc/kallsyms` has a function `__traceiter_NAME` for each tracepoint (since 5.10).
    #[test]
    fn it_has_the_tracepoints_that_the_symbol_table_has() {
        let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
        let has = |name: &str| symbols.lines().any(|line| line.split(' ').nth(2) == Some(name));
        if !has("__traceiter_sched_process_exec") {
            eprintln!("skipped: /proc/kallsyms shows no tracepoints");
            return;
        }
        with(|btf| {
            for name in TRACEPOINTS.iter().chain(&["no_such_tracepoint"]) {
                assert_eq!(btf.tracepoint(name).is_ok(), has(&format!("__traceiter_{name}")), "{name}");
            }
        });
    }
}

/// Writes BTF; each method gives the number of the type it adds, the first being 1.
struct Writer {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

/// Kinds, as in `include/uapi/linux/btf.h`.
mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FWD: u32 = 7;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const FLOAT: u32 = 16;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
    pub const FLAG: u32 = 1 << 7;
}

const BOOL: u32 = 4 << 24;

impl Writer {
    fn new() -> Self {
        Self { types: Vec::new(), strings: vec![0], count: 0 }
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let offset = self.strings.len() as u32;
        self.strings.extend(text.bytes().chain([0]));
        offset
    }

    fn add(&mut self, kind: u32, name: &str, vlen: usize, value: u32, tail: &[u32]) -> u32 {
        let words = [self.string(name), kind << 24 | vlen as u32, value];
        self.types.extend(words.iter().chain(tail).flat_map(|word| word.to_le_bytes()));
        self.count += 1;
        self.count
    }

    fn int(&mut self, bytes: u32, data: u32) -> u32 {
        self.add(kind::INT, "int", 0, bytes, &[data])
    }

    /// A typedef, qualifier, pointer or function.
    fn of(&mut self, kind: u32, name: &str, target: u32) -> u32 {
        self.add(kind, name, 0, target, &[])
    }

    fn structure(&mut self, kind: u32, name: &str, bytes: u32, members: &[(&str, u32, u32)]) -> u32 {
        let tail = members.iter().flat_map(|(member, of, offset)| [self.string(member), *of, *offset]);
        let tail: Vec<_> = tail.collect();
        self.add(kind, name, members.len(), bytes, &tail)
    }

    fn function(&mut self, params: &[u32]) -> u32 {
        let tail: Vec<_> = params.iter().flat_map(|param| [0, *param]).collect();
        self.add(kind::FUNC_PROTO, "", params.len(), 0, &tail)
    }

    fn tracepoint(&mut self, name: &str, params: &[u32]) {
        let function = self.function(params);
        let pointer = self.of(kind::PTR, "", function);
        self.of(kind::TYPEDEF, &format!("btf_trace_{name}"), pointer);
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes_with_layout(&[])
    }

    /// With the layout section of 7.1 unless `layout` is empty.
    fn bytes_with_layout(&self, layout: &[[u8; 4]]) -> Vec<u8> {
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        let mut header = vec![0x0001_eb9f, 24, 0, types, types, strings];
        if !layout.is_empty() {
            header[1] = 32;
            header.extend([types + strings, 4 * layout.len() as u32]);
        }
        let header = header.into_iter().flat_map(u32::to_le_bytes);
        let after = self.types.iter().chain(&self.strings).chain(layout.as_flattened());
        header.chain(after.copied()).collect()
    }
}

mod format {
    use super::*;

    #[test]
    fn bit_fields_are_found_by_the_flag_of_their_struct() {
        let mut blob = Writer::new();
        let int = blob.int(4, 32);
        let members = [("plain", int, 32), ("low", int, 64 | 1 << 24), ("high", int, 93 | 3 << 24)];
        blob.structure(kind::STRUCT | kind::FLAG, "flags", 12, &members);
        let bytes = blob.bytes();
        let field = |path| parse(&bytes).field("flags", path).unwrap();
        assert_eq!(field("plain"), plain(4, 4));
        assert_eq!(field("low"), bits(8, 0, 1));
        assert_eq!(field("high"), bits(11, 5, 3));
    }

    #[test]
    fn bit_fields_of_old_kernels_are_found_by_their_integer_type() {
        let mut blob = Writer::new();
        let whole = blob.int(4, 32);
        let (four_bits, moved) = (blob.int(4, 4), blob.int(4, 2 << 16 | 4));
        let named = blob.of(kind::TYPEDEF, "four_t", four_bits);
        // The second is the example of btf.rst: bits 102 to 105.
        let members = [("plain", whole, 64), ("direct", named, 98), ("moved", moved, 100)];
        blob.structure(kind::STRUCT, "flags", 16, &members);
        let bytes = blob.bytes();
        let field = |path| parse(&bytes).field("flags", path).unwrap();
        assert_eq!(field("plain"), plain(8, 4));
        assert_eq!(field("direct"), bits(12, 2, 4));
        assert_eq!(field("moved"), bits(12, 6, 4));
    }

    #[test]
    fn offsets_add_up_through_anonymous_members_and_embedded_structs() {
        let mut blob = Writer::new();
        let int = blob.int(2, 16);
        let deep = blob.structure(kind::STRUCT, "", 8, &[("first", int, 0), ("second", int, 32)]);
        let qualified = blob.of(kind::CONST, "", deep);
        let middle = blob.structure(kind::UNION, "", 8, &[("whole", int, 0), ("", qualified, 16)]);
        // A struct with a name, embedded without one (-fms-extensions).
        let tagged = blob.structure(kind::STRUCT | kind::FLAG, "tagged", 8, &[("", middle, 16)]);
        let hidden = blob.structure(kind::STRUCT, "", 24, &[("", tagged, 128)]);
        let named = blob.of(kind::TYPEDEF, "hidden_t", hidden);
        let volatile = blob.of(kind::VOLATILE, "", named);
        let tag = blob.of(kind::TYPE_TAG, "rcu", volatile);
        blob.structure(kind::STRUCT, "outer", 64, &[("empty", int, 0), ("inner", tag, 256)]);
        let bytes = blob.bytes();
        let btf = parse(&bytes);
        assert_eq!(btf.field("tagged", "first"), Ok(plain(4, 2)));
        assert_eq!(btf.field("hidden_t", "second"), Ok(plain(16 + 2 + 2 + 4, 2)));
        assert_eq!(btf.field("outer", "inner.second"), Ok(plain(32 + 16 + 2 + 2 + 4, 2)));
        assert_eq!(btf.field("outer", "inner.whole"), Ok(plain(32 + 16 + 2, 2)));
        assert_eq!(btf.field("outer", "inner"), Ok(plain(32, 24)));
        for path in ["second", "inner.", ".inner", "", ".", "inner..second", "inner.secon", "inner.second2"] {
            let missing = BtfError::NoField("outer".into(), path.into());
            assert_eq!(btf.field("outer", path), Err(missing));
        }
    }

    #[test]
    fn the_first_struct_that_has_the_path_counts() {
        let mut blob = Writer::new();
        let int = blob.int(4, 32);
        blob.of(kind::FWD, "thing", 0);
        blob.of(kind::TYPEDEF, "thing", int);
        blob.structure(kind::STRUCT, "thing", 4, &[("other", int, 0)]);
        blob.structure(kind::STRUCT, "thing", 8, &[("wanted", int, 32)]);
        blob.structure(kind::STRUCT, "thing", 16, &[("wanted", int, 96)]);
        blob.of(kind::FWD, "declared", 0);
        let bytes = blob.bytes();
        let btf = parse(&bytes);
        assert_eq!(btf.field("thing", "wanted"), Ok(plain(4, 4)));
        assert_eq!(btf.field("thing", "other"), Ok(plain(0, 4)));
        let error = btf.field("thing", "neither").unwrap_err();
        assert_eq!(error.to_string(), "struct `thing` has no field `neither`");
        assert_eq!(btf.field("declared", "any"), Err(BtfError::NoStruct("declared".into())));
        assert_eq!(btf.field("", "any"), Err(BtfError::NoStruct("".into())));
    }

    #[test]
    fn arrays_have_the_size_of_all_their_elements() {
        let mut blob = Writer::new();
        let (short, float) = (blob.int(2, 16), blob.add(kind::FLOAT, "double", 0, 8, &[]));
        let row = blob.add(kind::ARRAY, "", 0, 0, &[short, short, 3]);
        let named = blob.of(kind::TYPEDEF, "row_t", row);
        let table = blob.add(kind::ARRAY, "", 0, 0, &[named, short, 5]);
        blob.structure(kind::STRUCT, "arrays", 48, &[("table", table, 64), ("float", float, 320)]);
        let bytes = blob.bytes();
        assert_eq!(parse(&bytes).field("arrays", "table"), Ok(plain(8, 30)));
        assert_eq!(parse(&bytes).field("arrays", "float"), Ok(plain(40, 8)));
    }

    #[test]
    fn enumerators_keep_their_sign_and_their_64_bits() {
        let mut blob = Writer::new();
        let names = ["ALL_BITS", "MINUS_ONE", "BIG", "LOWEST"].map(|name| blob.string(name));
        blob.add(kind::ENUM, "", 1, 4, &[names[0], u32::MAX]);
        blob.add(kind::ENUM | kind::FLAG, "", 1, 4, &[names[1], u32::MAX]);
        blob.add(kind::ENUM64, "", 1, 8, &[names[2], 5, 1]);
        blob.add(kind::ENUM64 | kind::FLAG, "", 1, 8, &[names[3], 0, 1 << 31]);
        let bytes = blob.bytes();
        let btf = parse(&bytes);
        assert_eq!(btf.enumerator("ALL_BITS"), Ok(0xffff_ffff));
        assert_eq!(btf.enumerator("MINUS_ONE"), Ok(-1));
        assert_eq!(btf.enumerator("BIG"), Ok(0x1_0000_0005));
        assert_eq!(btf.enumerator("LOWEST"), Ok(i64::MIN));
        assert_eq!(btf.enumerator(""), Err(BtfError::NoEnumerator("".into())));
    }

    #[test]
    fn arguments_are_told_apart() {
        let mut blob = Writer::new();
        let data = blob.of(kind::PTR, "", 0);
        let boolean = blob.int(1, BOOL | 8);
        let named = blob.of(kind::TYPEDEF, "bool", boolean);
        let enums = [blob.add(kind::ENUM, "e", 0, 4, &[]), blob.add(kind::ENUM64, "f", 0, 8, &[])];
        let declared = blob.of(kind::FWD, "declared", 0);
        let tag = blob.of(kind::TYPE_TAG, "user", declared);
        let qualified = blob.of(kind::CONST, "", tag);
        let pointer_to_declared = blob.of(kind::PTR, "", qualified);
        let pointer_to_pointer = blob.of(kind::PTR, "", pointer_to_declared);
        let union = blob.structure(kind::UNION, "choice", 4, &[]);
        let pointer_to_union = blob.of(kind::PTR, "", union);
        let restricted = blob.of(kind::RESTRICT, "", pointer_to_union);
        let nameless = blob.structure(kind::STRUCT, "", 4, &[]);
        let pointer_to_nameless = blob.of(kind::PTR, "", nameless);
        let mut params = vec![data, named, enums[0], enums[1], pointer_to_declared];
        params.extend([pointer_to_pointer, restricted, pointer_to_nameless, data, union, 0]);
        blob.tracepoint("many", &params);
        blob.tracepoint("none", &[data]);
        let bytes = blob.bytes();
        let unnamed = Param::Pointer { to: None };
        let expected = [
            Param::Int { bytes: 1, is_bool: true },
            Param::Enum { bytes: 4 },
            Param::Enum { bytes: 8 },
            pointer("declared"),
            unnamed,
            pointer("choice"),
            unnamed,
            unnamed, // the second void *: only the first is the kernel's own
            Param::Other,
            Param::Other,
        ];
        assert_eq!(parse(&bytes).tracepoint("many").unwrap(), expected);
        assert_eq!(parse(&bytes).tracepoint("none").unwrap(), []);
    }

    #[test]
    fn records_of_every_kind_are_stepped_over() {
        let mut blob = Writer::new();
        let int = blob.int(4, 32);
        blob.add(kind::VAR, "var", 0, int, &[1]);
        blob.add(kind::DATASEC, ".data", 2, 8, &[2, 0, 4, 2, 4, 4]);
        blob.add(kind::FLOAT, "float", 0, 4, &[]);
        blob.add(kind::DECL_TAG | kind::FLAG, "tag", 0, int, &[u32::MAX]);
        blob.add(kind::ENUM64, "", 1, 8, &[0, 0, 0]);
        blob.add(kind::ARRAY, "", 0, 0, &[int, int, 1]);
        let function = blob.function(&[int, int]);
        // A function's vlen is its linkage: nothing follows.
        blob.add(kind::FUNC, "global_function", 1, function, &[]);
        blob.structure(kind::STRUCT, "last", 4, &[("member", int, 0)]);
        let bytes = blob.bytes();
        assert_eq!(parse(&bytes).field("last", "member"), Ok(plain(0, 4)));
        assert_eq!(parse(&bytes).function("global_function"), Ok(vec![INT, INT]));
    }

    #[test]
    fn unknown_kinds_are_stepped_over_only_if_the_blob_gives_their_sizes() {
        let mut blob = Writer::new();
        let int = blob.int(4, 32);
        blob.add(21, "", 2, 0, &[7, 7, 7]);
        blob.structure(kind::STRUCT, "last", 4, &[("member", int, 0)]);
        let bytes = blob.bytes();
        assert_eq!(Btf::parse(&bytes).err(), Some(BtfError::UnknownKind(2, 21)));
        let mut layout = [[0; 4]; 22];
        assert_eq!(
            Btf::parse(&blob.bytes_with_layout(&layout[..21])).err().unwrap().to_string(),
            "BTF type 2 is of unknown kind 21"
        );
        layout[21] = [4, 4, 0, 0];
        let bytes = blob.bytes_with_layout(&layout);
        assert_eq!(parse(&bytes).field("last", "member"), Ok(plain(0, 4)));
    }
}

mod corrupt {
    use super::*;

    fn corrupt<T: std::fmt::Debug>(answer: Result<T, BtfError>) -> &'static str {
        match answer {
            Err(BtfError::Corrupt(_, what)) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_wrong_header_is_named() {
        let error = |bytes: &[u8]| Btf::parse(bytes).err().unwrap().to_string();
        let with = |at: usize, value: &[u8]| {
            let mut bytes = V6_18.to_vec();
            bytes[at..at + value.len()].copy_from_slice(value);
            error(&bytes)
        };
        assert_eq!(with(0, &[0x34, 0x12]), "BTF header: magic 0x1234, expected 0xeb9f");
        assert_eq!(with(0, &[0xeb, 0x9f]), "BTF header: big-endian, expected little-endian");
        assert_eq!(with(2, &[2]), "BTF header: version 2, expected 1");
        assert_eq!(with(4, &[23]), "BTF header is cut off or malformed");
        assert_eq!(with(8, &[0xff; 4]), "BTF type section is cut off or malformed");
        assert_eq!(with(20, &[0xff; 4]), "BTF string section is cut off or malformed");
        assert_eq!(with(20, &[5, 0, 0, 0]), "BTF string section is cut off or malformed");
        assert_eq!(error(&V6_18[..7]), "BTF header is cut off or malformed");
        assert_eq!(error(&[]), "BTF header is cut off or malformed");
    }

    #[test]
    fn types_that_refer_to_themselves_are_refused() {
        let mut blob = Writer::new();
        blob.of(kind::TYPEDEF, "snake", 1);
        blob.add(kind::ARRAY, "", 0, 0, &[2, 2, 1]);
        blob.structure(kind::STRUCT, "doll", 4, &[("", 3, 0), ("snake", 1, 0), ("array", 2, 0)]);
        blob.structure(kind::STRUCT, "holder", 4, &[("snake", 1, 0), ("array", 2, 0), ("gone", 99, 0)]);
        let bytes = blob.bytes();
        let btf = parse(&bytes);
        assert_eq!(corrupt(btf.field("snake", "any")), "its aliases never end");
        assert_eq!(corrupt(btf.field("holder", "snake")), "its aliases never end");
        assert_eq!(corrupt(btf.field("holder", "array")), "its elements never end");
        assert_eq!(corrupt(btf.field("doll", "any")), "its members never end");
        let error = btf.field("holder", "gone").unwrap_err().to_string();
        assert_eq!(error, "BTF type 99 is corrupt: another type refers to it, but it does not exist");
    }

    /// 100 anonymous members, each of which has 100, and so on 20 levels deep.
    #[test]
    fn repetition_without_end_is_refused_and_not_waited_for() {
        let mut blob = Writer::new();
        let mut inner = blob.int(4, 32);
        for _ in 0..20 {
            inner = blob.structure(kind::STRUCT, "", 4, &[("", inner, 0); 100]);
        }
        blob.of(kind::TYPEDEF, "crowd", inner);
        let bytes = blob.bytes();
        assert_eq!(corrupt(parse(&bytes).field("crowd", "any")), "its members never end");
    }

    #[test]
    fn members_that_cannot_be_are_refused() {
        let mut blob = Writer::new();
        let int = blob.int(4, 32);
        let declared = blob.of(kind::FWD, "declared", 0);
        let mut huge = int;
        for _ in 0..3 {
            huge = blob.add(kind::ARRAY, "", 0, 0, &[huge, int, u32::MAX]);
        }
        let long = blob.add(kind::ARRAY, "", 0, 0, &[int, int, 1 << 30]);
        let members = [("split", int, 3), ("declared", declared, 0), ("huge", huge, 0), ("long", long, 0)];
        blob.structure(kind::STRUCT, "odd", 4, &members);
        let bytes = blob.bytes();
        let field = |path| corrupt(parse(&bytes).field("odd", path));
        assert_eq!(field("split"), "a member of it starts within a byte");
        assert_eq!(field("declared"), "a member cannot be of its kind");
        assert_eq!(field("huge"), "its size is beyond all memory");
        assert_eq!(field("long"), "a member of it is beyond 512 MiB");
    }

    #[test]
    fn a_tracepoint_that_is_no_function_is_refused() {
        let mut blob = Writer::new();
        let int = blob.int(4, 32);
        blob.of(kind::TYPEDEF, "btf_trace_odd", int);
        let bytes = blob.bytes();
        assert_eq!(
            corrupt(parse(&bytes).tracepoint("odd")),
            "a tracepoint that is not a pointer to a function"
        );
    }

    /// Asks all there is to ask. The answers do not matter, only that there are some.
    fn ask(bytes: &[u8]) -> bool {
        let Ok(btf) = Btf::parse(bytes) else {
            return false;
        };
        for (structure, path, _) in EVERYWHERE {
            _ = btf.field(structure, path);
        }
        for name in TRACEPOINTS {
            _ = btf.tracepoint(name);
        }
        for name in ENUMERATORS {
            _ = btf.enumerator(name);
        }
        _ = btf.function("udp_recvmsg");
        true
    }

    #[test]
    fn a_blob_cut_off_anywhere_is_refused() {
        for len in 0..V6_18.len() {
            assert!(!ask(&V6_18[..len]), "{len} bytes");
        }
    }

    #[test]
    fn a_type_section_cut_off_anywhere_does_not_panic() {
        let types = u32::from_le_bytes(*V6_18[12..].first_chunk().unwrap());
        for len in 0..types {
            let mut bytes = V6_18.to_vec();
            bytes[12..16].copy_from_slice(&len.to_le_bytes());
            ask(&bytes);
        }
    }

    #[test]
    fn changed_bytes_do_not_panic() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        let mut still_read = 0;
        for round in 0..6000 {
            let (_, original) = ALL[round % ALL.len()];
            let mut bytes = original.to_vec();
            for _ in 0..=random(8) {
                let at = random(bytes.len());
                // Small numbers turn up other types and kinds, any number breaks everything else.
                bytes[at] = if random(2) == 0 { random(32) as u8 } else { random(256) as u8 };
            }
            still_read += u32::from(ask(&bytes));
        }
        assert!(
            still_read > 1000,
            "only {still_read} blobs got past the index, so the rest was hardly tried"
        );
    }
}
