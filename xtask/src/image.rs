//! The container image, built by whichever builder there is.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    privilege::Privilege,
    steps::{self, step},
    toolchain::Toolchain,
    workspace,
};

const DOCKERFILE: &str = "Dockerfile";
/// Where the manifest names the image that it wants.
const MANIFEST: &str = "deploy/daemonset.yaml";
/// The image as a file.
const ARCHIVE: &str = "target/siskin-image.tar";
/// Where the base is put together.
const BASE_FOLDER: &str = "target/image-base";
const BASE: &str = "localhost/siskin-build";
/// What the base has beside Debian's smallest system: what the official compiler image has.
const BASE_PACKAGES: &str = "ca-certificates,gcc,libc6-dev";
/// Settings with which containers run where root may not raise resource limits, and without systemd.
const SETTINGS: &str = "deploy/tests/containers.conf";

/// How to build the image.
#[derive(Args)]
// Others flatten it, and would have a group of the same name.
#[group(skip)]
pub struct Options {
    /// What builds it; by default the first of these that is installed
    #[arg(long)]
    builder: Option<Builder>,
    /// The image's name; by default the one that deploy/daemonset.yaml asks for
    #[arg(long, value_name = "NAME")]
    tag: Option<String>,
    /// Build on a base made here by debootstrap from this machine's compiler, instead of the pinned image: needs root and no
    /// registry of images (buildah and podman)
    #[arg(long)]
    local_base: bool,
    /// The file that the image is written into, for `docker load`, `ctr images import` and the like
    /// [default: target/siskin-image.tar]
    #[arg(long, value_name = "FILE")]
    archive: Option<PathBuf>,
}

impl Options {
    /// What builds the image.
    pub fn builder(&self) -> Result<Builder> {
        self.builder.map_or_else(Builder::find, Ok)
    }

    /// The file that the image is written into.
    pub fn archive(&self) -> PathBuf {
        self.archive.clone().unwrap_or_else(|| workspace::path(ARCHIVE))
    }
}

/// A program that builds images.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Builder {
    /// Without a daemon
    Buildah,
    /// Without a daemon, and runs them too
    Podman,
    /// With BuildKit
    Docker,
}

impl Builder {
    const ALL: [Self; 3] = [Self::Buildah, Self::Podman, Self::Docker];

    fn name(self) -> &'static str {
        match self {
            Self::Buildah => "buildah",
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }

    /// The first that is installed.
    pub fn find() -> Result<Self> {
        for builder in Self::ALL {
            if steps::ask(Command::new(builder.name()).arg("--version"))?.is_some() {
                return Ok(builder);
            }
        }
        bail!("nothing here builds images: install buildah, podman or docker (with BuildKit)")
    }

    /// The builder, with settings that suit this machine.
    pub fn command(self) -> Command {
        with_settings(Path::new(self.name()))
    }
}

/// A program that uses containers. What the user set counts; else it gets those of the tests.
pub fn with_settings(program: &Path) -> Command {
    let mut command = Command::new(program);
    if env::var_os("CONTAINERS_CONF").is_none() {
        command.env("CONTAINERS_CONF", workspace::path(SETTINGS));
    }
    // buildah does not read the runtime from there.
    if env::var_os("BUILDAH_RUNTIME").is_none() {
        command.env("BUILDAH_RUNTIME", "runc");
    }
    command
}

/// Builds the image and says how large it is.
pub fn image(toolchain: &Toolchain, options: &Options) -> Result<()> {
    let builder = options.builder()?;
    let tag = options.tag.clone().map_or_else(wanted, Ok)?;
    let mut build = builder.command();
    build.current_dir(workspace::root()).args(["build", "--tag", &tag]);
    build.arg("--build-arg").arg(format!("REVISION={}", revision()?));
    if options.local_base {
        if builder == Builder::Docker {
            bail!("--local-base needs buildah or podman");
        }
        let base = local_base(builder, toolchain)?;
        // The pinned image is replaced by name, so that the Dockerfile stays as it is.
        build.arg("--pull=never").arg("--build-context");
        build.arg(format!("{}=container-image://{base}", pinned(&read(DOCKERFILE)?)?));
        // A proxy's certificates, and its names.
        build.args(["--network=host", "--volume=/etc/ssl/certs:/etc/ssl/certs:ro"]);
    }
    step(&format!("building {tag} with {}", builder.name()), || steps::run(build.arg(".")))?;
    let archive = options.archive();
    step(&format!("writing {}", workspace::shown(&archive)), || write(builder, &tag, &archive))?;
    let bytes = fs::metadata(&archive).context("the archive is gone")?.len();
    steps::say(&format!("{tag} is {:.2} MB", bytes as f64 / 1e6));
    Ok(())
}

/// Writes an image into a file.
pub fn write(builder: Builder, tag: &str, archive: &Path) -> Result<()> {
    // Neither tool writes over an archive.
    if archive.exists() {
        fs::remove_file(archive).with_context(|| format!("cannot replace {}", archive.display()))?;
    }
    let mut command = builder.command();
    match builder {
        Builder::Buildah => {
            command.args(["push", tag]).arg(format!("docker-archive:{}:{tag}", archive.display()))
        }
        Builder::Podman | Builder::Docker => command.args(["save", "--output"]).arg(archive).arg(tag),
    };
    steps::run(&mut command)
}

/// A Debian with this machine's compiler, laid out as the official image of it is.
fn local_base(builder: Builder, toolchain: &Toolchain) -> Result<String> {
    if Privilege::find()? != Privilege::Root {
        bail!("--local-base unpacks a system with debootstrap: run this as root");
    }
    let tag = format!("{BASE}:{}", toolchain.channel());
    if steps::ask(builder.command().args(["inspect", "--type=image", &tag]))?.is_some() {
        return Ok(tag);
    }
    let folder = workspace::path(BASE_FOLDER);
    let root = folder.join("root");
    step(&format!("making {tag}"), || {
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {BASE_FOLDER}"))?;
        let include = format!("--include={BASE_PACKAGES}");
        steps::run(Command::new("debootstrap").args(["--variant=minbase", &include, "bookworm"]).arg(&root))?;
        let (cargo, rustup) = (root.join("usr/local/cargo/bin"), root.join("usr/local/rustup/toolchains"));
        fs::create_dir_all(&rustup).context("cannot make a folder for the compiler")?;
        fs::create_dir_all(&cargo).context("cannot make a folder for cargo")?;
        let installed = rustup.join(format!("{}-{}", toolchain.channel(), toolchain.host()?));
        steps::run(
            Command::new("cp")
                .args(["--recursive", "--no-dereference"])
                .arg(toolchain.folder()?)
                .arg(installed),
        )?;
        let which = steps::capture(Command::new("sh").args(["-c", "command -v rustup"]))?;
        for name in ["rustup", "cargo", "rustc"] {
            fs::copy(which.trim(), cargo.join(name))
                .with_context(|| format!("cannot copy {}", which.trim()))?;
        }
        let file = folder.join(DOCKERFILE);
        fs::write(&file, BASE_DOCKERFILE).context("cannot write the base's Dockerfile")?;
        let mut build = builder.command();
        build.args(["build", "--tag", &tag, "--file"]).arg(file);
        steps::run(build.arg(&folder))?;
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {BASE_FOLDER}"))
    })?;
    Ok(tag)
}

const BASE_DOCKERFILE: &str = "FROM scratch\nCOPY root /\n\
    ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo \
    PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n";

/// The image that the Dockerfile builds in, with its digest.
fn pinned(dockerfile: &str) -> Result<&str> {
    let from = dockerfile.lines().find_map(|line| line.strip_prefix("FROM ")?.strip_suffix(" AS build"));
    from.context("the Dockerfile has no `FROM ... AS build`")
}

/// The image that the manifest asks for.
fn wanted() -> Result<String> {
    let manifest = read(MANIFEST)?;
    let image = manifest.lines().find_map(|line| line.trim().strip_prefix("image: "));
    Ok(image.with_context(|| format!("{MANIFEST} names no image"))?.to_owned())
}

fn read(file: &str) -> Result<String> {
    fs::read_to_string(workspace::path(file)).with_context(|| format!("cannot read {file}"))
}

/// The commit, and whether the tree differs from it.
fn revision() -> Result<String> {
    let mut git = Command::new("git");
    git.current_dir(workspace::root()).args([
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ]);
    Ok(steps::ask(&mut git)?.map_or_else(|| "unknown".to_owned(), |commit| commit.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dockerfile_builds_with_the_pinned_compiler() -> Result<()> {
        let dockerfile = read(DOCKERFILE)?;
        let (name, digest) = pinned(&dockerfile)?.split_once('@').context("no digest")?;
        let digits = digest.strip_prefix("sha256:").context("no SHA-256")?;
        assert!(digits.len() == 64 && digits.chars().all(|digit| digit.is_ascii_hexdigit()), "{digest}");
        assert!(name.contains(&format!(":{}-", Toolchain::ensure()?.channel())), "{name}");
        Ok(())
    }

    #[test]
    fn the_build_sees_every_member_of_the_workspace() -> Result<()> {
        // cargo reads all of their manifests, whichever it builds.
        let metadata =
            cargo_metadata::MetadataCommand::new().current_dir(workspace::root()).no_deps().exec()?;
        let seen = read(".dockerignore")?;
        for package in metadata.workspace_packages() {
            let folder = package.manifest_path.parent().context("a manifest without a folder")?;
            let folder = workspace::shown(folder.as_std_path());
            assert!(seen.lines().any(|line| line == format!("!/{folder}")), "{folder} is ignored");
        }
        Ok(())
    }

    #[test]
    fn the_image_and_the_manifest_have_the_version() -> Result<()> {
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(wanted()?.rsplit(':').next(), Some(version));
        let label = format!("org.opencontainers.image.version=\"{version}\"");
        assert!(read(DOCKERFILE)?.contains(&label), "the Dockerfile has another version than {version}");
        Ok(())
    }
}
