//! What each load maker does until it is told to stop.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::crew::{Job, Shared};

/// Payload of datagrams, requests and responses.
const PAYLOAD: usize = 64;
/// Bytes of the loop device that are read and written.
pub const DISK_BYTES: u64 = 64 << 20;
/// The name of the program that exec loads start.
pub const TINY: &str = "tiny";
/// How long a load maker waits for its peer before it looks whether it is to stop.
const PATIENCE: Duration = Duration::from_millis(100);

/// Does the job until it is over.
pub fn work(job: &Job, port: u16, shared: &Shared) -> Result<()> {
    match job {
        Job::Udp { per_second } => udp(port, *per_second, shared),
        Job::UdpPingPong => ping_pong(port, shared),
        Job::Disk { path } => disk(path, shared),
        Job::Exec { path } => exec(path, shared),
        Job::Connect => connect(port, shared),
        Job::Exchange => exchange(port, shared),
    }
}

fn udp_pair(port: u16) -> Result<(UdpSocket, UdpSocket)> {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    client.connect(server.local_addr()?)?;
    server.connect(client.local_addr()?)?;
    Ok((client, server))
}

fn udp(port: u16, per_second: Option<u64>, shared: &Shared) -> Result<()> {
    let (client, server) = udp_pair(port)?;
    let (mut buffer, begin, mut sent) = ([0; PAYLOAD], Instant::now(), 0);
    while !shared.is_over() {
        if let Some(per_second) = per_second
            && sent as f64 >= begin.elapsed().as_secs_f64() * per_second as f64
        {
            thread::sleep(Duration::from_millis(1));
            continue;
        }
        client.send(&[0; PAYLOAD])?;
        server.recv(&mut buffer)?;
        sent += 1;
        shared.add(2);
    }
    Ok(())
}

fn ping_pong(port: u16, shared: &Shared) -> Result<()> {
    let (client, server) = udp_pair(port)?;
    client.set_read_timeout(Some(PATIENCE))?;
    server.set_read_timeout(Some(PATIENCE))?;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; PAYLOAD];
            while !shared.is_over() {
                if server.recv(&mut buffer).is_ok() && server.send(&buffer).is_err() {
                    break;
                }
            }
        });
        let mut buffer = [0; PAYLOAD];
        while !shared.is_over() {
            client.send(&buffer)?;
            match client.recv(&mut buffer) {
                Ok(_) => shared.add(4),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    })
}

/// Memory that direct I/O takes.
#[repr(align(4096))]
struct Block([u8; 4096]);

fn disk(path: &Path, shared: &Shared) -> Result<()> {
    let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut block = Box::new(Block([0; 4096]));
    let blocks = DISK_BYTES / block.0.len() as u64;
    for turn in 0u64.. {
        if shared.is_over() {
            break;
        }
        // Coprime to the number of blocks: every block has its turn, neighbours never one after the other.
        let offset = turn * 4099 % blocks * block.0.len() as u64;
        if turn % 2 == 0 {
            device.write_all_at(&block.0, offset)?;
        } else {
            device.read_exact_at(&mut block.0, offset)?;
        }
        shared.add(1);
    }
    Ok(())
}

fn exec(path: &Path, shared: &Shared) -> Result<()> {
    while !shared.is_over() {
        let status = Command::new(path).stdin(Stdio::inherit()).status()?;
        if !status.success() {
            bail!("{} ended with {status}", path.display());
        }
        shared.add(1);
    }
    Ok(())
}

fn connect(port: u16, shared: &Shared) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Not before the client is done: it waits for whom it connected to.
            while !over.load(Relaxed) {
                drop(listener.accept());
            }
        });
        let result = connects(port, shared);
        over.store(true, Relaxed);
        // Wakes who accepts, so that it sees the end.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
        result
    })
}

fn connects(port: u16, shared: &Shared) -> Result<()> {
    while !shared.is_over() {
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
        if client.as_ref().is_err_and(|error| error.kind() == ErrorKind::Interrupted) {
            continue;
        }
        let mut client = client?;
        // The other side closes first: never more than one waits to be accepted, so no SYN is dropped.
        let mut nothing = Vec::new();
        if client.read_to_end(&mut nothing)? != 0 {
            bail!("somebody else answers on port {port}");
        }
        shared.add(1);
    }
    Ok(())
}

fn exchange(port: u16, shared: &Shared) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    let (mut server, _) = listener.accept()?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = [0; PAYLOAD];
            while server.read_exact(&mut buffer).is_ok() && server.write_all(&buffer).is_ok() {}
        });
        let mut buffer = [0; PAYLOAD];
        while !shared.is_over() {
            client.write_all(&buffer)?;
            client.read_exact(&mut buffer)?;
            shared.add(1);
        }
        // The other side reads the end of the stream.
        drop(client);
        Ok(())
    })
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
