//! The licences of everything that is inside the binary, for the image that carries it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId, TargetKind};

use crate::{
    steps::{self, step},
    toolchain::Toolchain,
    workspace,
};

const FOLDER: &str = "target/licences";
/// Our own: where each lies in the workspace, and its name in the folder.
const OURS: [(&str, &str); 3] = [
    ("LICENSE", "siskin-Apache-2.0.txt"),
    ("agent-ebpf/LICENSE-MIT", "siskin-ebpf-MIT.txt"),
    ("agent-ebpf/LICENSE-GPL-2.0", "siskin-ebpf-GPL-2.0.txt"),
];
/// Debian's notice of the C library, of which a static binary has a part.
const C_LIBRARY: &str = "/usr/share/doc/libc6-dev/copyright";
const C_LIBRARY_LICENCE: &str = "/usr/share/common-licenses/LGPL-2.1";
/// In the compiler's folder: the standard library's notices.
const RUST_LIBRARY: &str = "share/doc/rust/COPYRIGHT-library.html";
/// How the files with licences begin that crates carry.
const NOTICES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

/// Collects them in target/licences.
pub fn licences(toolchain: &Toolchain) -> Result<()> {
    step(&format!("collecting licences in {FOLDER}"), || {
        let folder = workspace::path(FOLDER);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {FOLDER}"))?;
        for (from, to) in OURS {
            workspace::install(&workspace::path(from), &folder.join(to))?;
        }
        workspace::install(Path::new(C_LIBRARY), &folder.join("glibc-copyright.txt"))?;
        workspace::install(Path::new(C_LIBRARY_LICENCE), &folder.join("glibc-LGPL-2.1.txt"))?;
        workspace::install(&toolchain.folder()?.join(RUST_LIBRARY), &folder.join("rust-library.html"))?;
        let crates = crates(toolchain)?;
        fs::write(folder.join("crates.txt"), &crates).context("cannot write the crates' licences")?;
        steps::say(&format!("{FOLDER}/crates.txt has {} KiB", crates.len().div_ceil(1024)));
        Ok(())
    })
}

/// Every crate in the binary and its licence, and each text once, with the crates that come under it.
fn crates(toolchain: &Toolchain) -> Result<String> {
    let mut packages = BTreeMap::new();
    for (root, target) in [("siskin", toolchain.host()?.as_str()), ("siskin-ebpf", "bpfel-unknown-none")] {
        let metadata = MetadataCommand::new()
            .cargo_path(toolchain.folder()?.join("bin/cargo"))
            .current_dir(workspace::root())
            .other_options(vec!["--filter-platform".to_owned(), target.to_owned()])
            .exec()
            .context("cannot ask cargo for the crates")?;
        packages.extend(linked(&metadata, root)?);
    }
    let mut list = String::new();
    let mut texts: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (name, package) in &packages {
        let licence = package.license.as_deref().unwrap_or("see below");
        list.push_str(&format!("{name}: {licence}\n"));
        for text in notices(package)? {
            texts.entry(text).or_default().insert(name);
        }
    }
    for (text, names) in texts {
        let names: Vec<_> = names.into_iter().collect();
        list.push_str(&format!("\n{}\n{}\n\n{}\n", "=".repeat(100), names.join(", "), text.trim_end()));
    }
    Ok(list)
}

/// The crates whose code a crate's binary has, by name and version: normal dependencies, without those that run in the compiler.
fn linked(metadata: &Metadata, root: &str) -> Result<BTreeMap<String, Package>> {
    let nodes = &metadata.resolve.as_ref().context("cargo resolved nothing")?.nodes;
    let nodes: HashMap<&PackageId, _> = nodes.iter().map(|node| (&node.id, node)).collect();
    let root = metadata.packages.iter().find(|package| package.name == root);
    let mut found = BTreeMap::new();
    let mut open = vec![root.context("the workspace has lost a crate")?];
    while let Some(package) = open.pop() {
        let is_macro = package.targets.iter().any(|target| target.kind.contains(&TargetKind::ProcMacro));
        let name = format!("{} {}", package.name, package.version);
        if is_macro || found.contains_key(&name) {
            continue;
        }
        for dependency in &nodes.get(&package.id).context("cargo resolved a part only")?.deps {
            if dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal) {
                open.push(&metadata[&dependency.pkg]);
            }
        }
        found.insert(name, package.clone());
    }
    Ok(found.into_iter().filter(|(_, package)| package.source.is_some()).collect())
}

fn notices(package: &Package) -> Result<Vec<String>> {
    let folder = package.manifest_path.parent().context("a manifest without a folder")?;
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {folder}"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if path.is_file() && NOTICES.iter().any(|notice| name.starts_with(notice)) {
            texts.push(fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?);
        }
    }
    if texts.is_empty() && package.license.is_none() {
        bail!("{} says nothing of its licence", package.name);
    }
    Ok(texts)
}
