//! What is measured inside of a guest, whose clock counts instructions: how a reading grows with
//! CPUs, and what a datagram costs on either hook.

use std::{
    collections::BTreeMap,
    fs::File,
    net::UdpSocket,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use siskin_tests::{agent::Agent, cgroup::Cgroup, guest::is_guest};

use crate::{
    empty::{EXITS, Empty, Pair, UDP},
    probes::{ON_TRACEPOINTS, SAMPLED, SKIPPED},
    reading::Reading,
    stats::median,
};

/// What to measure in a guest.
#[derive(Args)]
pub struct Options {
    /// What
    what: What,
    /// The object with the empty programs
    #[arg(long, value_name = "FILE")]
    empty_object: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// A reading, a start, and what they take
    Cpus,
    /// A datagram on the return of functions, and on tracepoints
    Datagrams,
}

/// What a guest of some size said.
#[derive(Debug, Deserialize, Serialize)]
pub struct Machine {
    /// CPUs that there may be.
    pub cpus: usize,
    /// Seconds from the start until it serves.
    pub start_seconds: f64,
    /// CPU seconds of the process for a scrape.
    pub scrape_seconds: f64,
    /// Seconds of a reading by probe.
    pub readings: BTreeMap<String, f64>,
    /// Resident memory of the process.
    pub rss_bytes: f64,
    /// The most that the maps take.
    pub maps_bytes: f64,
}

/// What a datagram costs on one kind of hook, in seconds per run: sampled and skipped, and an empty
/// program beside each.
#[derive(Debug, Deserialize, Serialize)]
pub struct Way {
    /// Programs of Siskin that ran, and on what.
    pub hook: String,
    /// Sent and received, each: sampled, an empty one beside it, skipped, an empty one beside it.
    pub seconds: [[f64; 4]; 2],
}

/// Readings of which the middle one counts.
const READINGS: usize = 9;
/// Datagrams between two readings of a program's cost.
const DATAGRAMS: usize = 2000;

/// Measures and says it in one line.
pub fn run(options: &Options) -> Result<String> {
    if !is_guest() {
        bail!("this is for guests: use `cargo xtask bench growth`");
    }
    Ok(match options.what {
        What::Cpus => serde_json::to_string(&machine()?)?,
        What::Datagrams => {
            let object = options.empty_object.as_ref().context("--empty-object is missing")?;
            let ways = [
                way(object, "return of the function", &EXITS, &[])?,
                way(object, "tracepoint", &UDP, &[ON_TRACEPOINTS])?,
            ];
            serde_json::to_string(&ways)?
        }
    } + "\n")
}

/// A little of everything, on one CPU: what the others never saw is to cost nothing.
fn work(disk: &File, sockets: &[UdpSocket; 2]) -> Result<()> {
    let buffer = &mut *Box::new(Page([0; 4096]));
    for page in 0..8 {
        disk.read_exact_at(&mut buffer.0, page * 4096).context("cannot read the disk")?;
    }
    datagrams(sockets, 8)
}

#[repr(align(4096))]
struct Page([u8; 4096]);

fn datagrams([sender, receiver]: &[UdpSocket; 2], count: usize) -> Result<()> {
    for _ in 0..count {
        sender.send(&[0; 64]).context("cannot send")?;
        receiver.recv(&mut [0; 64]).context("cannot receive")?;
    }
    Ok(())
}

fn sockets() -> Result<[UdpSocket; 2]> {
    let bind = || UdpSocket::bind("127.0.0.1:0").context("cannot make a socket");
    let (sender, receiver) = (bind()?, bind()?);
    sender.connect(receiver.local_addr()?)?;
    Ok([sender, receiver])
}

fn machine() -> Result<Machine> {
    let disk = File::options().read(true).custom_flags(libc::O_DIRECT).open("/dev/vda");
    let (disk, sockets) = (disk.context("no disk")?, sockets()?);
    let begin = Instant::now();
    let agent = Agent::start(&[]);
    let start_seconds = begin.elapsed().as_secs_f64();
    let (mut scrapes, mut readings, mut last) = (Vec::new(), BTreeMap::<String, Vec<f64>>::new(), None);
    for _ in 0..READINGS {
        work(&disk, &sockets)?;
        let cgroup = Cgroup::new("growth");
        cgroup.command("/bin/true").status().context("true does not run")?;
        drop(cgroup);
        // Time for what goes on by itself.
        thread::sleep(Duration::from_millis(100));
        let before = crate::reading::process_seconds(agent.pid())?;
        let reading = Reading::take(&agent)?;
        scrapes.push(reading.process_seconds - before);
        for sample in reading.metrics.find("siskin_collect_seconds", &[]) {
            let probe = sample.labels.iter().find(|(label, _)| label == "probe");
            let probe = probe.map(|(_, probe)| probe.clone()).unwrap_or_default();
            readings.entry(probe).or_default().push(sample.value);
        }
        last = Some(reading.metrics);
    }
    let metrics = last.context("no reading")?;
    Ok(Machine {
        cpus: siskin::kernel::loader::possible_cpus()?,
        start_seconds,
        scrape_seconds: median(&scrapes),
        readings: readings.into_iter().map(|(probe, seconds)| (probe, median(&seconds))).collect(),
        rss_bytes: metrics.one("process_resident_memory_bytes", &[]),
        maps_bytes: metrics.one("siskin_maps_memory_bytes", &[]),
    })
}

fn way(object: &std::path::Path, hook: &str, pairs: &[Pair; 2], flags: &[&str]) -> Result<Way> {
    let sockets = sockets()?;
    let mut seconds = [[f64::NAN; 4]; 2];
    for (place, sampling) in [SAMPLED, SKIPPED].into_iter().enumerate() {
        let flags = [flags, &[sampling, "--debug.program-stats"]].concat();
        let agent = Agent::start(&flags);
        let empty = Empty::attach(object, pairs)?;
        // The caches of an emulator make no difference, but the first runs are timed more often.
        datagrams(&sockets, DATAGRAMS)?;
        let counted = || -> Result<Vec<_>> {
            let reading = Reading::take(&agent)?;
            pairs.iter().map(|of| Ok((reading.by_kernel(of.program), empty.counted(of.empty)?))).collect()
        };
        let before = counted()?;
        datagrams(&sockets, DATAGRAMS)?;
        for (direction, (after, before)) in counted()?.into_iter().zip(before).enumerate() {
            seconds[direction][place * 2] = after.0.ns_per_run_since(before.0) / 1e9;
            seconds[direction][place * 2 + 1] = after.1.ns_per_run_since(before.1) / 1e9;
        }
        agent.stop(libc::SIGTERM);
    }
    Ok(Way { hook: hook.to_owned(), seconds })
}
