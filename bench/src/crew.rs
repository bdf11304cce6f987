//! Load makers as threads, which count exactly what they did.

use std::{
    fs::File,
    os::fd::AsRawFd as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use siskin_tests::netns;

use crate::jobs;

/// A network namespace for the loads: every port is free there, and what they leave behind goes away with it.
#[derive(Clone)]
pub struct Network(Arc<File>);

impl Network {
    /// Makes one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new() -> Result<Self> {
        let made = thread::spawn(|| -> Result<File> {
            netns::enter_new().context("cannot make a network namespace")?;
            for (name, value) in [("ip_local_port_range", "10000 65000"), ("tcp_max_tw_buckets", "8192")] {
                netns::set(name, value).with_context(|| format!("cannot set net.ipv4.{name}"))?;
            }
            File::open("/proc/thread-self/ns/net").context("cannot open the network namespace")
        });
        Ok(Self(Arc::new(made.join().map_err(|_| anyhow!("making a network namespace panicked"))??)))
    }

    /// Moves the calling thread into it.
    fn enter(&self) -> Result<()> {
        // SAFETY: takes a descriptor that is open and a number.
        let result = unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) };
        if result != 0 {
            return Err(std::io::Error::last_os_error()).context("cannot enter the network namespace");
        }
        Ok(())
    }
}

/// What a load maker does.
#[derive(Clone, Debug)]
pub enum Job {
    /// Sends datagrams to itself and receives each before the next; so many a second, or as fast as it can.
    Udp {
        /// Datagrams sent per second.
        per_second: Option<u64>,
    },
    /// Datagrams to another thread and back.
    UdpPingPong,
    /// Reads and writes of 4 KiB past the page cache.
    Disk {
        /// The device.
        path: PathBuf,
    },
    /// Starts a program and waits for its end.
    Exec {
        /// The program.
        path: PathBuf,
    },
    /// Opens a TCP connection and closes it.
    Connect,
    /// Requests and responses of 64 bytes on one TCP connection.
    Exchange,
}

/// What load makers count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A datagram sent, or one received.
    Datagram,
    /// A read or write.
    Io,
    /// A program run from start to end.
    Exec,
    /// A connection from open to close.
    Connection,
    /// A request with its response.
    Exchange,
}

impl Event {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Datagram, Self::Io, Self::Exec, Self::Connection, Self::Exchange];
    /// Those that the agent counts, and what they are called.
    pub const COUNTED: [(Self, &str); 4] = [
        (Self::Datagram, "datagrams"),
        (Self::Io, "requests"),
        (Self::Exec, "execs"),
        (Self::Connection, "connections"),
    ];
}

impl Job {
    fn event(&self) -> Event {
        match self {
            Self::Udp { .. } | Self::UdpPingPong => Event::Datagram,
            Self::Disk { .. } => Event::Io,
            Self::Exec { .. } => Event::Exec,
            Self::Connect => Event::Connection,
            Self::Exchange => Event::Exchange,
        }
    }
}

/// What a load maker shares with who started it.
pub struct Shared {
    stop: AtomicBool,
    count: AtomicU64,
}

impl Shared {
    /// Whether the load maker is to end.
    pub fn is_over(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Counts events that happened.
    pub fn add(&self, events: u64) {
        // Only its own thread writes it.
        self.count.store(self.count.load(Relaxed) + events, Relaxed);
    }
}

/// The first port of the loads; the n-th load maker has the n-th from here.
pub const FIRST_PORT: u16 = 7001;
/// The last one.
pub const LAST_PORT: u16 = FIRST_PORT + 31;

struct Worker {
    event: Event,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// Load makers at work. They end with the value.
pub struct Crew {
    workers: Vec<Worker>,
}

impl Crew {
    /// Starts a thread per job, in the network. The n-th stays, with the threads and processes that it starts, on the n-th
    /// of the CPUs, of which there are as many as jobs or none: then they run anywhere.
    pub fn start(network: &Network, jobs: &[Job], cpus: &[usize]) -> Self {
        let start = |(index, (job, port)): (usize, (&Job, u16))| {
            let cpu = cpus.get(index).copied();
            let shared = Arc::new(Shared { stop: AtomicBool::new(false), count: AtomicU64::new(0) });
            let (network, job, its) = (network.clone(), job.clone(), Arc::clone(&shared));
            let event = job.event();
            let thread = thread::spawn(move || {
                network.enter()?;
                if let Some(cpu) = cpu {
                    pin(cpu)?;
                }
                jobs::work(&job, port, &its).with_context(|| format!("the load maker {job:?}"))
            });
            Worker { event, shared, thread: Some(thread) }
        };
        Self { workers: jobs.iter().zip(FIRST_PORT..=LAST_PORT).enumerate().map(start).collect() }
    }

    /// Events of a kind so far.
    pub fn count(&self, event: Event) -> u64 {
        let of_kind = self.workers.iter().filter(|worker| worker.event == event);
        of_kind.map(|worker| worker.shared.count.load(Relaxed)).sum()
    }

    /// Events per second over that time, from now.
    pub fn rate(&self, event: Event, time: Duration) -> f64 {
        let (before, begin) = (self.count(event), Instant::now());
        thread::sleep(time);
        (self.count(event) - before) as f64 / begin.elapsed().as_secs_f64()
    }

    /// Ends the load and returns how many events of each kind there were.
    ///
    /// # Errors
    /// When a load maker failed.
    pub fn finish(mut self) -> Result<[u64; Event::ALL.len()]> {
        self.stop();
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                thread.join().map_err(|_| anyhow!("a load maker panicked"))??;
            }
        }
        Ok(Event::ALL.map(|event| self.count(event)))
    }

    fn stop(&self) {
        for worker in &self.workers {
            worker.shared.stop.store(true, Relaxed);
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Keeps the calling thread on one CPU.
fn pin(cpu: usize) -> Result<()> {
    // SAFETY: a set of bits, valid for every bit pattern.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the macro checks the bounds.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set is as long as said; 0 is the calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    if result != 0 {
        return Err(std::io::Error::last_os_error()).context(format!("cannot stay on CPU {cpu}"));
    }
    Ok(())
}
