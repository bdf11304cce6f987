//! Booting a kernel in an emulated machine, and reading what `init.sh` says in it.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::{arch::Arch, cpio::Archive, kernel::Kernel, survey::Survey, tests::Suite};
use crate::workspace;

/// What a test may take. Emulated, most take a few seconds.
const TEST: Duration = Duration::from_secs(180);
/// What the survey may take: several starts of the agent.
const SURVEY: Duration = Duration::from_secs(120);
/// A guest that says nothing for longer than anything in it may take is stuck.
const SILENCE: Duration = Duration::from_secs(240);

/// Bytes of a guest's disk.
pub const SCRATCH_DISK_BYTES: u64 = 64 << 20;

/// How a test ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It held.
    Passed,
    /// It did not, or was killed: exit status, and what it printed.
    Failed(String, String),
    /// It needs this, which this kernel lacks.
    Unsupported(String),
}

/// A test that ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// `BINARY::NAME`.
    pub test: String,
    /// How.
    pub outcome: Outcome,
    /// How long it ran.
    pub took: Duration,
}

/// What a guest said.
#[derive(Debug, Default)]
pub struct Said {
    /// What the agent can do on this kernel.
    pub survey: Survey,
    /// Seconds from power-on to the first process.
    pub boot_seconds: f64,
    /// Tests in the order run.
    pub ended: Vec<Ended>,
    /// Whether it came to its end.
    pub complete: bool,
}

/// What goes into the guests of one architecture.
pub struct Content {
    /// The architecture.
    pub arch: &'static Arch,
    /// The shell.
    pub shell: PathBuf,
    /// The agent.
    pub agent: PathBuf,
    /// The tests.
    pub suite: Suite,
    /// Whether the host's own CPU runs it.
    pub kvm: bool,
}

/// Boots a kernel, runs the tests of the plan, and returns what was said. `heard` is called for every test that ended.
pub fn run(kernel: &Kernel, content: &Content, plan: &str, heard: impl Fn(&Ended)) -> Result<Said> {
    let folder = workspace::path("target/guests").join(kernel.series.name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (initrd, disk, console) = (folder.join("initrd"), folder.join("disk"), folder.join("console"));
    let archive = initramfs(kernel, content, plan)?;
    fs::write(&initrd, archive).with_context(|| format!("cannot write {}", initrd.display()))?;
    let scratch = File::create(&disk).with_context(|| format!("cannot make {}", disk.display()))?;
    scratch.set_len(SCRATCH_DISK_BYTES).context("cannot size the scratch disk")?;

    let emulator = kernel.series.arch.machine(content.kvm);
    let machine = Machine { cpus: 2, memory_mib: 1024, emulator };
    let mut machine = machine.boot(kernel, &initrd, &disk, &console)?;
    let output = machine.stdout.take().context("the emulator has no stdout")?;
    let said = listen(output, heard);
    // At its end it powers off by itself; stuck, it has to be ended.
    if !said.as_ref().is_ok_and(|said| said.complete) {
        let _ = machine.kill();
    }
    let status = machine.wait().context("cannot wait for the emulator")?;
    let said = said?;
    if !said.complete {
        bail!(
            "kernel {} stopped before its end ({status}); its console ends with:\n{}",
            kernel.series.name,
            tail(&console)
        );
    }
    let _ = fs::remove_file(&initrd);
    Ok(said)
}

/// The first file system: a shell, the modules, the agent, the tests, and what to do.
fn initramfs(kernel: &Kernel, content: &Content, plan: &str) -> Result<Vec<u8>> {
    let seconds = |name: &str, length: Duration| format!("export {name}={}\n", length.as_secs());
    let settings = seconds("TEST_SECONDS", TEST) + &seconds("SURVEY_SECONDS", SURVEY);
    let Content { shell, agent, suite, .. } = content;
    let mut archive = base(kernel, shell, agent, &(settings + include_str!("tests.sh")))?;
    archive.file("survey", &read(&suite.survey)?);
    archive.file("plan", plan.as_bytes());
    // The tests know the load maker by the path it was built at.
    for file in suite.binaries.iter().map(|(_, file)| file).chain([&suite.load]) {
        archive.file(&file.display().to_string(), &read(file)?);
    }
    Ok(archive.finish())
}

/// A file system with a shell, the modules and the agent, in which the first process does `work`.
pub fn base(kernel: &Kernel, shell: &Path, agent: &Path, work: &str) -> Result<Archive> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "tmp"] {
        archive.directory(folder);
    }
    let [_, says] = kernel.series.arch.serial;
    let (first, rest) = include_str!("init.sh").split_once('\n').context("init.sh is empty")?;
    archive.file("init", format!("{first}\nexport SAYS=/dev/{says}\n{rest}").as_bytes());
    // Among programs: the tests are at the paths where they were built, whatever those are.
    archive.file("bin/work", work.as_bytes());
    archive.file("bin/busybox", &read(shell)?);
    archive.file("siskin", &read(agent)?);
    let mut order = String::new();
    for module in &kernel.modules {
        let name = module.file_name().context("a module without a name")?.to_string_lossy();
        archive.file(&format!("modules/{name}"), &read(module)?);
        order.push_str(&format!("{name}\n"));
    }
    archive.file("modules/order", order.as_bytes());
    Ok(archive)
}

/// The bytes of a file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// What a guest is made of.
pub struct Machine {
    /// CPUs.
    pub cpus: usize,
    /// Memory.
    pub memory_mib: u64,
    /// The emulator.
    pub emulator: Command,
}

impl Machine {
    /// Boots a kernel in it.
    pub fn boot(self, kernel: &Kernel, initrd: &Path, disk: &Path, console: &Path) -> Result<Child> {
        let arch = kernel.series.arch;
        let mut qemu = self.emulator;
        qemu.args(["-smp", &self.cpus.to_string(), "-m", &self.memory_mib.to_string(), "-no-reboot"]);
        qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initrd);
        // By `vmtest=1` whoever would write to a disk knows that it is a scratch disk.
        let messages = arch.serial[0];
        let line = format!("console={messages} quiet loglevel=6 panic=-1 mitigations=off vmtest=1");
        qemu.args(["-append", &line]);
        qemu.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
        qemu.arg("-drive").arg(format!("file={},if=virtio,format=raw", disk.display()));
        qemu.stdin(Stdio::null()).stdout(Stdio::piped());
        // SAFETY: between fork and exec one system call, which allocates nothing and takes no lock.
        unsafe { qemu.pre_exec(end_with_parent) };
        qemu.spawn().with_context(|| format!("cannot start {}", arch.emulator))
    }
}

/// Has the kernel end this process when the one that started it ends, however that ends.
fn end_with_parent() -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}

/// Reads lines until the output ends or nothing comes any more.
fn listen(output: ChildStdout, heard: impl Fn(&Ended)) -> Result<Said> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        // By bytes: what a test prints need not be UTF-8.
        while output.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
    let mut listener = Listener::default();
    loop {
        match lines.recv_timeout(SILENCE) {
            Ok(line) => {
                if let Some(ended) = listener.line(&line, Instant::now())? {
                    heard(ended);
                }
            }
            Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => return Ok(listener.said),
        }
    }
}

/// Makes sense of a guest's lines.
#[derive(Default)]
struct Listener {
    said: Said,
    running: Option<Instant>,
    printed: String,
}

impl Listener {
    /// Takes a line, and returns a test that ended by it.
    fn line(&mut self, line: &str, now: Instant) -> Result<Option<&Ended>> {
        let Some(message) = line.strip_prefix('@') else {
            self.printed.push_str(line);
            self.printed.push('\n');
            return Ok(None);
        };
        let (word, rest) = message.split_once(' ').unwrap_or((message, ""));
        let outcome = match word {
            "up" => {
                self.said.boot_seconds = rest.parse().with_context(|| format!("no number: {line}"))?;
                return Ok(None);
            }
            "test" => {
                self.running = Some(now);
                self.printed.clear();
                return Ok(None);
            }
            "end" => {
                self.said.complete = true;
                return Ok(None);
            }
            "passed" => Outcome::Passed,
            "unsupported" => Outcome::Unsupported(words(rest).1.to_owned()),
            "failed" => {
                let status = match words(rest).1 {
                    "137" => "killed, it took too long".to_owned(),
                    status => format!("exit status {status}"),
                };
                Outcome::Failed(status, std::mem::take(&mut self.printed))
            }
            _ => {
                self.said.survey.line(message)?;
                return Ok(None);
            }
        };
        let took = self.running.take().map_or(Duration::ZERO, |begin| now - begin);
        self.said.ended.push(Ended { test: words(rest).0.to_owned(), outcome, took });
        Ok(self.said.ended.last())
    }
}

/// The first word and the rest.
fn words(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or((text, ""))
}

/// The last lines of a file.
pub fn tail(path: &Path) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(path) {
        // Shorter than that: from its beginning.
        let _ = file.seek(SeekFrom::End(-2000));
        // What can be read is shown.
        let _ = file.read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_lines_become_outcomes_with_what_was_printed() -> Result<()> {
        let mut listener = Listener::default();
        let begin = Instant::now();
        let lines = [
            "@up 2.50",
            "@btf 7",
            "noise",
            "@unsupported udp::one udp",
            "@test tcp::two",
            "@passed tcp::two",
            "@test tcp::three",
            "expected 1, was 2",
            "@failed tcp::three 101",
            "@test tcp::four",
            "@failed tcp::four 137",
            "@end",
        ];
        for line in lines {
            listener.line(line, begin)?;
        }
        let said = listener.said;
        assert!(said.complete);
        assert_eq!(said.boot_seconds, 2.5);
        let outcomes: Vec<_> = said.ended.iter().map(|it| (it.test.as_str(), it.outcome.clone())).collect();
        let failed = |status: &str, printed: &str| Outcome::Failed(status.to_owned(), printed.to_owned());
        assert_eq!(
            outcomes,
            [
                ("udp::one", Outcome::Unsupported("udp".into())),
                ("tcp::two", Outcome::Passed),
                ("tcp::three", failed("exit status 101", "expected 1, was 2\n")),
                ("tcp::four", failed("killed, it took too long", "")),
            ]
        );
        Ok(())
    }

    #[test]
    fn an_unknown_message_is_an_error() {
        assert!(Listener::default().line("@nonsense", Instant::now()).is_err());
    }
}
