//! Says what the agent can do on the running kernel, in lines that `cargo xtask vm` reads:
//!
//! ```text
//! btf BYTES            of the kernel's types
//! check JSON           the report of `siskin check --json` as root
//! have NAME            a probe that does its work, a hook that is attached, `all` when every probe does its work, or `whole` when
//!                      none tells less than everything
//! privileges NAMES     the fewest capabilities with which that report is the same
//! ```

use std::{fs, process::Command};

use serde_json::Value;
use siskin_tests::{
    agent::binary,
    capability::{CAP_BPF, CAP_PERFMON, with_only},
};

// include/uapi/linux/capability.h, 6.18.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;

fn main() {
    println!("btf {}", fs::metadata("/sys/kernel/btf/vmlinux").expect("the kernel has BTF").len());
    let report = check();
    println!("check {report}");
    let works = |probe: &&Value| ["ok", "limited"].contains(&text(&probe["state"]));
    if list(&report["probes"]).iter().all(|probe| works(&probe)) {
        println!("have all");
    }
    if list(&report["probes"]).iter().all(|probe| probe["state"] == "ok") {
        println!("have whole");
    }
    for probe in list(&report["probes"]) {
        if works(&probe) {
            println!("have {}", text(&probe["probe"]));
        }
        for hook in list(&probe["hooks"]).iter().filter(|hook| hook["state"] == "attached") {
            println!("have {}", text(&hook["hook"]));
        }
    }
    println!("privileges {}", privileges(&report["probes"]));
}

fn check() -> Value {
    let output = Command::new(binary()).args(["check", "--json"]).output().expect("the agent starts");
    serde_json::from_slice(&output.stdout).expect("the report is JSON")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

/// Tries sets of capabilities, small ones first.
fn privileges(as_root: &Value) -> String {
    for more in [&[][..], &[CAP_SYS_RESOURCE], &[CAP_SYS_ADMIN], &[CAP_SYS_RESOURCE, CAP_SYS_ADMIN]] {
        let set = [&[CAP_BPF, CAP_PERFMON], more].concat();
        if with_only(&set, check)["probes"] == *as_root {
            return set.into_iter().map(name).collect::<Vec<_>>().join(", ");
        }
    }
    "all of root's".to_owned()
}

fn name(capability: u32) -> &'static str {
    match capability {
        CAP_BPF => "CAP_BPF",
        CAP_PERFMON => "CAP_PERFMON",
        CAP_SYS_ADMIN => "CAP_SYS_ADMIN",
        CAP_SYS_RESOURCE => "CAP_SYS_RESOURCE",
        _ => "another",
    }
}
