//! What runs beside the agent, in a container or pod: a workload whose truth is known (execs, connections, direct disk writes), which
//! does its rounds and then waits until it is killed; and with --programs or --kill, the test's eye and hand on a node.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use siskin_deploy_tests::neighbour::{BLOCK, CONNECTIONS, EXECS, PORT, RECEIVED, SENT, WRITES};

#[derive(Parser)]
struct Options {
    /// How many rounds; for ever when not given
    #[arg(long)]
    rounds: Option<u64>,
    /// Milliseconds between rounds
    #[arg(long, default_value_t = 200)]
    pause_ms: u64,
    /// A folder on a disk; without it nothing is written
    #[arg(long)]
    folder: Option<PathBuf>,
    /// End at once: what a round runs
    #[arg(long)]
    end: bool,
    /// Print the names of all programs in the kernel, and end
    #[arg(long)]
    programs: bool,
    /// Kill the processes of this container, and end
    #[arg(long, value_name = "ID")]
    kill: Option<String>,
}

/// Memory that direct writes take.
#[repr(C, align(4096))]
struct Block([u8; BLOCK]);

fn main() -> Result<()> {
    let options = Options::parse();
    if options.end {
        return Ok(());
    }
    if options.programs {
        return programs();
    }
    if let Some(container) = options.kill {
        return kill(&container);
    }
    work(&options)
}

fn programs() -> Result<()> {
    for program in aya::programs::loaded_programs() {
        println!("{}", program.context("cannot list programs")?.name_as_str().unwrap_or_default());
    }
    Ok(())
}

/// By the path of their cgroup, which has the container's id in it.
fn kill(container: &str) -> Result<()> {
    let mut killed = 0;
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        // Gone again, if it cannot be read.
        let cgroups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if cgroups.contains(container) {
            // SAFETY: takes no addresses.
            ensure!(unsafe { libc::kill(pid, libc::SIGKILL) } == 0, "cannot kill {pid}");
            killed += 1;
        }
    }
    ensure!(killed > 0, "no process of {container} is to be seen");
    println!("killed {killed}");
    Ok(())
}

fn work(options: &Options) -> Result<()> {
    let disk = options.folder.as_ref().map(|folder| {
        let file = folder.join("siskin-neighbour");
        OpenOptions::new().create(true).truncate(false).write(true).custom_flags(libc::O_DIRECT).open(file)
    });
    let disk = disk.transpose()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?;
    // One connection is older than any agent that starts later, and lives as long as this.
    let _old = (TcpStream::connect(listener.local_addr()?)?, listener.accept()?);
    println!("ready");
    let mut rounds = 0;
    while options.rounds.is_none_or(|all| rounds < all) {
        round(&listener, disk.as_ref())?;
        rounds += 1;
        thread::sleep(Duration::from_millis(options.pause_ms));
    }
    println!("done");
    loop {
        thread::park();
    }
}

fn round(listener: &TcpListener, disk: Option<&File>) -> Result<()> {
    for _ in 0..EXECS {
        Command::new(env::current_exe()?).arg("--end").status()?;
    }
    for _ in 0..CONNECTIONS {
        let mut client = TcpStream::connect(listener.local_addr()?)?;
        let (mut server, _) = listener.accept()?;
        pass(&mut client, &mut server, SENT)?;
        pass(&mut server, &mut client, RECEIVED)?;
    }
    let block = Box::new(Block([1; BLOCK]));
    if let Some(disk) = disk {
        for number in 0..WRITES {
            disk.write_all_at(&block.0, number * BLOCK as u64)?;
        }
    }
    Ok(())
}

/// Few enough bytes for any socket buffer.
fn pass(from: &mut TcpStream, to: &mut TcpStream, bytes: u64) -> Result<()> {
    let mut buffer = vec![0; bytes as usize];
    from.write_all(&buffer)?;
    Ok(to.read_exact(&mut buffer)?)
}
