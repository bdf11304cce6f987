//! Where and when a report was made.

use std::{fs, process::Command, thread};

/// One paragraph: machine, kernel, agent, date, and how busy the machine was with other things before.
pub fn describe() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown CPU", |(_, model)| model);
    let cpus = thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    let busy = read("/proc/loadavg");
    let agent = siskin_tests::agent::binary();
    let version = asked(Command::new(agent).arg("--version"));
    let date = asked(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]));
    format!(
        "Measured {date} on {model}, {cpus} CPUs, Linux {}, {}, `{version}`; load average before: {}.\n",
        kernel.trim(),
        std::env::consts::ARCH,
        busy.split(' ').next().unwrap_or_default(),
    )
}

fn asked(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or("unknown").trim().to_owned()
}
