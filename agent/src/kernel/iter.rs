//! Iterators: programs that the kernel runs over its own objects when user space reads.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, OwnedFd},
};

use super::sys;

/// A linked iterator.
#[derive(Debug)]
pub struct Iter {
    link: OwnedFd,
}

impl Iter {
    /// Takes over the link.
    pub fn new(link: OwnedFd) -> Self {
        Self { link }
    }

    /// Runs the program once over every object.
    ///
    /// # Errors
    /// When the kernel refuses the walk.
    pub fn run(&self) -> io::Result<()> {
        let mut walk = File::from(sys::create_iter(self.link.as_fd())?);
        let mut nothing = [0u8; 64];
        loop {
            match walk.read(&mut nothing) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                // The kernel pauses after a million objects without output (MAX_ITER_OBJECTS, kernel/bpf/bpf_iter.c, 6.18).
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
