//! What Kubernetes itself says to the pods of the policies' tests: its admission plugin, built from `deploy/tests/admission`. `cargo xtask
//! admission` builds both and starts this.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use serde_json::{Value, json};
use siskin_deploy_tests::{
    manifest,
    policy::{liberties, pod},
};

#[derive(Parser)]
struct Options {
    /// The program that asks the plugin
    #[arg(long)]
    plugin: PathBuf,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("admission: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let liberties = liberties();
    let digest = format!("ghcr.io/siskin-agent/siskin@sha256:{}", "0".repeat(64));
    let mut pinned = pod();
    pinned["spec"]["containers"][0]["image"] = json!(digest);
    // The binding is for the agent's namespace alone.
    let mut elsewhere = liberties[0].pod.clone();
    elsewhere["metadata"]["namespace"] = json!("shop");
    let mut asked = vec![
        ("the DaemonSet's pod", pod(), None),
        ("the same by digest", pinned, None),
        ("another image in another namespace", elsewhere, None),
    ];
    asked.extend(
        liberties.iter().map(|liberty| (liberty.what.as_str(), liberty.pod.clone(), Some(liberty.against))),
    );
    let pods: Vec<_> = asked.iter().map(|(_, pod, _)| pod).collect();
    let answers = ask(options, &pods)?;
    ensure!(answers.len() == asked.len(), "{} pods and {} answers", asked.len(), answers.len());
    for ((what, _, against), said) in asked.iter().zip(&answers) {
        match against {
            None => ensure!(said.is_empty(), "{what} is turned away: {said}"),
            Some(rule) => {
                ensure!(
                    said.contains(&format!("denied request: {rule}")),
                    "{what} is turned away for {rule}: {said:?}"
                );
            }
        }
        println!("{what}: {}", if said.is_empty() { "let in" } else { said });
    }
    println!("Kubernetes's own plugin lets in 3 pods and turns away {}, each by its rule", liberties.len());
    Ok(())
}

/// What the plugin says to each pod, nothing when it lets it in.
fn ask(options: &Options, pods: &[&Value]) -> Result<Vec<String>> {
    let mut plugin = Command::new(&options.plugin)
        .arg(manifest::path("policy/validating-admission-policy.yaml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", options.plugin.display()))?;
    let mut input = plugin.stdin.take().context("the plugin has no stdin")?;
    for pod in pods {
        writeln!(input, "{pod}").context("the plugin takes no pods")?;
    }
    drop(input);
    let output = plugin.wait_with_output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}
