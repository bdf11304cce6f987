//! The manifest on a cluster, from apply to delete.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    container, image,
    steps::{self, step},
    toolchain::Toolchain,
    workspace,
};

/// On which cluster, with what.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    image: image::Options,
    /// Use the agent's image that the nodes have, instead of building it
    #[arg(long)]
    no_build: bool,
    /// A command that brings an image's archive to every node, such as "kind load image-archive"; the file's name is added
    #[arg(long, value_name = "COMMAND")]
    load: Option<String>,
    /// The manifest to apply [default: deploy/daemonset.yaml]
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
}

/// Builds both images, brings them to the cluster that KUBECONFIG names, and runs the test.
pub fn e2e(toolchain: &Toolchain, options: &Options) -> Result<()> {
    if env::var_os("KUBECONFIG").is_none() {
        bail!("set KUBECONFIG to the cluster that may be used for this");
    }
    if !options.no_build {
        image::image(toolchain, &options.image)?;
        load(options, &options.image.archive())?;
    }
    let builder = options.image.builder()?;
    container::neighbour(toolchain, builder)?;
    let archive = workspace::path("target/siskin-neighbour.tar");
    image::write(builder, container::NEIGHBOUR, &archive)?;
    load(options, &archive)?;
    let mut test = Command::new(container::binary(toolchain, "cluster", false)?);
    test.args(["--neighbour", container::NEIGHBOUR]);
    if let Some(manifest) = &options.manifest {
        test.arg("--manifest").arg(manifest);
    }
    step("running on the cluster", || steps::run(&mut test))
}

fn load(options: &Options, archive: &Path) -> Result<()> {
    let Some(load) = &options.load else { return Ok(()) };
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{load} \"$1\""), "sh"]).arg(archive);
    step(&format!("loading {}", workspace::shown(archive)), || steps::run(&mut shell))
}
