//! What watches the agents, on real tools: promtool and amtool read the files, a Prometheus runs every expression.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    agent,
    privilege::Privilege,
    steps::{self, step},
    toolchain::Toolchain,
    workspace,
};

const FOLDER: &str = "deploy/monitoring";
/// Debian's packages of the tools. They are unpacked, not installed: nothing starts by itself.
const PACKAGES: [&str; 2] = ["prometheus", "prometheus-alertmanager"];
/// Who hears of which severity, in the example for the Alertmanager.
const RECEIVERS: [(&str, &str); 3] = [("critical", "pager"), ("warning", "tickets"), ("info", "nobody")];
const TOOLS: &str = "target/tools/prometheus";

/// Checks rules and configuration, runs their unit tests, then every expression of rules and dashboards.
pub fn monitoring(toolchain: &Toolchain) -> Result<()> {
    let privilege = Privilege::find()?;
    let tools = Tools::ensure(privilege)?;
    step("checking rules, and running their unit tests", || tools.check())?;
    if privilege == Privilege::Absent {
        bail!("a real agent loads eBPF programs: run this as root, or as a user whom sudo lets");
    }
    let agent = agent::build(toolchain, &agent::Options::default())?;
    step("building the test", || {
        steps::run(toolchain.cargo().args(["build", "--package", "siskin-monitoring"]))
    })?;
    step("running every expression on a real Prometheus", || {
        let mut live = privilege.command(Path::new("/usr/bin/env"));
        // As an argument, because sudo drops variables.
        let mut variable = std::ffi::OsString::from("SISKIN_BIN=");
        variable.push(&agent);
        live.arg(variable).arg(workspace::path("target/debug/siskin-monitoring"));
        steps::run(live.args(["live", "--prometheus"]).arg(tools.path("prometheus")))
    })
}

struct Tools {
    folder: PathBuf,
}

impl Tools {
    fn ensure(privilege: Privilege) -> Result<Self> {
        let tools = Self { folder: workspace::path(TOOLS).join("usr/bin") };
        if !["prometheus", "promtool", "amtool"].iter().all(|name| tools.path(name).exists()) {
            step(&format!("unpacking Debian's prometheus into {TOOLS}"), || unpack(privilege))?;
        }
        Ok(tools)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn check(&self) -> Result<()> {
        let files = |folder: &str, suffix: &str| -> Result<Vec<PathBuf>> {
            let what = || format!("cannot list {folder}");
            let entries = fs::read_dir(workspace::path(folder)).with_context(what)?;
            let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
            paths.retain(|path| path.to_string_lossy().ends_with(suffix));
            paths.sort();
            if paths.is_empty() {
                bail!("{folder} has no files *{suffix}");
            }
            Ok(paths)
        };
        let promtool = || Command::new(self.path("promtool"));
        steps::run(promtool().args(["check", "rules"]).args(files(FOLDER, ".rules.yaml")?))?;
        steps::run(
            promtool().args(["test", "rules"]).args(files(&format!("{FOLDER}/tests"), ".test.yaml")?),
        )?;
        let example = workspace::path(FOLDER).join("alertmanager.yaml");
        let amtool = || Command::new(self.path("amtool"));
        steps::run(amtool().arg("check-config").arg(&example))?;
        for (severity, receiver) in RECEIVERS {
            let mut test = amtool();
            test.args([
                "config",
                "routes",
                "test",
                &format!("--verify.receivers={receiver}"),
                "--config.file",
            ]);
            test.arg(&example).args(["alertname=SiskinAny", &format!("severity={severity}")]);
            steps::run(&mut test)?;
        }
        Ok(())
    }
}

fn unpack(privilege: Privilege) -> Result<()> {
    let folder = workspace::path(TOOLS);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {TOOLS}"))?;
    let download = || {
        let mut apt = Command::new("apt-get");
        apt.arg("download").args(PACKAGES).current_dir(&folder);
        steps::run(&mut apt)
    };
    if download().is_err() {
        steps::say("the lists of packages are missing or old");
        steps::run(privilege.command(Path::new("/usr/bin/apt-get")).arg("update"))?;
        download().context("this needs Debian or Ubuntu, whose packages it unpacks")?;
    }
    for entry in fs::read_dir(&folder)? {
        let package = entry?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            steps::run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&folder))?;
            fs::remove_file(&package)?;
        }
    }
    Ok(())
}
