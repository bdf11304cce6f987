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

    /// Begins to run the program over every object.
    ///
    /// # Errors
    /// When the kernel refuses the walk.
    pub fn begin(&self) -> io::Result<Walk> {
        Ok(Walk { file: File::from(sys::create_iter(self.link.as_fd())?) })
    }

    /// Runs the program once over every object.
    ///
    /// # Errors
    /// When the kernel refuses the walk.
    pub fn run(&self) -> io::Result<()> {
        let mut walk = self.begin()?;
        while !walk.go_on()? {}
        Ok(())
    }
}

/// A program on its way over every object.
#[derive(Debug)]
pub struct Walk {
    file: File,
}

impl Walk {
    /// Goes on until the program writes something, which is how it divides the walk. Returns
    /// whether that was the end.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn go_on(&mut self) -> io::Result<bool> {
        // The walk stops as soon as there is as much as was asked for (bpf_seq_read,
        // kernel/bpf/bpf_iter.c, 6.18).
        match self.file.read(&mut [0]) {
            Ok(read) => Ok(read == 0),
            // It also pauses after a million objects without output (MAX_ITER_OBJECTS, there).
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(error),
        }
    }
}
