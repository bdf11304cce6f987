//! Embeds the eBPF object, and what the binary says about its own making.

#[path = "../xtask/src/freshness.rs"]
mod freshness;

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

const OBJECT_VARIABLE: &str = "SISKIN_EBPF_OBJECT";
const REVISION_VARIABLE: &str = "SISKIN_REVISION";

fn main() {
    match embed() {
        Ok(object) => println!("cargo::rustc-env={OBJECT_VARIABLE}={}", object.display()),
        Err(reason) => println!("cargo::error={reason}"),
    }
    println!("cargo::rustc-env={REVISION_VARIABLE}={}", revision());
    println!("cargo::rustc-env=SISKIN_RUSTC={}", compiler());
}

fn embed() -> Result<PathBuf, String> {
    let agent = env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo did not say where the agent is")?;
    let root = Path::new(&agent).join("..");
    let root = root.canonicalize().map_err(|error| format!("no workspace above: {error}"))?;
    println!("cargo::rerun-if-env-changed={OBJECT_VARIABLE}");
    let object = env::var_os(OBJECT_VARIABLE).map(PathBuf::from);
    let object = root.join(object.unwrap_or_else(|| "target/bpf/siskin.bpf.o".into()));
    let sources = root.join("agent-ebpf");
    watch(&object);
    watch(&sources.join("src"));
    watch(&sources.join("Cargo.toml"));
    if !object.is_file() {
        return Err(format!(
            "the eBPF object is missing ({}): run `cargo xtask build-ebpf` (or `cargo xtask build` \
             for everything)",
            object.display()
        ));
    }
    match freshness::newer_source(&object, &sources) {
        Ok(None) => Ok(object),
        Ok(Some(source)) => Err(format!(
            "the eBPF object is older than {}: run `cargo xtask build-ebpf` (or `cargo xtask \
             build` for everything)",
            source.strip_prefix(&root).unwrap_or(&source).display()
        )),
        Err(error) => Err(format!("cannot compare the eBPF object with its sources: {error}")),
    }
}

/// The commit, as far as git knows it; in an image's build, which has no git, as it is told.
fn revision() -> String {
    println!("cargo::rerun-if-env-changed={REVISION_VARIABLE}");
    if let Ok(revision) = env::var(REVISION_VARIABLE) {
        return revision;
    }
    // `src` too: whenever the agent is compiled again, `-dirty` is decided again.
    watch(Path::new("src"));
    for file in ["HEAD", "logs/HEAD"] {
        // HEAD itself names only the branch; its log grows with every commit.
        let path = git(&["rev-parse", "--git-path", file]).map(PathBuf::from);
        // Cargo takes a watched file that does not exist for one that always changes.
        if let Some(path) = path.filter(|path| path.exists()) {
            watch(&path);
        }
    }
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changes = git(&["status", "--porcelain", "--untracked-files=no"]);
    let dirty = changes.is_none_or(|changes| !changes.is_empty());
    commit + if dirty { "-dirty" } else { "" }
}

/// The compiler's version, without commit and date.
fn compiler() -> String {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = output(Command::new(rustc).arg("--version")).unwrap_or_default();
    let number = version.split_whitespace().nth(1);
    number.unwrap_or("unknown").to_owned()
}

fn watch(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
}

fn git(arguments: &[&str]) -> Option<String> {
    output(Command::new("git").args(arguments))
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
