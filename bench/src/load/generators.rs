//! Load generators as threads.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{
    disk,
    homes::Homes,
    inet,
    job::{Count, Counts, Job, Work, Workload},
    network::Network,
    pacer::{Pacer, Shared},
    process,
};

/// The first port of the loads; the n-th load generator has the n-th from here.
pub const FIRST_PORT: u16 = 7001;
/// The last one.
pub const LAST_PORT: u16 = FIRST_PORT + 31;
/// Longest time until all have paused.
const PATIENCE: Duration = Duration::from_secs(5);

struct Generator {
    workload: Workload,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// Load generators at work. They end with the value.
pub struct Generators {
    all: Vec<Generator>,
}

/// Lets load generators go on when it is dropped.
pub struct Pause<'a>(&'a Generators);

impl Generators {
    /// Starts a thread per job, in the network. The n-th stays, with the threads and processes that
    /// it starts, on the n-th of the CPUs, of which there are as many as jobs or none: then they
    /// run anywhere.
    pub fn start(network: &Network, jobs: &[Job], cpus: &[usize]) -> Self {
        Self::start_in(network, None, jobs, cpus)
    }

    /// The same, each in the cgroup of its workload.
    pub fn start_in(network: &Network, homes: Option<&Arc<Homes>>, jobs: &[Job], cpus: &[usize]) -> Self {
        let start = |(index, (job, port)): (usize, (&Job, u16))| {
            let cpu = cpus.get(index).copied();
            let shared = Arc::new(Shared::default());
            let (network, homes) = (network.clone(), homes.cloned());
            let (job, its) = (job.clone(), Arc::clone(&shared));
            let workload = job.workload;
            let thread = thread::spawn(move || {
                network.enter()?;
                if let Some(homes) = homes {
                    homes.enter(job.workload)?;
                }
                if let Some(cpu) = cpu {
                    pin(cpu)?;
                }
                work(&job, port, &its).with_context(|| format!("the load generator {job:?}"))
            });
            Generator { workload, shared, thread: Some(thread) }
        };
        Self { all: jobs.iter().zip(FIRST_PORT..=LAST_PORT).enumerate().map(start).collect() }
    }

    /// What was counted so far: by all, and by those of the first workload.
    pub fn counts(&self) -> [Counts; 2] {
        let mut counts = [Counts::default(); 2];
        for generator in &self.all {
            let its = generator.shared.counts();
            counts[0] += its;
            if generator.workload == Workload::First {
                counts[1] += its;
            }
        }
        counts
    }

    /// Holds all up and waits until none is at anything: what they counted is then what happened.
    ///
    /// # Errors
    /// When one does not pause.
    pub fn pause(&self) -> Result<Pause<'_>> {
        let pause = Pause(self);
        self.all.iter().for_each(|generator| generator.shared.pause(true));
        let begin = Instant::now();
        let is_done = |generator: &Generator| {
            generator.shared.is_paused() || generator.thread.as_ref().is_none_or(JoinHandle::is_finished)
        };
        while !self.all.iter().all(is_done) {
            ensure!(begin.elapsed() < PATIENCE, "a load generator does not pause");
            thread::sleep(Duration::from_micros(50));
        }
        Ok(pause)
    }

    /// Events per second over that time, from now.
    pub fn rate(&self, count: Count, time: Duration) -> f64 {
        let (before, begin) = (self.counts()[0].of(count), Instant::now());
        thread::sleep(time);
        (self.counts()[0].of(count) - before) / begin.elapsed().as_secs_f64()
    }

    /// Ends the load and returns what [`counts`](Self::counts) does.
    ///
    /// # Errors
    /// When a load generator failed.
    pub fn finish(mut self) -> Result<[Counts; 2]> {
        self.stop();
        for generator in &mut self.all {
            if let Some(thread) = generator.thread.take() {
                thread.join().map_err(|_| anyhow!("a load generator panicked"))??;
            }
        }
        Ok(self.counts())
    }

    fn stop(&self) {
        self.all.iter().for_each(|generator| generator.shared.stop());
    }
}

impl Drop for Generators {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.0.all.iter().for_each(|generator| generator.shared.pause(false));
    }
}

fn work(job: &Job, port: u16, shared: &Shared) -> Result<()> {
    let mut pacer = Pacer::new(shared, job.pace);
    match &job.work {
        Work::Udp { sizes } => inet::udp(port, *sizes, &mut pacer),
        Work::UdpPingPong => inet::ping_pong(port, shared, &mut pacer),
        Work::Connect => inet::connect(port, &mut pacer),
        Work::Exchange => inet::exchange(port, &mut pacer),
        Work::Disk { path, sizes } => disk::work(path, port, *sizes, &mut pacer),
        Work::Exec { path } => process::exec(path, &mut pacer),
        Work::Compile { program, device } => process::compile(program, device, port, &mut pacer),
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
