//! Load of processes.

use std::{
    fs,
    io::Error,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    disk::Disk,
    job::{Count, Sizes},
    pacer::Pacer,
};

/// The name of the program that the loads start.
pub const TINY: &str = "tiny";

/// Programs one after the other.
pub fn exec(path: &Path, pacer: &mut Pacer<'_>) -> Result<()> {
    while pacer.next() {
        run(path, pacer)?;
    }
    Ok(())
}

fn run(path: &Path, pacer: &Pacer<'_>) -> Result<()> {
    let status = Command::new(path).stdin(Stdio::inherit()).status()?;
    if !status.success() {
        bail!("{} ended with {status}", path.display());
    }
    pacer.add(Count::Execs, 1);
    Ok(())
}

/// What a compiler driver does for a file: it reads the file and its headers, starts the compiler's
/// parts, some of which fork without an exec, and writes the result.
const PARTS: usize = 8;
const PARTS_THAT_FORK: usize = 4;
const READS: usize = 3;
const WRITES: usize = 2;
/// Memory that a file's compilation works on, and how often.
const MEMORY: usize = 2 << 20;
const PASSES: usize = 2;

/// Files, one after the other.
pub fn compile(program: &Path, device: &Path, port: u16, pacer: &mut Pacer<'_>) -> Result<()> {
    let mut disk = Disk::open(device, port.into())?;
    let mut memory = vec![0u64; MEMORY / size_of::<u64>()];
    while pacer.next() {
        for _ in 0..READS {
            disk.request(false, Sizes::Mixed, pacer)?;
        }
        for part in 0..PARTS {
            run(program, pacer)?;
            if part < PARTS_THAT_FORK {
                fork()?;
            }
        }
        for _ in 0..PASSES {
            let mut sum = 0u64;
            for word in &mut memory {
                sum = sum.wrapping_mul(31).wrapping_add(*word);
                *word = sum;
            }
            std::hint::black_box(&memory);
        }
        for _ in 0..WRITES {
            disk.request(true, Sizes::Mixed, pacer)?;
        }
    }
    Ok(())
}

/// A process that ends at once.
fn fork() -> Result<()> {
    // SAFETY: the child only ends, which is safe after a fork of a program with threads.
    let child = unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::_exit(0);
        }
        child
    };
    ensure!(child > 0, "cannot fork: {}", Error::last_os_error());
    // SAFETY: waits for the child just made, and does not ask how it ended.
    let waited = unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    ensure!(waited == child, "cannot wait for a child: {}", Error::last_os_error());
    Ok(())
}

/// A program that ends at once, without libc, in a folder that goes away with the value.
pub struct TinyProgram {
    folder: PathBuf,
}

impl TinyProgram {
    /// Writes it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("siskin-bench-{}", std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let tiny = Self { folder };
        fs::write(tiny.path(), tiny_elf()?).context("cannot write the tiny program")?;
        fs::set_permissions(tiny.path(), fs::Permissions::from_mode(0o755))?;
        Ok(tiny)
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.folder.join(TINY)
    }
}

impl Drop for TinyProgram {
    fn drop(&mut self) {
        // A file of a hundred bytes may stay.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A static ELF file whose only code is `exit(0)`.
fn tiny_elf() -> Result<Vec<u8>> {
    let (machine, code): (u16, &[u8]) = match std::env::consts::ARCH {
        // mov eax, 60; xor edi, edi; syscall
        "x86_64" => (62, &[0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05]),
        // mov x8, #93; mov x0, #0; svc #0
        "aarch64" => (183, &[0xa8, 0x0b, 0x80, 0xd2, 0, 0, 0x80, 0xd2, 0x01, 0, 0, 0xd4]),
        other => bail!("no code for {other}"),
    };
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let length = HEADERS + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_EXEC
    file.extend(2u16.to_le_bytes());
    file.extend(machine.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    // Entry, program headers, no sections.
    for word in [BASE + HEADERS, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // PT_LOAD, readable and executable.
    file.extend(1u32.to_le_bytes());
    file.extend(5u32.to_le_bytes());
    for word in [0, BASE, BASE, length, length, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tiny_program_runs() -> Result<()> {
        let tiny = TinyProgram::new()?;
        assert!(Command::new(tiny.path()).status()?.success());
        Ok(())
    }
}
