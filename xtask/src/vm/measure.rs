//! Measuring in a guest: a program runs there, and what it prints comes back.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{
    arch::X86_64,
    guest::{self, Machine, SCRATCH_DISK_BYTES},
    host, kernel,
};
use crate::workspace;

/// What a guest needs: half a gibibyte, and what the kernel keeps for each CPU.
const MEMORY_MIB: u64 = 768;
const CPU_MEMORY_MIB: u64 = 8;

/// What a guest may take.
const LONGEST: Duration = Duration::from_secs(1200);

/// Runs a program in guests.
pub struct Guests {
    kernel: kernel::Kernel,
    shell: PathBuf,
    agent: PathBuf,
    program: PathBuf,
    /// Other files of the program, by their names there.
    files: Vec<(String, PathBuf)>,
}

impl Guests {
    /// Fetches what is needed for guests with a kernel of the matrix. The agent and the program
    /// need no libraries.
    pub fn new(series: &str, agent: &Path, program: &Path, files: Vec<(String, PathBuf)>) -> Result<Self> {
        host::ensure(&[&X86_64])?;
        let kernel = kernel::fetch(kernel::find(series)?)?;
        let shell = host::shell(&X86_64)?;
        Ok(Self { kernel, shell, agent: agent.to_owned(), program: program.to_owned(), files })
    }

    /// Boots a guest with so many CPUs, whose clock counts instructions, and runs the program
    /// there. Returns what it printed.
    pub fn run(&self, cpus: usize, arguments: &str) -> Result<String> {
        let folder = workspace::path("target/guests").join(format!("measure-{cpus}"));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let [initrd, disk, console] = ["initrd", "disk", "console"].map(|name| folder.join(name));
        let work = format!("/program {arguments}\necho \"@status $?\"\n");
        let mut archive = guest::base(&self.kernel, &self.shell, &self.agent, &work)?;
        archive.file("program", &guest::read(&self.program)?);
        for (name, file) in &self.files {
            archive.file(name, &guest::read(file)?);
        }
        fs::write(&initrd, archive.finish()).with_context(|| format!("cannot write {}", initrd.display()))?;
        let scratch = File::create(&disk).with_context(|| format!("cannot make {}", disk.display()))?;
        scratch.set_len(SCRATCH_DISK_BYTES).context("cannot size the scratch disk")?;
        let memory_mib = MEMORY_MIB + CPU_MEMORY_MIB * cpus as u64;
        let machine = Machine { cpus, memory_mib, emulator: X86_64.counting_machine() };
        let mut machine = machine.boot(&self.kernel, &initrd, &disk, &console)?;
        let mut output = machine.stdout.take().context("the emulator has no stdout")?;
        let (sender, ended) = mpsc::channel();
        thread::spawn(move || {
            let mut said = Vec::new();
            // What came until then is shown.
            let _ = output.read_to_end(&mut said);
            let _ = sender.send(said);
        });
        let said = ended.recv_timeout(LONGEST);
        // Stuck, it has to be ended; at its end it powers off by itself.
        let _ = machine.kill();
        machine.wait().context("cannot wait for the emulator")?;
        let said = said.with_context(|| format!("the guest with {cpus} CPUs did not end"))?;
        let said = String::from_utf8_lossy(&said);
        let Some((printed, _)) = said.split_once("@status 0") else {
            bail!(
                "the guest with {cpus} CPUs failed; it said:\n{said}\nits console ends with:\n{}",
                guest::tail(&console)
            );
        };
        fs::remove_file(&initrd).with_context(|| format!("cannot remove {}", initrd.display()))?;
        Ok(printed.to_owned())
    }
}
