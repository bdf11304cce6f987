//! Growth on this machine.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use siskin_tests::{agent::Agent, cgroup::Cgroup, disk::LoopDevice};

use super::{Curve, Options};
use crate::{
    load::{
        generators::Generators,
        job::{Job, Pace, Sizes, Work},
        network::Network,
    },
    progress,
    reading::Reading,
    stats::median,
};

/// Time for the agent to come to rest after its start.
const REST: Duration = Duration::from_millis(500);
/// Datagrams a second, of which each is an event twice.
const DATAGRAMS: [f64; 4] = [1_000.0, 10_000.0, 30_000.0, 100_000.0];
/// Connections, each of which has both its ends here.
const CONNECTIONS: [usize; 4] = [0, 1_000, 3_000, 9_000];
const FLOWS: [usize; 4] = [10, 100, 300, 900];
const WORKLOADS: [usize; 4] = [1, 10, 100, 400];
const DEVICES: [usize; 3] = [1, 4, 16];

/// Measures every curve.
pub fn measure(options: &Options) -> Result<Vec<Curve>> {
    let network = Network::new()?;
    Ok(vec![
        curve("datagrams a second", "millicores", &DATAGRAMS, |rate| events(&network, rate, options))?,
        curve("open sockets of TCP", "ms of a reading", &CONNECTIONS.map(|of| of as f64 * 2.0), |sockets| {
            inside(&network, || connections(sockets as usize / 2, options))
        })?,
        curve("flows of UDP", "ms of a reading", &FLOWS.map(|of| of as f64), |flows| {
            inside(&network, || datagrams(flows as usize, options))
        })?,
        curve("workloads", "ms of a reading", &WORKLOADS.map(|of| of as f64), |workloads| {
            cgroups(workloads as usize, options)
        })?,
        curve("disks", "ms of a reading", &DEVICES.map(|of| of as f64), |devices| {
            disks(devices as usize, options)
        })?,
    ])
}

fn curve(
    name: &'static str,
    cost: &'static str,
    numbers: &[f64],
    mut of: impl FnMut(f64) -> Result<f64>,
) -> Result<Curve> {
    let mut points = Vec::new();
    for number in numbers {
        let value = of(*number).with_context(|| format!("{number} {name}"))?;
        progress(&format!("{number:.0} {name}: {value:.3} {cost}"));
        points.push((*number, value));
    }
    Ok(Curve { name, cost, points })
}

/// Does the work in a network namespace, on a thread of its own.
fn inside<T: Send>(network: &Network, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let done = scope.spawn(|| {
            network.enter()?;
            work()
        });
        done.join().map_err(|_| anyhow::anyhow!("the load panicked"))?
    })
}

/// Milliseconds of a probe's reading: each time after it was given something to do.
fn reading(
    agent: &Agent,
    probe: &str,
    options: &Options,
    mut work: impl FnMut() -> Result<()>,
) -> Result<f64> {
    let mut milliseconds = Vec::new();
    for _ in 0..options.rounds {
        work()?;
        let reading = Reading::take(agent)?;
        milliseconds.push(reading.metrics.one("siskin_collect_seconds", &[("probe", probe)]) * 1e3);
    }
    Ok(median(&milliseconds))
}

fn start() -> Agent {
    let agent = Agent::start(&[]);
    thread::sleep(REST);
    agent
}

/// Millicores of programs and process.
fn events(network: &Network, per_second: f64, options: &Options) -> Result<f64> {
    let agent = start();
    let job = Job::full(Work::Udp { sizes: Sizes::Same }).paced(Pace::PerSecond(per_second));
    let load = Generators::start(network, &[job], &[]);
    thread::sleep(REST);
    let before = Reading::take(&agent)?;
    thread::sleep(Duration::from_secs_f64(options.seconds));
    let after = Reading::take(&agent)?;
    load.finish()?;
    let cost = |of: &Reading| of.meter().0 + of.meter().1;
    Ok((cost(&after) - cost(&before)) / (after.at - before.at).as_secs_f64() * 1e3)
}

fn connections(count: usize, options: &Options) -> Result<f64> {
    raise_files()?;
    let agent = start();
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
    let address = listener.local_addr()?;
    let mut open = Vec::new();
    for _ in 0..count {
        let near = TcpStream::connect(address).context("cannot connect")?;
        open.push((near, listener.accept().context("cannot accept")?.0));
    }
    reading(&agent, "tcp", options, || {
        for (near, far) in &mut open {
            near.write_all(b"growth").context("cannot send")?;
            far.read_exact(&mut [0; 6]).context("cannot receive")?;
        }
        Ok(())
    })
}

fn datagrams(count: usize, options: &Options) -> Result<f64> {
    raise_files()?;
    let agent = start();
    let mut pairs = Vec::new();
    for _ in 0..count {
        let (near, far) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
        near.connect(far.local_addr()?)?;
        pairs.push((near, far));
    }
    reading(&agent, "udp", options, || {
        for (near, far) in &pairs {
            near.send(b"growth").context("cannot send")?;
            far.recv(&mut [0; 16]).context("cannot receive")?;
        }
        Ok(())
    })
}

fn cgroups(count: usize, options: &Options) -> Result<f64> {
    let agent = start();
    let cgroups: Vec<_> = (0..count).map(|index| Cgroup::new(&format!("growth-{index}"))).collect();
    reading(&agent, "process", options, || {
        for cgroup in &cgroups {
            ensure!(cgroup.command("true").status().context("true does not run")?.success(), "true failed");
        }
        Ok(())
    })
}

fn disks(count: usize, options: &Options) -> Result<f64> {
    let agent = start();
    let devices: Vec<_> = (0..count).map(|_| LoopDevice::new(1 << 20)).collect();
    reading(&agent, "disk", options, || {
        for device in &devices {
            device.read(0, 4096).context("cannot read a loop device")?;
        }
        Ok(())
    })
}

/// Lets this process open as many files as it may.
fn raise_files() -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the calls take a struct of ours.
    let result = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
    };
    ensure!(result == 0, "cannot raise the limit of open files: {}", std::io::Error::last_os_error());
    Ok(())
}
