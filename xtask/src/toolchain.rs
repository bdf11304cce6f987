//! The pinned compiler, the BPF linker and the fuzzer: which ones, and getting them when they are missing.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    steps::{self, step},
    workspace,
};

const LINKER_VERSION: &str = "0.10.3";
const FUZZ_VERSION: &str = "0.13.2";
const PIN_FILE: &str = "rust-toolchain.toml";

/// Variables that would redirect a nested cargo to another compiler, target or folder.
const MISLEADING: [&str; 13] = [
    "CARGO",
    "CARGO_BUILD_BUILD_DIR",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_ENCODED_RUSTDOCFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTC",
    "RUSTC_BOOTSTRAP",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOC",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
];

/// What the outer cargo tells xtask about itself; inherited, it makes build scripts run again.
const ABOUT_XTASK: [&str; 2] = ["CARGO_MANIFEST_", "CARGO_PKG_"];

/// The compiler that `rust-toolchain.toml` names, installed with its components.
pub struct Toolchain {
    channel: String,
}

#[derive(Debug, PartialEq)]
struct Pin<'a> {
    channel: &'a str,
    components: Vec<&'a str>,
}

impl Toolchain {
    /// Reads the pin and installs what is missing of it.
    pub fn ensure() -> Result<Self> {
        let file = workspace::path(PIN_FILE);
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let pin = parse_pin(&text)?;
        install_missing(&pin)?;
        Ok(Self { channel: pin.channel.to_owned() })
    }

    /// The toolchain's cargo, at the workspace's root and in its target folder.
    pub fn cargo(&self) -> Command {
        let mut cargo = self.program("cargo");
        cargo.current_dir(workspace::root()).env("CARGO_TARGET_DIR", workspace::path("target"));
        let names = env::vars_os().map(|(name, _)| name);
        let inherited = names.filter(|name| {
            let name = name.to_string_lossy();
            ABOUT_XTASK.iter().any(|prefix| name.starts_with(prefix))
        });
        for name in MISLEADING.iter().map(Into::into).chain(inherited) {
            cargo.env_remove(name);
        }
        cargo
    }

    /// The target triple that this compiler builds for by itself.
    pub fn host(&self) -> Result<String> {
        let about = steps::capture(self.program("rustc").arg("-vV"))?;
        let host = about.lines().find_map(|line| line.strip_prefix("host: "));
        Ok(host.context("`rustc -vV` names no host")?.to_owned())
    }

    /// The compiler's folder, with its own programs in `bin`.
    pub fn folder(&self) -> Result<PathBuf> {
        let folder = steps::capture(self.program("rustc").args(["--print", "sysroot"]))?;
        Ok(PathBuf::from(folder.trim()))
    }

    /// The pinned version, such as `1.95.0`.
    pub fn channel(&self) -> &str {
        &self.channel
    }

    /// Installs the standard library of another target, unless it is there.
    pub fn add_target(&self, triple: &str) -> Result<()> {
        let mut list = Command::new("rustup");
        list.args(["target", "list", "--installed", "--toolchain", &self.channel]);
        let installed = steps::ask(&mut list)?.unwrap_or_default();
        if installed.lines().any(|line| line.trim() == triple) {
            return Ok(());
        }
        step(&format!("adding target {triple} to Rust {}", self.channel), || {
            let mut rustup = Command::new("rustup");
            steps::run(rustup.args(["target", "add", "--toolchain", &self.channel, triple]))
        })
    }

    /// The absolute path of the pinned BPF linker, installed when it is missing.
    pub fn bpf_linker(&self) -> Result<PathBuf> {
        self.tool("bpf-linker", LINKER_VERSION, &[])
    }

    /// A cargo that has the pinned cargo-fuzz, installed when it is missing.
    pub fn cargo_fuzz(&self) -> Result<Command> {
        let fuzz = self.tool("cargo-fuzz", FUZZ_VERSION, &["fuzz"])?;
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = fuzz.parent().map(Path::to_owned).into_iter().chain(env::split_paths(&path));
        let mut cargo = self.cargo();
        cargo.env("PATH", env::join_paths(folders).context("PATH has a folder that it cannot have")?);
        cargo.arg("fuzz");
        Ok(cargo)
    }

    /// A program of the pinned version, which it says after these words and `--version`.
    fn tool(&self, name: &str, version: &str, words: &[&str]) -> Result<PathBuf> {
        let tools = workspace::path("target/tools");
        let program = tools.join("bin").join(name);
        let said = steps::ask(Command::new(&program).args(words).arg("--version")).ok();
        if said.flatten().is_none_or(|said| !says_version(&said, version)) {
            self.install_tool(&tools, name, version)?;
        }
        Ok(program)
    }

    fn install_tool(&self, tools: &Path, name: &str, version: &str) -> Result<()> {
        let what =
            format!("installing {name} {version} into {} (about two minutes)", workspace::shown(tools));
        step(&what, || {
            let mut cargo = self.cargo();
            // Its own temporary target folder: ours would keep two minutes of objects for nothing.
            cargo.env_remove("CARGO_TARGET_DIR");
            cargo.args(["install", &format!("{name}@{version}"), "--locked", "--force", "--root"]);
            steps::run(cargo.arg(tools))
        })
    }

    /// By way of `rustup run`, which holds whether or not the cargo on PATH is rustup's proxy.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new("rustup");
        command.args(["run", &self.channel, name]);
        command
    }
}

fn install_missing(pin: &Pin<'_>) -> Result<()> {
    if steps::ask(Command::new("rustup").arg("--version"))?.is_none() {
        bail!(
            "rustup is not on PATH; get it from https://rustup.rs: xtask needs it for the compiler \
             that {PIN_FILE} pins and for its rust-src component"
        );
    }
    let mut list = Command::new("rustup");
    list.args(["component", "list", "--installed", "--toolchain"]);
    match steps::ask(list.arg(pin.channel))? {
        None => install_toolchain(pin),
        Some(installed) => add_components(pin, &installed),
    }
}

fn install_toolchain(pin: &Pin<'_>) -> Result<()> {
    step(&format!("installing Rust {}", pin.channel), || {
        let mut rustup = Command::new("rustup");
        rustup.args(["toolchain", "install", pin.channel, "--profile", "minimal"]);
        for component in &pin.components {
            rustup.args(["--component", component]);
        }
        steps::run(&mut rustup)
    })
}

fn add_components(pin: &Pin<'_>, installed: &str) -> Result<()> {
    let missing = missing_components(pin, installed);
    if missing.is_empty() {
        return Ok(());
    }
    let what = format!("adding {} to Rust {}", missing.join(", "), pin.channel);
    step(&what, || {
        let mut rustup = Command::new("rustup");
        rustup.args(["component", "add", "--toolchain", pin.channel]);
        steps::run(rustup.args(missing))
    })
}

/// Installed components carry their target as a suffix, except `rust-src`, which has none.
fn missing_components<'a>(pin: &Pin<'a>, installed: &str) -> Vec<&'a str> {
    let has = |component: &str| {
        let mut rests = installed.lines().filter_map(|line| line.trim().strip_prefix(component));
        rests.any(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let all = pin.components.iter().copied();
    all.filter(|component| !has(component)).collect()
}

fn parse_pin(toml: &str) -> Result<Pin<'_>> {
    let channel = quoted(value(toml, "channel").unwrap_or_default()).next();
    let components = value(toml, "components").unwrap_or("[]");
    if !components.contains(']') {
        bail!("{PIN_FILE}: xtask reads `components` only when it stands on one line");
    }
    Ok(Pin {
        channel: channel.with_context(|| format!("{PIN_FILE} names no channel"))?,
        components: quoted(components).collect(),
    })
}

fn value<'a>(toml: &'a str, key: &str) -> Option<&'a str> {
    toml.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == key).then_some(value)
    })
}

fn quoted(value: &str) -> impl Iterator<Item = &str> {
    value.split('"').skip(1).step_by(2)
}

fn says_version(said: &str, version: &str) -> bool {
    said.split_whitespace().nth(1) == Some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = "# channel = \"0\"\n[toolchain]\nchannel = \"1.95.0\" # pinned\n\
                        profile = \"minimal\"\ncomponents = [\"rustfmt\", \"rust-src\"]\n";

    #[test]
    fn reads_channel_and_components() -> Result<()> {
        let pin = parse_pin(TOML)?;
        assert_eq!(pin.channel, "1.95.0");
        assert_eq!(pin.components, ["rustfmt", "rust-src"]);
        Ok(())
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        assert!(parse_pin("[toolchain]\nprofile = \"minimal\"\n").is_err());
        assert!(parse_pin("channel = \"1.95.0\"\ncomponents = [\n\"clippy\"]\n").is_err());
    }

    #[test]
    fn the_workspace_pin_is_readable() -> Result<()> {
        let text = fs::read_to_string(workspace::path(PIN_FILE))?;
        assert!(parse_pin(&text)?.components.contains(&"rust-src"));
        Ok(())
    }

    #[test]
    fn finds_missing_components() -> Result<()> {
        let pin = parse_pin(TOML)?;
        let host = "rustfmt-x86_64-unknown-linux-gnu\n";
        assert_eq!(missing_components(&pin, host), ["rust-src"]);
        assert!(missing_components(&pin, &format!("{host}rust-src\n")).is_empty());
        assert_eq!(missing_components(&pin, "rust-src\nrustfmts").len(), 1);
        Ok(())
    }

    #[test]
    fn compares_the_whole_version_of_a_tool() {
        assert!(says_version("bpf-linker 0.10.3\n", "0.10.3"));
        assert!(!says_version("bpf-linker 0.10.30", "0.10.3"));
        assert!(!says_version("", "0.10.3"));
    }
}
