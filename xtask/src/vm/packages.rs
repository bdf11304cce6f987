//! Packages of the distribution, fetched as they are: nothing of them is installed, and the machine's own sources and lists stay.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::arch::Arch;
use crate::steps::{self, step};

/// A list of packages is asked for again after this.
const LIST_AGE: Duration = Duration::from_secs(24 * 3600);

/// What the distribution's lists are signed with.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where packages and kernels are kept, outside of the tree: they survive `cargo clean` and serve every checkout.
pub fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|path| Path::new(path).is_absolute()) {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
            .join(".cache"),
    };
    Ok(base.join("siskin/kernels"))
}

/// A suite of the distribution for one architecture, on the mirror that this machine uses.
pub struct Suite {
    name: String,
    arch: &'static Arch,
    folder: PathBuf,
}

impl Suite {
    /// Reads the suite's list of packages, unless that was done lately.
    pub fn new(name: &str, arch: &'static Arch, cache: &Path) -> Result<Self> {
        let folder = cache.join("apt").join(format!("{name}-{}", arch.debian));
        let suite = Self { name: name.to_owned(), arch, folder };
        let read = suite.folder.join("read");
        let age = fs::metadata(&read).and_then(|it| it.modified()).ok().and_then(|at| at.elapsed().ok());
        if age.is_none_or(|age| age > LIST_AGE) {
            let what = format!("reading the list of packages of {name} for {}", arch.debian);
            step(&what, || suite.update())?;
            fs::write(&read, "").with_context(|| format!("cannot write {}", read.display()))?;
        }
        Ok(suite)
    }

    fn update(&self) -> Result<()> {
        let mirror = mirror(&self.name)?;
        for folder in ["lists/partial", "cache/archives/partial"] {
            let folder = self.folder.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let source = format!(
            "Types: deb\nURIs: {mirror}\nSuites: {}\nComponents: main\nArchitectures: {}\n\
             Signed-By: {KEYRING}\n",
            self.name, self.arch.debian
        );
        let file = self.folder.join("suite.sources");
        fs::write(&file, source).with_context(|| format!("cannot write {}", file.display()))?;
        steps::run(self.apt("apt-get").args(["update", "--error-on=any"]))
    }

    /// An apt program that sees this suite alone.
    fn apt(&self, program: &str) -> Command {
        let option = |name: &str, path: &str| format!("{name}={}", self.folder.join(path).display());
        let mut apt = Command::new(program);
        apt.args(["-q", "-o", "APT::Sandbox::User=", "-o", "Dir::Etc::SourceParts=/dev/null"]);
        for name in ["APT::Architecture", "APT::Architectures"] {
            apt.args(["-o", &format!("{name}={}", self.arch.debian)]);
        }
        for (name, path) in [
            ("Dir::Etc::SourceList", "suite.sources"),
            ("Dir::State::Lists", "lists"),
            ("Dir::Cache", "cache"),
        ] {
            apt.args(["-o", &option(name, path)]);
        }
        apt.stdin(Stdio::null());
        apt
    }

    /// The names of its packages that begin so.
    pub fn names(&self, begin: &str) -> Result<Vec<String>> {
        let names = steps::capture(self.apt("apt-cache").args(["pkgnames", begin]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Fetches a package into a folder, unless one is there.
    pub fn download(&self, package: &str, debs: &Path) -> Result<PathBuf> {
        fs::create_dir_all(debs).with_context(|| format!("cannot make {}", debs.display()))?;
        if let Some(file) = fetched(debs, package) {
            return Ok(file);
        }
        step(&format!("fetching {package}"), || {
            steps::run(
                self.apt("apt-get").args(["download", package]).current_dir(debs).stdout(Stdio::null()),
            )
        })?;
        fetched(debs, package)
            .with_context(|| format!("apt fetched {package} into another folder than {}", debs.display()))
    }
}

/// The mirror of the distribution that this machine uses, for a suite.
pub fn mirror(suite: &str) -> Result<String> {
    let (label, known) = if suite.ends_with("-security") {
        ("Debian-Security", "http://deb.debian.org/debian-security/")
    } else {
        ("Debian", "http://deb.debian.org/debian/")
    };
    let mirrors = steps::ask(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        "Origin: Debian",
        &format!("Label: {label}"),
    ]))
    .context("cannot ask apt for its sources")?;
    let mirrors = mirrors.context("this machine has no apt: the kernels are packages of Debian")?;
    Ok(mirrors.lines().next().unwrap_or(known).to_owned())
}

/// The file of a package fetched before.
pub fn fetched(debs: &Path, package: &str) -> Option<PathBuf> {
    let mut entries = fs::read_dir(debs).ok()?.flatten().map(|entry| entry.path());
    entries.find(|path| {
        let file = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        file.strip_prefix(package).is_some_and(|rest| rest.starts_with('_') && rest.ends_with(".deb"))
    })
}
