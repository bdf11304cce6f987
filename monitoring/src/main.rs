//! Makes what is made of deploy/, and runs every expression on a real Prometheus. `cargo xtask docs` and
//! `cargo xtask monitoring` start it.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};
use siskin_monitoring::{files, live};

/// Makes and tests what watches the agents.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the dashboards and the PrometheusRule
    Generate {
        /// Write nothing; fail when a file is not what would be written
        #[arg(long)]
        check: bool,
    },
    /// Run every expression on a Prometheus that scrapes an agent under load (as root; SISKIN_BIN is the agent)
    Live {
        /// The server's binary
        #[arg(long, value_name = "FILE")]
        prometheus: PathBuf,
    },
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Generate { check: true } => files::check(),
        Command::Generate { check: false } => {
            for file in files::write()? {
                println!("wrote {file}");
            }
            Ok(())
        }
        Command::Live { prometheus } => {
            println!("{}", live::run(&prometheus)?);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
