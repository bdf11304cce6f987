//! Flow rows shared by all CPUs against a copy for each: nanoseconds to add, nanoseconds and bytes to read, memory.

use std::{
    fs, iter,
    os::fd::{AsFd as _, AsRawFd as _},
    path::PathBuf,
    sync::Barrier,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, Map, MapData},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use clap::Args;
use siskin::kernel::{loader::possible_cpus, rows::Keyed};
use siskin_ebpf::{FlowKey, FlowRow};

use crate::{
    machine, progress,
    stats::{median, spread},
    table::Table,
};

/// How to measure tables.
#[derive(Args)]
pub struct Options {
    /// Rounds; every round measures everything
    #[arg(long, default_value_t = 9)]
    pub rounds: usize,
    /// The object with the tables
    #[arg(long, value_name = "FILE")]
    pub tables_object: PathBuf,
}

/// Rows that a table holds: one bank of the default --flows.max-series, four times 1000.
const CAPACITY: u32 = 4000;
/// Rows that there are.
const ROWS: usize = 1000;
/// Times that a program runs for one figure.
const RUNS: u32 = 1_000_000;
/// Readings of a table for one figure.
const READINGS: u32 = 10;
/// Banks of flow rows: two each for TCP and UDP.
const BANKS: f64 = 4.0;
/// Shortest packet that a test run takes (`ETH_HLEN`, include/uapi/linux/if_ether.h).
const SHORTEST: usize = 14;

/// Measures and reports.
pub fn run(options: &Options) -> Result<String> {
    let machine = machine::describe();
    let mut ebpf = load(options)?;
    let cpus = possible_cpus()?;
    fill(&mut ebpf)?;
    let updates = updates(&ebpf, options.rounds)?;
    progress("reading");
    let reads = reads(&ebpf, options.rounds, cpus)?;
    Ok(format!(
        "## Flow rows: shared by all CPUs, or a copy for each (`cargo xtask bench tables`)\n\n{machine}\n\
         ### Adding\n\n{updates}\n### Reading, and memory\n\n{reads}"
    ))
}

fn load(options: &Options) -> Result<Ebpf> {
    let what = || format!("cannot load the tables of {}", options.tables_object.display());
    let mut loader = EbpfLoader::new();
    for table in TABLES {
        loader.map_max_entries(table.map, CAPACITY);
    }
    let mut ebpf = loader.load_file(&options.tables_object).with_context(what)?;
    for (_, program) in ebpf.programs_mut() {
        let program: &mut SchedClassifier = program.try_into().with_context(what)?;
        program.load().with_context(what)?;
    }
    Ok(ebpf)
}

/// A table, and of how many CPUs it has copies; `None` for those of this machine.
struct Of {
    name: &'static str,
    map: &'static str,
    copies: Option<usize>,
}

const TABLES: [Of; 4] = [
    Of { name: "shared", map: "shared", copies: Some(1) },
    Of { name: "a copy for each CPU here", map: "per_cpu", copies: None },
    Of { name: "as large as copies for 64 CPUs", map: "as_of_64", copies: Some(64) },
    Of { name: "as large as copies for 256 CPUs", map: "as_of_256", copies: Some(256) },
];

fn program<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a SchedClassifier> {
    let program = ebpf.program(name).with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

/// Runs a program on a CPU with a packet of so many bytes, which say what row it adds to. Returns nanoseconds per run.
fn runs(program: &SchedClassifier, cpu: usize, row: usize, repeat: u32) -> Result<f64> {
    pin(cpu)?;
    let packet = vec![0; SHORTEST + row];
    let begin = Instant::now();
    program
        .test_run(TestRunOptions { data_in: Some(&packet), repeat, ..Default::default() })
        .context("the kernel does not run the program")?;
    Ok(begin.elapsed().as_nanos() as f64 / f64::from(repeat))
}

/// Moves this thread to a CPU.
fn pin(cpu: usize) -> Result<()> {
    // SAFETY: a set of bits, valid when all are zero.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` is far below what a set holds.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: reads the set.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    ensure!(result == 0, "cannot move to CPU {cpu}: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Runs a program on two CPUs at once, each with its row. Returns nanoseconds per run, the mean of both.
fn at_once(program: &SchedClassifier, rows: [usize; 2]) -> Result<f64> {
    let barrier = Barrier::new(2);
    let times = thread::scope(|scope| {
        let threads = [0, 1].map(|cpu| {
            let barrier = &barrier;
            scope.spawn(move || {
                pin(cpu)?;
                barrier.wait();
                runs(program, cpu, rows[cpu], RUNS)
            })
        });
        threads.map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    });
    let [a, b] = times;
    Ok((a? + b?) / 2.0)
}

/// Makes the rows.
fn fill(ebpf: &mut Ebpf) -> Result<()> {
    for name in ["add_shared", "add_per_cpu"] {
        let program = program(ebpf, name)?;
        for row in 0..ROWS {
            runs(program, 0, row, 1)?;
        }
    }
    fill_wide::<{ 64 * ROW_BYTES }>(ebpf, "as_of_64")?;
    fill_wide::<{ 256 * ROW_BYTES }>(ebpf, "as_of_256")
}

const ROW_BYTES: usize = size_of::<FlowRow>();

fn fill_wide<const BYTES: usize>(ebpf: &mut Ebpf, name: &str) -> Result<()> {
    let map = ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
    let mut map = HashMap::<_, [u8; size_of::<FlowKey>()], [u8; BYTES]>::try_from(map)?;
    for row in 0..ROWS {
        let mut key = [0; size_of::<FlowKey>()];
        key[..8].copy_from_slice(&row.to_ne_bytes());
        map.insert(key, [1; BYTES], 0)?;
    }
    Ok(())
}

fn updates(ebpf: &Ebpf, rounds: usize) -> Result<String> {
    let none = program(ebpf, "add_none")?;
    let ways =
        [("shared", program(ebpf, "add_shared")?), ("a copy for each CPU", program(ebpf, "add_per_cpu")?)];
    let mut found = [const { [const { Vec::new() }; 3] }; 2];
    for round in 0..rounds {
        progress(&format!("adding, round {} of {rounds}", round + 1));
        let idle = runs(none, 0, 0, RUNS)?;
        let idle_at_once = at_once(none, [0, 1])?;
        for ((_, program), found) in ways.iter().zip(&mut found) {
            found[0].push(runs(program, 0, 0, RUNS)? - idle);
            found[1].push(at_once(program, [0, 1])? - idle_at_once);
            found[2].push(at_once(program, [0, 0])? - idle_at_once);
        }
    }
    let mut table = Table::new(&[
        "ns to look up a row and add two words",
        "one CPU",
        "two CPUs, a row each",
        "two CPUs, one row",
    ]);
    for ((name, _), found) in ways.iter().zip(&found) {
        table.row(iter::once((*name).to_owned()).chain(found.iter().map(|times| spread(times, 1))));
    }
    Ok(format!(
        "Median (quartiles) of {rounds} rounds of {RUNS} test runs, less what a run takes that adds nothing. Both add by atomic instructions: \
         a program can be interrupted on its CPU by another of ours. Two CPUs at once do nothing else.\n\n{table}"
    ))
}

fn data<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a MapData> {
    match ebpf.map(name) {
        Some(Map::HashMap(data) | Map::PerCpuHashMap(data)) => Ok(data),
        _ => anyhow::bail!("no map {name}"),
    }
}

/// Kernel memory of a map, as the kernel counts it.
fn memory_bytes(map: &MapData) -> Result<f64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()))?;
    let bytes =
        info.lines().find_map(|line| line.strip_prefix("memlock:")).context("no memlock in fdinfo")?;
    Ok(bytes.trim().parse()?)
}

fn reads(ebpf: &Ebpf, rounds: usize, cpus: usize) -> Result<String> {
    let mut found = [const { Vec::new() }; TABLES.len()];
    pin(0)?;
    for _ in 0..rounds {
        for (of, found) in TABLES.iter().zip(&mut found) {
            let map = data(ebpf, of.map)?.fd().as_fd().try_clone_to_owned()?;
            let keyed = Keyed::new(map, of.copies.unwrap_or(cpus));
            let begin = Instant::now();
            for _ in 0..READINGS {
                let mut rows = 0;
                keyed.each(|_: FlowKey, _: FlowRow| rows += 1)?;
                ensure!(rows == ROWS, "{rows} rows in {}", of.map);
            }
            found.push(begin.elapsed().as_secs_f64() * 1e6 / f64::from(READINGS));
        }
    }
    let mut table = Table::new(&[
        "table",
        "to read, µs",
        "per row, ns",
        "copied, KiB",
        "memory of a table, KiB",
        "of all four, MiB",
    ]);
    for (of, times) in TABLES.iter().zip(&found) {
        let row_bytes = size_of::<FlowKey>() + ROW_BYTES * of.copies.unwrap_or(cpus);
        let memory = memory_bytes(data(ebpf, of.map)?)?;
        table.row([
            of.name.to_owned(),
            spread(times, 0),
            format!("{:.0}", median(times) * 1e3 / ROWS as f64),
            format!("{:.0}", (row_bytes * ROWS) as f64 / 1024.0),
            format!("{:.0}", memory / 1024.0),
            format!("{:.1}", memory * BANKS / f64::from(1 << 20)),
        ]);
    }
    Ok(format!(
        "{ROWS} rows of {ROW_BYTES} bytes under keys of {} in a table for {CAPACITY}, read by the agent's own code: batch calls, then the sum over \
         the copies. Median (quartiles) of {rounds} rounds of {READINGS} readings. Four such tables are what the default --flows.max-series \
         makes: two banks each for TCP and UDP. The copies for more CPUs than there are here are emulated by a value as large, which the kernel \
         copies in one piece: real ones, in as many places, cost more. There are {cpus} CPUs here. Memory as the kernel counts it.\n\n{table}",
        size_of::<FlowKey>()
    ))
}
