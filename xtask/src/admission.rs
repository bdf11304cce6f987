//! The ValidatingAdmissionPolicy, asked of Kubernetes's own code: the plugin that its API server evaluates policies with.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    container,
    privilege::Privilege,
    steps::{self, step},
    toolchain::Toolchain,
    workspace,
};

const SOURCE: &str = "deploy/tests/admission/main.go";
const ROOT: &str = "target/tools/admission/root";
/// Debian's Go, and its package of the API server's library: the first suite whose library has the policy's version 1.
const PACKAGES: &str = "golang-go,golang-k8s-apiserver-dev";
const SUITE: &str = "sid";
/// Modules are where Debian puts them.
const BUILD: &str = "GOROOT=$(dirname $(dirname $(readlink -f /usr/bin/go))) exec go build -o /siskin/admission /siskin/main.go";

/// Builds the plugin in a Debian of its own, and asks it.
pub fn admission(toolchain: &Toolchain) -> Result<()> {
    if Privilege::find()? != Privilege::Root {
        bail!("the plugin is built in a system that debootstrap unpacks: run this as root");
    }
    let root = workspace::path(ROOT);
    if !root.join("usr/bin/go").exists() {
        fs::create_dir_all(&root).with_context(|| format!("cannot make {ROOT}"))?;
        step(&format!("unpacking Debian's Go and Kubernetes libraries into {ROOT}"), || {
            let include = format!("--include={PACKAGES}");
            steps::run(Command::new("debootstrap").args(["--variant=minbase", &include, SUITE]).arg(&root))
        })?;
    }
    workspace::install(&workspace::path(SOURCE), &root.join("siskin/main.go"))?;
    step("building Kubernetes's admission plugin", || {
        let mut build = Command::new("chroot");
        build.arg(&root).args([
            "/usr/bin/env",
            "GO111MODULE=off",
            "GOPATH=/usr/share/gocode",
            "CGO_ENABLED=0",
            "HOME=/root",
        ]);
        steps::run(build.args(["sh", "-c", BUILD]))
    })?;
    let mut test = Command::new(container::binary(toolchain, "admission", false)?);
    test.arg("--plugin").arg(root.join("siskin/admission"));
    step("asking it", || steps::run(&mut test))
}
