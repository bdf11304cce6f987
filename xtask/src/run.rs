//! Running the agent on this machine, in the place of this process.

use std::{net::SocketAddr, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Result, bail};
use clap::Args;

use crate::{agent, privilege::Privilege, steps, toolchain::Toolchain};

/// How to run the agent.
#[derive(Args)]
// Its group would have the name of the flattened one.
#[group(skip)]
pub struct Options {
    #[command(flatten)]
    build: agent::Options,
    /// Flags of `siskin run`
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<String>,
}

/// Builds the agent and becomes it, so that signals and the exit status are its own.
pub fn run(toolchain: &Toolchain, options: &Options) -> Result<()> {
    let privilege = Privilege::find()?;
    if privilege == Privilege::Absent {
        bail!(
            "the agent must start as root to load eBPF programs, and sudo does not let us: run \
             `cargo xtask build`, then target/release/siskin as root"
        );
    }
    let binary = agent::build(toolchain, &options.build)?;
    let help = steps::capture(Command::new(&binary).args(["run", "--help"]))?;
    if let Some(url) = url(&help, &options.flags) {
        steps::say(&format!("open {url}/ or run: curl -s {url}/metrics"));
    }
    let mut agent = privilege.command(&binary);
    agent.arg("run").args(&options.flags);
    let error = agent.exec();
    Err(error).map_err(|error| anyhow::Error::new(error).context(steps::cannot_start(&agent)))
}

/// Where the agent will listen. Its help knows the default, so that the port stands in one place.
fn url(help: &str, flags: &[String]) -> Option<String> {
    const FLAG: &str = "--web.listen-address";
    let address = given(flags, FLAG).or_else(|| default(help, FLAG))?;
    let Ok(mut address) = address.parse::<SocketAddr>() else {
        return Some(format!("http://{address}"));
    };
    if address.ip().is_unspecified() {
        address.set_ip([127, 0, 0, 1].into());
    }
    Some(format!("http://{address}"))
}

fn given(flags: &[String], name: &str) -> Option<String> {
    let joined = flags.iter().filter_map(|flag| flag.strip_prefix(name)?.strip_prefix('='));
    let pairs = flags.iter().zip(flags.iter().skip(1));
    let separate = pairs.filter_map(|(flag, value)| (flag == name).then_some(value.as_str()));
    joined.chain(separate).last().map(str::to_owned)
}

/// The default in clap's help, which may have wrapped the text around it.
fn default(help: &str, name: &str) -> Option<String> {
    let mut words = help.split_whitespace().skip_while(|word| *word != name);
    words.next();
    let mut of_flag = words.take_while(|word| !word.starts_with("--"));
    of_flag.find(|word| *word == "[default:")?;
    Some(of_flag.next()?.trim_end_matches(']').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELP: &str = "      --budget.cpu <CPU>\n          How much\n          [default: 10m]\n\n      \
        --web.listen-address <ADDRESS>\n          Where to serve [default:\n          127.0.0.1:1]\n\n      \
        --web.telemetry-path <PATH>\n          [default: /metrics]\n";

    fn url_with(flags: &[&str]) -> Option<String> {
        let flags: Vec<_> = flags.iter().map(ToString::to_string).collect();
        url(HELP, &flags)
    }

    #[test]
    fn the_address_comes_from_the_flags_or_the_help() {
        let expect = |flags: &[&str], url: &str| assert_eq!(url_with(flags).as_deref(), Some(url));
        expect(&[], "http://127.0.0.1:1");
        expect(&["--web.listen-address=[::]:7"], "http://127.0.0.1:7");
        expect(&["--web.listen-address", "10.0.0.9:7"], "http://10.0.0.9:7");
        expect(&["--web.listen-address", "node:7"], "http://node:7");
    }

    #[test]
    fn without_a_default_nothing_is_invented() {
        assert_eq!(default(HELP, "--web"), None);
        assert_eq!(default("--a <A>\n --b <B> [default: 1]", "--a"), None);
    }
}
