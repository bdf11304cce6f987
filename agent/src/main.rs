//! The binary `siskin`: parse, log, run; nothing else.

use std::process::ExitCode;

use clap::Parser as _;
use siskin::{
    agent, check,
    cli::{Cli, Command, LogFormat, Run},
    docs,
};
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(flags) => {
            log(&flags);
            agent::run(&flags)
        }
        Command::Check(flags) => {
            let report = check::check(&flags);
            print!("{}", if flags.json { report.json() } else { report.text() });
            return ExitCode::from(u8::from(!report.can_run));
        }
        Command::Docs { document } => {
            print!("{}", docs::text(document));
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("siskin: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn log(flags: &Run) {
    let builder = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::from_level(flags.log_level.into()))
        .with_target(false)
        .with_writer(std::io::stderr);
    match flags.log_format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().init(),
    }
}
