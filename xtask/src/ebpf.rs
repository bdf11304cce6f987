//! Building the kernel side into the object that the agent embeds.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use clap::Args;
use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

use crate::{
    freshness,
    steps::{self, step},
    toolchain::Toolchain,
    workspace,
};

/// The object's place; agent/build.rs looks for it there.
const OBJECT: &str = "target/bpf/siskin.bpf.o";
/// A folder of its own, or host and BPF builds would wait for each other's lock.
const TARGET_FOLDER: &str = "target/bpf";
const TARGET: &str = "bpfel-unknown-none";
const BINARY: &str = "siskin-probes";
/// Programs that do nothing, and programs that do nothing but add to tables: what benchmarks compare with.
const BENCH: [&str; 2] = ["siskin-empty", "siskin-tables"];
/// The feature that they need.
const BENCH_FEATURE: &str = "bench";

/// How to build the kernel side.
#[derive(Args)]
pub struct Options {
    /// Features of the crate siskin-ebpf, separated by commas
    #[arg(long, value_name = "LIST", default_value = "", hide_default_value = true)]
    pub features: String,
    /// Architecture of the kernel that will run the programs
    #[arg(long, default_value = std::env::consts::ARCH)]
    pub arch: String,
}

impl Options {
    /// For this machine's kernel.
    pub fn for_host(features: &str) -> Self {
        Self { features: features.to_owned(), arch: std::env::consts::ARCH.to_owned() }
    }
}

/// Builds the object and returns its path.
pub fn build(toolchain: &Toolchain, options: &Options) -> Result<PathBuf> {
    let linker = toolchain.bpf_linker()?;
    let object = workspace::path(OBJECT);
    step(&format!("building {OBJECT}"), || {
        let mut cargo = cargo(toolchain, &linker, "build", BINARY, options);
        steps::run(&mut cargo)?;
        refresh(&object)
    })?;
    Ok(object)
}

/// Builds the objects that benchmarks compare with and returns their paths, in the order of [`BENCH`].
pub fn build_bench(toolchain: &Toolchain) -> Result<[PathBuf; 2]> {
    let linker = toolchain.bpf_linker()?;
    for binary in BENCH {
        step(&format!("building {binary}"), || {
            let mut cargo = cargo(toolchain, &linker, "build", binary, &Options::for_host(BENCH_FEATURE));
            steps::run(&mut cargo)
        })?;
    }
    Ok(BENCH.map(output))
}

/// Lints the programs as the BPF target sees them; clippy on the host sees an empty main.
pub fn clippy(toolchain: &Toolchain) -> Result<()> {
    let linker = toolchain.bpf_linker()?;
    let bench = BENCH.map(|binary| (binary, BENCH_FEATURE));
    for (binary, features) in [(BINARY, "")].into_iter().chain(bench) {
        let mut cargo = cargo(toolchain, &linker, "clippy", binary, &Options::for_host(features));
        steps::run(cargo.args(["--", "--deny", "warnings"]))?;
    }
    Ok(())
}

fn cargo(toolchain: &Toolchain, linker: &Path, subcommand: &str, binary: &str, options: &Options) -> Command {
    let mut cargo = toolchain.cargo();
    cargo
        .args([subcommand, "--package", "siskin-ebpf", "--bin", binary])
        .args(["--release", "--target", TARGET, "-Z", "build-std=core"])
        .args(["--features", &options.features])
        .env("CARGO_TARGET_DIR", workspace::path(TARGET_FOLDER))
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(linker, &options.arch))
        // The stable compiler builds core for a target without a ready one only when told so.
        .env("RUSTC_BOOTSTRAP", "1");
    cargo
}

fn rustflags(linker: &Path, arch: &str) -> String {
    [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        // Atomic exchange, which exactness needs, is an instruction of version 3 (5.12); what else v3 has is older (5.1).
        "-Ctarget-cpu=v3".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
        // Expand memset and memcpy in place. Calls to functions make old kernels panic (agent/tests/object.rs).
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
    ]
    .join("\x1f")
}

/// Where cargo puts a binary.
fn output(binary: &str) -> PathBuf {
    workspace::path(TARGET_FOLDER).join(format!("{TARGET}/release/{binary}"))
}

/// The object without the debug information that its BTF was made from: four fifths of it, and neither the agent nor the kernel
/// reads it.
fn stripped(file: &[u8]) -> Result<Vec<u8>> {
    let mut elf = Builder::read(file).context("cannot understand the object")?;
    for section in &mut elf.sections {
        let name = section.name.to_vec();
        section.delete = [&b".debug_"[..], b".rel.debug_"].iter().any(|start| name.starts_with(start));
    }
    elf.delete_orphans();
    // The linker puts the names of sections among those of symbols, which the writer keeps apart.
    let names = elf.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    elf.write(&mut stripped).context("cannot write the object without its debug information")?;
    Ok(stripped)
}

/// Puts cargo's output in the object's place, unless that would change nothing: a new time stamp
/// alone makes cargo link the agent again, and an old one beside a touched source makes it refuse.
fn refresh(object: &Path) -> Result<()> {
    let output = output(BINARY);
    let built = fs::read(&output).with_context(|| format!("cannot read {}", output.display()))?;
    let built = stripped(&built)?;
    let same = fs::read(object).is_ok_and(|file| file == built);
    let sources = workspace::path("agent-ebpf");
    if same && freshness::newer_source(object, &sources)?.is_none() {
        return Ok(());
    }
    workspace::write(object, &built)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linker_path_with_spaces_stays_one_flag() {
        let flags = rustflags(Path::new("/a folder/bpf-linker"), "x86_64");
        let flags: Vec<_> = flags.split('\x1f').collect();
        assert_eq!(flags[0], "--cfg=bpf_target_arch=\"x86_64\"");
        assert_eq!(flags[3], "-Clinker=/a folder/bpf-linker");
        assert_eq!(flags.len(), 6);
    }
}
