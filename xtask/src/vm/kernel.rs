//! Stock kernels of the distribution: finding the newest package of a series, fetching it, and taking out what a guest
//! needs.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{
    arch::{AARCH64, Arch, X86_64},
    host::BUSYBOX,
    packages::{self, Suite},
};
use crate::steps::{self, step};

/// A series of kernels in the matrix.
#[derive(Debug, PartialEq)]
pub struct Series {
    /// `6.12`, or `6.12-arm64`.
    pub name: &'static str,
    /// What the guest is.
    pub arch: &'static Arch,
    /// The suite that has it. The newest suites keep several.
    suite: &'static str,
}

const fn series(name: &'static str, arch: &'static Arch, suite: &'static str) -> Series {
    Series { name, arch, suite }
}

/// The matrix, oldest first, and then another architecture.
pub static SERIES: [Series; 9] = [
    series("5.10", &X86_64, "bullseye-security"),
    series("6.1", &X86_64, "bookworm-security"),
    series("6.12", &X86_64, "bookworm-security"),
    series("6.16", &X86_64, "trixie-backports"),
    series("6.17", &X86_64, "trixie-backports"),
    series("6.18", &X86_64, "trixie-backports"),
    series("7.3", &X86_64, "trixie-backports"),
    // The last long-lived one that attaches nothing to functions on this architecture.
    series("6.1-arm64", &AARCH64, "bookworm-security"),
    series("6.12-arm64", &AARCH64, "bookworm-security"),
];

impl Series {
    /// `6.12`.
    fn version(&self) -> &str {
        self.name.split_once('-').map_or(self.name, |(version, _)| version)
    }
}

/// What the tests need and the kernels have as modules.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "veth", "loop"];

/// A kernel ready to boot.
#[derive(Debug)]
pub struct Kernel {
    /// What it is.
    pub series: &'static Series,
    /// The image.
    pub image: PathBuf,
    /// Modules in the order to load them, uncompressed.
    pub modules: Vec<PathBuf>,
}

/// The series of that name.
pub fn find(name: &str) -> Result<&'static Series> {
    let series = SERIES.iter().find(|series| series.name == name);
    series.with_context(|| {
        let known: Vec<_> = SERIES.iter().map(|series| series.name).collect();
        format!("no kernel {name} in the matrix; it has {}", known.join(", "))
    })
}

/// Fetches the newest kernel of a series, unless it is there.
pub fn fetch(series: &'static Series) -> Result<Kernel> {
    let Series { name, suite, .. } = *series;
    let cache = packages::cache()?;
    let debs = cache.join("debs");
    let packages = Suite::new(suite, series.arch, &cache)
        .and_then(|suite| Ok((newest(&suite.names("linux-")?, series), suite)));
    let files = match packages {
        Ok((Some(names), suite)) => {
            names.iter().map(|name| suite.download(name, &debs)).collect::<Result<_>>()?
        }
        Ok((None, _)) => older(&debs, series, &format!("{suite} has no cloud kernel {name} now"))?,
        Err(error) => older(&debs, series, &format!("{error:#}"))?,
    };
    unpack(series, &files, &cache)
}

/// The newest of the packages fetched before, when the distribution cannot be asked or has dropped the series.
fn older(debs: &Path, series: &Series, because: &str) -> Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(debs).into_iter().flatten().flatten() {
        names.extend(entry.file_name().to_str().and_then(|file| Some(file.split_once('_')?.0.to_owned())));
    }
    let name = series.name;
    let Some(names) = newest(&names, series) else { bail!("cannot fetch kernel {name}: {because}") };
    steps::say(&format!("{because}; using {}, fetched before", names.join(", ")));
    let files = names.iter().map(|name| packages::fetched(debs, name));
    files
        .collect::<Option<_>>()
        .with_context(|| format!("cannot fetch kernel {name}: parts of it are missing"))
}

/// The newest packages of a series among names: an image, or since 6.19 an image and its modules.
fn newest(names: &[String], series: &Series) -> Option<Vec<String>> {
    let flavour = format!("-cloud-{}", series.arch.debian);
    let of_series = |name: &&String| {
        let version = name.strip_prefix("linux-image-").or_else(|| name.strip_prefix("linux-binary-"));
        let version = version.and_then(|version| version.strip_suffix(&flavour));
        version.and_then(|version| version.strip_prefix(series.version())?.strip_prefix('.')).is_some_and(
            |rest| {
                // `0-46`, `117+deb12`; not `0-0.bpo.8`, nor a release candidate.
                let rest = rest.split_once("+deb").map_or(rest, |(patch, release)| {
                    if release.bytes().all(|byte| byte.is_ascii_digit()) { patch } else { "?" }
                });
                rest.split('-')
                    .all(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
            },
        )
    };
    // Beside a split kernel there is an empty package with the old name.
    let newest = names
        .iter()
        .filter(of_series)
        .max_by_key(|name| (numbers(name), name.starts_with("linux-binary-")))?;
    if newest.starts_with("linux-image-") {
        return Some(vec![newest.clone()]);
    }
    let modules = newest.replacen("binary", "modules", 1);
    names.contains(&modules).then(|| vec![newest.clone(), modules])
}

/// The numbers in a name, by which versions compare.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|letter: char| !letter.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Takes the image and the modules out of the packages, unless that was done before.
fn unpack(series: &'static Series, packages: &[PathBuf], cache: &Path) -> Result<Kernel> {
    let first = packages[0].file_stem().context("a package without a name")?;
    let folder = cache.join("unpacked").join(first);
    let image = folder.join("vmlinuz");
    // Also says whether the list of modules is still the one that was taken.
    let list = folder.join(MODULES.join("+"));
    if !list.exists() {
        step(&format!("unpacking {}", first.display()), || take_out(packages, &folder, &image, &list))?;
    }
    let text = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let modules = text.lines().map(|file| folder.join(file)).collect();
    Ok(Kernel { series, image, modules })
}

fn take_out(packages: &[PathBuf], folder: &Path, image: &Path, list: &Path) -> Result<()> {
    // An unfinished one from before may be there.
    let _ = fs::remove_dir_all(folder);
    let whole = folder.join("whole");
    fs::create_dir_all(&whole).with_context(|| format!("cannot make {}", whole.display()))?;
    for package in packages {
        steps::run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&whole))?;
    }
    let mut files = Vec::new();
    walk(&whole, &mut files)?;
    // In `/boot`, or beside the modules since the packages were split.
    let is_image = |path: &&PathBuf| {
        path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with("vmlinuz"))
    };
    let found = files
        .iter()
        .find(is_image)
        .with_context(|| format!("no kernel image in {}", packages[0].display()))?;
    fs::copy(found, image).context("cannot keep the kernel's image")?;
    let mut order = Vec::new();
    for module in MODULES {
        load(module, &files, folder, &mut order)?;
    }
    fs::remove_dir_all(&whole).with_context(|| format!("cannot remove {}", whole.display()))?;
    fs::write(list, order.join("\n")).with_context(|| format!("cannot write {}", list.display()))
}

/// Takes a module out, after those that it depends on; one that no file has is part of the image.
fn load(module: &str, files: &[PathBuf], folder: &Path, order: &mut Vec<String>) -> Result<()> {
    let file = format!("{module}.ko");
    let names = |path: &Path| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default().replace('-', "_");
        name.strip_suffix(".xz").unwrap_or(&name) == file
    };
    let Some(path) = files.iter().find(|path| names(path)) else { return Ok(()) };
    if order.contains(&file) {
        return Ok(());
    }
    let bytes = if path.extension() == Some(OsStr::new("xz")) {
        let output = Command::new(BUSYBOX).args(["xz", "-dc"]).arg(path).output();
        output.with_context(|| format!("cannot unpack {}", path.display()))?.stdout
    } else {
        fs::read(path).with_context(|| format!("cannot read {}", path.display()))?
    };
    let needs = needs(&bytes).with_context(|| format!("{} is no module", path.display()))?;
    for module in needs {
        load(&module, files, folder, order)?;
    }
    fs::write(folder.join(&file), &bytes).with_context(|| format!("cannot write {file}"))?;
    order.push(file);
    Ok(())
}

/// The modules that a module depends on, which its section `.modinfo` lists: `depends=a,b` between zero bytes.
fn needs(module: &[u8]) -> Option<Vec<String>> {
    const FIELD: &[u8] = b"\0depends=";
    let begin = module.windows(FIELD.len()).position(|window| window == FIELD)? + FIELD.len();
    let value = module[begin..].split(|byte| *byte == 0).next()?;
    let value = str::from_utf8(value).ok()?;
    Some(value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest_of(names: &[&str], name: &'static str) -> Option<Vec<String>> {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let arch = if name.ends_with("-arm64") { &AARCH64 } else { &X86_64 };
        newest(&names, &series(name, arch, ""))
    }

    #[test]
    fn the_newest_is_by_number_and_of_its_series() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-57-amd64",
            "linux-image-6.1.0-58-cloud-amd64-unsigned",
            "linux-image-6.1.0-0.deb11.60-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-headers-6.1.0-99-cloud-amd64",
            "linux-image-6.12.115+deb12-cloud-arm64",
        ];
        let newest = |series| newest_of(&names, series).and_then(|found| found.into_iter().next());
        assert_eq!(newest("6.1").as_deref(), Some(names[1]));
        assert_eq!(newest("6.12").as_deref(), Some(names[5]));
        assert_eq!(newest("6.12-arm64").as_deref(), Some(names[7]));
        assert_eq!(newest("6"), None);
        assert_eq!(newest("6.16"), None);
    }

    #[test]
    fn split_packages_come_together_or_not_at_all() {
        let names = [
            "linux-binary-7.3.4+deb13-cloud-amd64",
            "linux-binary-7.3.10+deb13-cloud-amd64",
            "linux-modules-7.3.10+deb13-cloud-amd64",
            "linux-image-7.3.10+deb13-cloud-amd64",
        ];
        assert_eq!(newest_of(&names, "7.3"), Some(vec![names[1].to_owned(), names[2].to_owned()]));
        assert_eq!(newest_of(&names[..2], "7.3"), None);
        assert_eq!(newest_of(&names[1..], "7.3"), newest_of(&names, "7.3"));
    }

    #[test]
    fn reads_what_a_module_needs() {
        let module = b"\x7fELF...\0license=GPL\0depends=virtio,virtio-ring\0name=virtio_pci\0";
        assert_eq!(needs(module).expect("a list"), ["virtio", "virtio_ring"]);
        assert_eq!(needs(b"\0depends=\0"), Some(Vec::new()));
        assert_eq!(needs(b"no module"), None);
    }
}
