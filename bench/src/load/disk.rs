//! Load on a disk, past the page cache: a call is a request.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use anyhow::{Context as _, Result};

use super::{
    job::{Count, Numbers, Sizes},
    pacer::Pacer,
};

/// Bytes of the loop device that are read and written.
pub const DISK_BYTES: u64 = 64 << 20;
const BLOCK: usize = 4096;
/// Sizes of mixed requests in blocks: small ones most often, as file systems make them.
const MIXED: [usize; 10] = [1, 1, 1, 1, 2, 2, 4, 8, 16, 32];
/// Room for the largest request.
const LARGEST: usize = 32 * BLOCK;
/// From one place to the next: farther than the largest request, so that no kernel merges two.
const STRIDE: u64 = LARGEST as u64 + BLOCK as u64;

/// Memory that direct I/O takes.
#[repr(align(4096))]
struct Buffer([u8; LARGEST]);

/// A device and what is needed to read and write it.
pub struct Disk {
    device: File,
    buffer: Box<Buffer>,
    numbers: Numbers,
    place: u64,
}

impl Disk {
    /// Opens a device. Each seed has its own sequence of places and sizes.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path, seed: u64) -> Result<Self> {
        let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path);
        let device = device.with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { device, buffer: Box::new(Buffer([0; LARGEST])), numbers: Numbers::new(seed), place: seed })
    }

    /// Reads or writes once, and counts it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn request(&mut self, is_write: bool, sizes: Sizes, pacer: &Pacer<'_>) -> Result<()> {
        let blocks = if sizes == Sizes::Same { 1 } else { self.numbers.pick(&MIXED) };
        let bytes = blocks * BLOCK;
        let places = DISK_BYTES / STRIDE;
        // Coprime to the number of places: each has its turn, neighbours never one after the other.
        self.place = (self.place + 197) % places;
        let offset = self.place * STRIDE;
        if is_write {
            self.device.write_all_at(&self.buffer.0[..bytes], offset)?;
        } else {
            self.device.read_exact_at(&mut self.buffer.0[..bytes], offset)?;
        }
        let bytes = bytes as u64;
        pacer.add(Count::Requests, 1);
        pacer.add(Count::DiskBytes, bytes);
        pacer.add(Count::DiskSquares, bytes * bytes);
        Ok(())
    }
}

/// Writes and reads of 4 KiB in turn, or writes of mixed size.
pub fn work(path: &Path, port: u16, sizes: Sizes, pacer: &mut Pacer<'_>) -> Result<()> {
    let mut disk = Disk::open(path, port.into())?;
    let mut is_write = false;
    while pacer.next() {
        is_write = sizes == Sizes::Mixed || !is_write;
        disk.request(is_write, sizes, pacer)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_has_its_turn() {
        let places = DISK_BYTES / STRIDE;
        let mut seen: Vec<_> = (0..places).map(|turn| turn * 197 % places).collect();
        seen.sort_unstable();
        assert!(seen.iter().zip(0..).all(|(place, index)| *place == index), "{places} places");
    }
}
