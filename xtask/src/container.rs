//! The image in a container, seen to work and to need what it is given.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    agent,
    image::{self, Builder},
    privilege::Privilege,
    steps::{self, step},
    toolchain::Toolchain,
    workspace,
};

/// The workload that is traced.
pub const NEIGHBOUR: &str = "localhost/siskin-neighbour:test";
const FOLDER: &str = "target/container";

/// How to run it.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    image: image::Options,
    /// Run the image that is there, instead of building it
    #[arg(long)]
    no_build: bool,
}

/// Builds the image and its neighbour, and runs them side by side with podman.
pub fn container(toolchain: &Toolchain, options: &Options) -> Result<()> {
    if Privilege::find()? != Privilege::Root {
        bail!("the containers take what root's podman gives: run this as root");
    }
    if !options.no_build {
        image::image(toolchain, &options.image)?;
    }
    neighbour(toolchain, Builder::Podman)?;
    let mut test = image::with_settings(&binary(toolchain, "container", false)?);
    test.args(["--neighbour", NEIGHBOUR, "--folder"]).arg(workspace::path(FOLDER));
    step("running the image beside a neighbour", || steps::run(&mut test))
}

/// Builds the neighbour's image.
pub fn neighbour(toolchain: &Toolchain, builder: Builder) -> Result<()> {
    let built = binary(toolchain, "neighbour", true)?;
    let folder = workspace::path("target/neighbour");
    workspace::install(&built, &folder.join("neighbour"))?;
    let mut build = builder.command();
    build.args(["build", "--tag", NEIGHBOUR, "--file"]).arg(workspace::path("deploy/tests/Dockerfile"));
    step(&format!("building {NEIGHBOUR}"), || steps::run(build.arg(&folder)))
}

/// Builds one of the programs in deploy/tests, static when it has to start in an empty image.
pub fn binary(toolchain: &Toolchain, name: &str, is_static: bool) -> Result<PathBuf> {
    let host = toolchain.host()?;
    let mut cargo = toolchain.cargo();
    cargo.args(["build", "--package", "siskin-deploy-tests", "--bin", name]);
    if !is_static {
        step(&format!("building {name}"), || steps::run(&mut cargo))?;
        return Ok(workspace::path("target/debug").join(name));
    }
    cargo.args(["--target", &host, "--config", "profile.dev.strip=true"]);
    cargo.env(agent::target_variable(&host, "RUSTFLAGS"), agent::STATIC);
    step(&format!("building {name}"), || steps::run(&mut cargo))?;
    Ok(workspace::path("target").join(host).join("debug").join(Path::new(name)))
}
