//! The tests that run in guests: building them, listing them, and what each of them needs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::arch::Arch;
use crate::{
    agent,
    steps::{self, step},
    toolchain::Toolchain,
    workspace,
};

const PACKAGE: &str = "siskin-tests";
/// The profile in Cargo.toml.
const PROFILE: &str = "vm";
/// What the tests need, and which do not run.
const NEEDS: &str = "tests/vm/tests.txt";

/// The built tests.
#[derive(Clone)]
pub struct Suite {
    /// Test binaries by name.
    pub binaries: Vec<(String, PathBuf)>,
    /// Every test: index of its binary, and its name.
    tests: Vec<(usize, String)>,
    /// The load maker.
    pub load: PathBuf,
    /// The program that says what the agent can do.
    pub survey: PathBuf,
}

/// What to do about a test in a guest.
#[derive(Debug, PartialEq)]
pub enum Todo<'a> {
    /// Run it where these are there: probes that are up, or hooks that are attached, separated by commas.
    Run(&'a str),
    /// Do not, for this reason.
    Leave(&'a str),
}

/// The lines of tests/vm/tests.txt.
#[derive(Debug)]
pub struct Rules(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    /// `BINARY`, or `BINARY::BEGINNING`.
    tests: String,
    needs: String,
    /// Why it does not run, when it does not.
    reason: String,
    /// The kernels that the rule is about; empty: all.
    kernels: Vec<String>,
}

impl Rules {
    /// Reads them.
    pub fn read() -> Result<Self> {
        let text =
            fs::read_to_string(workspace::path(NEEDS)).with_context(|| format!("cannot read {NEEDS}"))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut rules = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let Some((tests, rest)) = line.split_once(' ') else {
                bail!("{NEEDS}: `{line}` says nothing of needs")
            };
            let rest = rest.trim();
            let (needs, reason) = rest.split_once(' ').unwrap_or((rest, ""));
            let [tests, needs, reason] = [tests, needs, reason.trim()].map(str::to_owned);
            let not_run = needs.strip_prefix("not-run").and_then(|rest| match rest.strip_prefix('@') {
                Some(kernels) => Some(kernels.split(',').map(str::to_owned).collect()),
                None => rest.is_empty().then(Vec::new),
            });
            if not_run.is_some() == reason.is_empty() {
                bail!("{NEEDS}: `{line}`: a reason for what is not run, and for nothing else");
            }
            rules.push(Rule { tests, needs, reason, kernels: not_run.unwrap_or_default() });
        }
        Ok(Self(rules))
    }

    /// What to do about a test on a kernel: the first rule about it counts.
    pub fn todo(&self, test: &str, kernel: &str) -> Result<Todo<'_>> {
        let matches = |rule: &&Rule| {
            let rest = test.strip_prefix(&rule.tests);
            let about = rest.is_some_and(|rest| rule.tests.contains("::") || rest.starts_with("::"));
            about && (rule.kernels.is_empty() || rule.kernels.iter().any(|of| of == kernel))
        };
        let rule = self.0.iter().find(matches).with_context(|| format!("{NEEDS} has no line for {test}"))?;
        Ok(if rule.reason.is_empty() { Todo::Run(&rule.needs) } else { Todo::Leave(&rule.reason) })
    }
}

impl Suite {
    /// Builds every test binary of the kernel tests for this machine, without a need for libraries, and asks it for its tests.
    pub fn build(toolchain: &Toolchain) -> Result<Self> {
        let mut suite = Self::compile(toolchain, &toolchain.host()?)?;
        for (index, (_, file)) in suite.binaries.iter().enumerate() {
            let list = steps::capture(Command::new(file).args(["--list", "--format=terse"]))?;
            let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
            suite.tests.extend(names.map(|name| (index, name.to_owned())));
        }
        if suite.tests.is_empty() {
            bail!("the test binaries have no tests");
        }
        Ok(suite)
    }

    /// Builds the same tests for another architecture.
    pub fn for_arch(&self, toolchain: &Toolchain, arch: &Arch) -> Result<Self> {
        let triple = agent::triple(arch.name, &toolchain.host()?);
        let suite = Self::compile(toolchain, &triple)?;
        let names = |suite: &Self| suite.binaries.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        if names(&suite) != names(self) {
            bail!("there are other test binaries for {triple}");
        }
        Ok(Self { tests: self.tests.clone(), ..suite })
    }

    fn compile(toolchain: &Toolchain, triple: &str) -> Result<Self> {
        let host = toolchain.host()?;
        if triple != host {
            toolchain.add_target(triple)?;
        }
        let messages = step(&format!("building the tests for guests, {triple}"), || {
            let mut cargo = toolchain.cargo();
            cargo.args(["test", "--no-run", "--package", PACKAGE, "--profile", PROFILE, "--target", triple]);
            cargo.args(["--message-format", "json-render-diagnostics"]);
            cargo.env(agent::target_variable(triple, "RUSTFLAGS"), agent::STATIC);
            if triple != host {
                agent::link_with(&mut cargo, triple)?;
            }
            steps::capture(&mut cargo)
        })?;
        let mut suite =
            Self { binaries: Vec::new(), tests: Vec::new(), load: PathBuf::new(), survey: PathBuf::new() };
        for artifact in messages.lines().filter_map(artifact) {
            match (artifact.kind.as_str(), artifact.name.as_str()) {
                ("test", name) => suite.binaries.push((name.to_owned(), artifact.file)),
                ("bin", "load") => suite.load = artifact.file,
                ("bin", "survey") => suite.survey = artifact.file,
                _ => {}
            }
        }
        suite.binaries.sort();
        if suite.load.as_os_str().is_empty() || suite.survey.as_os_str().is_empty() {
            bail!("cargo built no load maker or no survey");
        }
        Ok(suite)
    }

    /// Every test that the filter allows, as `BINARY::NAME` with its binary.
    pub fn tests<'a>(&'a self, filter: &'a [String]) -> impl Iterator<Item = (String, &'a Path)> {
        let all = self.tests.iter().map(|(index, name)| {
            let (binary, file) = &self.binaries[*index];
            (format!("{binary}::{name}"), file.as_path())
        });
        all.filter(|(name, _)| filter.is_empty() || filter.iter().any(|word| name.contains(word.as_str())))
    }
}

/// An executable in cargo's messages.
struct Artifact {
    kind: String,
    name: String,
    file: PathBuf,
}

/// Reads a message: a program, or a test binary that is no program's or library's own.
fn artifact(message: &str) -> Option<Artifact> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let target = &message["target"];
    let kind = target["kind"][0].as_str()?;
    let is_test = message["profile"]["test"].as_bool()?;
    if is_test != (kind == "test") {
        return None;
    }
    let file = message["executable"].as_str()?.into();
    Some(Artifact { kind: kind.to_owned(), name: target["name"].as_str()?.to_owned(), file })
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn the_first_rule_about_a_test_counts() -> Result<()> {
        let rules = Rules::parse(
            "# comment\n\ntcp::late tcp,iter/task_file\ntcp::bad not-run@6.1,6.2 lacks it\ntcp    tcp\nmeter not-run emulated clocks are coarse\n",
        )?;
        assert_eq!(rules.todo("tcp::late_ones", "6.1")?, Todo::Run("tcp,iter/task_file"));
        assert_eq!(rules.todo("tcp::others", "6.1")?, Todo::Run("tcp"));
        assert_eq!(rules.todo("meter::x", "6.1")?, Todo::Leave("emulated clocks are coarse"));
        assert_eq!(rules.todo("tcp::bad", "6.2")?, Todo::Leave("lacks it"));
        assert_eq!(rules.todo("tcp::bad", "6.12")?, Todo::Run("tcp"));
        assert!(rules.todo("tcp_early::x", "6.1").is_err());
        Ok(())
    }

    #[test]
    fn every_test_file_has_a_rule() -> Result<()> {
        let rules = Rules::read()?;
        for entry in fs::read_dir(workspace::path("tests/tests"))? {
            let file = entry?.path();
            let name = file.file_stem().context("a name")?.to_string_lossy().into_owned();
            rules.todo(&format!("{name}::any"), "6.1")?;
        }
        Ok(())
    }

    #[test]
    fn refuses_rules_without_needs_or_reasons() {
        for text in ["tcp", "tcp not-run", "tcp not-run@6.1", "tcp tcp because"] {
            assert!(Rules::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn takes_test_binaries_and_programs_from_cargos_messages() {
        let message = |kind: &str, test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"x"}},"profile":{{"test":{test}}},"executable":"/x"}}"#
            )
        };
        assert!(artifact(&message("test", true)).is_some());
        assert!(artifact(&message("bin", false)).is_some());
        assert!(artifact(&message("bin", true)).is_none());
        assert!(artifact(&message("lib", true)).is_none());
        assert!(artifact(r#"{"reason":"build-finished","success":true}"#).is_none());
    }
}
