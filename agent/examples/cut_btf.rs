//! Cuts a kernel's BTF down to the types Siskin asks for, to keep as a test fixture.
//!
//! ```text
//! cargo run --example cut_btf -- VMLINUX_BTF OUT
//! ```
//!
//! `VMLINUX_BTF` is `/sys/kernel/btf/vmlinux` of a running kernel, or the section `.BTF` of an
//! unpacked `vmlinux`. What [`STRUCTS`], [`ENUMS`], [`TRACEPOINTS`] and [`FUNCTIONS`] name is kept
//! with its true offsets and sizes, and so are anonymous members on the way. Other structs become
//! empty ones of the right size where they are embedded, and declarations (`BTF_KIND_FWD`) where
//! they are only pointed to; pointers to anything else become `void *`. What a kernel does not have
//! is printed and left out, except for members.
//!
//! It does not use `siskin::kernel::btf`, which it makes the test material for.

use std::{collections::HashMap, env, fs};

use anyhow::{Context, Result, bail, ensure};

/// Structs, unions or typedefs of anonymous ones, and which of their members are kept.
const STRUCTS: &[(&str, &[&str])] = &[
    ("task_struct", &["pid", "tgid", "start_time", "group_leader", "signal", "exit_code", "cgroups"]),
    // The two subreaper flags are here as real bit-fields.
    (
        "signal_struct",
        &["live", "flags", "group_exit_code", "oom_mm", "is_child_subreaper", "has_child_subreaper"],
    ),
    ("css_set", &["dfl_cgrp"]),
    ("cgroup", &["kn", "root"]),
    ("cgroup_root", &["subsys_mask", "hierarchy_id"]),
    ("kernfs_node", &["id"]),
    (
        "sock",
        &[
            "__sk_common",
            "sk_protocol",
            "sk_err",
            "sk_flags",
            "sk_shutdown",
            "sk_userlocks",
            "sk_cgrp_data",
            "sk_type",
            "sk_lock",
        ],
    ),
    ("socket_lock_t", &["slock", "owned"]),
    ("spinlock", &["rlock", "lock"]),
    ("raw_spinlock", &["raw_lock"]),
    ("rt_mutex_base", &["owner"]),
    ("qspinlock", &["val"]),
    ("atomic_t", &["counter"]),
    (
        "sock_common",
        &[
            "skc_family",
            "skc_state",
            "skc_num",
            "skc_dport",
            "skc_daddr",
            "skc_v6_daddr",
            "skc_net",
            "skc_flags",
        ],
    ),
    ("sock_cgroup_data", &["cgroup", "val", "is_data", "classid"]),
    ("possible_net_t", &["net"]),
    ("net", &["ns"]),
    ("ns_common", &["inum"]),
    ("inet_sock", &["inet_sport"]),
    ("tcp_sock", &["bytes_sent", "bytes_received", "bytes_retrans", "total_retrans", "srtt_us"]),
    ("sk_buff", &["sk", "next", "len", "head", "data", "transport_header"]),
    ("socket", &["sk"]),
    ("file", &["private_data"]),
    (
        "request",
        &[
            "q",
            "cmd_flags",
            "rq_flags",
            "__data_len",
            "bio",
            "start_time_ns",
            "io_start_time_ns",
            "rq_disk",
            "part",
        ],
    ),
    ("request_queue", &["disk"]),
    ("gendisk", &["major", "first_minor", "disk_name"]),
    ("bio", &["bi_blkg"]),
    ("blkcg_gq", &["blkcg"]),
    ("blkcg", &["css"]),
    ("cgroup_subsys_state", &["cgroup"]),
    ("bpf_tcp_iter_state", &["batch"]),
];

/// Enumerators; the enumerations that have them are kept whole.
const ENUMS: &[&str] =
    &["SOCK_DONE", "__RQF_FLUSH_SEQ", "REQ_OP_READ", "__REQ_PREFLUSH", "TCP_ESTABLISHED", "io_cgrp_id"];

/// Tracepoints, kept with the types of their arguments.
const TRACEPOINTS: &[&str] = &[
    "cgroup_mkdir",
    "cgroup_release",
    "sched_process_exec",
    "sched_process_fork",
    "sched_process_exit",
    "mark_victim",
    "inet_sock_set_state",
    "tcp_send_reset",
    "tcp_receive_reset",
    "sock_send_length",
    "sock_recv_length",
    "block_rq_complete",
    "block_rq_issue",
    "block_rq_error",
];

/// Functions, kept with the types of their arguments.
const FUNCTIONS: &[&str] = &[
    "bpf_iter_bpf_sk_storage_map",
    "bpf_iter_task_file",
    "bpf_iter_tcp",
    "udp_sendmsg",
    "udpv6_sendmsg",
    "udp_recvmsg",
    "udpv6_recvmsg",
];

// BTF_KIND_* of include/uapi/linux/btf.h.
const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FWD: u32 = 7;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const FLOAT: u32 = 16;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// One record: `struct btf_type` and the words after it.
#[derive(Clone, Default)]
struct Type {
    name: String,
    info: u32,
    /// `size` or `type`.
    value: u32,
    tail: Vec<u32>,
}

impl Type {
    fn kind(&self) -> u32 {
        (self.info >> 24) & 0x1f
    }

    fn is_aggregate(&self) -> bool {
        matches!(self.kind(), STRUCT | UNION)
    }
}

/// A whole kernel's types, by number, and their strings.
struct Source {
    types: Vec<Type>,
    strings: Vec<u8>,
}

impl Source {
    fn read(bytes: &[u8]) -> Result<Self> {
        let word = |at: usize| {
            let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
            word.map(|word| u32::from_le_bytes(*word)).context("the file is cut off")
        };
        ensure!(word(0)? == 0x0001_eb9f, "not little-endian BTF of version 1");
        let section = |at: usize| -> Result<&[u8]> {
            let start = (word(4)? + word(at)?) as usize;
            bytes.get(start..start + word(at + 4)? as usize).context("the file is cut off")
        };
        let strings = section(16)?.to_vec();
        let words: Vec<u32> =
            section(8)?.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();

        let mut source = Self { types: vec![Type::default()], strings };
        let mut rest = words.as_slice();
        while let [name, info, value, after @ ..] = rest {
            let vlen = (info & 0xffff) as usize;
            let tail = match (info >> 24) & 0x1f {
                INT | VAR | DECL_TAG => 1,
                ARRAY => 3,
                STRUCT | UNION | DATASEC | ENUM64 => 3 * vlen,
                ENUM | FUNC_PROTO => 2 * vlen,
                PTR | FWD | TYPEDEF | VOLATILE | CONST | RESTRICT | FUNC | FLOAT | TYPE_TAG => 0,
                kind => bail!("type {} is of unknown kind {kind}", source.types.len()),
            };
            let (tail, next) = after.split_at_checked(tail).context("the file is cut off")?;
            let name = source.string(*name)?;
            source.types.push(Type { name, info: *info, value: *value, tail: tail.to_vec() });
            rest = next;
        }
        Ok(source)
    }

    fn string(&self, offset: u32) -> Result<String> {
        let rest = self.strings.get(offset as usize..).context("a name outside the strings")?;
        let bytes = rest.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8(bytes.to_vec())?)
    }

    fn get(&self, id: u32) -> Result<&Type> {
        self.types.get(id as usize).with_context(|| format!("no type {id}"))
    }

    fn find(&self, kinds: &[u32], name: &str) -> Option<u32> {
        let mut found = self.types.iter().position(|item| kinds.contains(&item.kind()) && item.name == name);
        found.take().map(|id| id as u32)
    }

    /// The type behind typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Result<u32> {
        while let TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG = self.get(id)?.kind() {
            id = self.get(id)?.value;
        }
        Ok(id)
    }

    /// Whether one of `names` is a member, be it through anonymous ones.
    fn has_any(&self, id: u32, names: &[&str]) -> Result<bool> {
        for member in self.get(id)?.tail.as_chunks::<3>().0 {
            let name = self.string(member[0])?;
            let inner = self.resolve(member[1])?;
            if names.contains(&name.as_str())
                || name.is_empty() && self.get(inner)?.is_aggregate() && self.has_any(inner, names)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// What is known of a type's surroundings when it is kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Use {
    /// It is part of something: its size counts, and of [`STRUCTS`] its members.
    Value,
    /// It is pointed to.
    Pointee,
    /// It is an anonymous member or hidden by a typedef; the index in [`STRUCTS`] says whose members to keep.
    Within(usize),
}

/// The blob being made.
struct Cutter<'a> {
    source: &'a Source,
    types: Vec<Type>,
    strings: Vec<u8>,
    /// Where in `strings` each one is.
    offsets: HashMap<String, u32>,
    /// New number of a type of the source, which may be kept in several ways.
    done: HashMap<(u32, Use), u32>,
    /// New number of the declaration with this name and `info`.
    declared: HashMap<(String, u32), u32>,
}

impl Cutter<'_> {
    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        if let Some(offset) = self.offsets.get(text) {
            return *offset;
        }
        let offset = self.strings.len() as u32;
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        self.offsets.insert(text.into(), offset);
        offset
    }

    /// Keeps a type and gives its new number.
    fn keep(&mut self, id: u32, how: Use) -> Result<u32> {
        if id == 0 {
            return Ok(0);
        }
        if let Some(new) = self.done.get(&(id, how)) {
            return Ok(*new);
        }
        let old = self.source.get(id)?.clone();
        let listed = STRUCTS.iter().position(|(name, _)| !old.name.is_empty() && *name == old.name);
        if how == Use::Pointee && self.pointee_is_dropped(&old, listed) {
            return Ok(0);
        }
        if how == Use::Pointee && listed.is_none() && (old.is_aggregate() || old.kind() == FWD) {
            return Ok(self.declare(&old));
        }
        let how = if listed.is_some() && how == Use::Pointee { Use::Value } else { how };
        if let Some(new) = self.done.get(&(id, how)) {
            return Ok(*new);
        }

        // The number is taken before the insides are kept, as those may refer back to it.
        let new = self.types.len() as u32;
        self.types.push(Type::default());
        self.done.insert((id, how), new);
        let mut made = Type { tail: Vec::new(), ..old.clone() };
        match old.kind() {
            INT | FLOAT | FWD => made.tail = old.tail,
            ENUM | ENUM64 => made.info &= !0xffff, // the enumerators are kept only where asked for
            PTR => made.value = self.keep(old.value, Use::Pointee)?,
            TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => {
                let inner = match (listed, how) {
                    (Some(index), _) => Use::Within(index),
                    (None, how) => how,
                };
                made.value = self.keep(old.value, inner)?;
            }
            ARRAY => {
                let (element, index) =
                    (self.keep(old.tail[0], Use::Value)?, self.keep(old.tail[1], Use::Value)?);
                made.tail = vec![element, index, old.tail[2]];
            }
            STRUCT | UNION => {
                let index = if let Use::Within(index) = how { Some(index) } else { listed };
                made.tail = self.members(&old, index)?;
                made.info = made.info & !0xffff | (made.tail.len() / 3) as u32;
            }
            FUNC => made.value = self.keep(old.value, Use::Value)?,
            FUNC_PROTO => {
                made.value = self.keep(old.value, Use::Value)?;
                for [name, of] in old.tail.as_chunks::<2>().0 {
                    let name = self.source.string(*name)?;
                    made.tail.extend([self.string(&name), self.keep(*of, Use::Value)?]);
                }
            }
            kind => bail!("type {id} of kind {kind} cannot be kept"),
        }
        self.types[new as usize] = made;
        Ok(new)
    }

    /// Pointers to numbers, pointers and functions answer no question.
    fn pointee_is_dropped(&self, old: &Type, listed: Option<usize>) -> bool {
        let target = match old.kind() {
            TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => {
                self.source.resolve(old.value).and_then(|id| self.source.get(id)).ok()
            }
            _ => Some(old),
        };
        listed.is_none() && !target.is_some_and(|target| target.is_aggregate() || target.kind() == FWD)
    }

    fn declare(&mut self, old: &Type) -> u32 {
        if old.name.is_empty() {
            return 0;
        }
        // kind_flag of a declaration says that it is a union.
        let is_union = old.kind() == UNION || old.kind() == FWD && old.info >> 31 == 1;
        let info = FWD << 24 | u32::from(is_union) << 31;
        *self.declared.entry((old.name.clone(), info)).or_insert_with(|| {
            self.types.push(Type { name: old.name.clone(), info, ..Type::default() });
            self.types.len() as u32 - 1
        })
    }

    fn members(&mut self, old: &Type, index: Option<usize>) -> Result<Vec<u32>> {
        let Some(index) = index else {
            return Ok(Vec::new());
        };
        let mut kept = Vec::new();
        for &[name, of, offset] in old.tail.as_chunks::<3>().0 {
            let name = self.source.string(name)?;
            let inner = self.source.resolve(of)?;
            let how = if STRUCTS[index].1.contains(&name.as_str()) {
                Use::Value
            } else if name.is_empty()
                && self.source.get(inner)?.is_aggregate()
                && self.source.has_any(inner, STRUCTS[index].1)?
            {
                Use::Within(index)
            } else {
                continue;
            };
            kept.extend([self.string(&name), self.keep(of, how)?, offset]);
        }
        Ok(kept)
    }

    /// The enumeration itself, with all its enumerators.
    fn keep_enum(&mut self, id: u32) -> Result<()> {
        let mut made = self.source.get(id)?.clone();
        let words = if made.kind() == ENUM { 2 } else { 3 };
        for at in (0..made.tail.len()).step_by(words) {
            let name = self.source.string(made.tail[at])?;
            made.tail[at] = self.string(&name);
        }
        match self.done.get(&(id, Use::Value)) {
            Some(new) => self.types[*new as usize] = made,
            None => {
                self.done.insert((id, Use::Value), self.types.len() as u32);
                self.types.push(made);
            }
        }
        Ok(())
    }

    fn write(mut self) -> Vec<u8> {
        let mut types = Vec::new();
        for item in std::mem::take(&mut self.types).into_iter().skip(1) {
            let name = self.string(&item.name);
            let words = [name, item.info, item.value].into_iter().chain(item.tail);
            types.extend(words.flat_map(u32::to_le_bytes));
        }
        let (types_len, strings_len) = (types.len() as u32, self.strings.len() as u32);
        let header = [0x0001_eb9f, 24, 0, types_len, types_len, strings_len];
        let header = header.into_iter().flat_map(u32::to_le_bytes);
        header.chain(types).chain(self.strings).collect()
    }
}

fn main() -> Result<()> {
    let [input, output] =
        env::args().skip(1).collect::<Vec<_>>().try_into().ok().context("VMLINUX_BTF OUT")?;
    let source = Source::read(&fs::read(&input).with_context(|| input.clone())?)?;
    let mut cutter = Cutter {
        source: &source,
        types: vec![Type::default()],
        strings: vec![0],
        offsets: HashMap::new(),
        done: HashMap::new(),
        declared: HashMap::new(),
    };
    for (name, _) in STRUCTS {
        match source.find(&[STRUCT, UNION], name).or_else(|| source.find(&[TYPEDEF], name)) {
            Some(id) => _ = cutter.keep(id, Use::Value)?,
            None => println!("no struct {name}"),
        }
    }
    for name in TRACEPOINTS {
        match source.find(&[TYPEDEF], &format!("btf_trace_{name}")) {
            Some(id) => {
                // The pointer is kept as it is: of its kind only those to a tracepoint's function matter.
                let pointer = source.get(id)?.value;
                let function = cutter.keep(source.get(pointer)?.value, Use::Value)?;
                let new = cutter.types.len() as u32;
                cutter.types.push(Type { value: new + 1, ..source.get(id)?.clone() });
                cutter.types.push(Type { value: function, ..source.get(pointer)?.clone() });
            }
            None => println!("no tracepoint {name}"),
        }
    }
    for name in FUNCTIONS {
        match source.find(&[FUNC], name) {
            Some(id) => _ = cutter.keep(id, Use::Value)?,
            None => println!("no function {name}"),
        }
    }
    for wanted in ENUMS {
        let mut found = false;
        for (id, item) in source.types.iter().enumerate() {
            let words = match item.kind() {
                ENUM => 2,
                ENUM64 => 3,
                _ => continue,
            };
            let has = item
                .tail
                .iter()
                .step_by(words)
                .any(|name| source.string(*name).is_ok_and(|name| name == *wanted));
            if has {
                cutter.keep_enum(id as u32)?;
                found = true;
            }
        }
        if !found {
            println!("no enumerator {wanted}");
        }
    }
    let (count, blob) = (cutter.types.len() - 1, cutter.write());
    println!("{output}: {count} types, {} bytes", blob.len());
    fs::write(&output, blob).with_context(|| output.clone())
}
