//! Load in steps until the machine is full: what Siskin costs against its budget, what it estimates
//! against the truth, and how good that is beside the best that the budget allows.

mod calibration;
mod chart;
mod contract;
mod figure;
mod line;
mod measure;
mod optimum;
mod outcome;
mod record;
mod report;
mod report_errors;
mod steps;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::machine;
use outcome::Measured;

/// How to measure the budget.
#[derive(Args)]
pub struct Options {
    /// Seconds of each step of the load
    #[arg(long, default_value_t = 12.0)]
    pub seconds: f64,
    /// Budgets, as --budget.cpu takes them
    #[arg(long, value_name = "CPU", default_values = ["5m", "10m", "50m"])]
    pub cpu: Vec<String>,
    /// Only steps whose name contains one of these words, separated by commas
    #[arg(long, value_name = "WORD,...", default_value = "", hide_default_value = true)]
    pub only: String,
    /// Where to draw cost and errors
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// Measures and reports.
pub fn run(options: &Options) -> Result<String> {
    let machine = machine::describe();
    // Names of steps alone need no ground.
    let names = steps::steps("loop", Path::new("tiny"), &options.only);
    ensure!(!names.is_empty(), "no step's name contains any of {:?}", options.only);
    let ground = measure::Ground::new()?;
    let steps = ground.steps(&options.only);
    let calibrations = calibration::calibrate(&ground, &steps)?;
    let mut all = Vec::new();
    for cpu in &options.cpu {
        let run = measure::with_budget(cpu, &ground, &steps, options.seconds)?;
        all.push(Measured::new(run, &calibrations));
    }
    let labels: Vec<_> = steps.iter().map(|step| step.label).collect();
    if let Some(svg) = &options.svg {
        std::fs::write(svg, chart::draw(&all, &labels))
            .with_context(|| format!("cannot write {}", svg.display()))?;
    }
    Ok(report::report(&all, &labels, &machine, options.seconds))
}
