//! The load, step by step.

use std::path::{Path, PathBuf};

use crate::load::job::{Job, Pace, Sizes, Work};

/// A step of the load.
#[derive(Clone, Debug)]
pub struct Step {
    /// What runs.
    pub label: &'static str,
    /// What its load generators do.
    pub jobs: Vec<Job>,
    /// Seconds in which all of it happens once, when less is not the same load.
    pub seconds: usize,
}

/// The steps whose label contains one of the words, which are separated by commas. `device` is a
/// disk to write on, `program` one to start.
pub fn steps(device: &str, program: &Path, only: &str) -> Vec<Step> {
    let path: PathBuf = Path::new("/dev").join(device);
    let udp = || Job::full(Work::Udp { sizes: Sizes::Same });
    let disk = || Job::full(Work::Disk { path: path.clone(), sizes: Sizes::Same });
    let exec = || Job::full(Work::Exec { path: program.to_owned() });
    let connect = || Job::full(Work::Connect);
    let exchange = || Job::full(Work::Exchange);
    let paced = |job: Job, per_second: f64| job.paced(Pace::PerSecond(per_second));
    let both = |job: Job| [job.clone(), job.second()];
    // Two thirds for the first workload.
    let shared = |job: Job, per_second: f64| {
        let job = |share: f64| paced(job.clone(), per_second * share);
        [job(2.0 / 3.0), job(1.0 / 3.0).second()]
    };
    let mixed_udp = Job::full(Work::Udp { sizes: Sizes::Mixed });
    let mixed_disk = Job::full(Work::Disk { path: path.clone(), sizes: Sizes::Mixed });
    let compile = Job::full(Work::Compile { program: program.to_owned(), device: path.clone() });
    // A storm of disk requests and execs, one of datagrams and connections, nothing.
    let slice = |index: u64, job: Job| both(job.paced(Pace::Slice { index, slices: 3 }));

    let step = |label, jobs: Vec<Job>| Step { label, jobs, seconds: 0 };
    let all = [
        step("idle", vec![]),
        step(
            "everyday mix",
            [
                shared(mixed_udp, 1_000.0),
                shared(mixed_disk, 320.0),
                shared(exec(), 40.0),
                shared(connect(), 100.0),
                shared(exchange(), 10_000.0),
            ]
            .concat(),
        ),
        step("compile", shared(compile, 40.0).into()),
        step("UDP 1k/s", vec![paced(udp(), 1_000.0)]),
        step("UDP 10k/s", vec![paced(udp(), 10_000.0)]),
        step("UDP 100k/s", both(paced(udp(), 50_000.0)).into()),
        step("UDP full", both(udp()).into()),
        step("disk full", both(disk()).into()),
        step("exec full", both(exec()).into()),
        step("connect full", both(connect()).into()),
        step("TCP full", both(exchange()).into()),
        step("8k connect, 2k exec", [shared(connect(), 8_000.0), shared(exec(), 2_000.0)].concat()),
        step("all at once", vec![udp(), disk(), exec(), connect(), exchange()]),
        Step {
            seconds: 6,
            ..step(
                "changing",
                [slice(0, disk()), slice(0, exec()), slice(1, udp()), slice(1, connect())].concat(),
            )
        },
        step("idle again", vec![]),
    ];
    let words: Vec<_> = only.split(',').map(str::trim).collect();
    all.into_iter().filter(|step| words.iter().any(|word| step.label.contains(word))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::generators::{FIRST_PORT, LAST_PORT};

    #[test]
    fn words_choose_steps_and_every_job_has_a_port() {
        let of = |only| steps("loop", Path::new("tiny"), only);
        assert_eq!(of("").len(), 15);
        let labels: Vec<_> = of("disk, mix").iter().map(|step| step.label).collect();
        assert_eq!(labels, ["everyday mix", "disk full"]);
        assert!(of("").iter().all(|step| step.jobs.len() <= usize::from(LAST_PORT - FIRST_PORT)));
    }
}
