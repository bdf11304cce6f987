//! A network namespace for the loads.

use std::{fs::File, os::fd::AsRawFd as _, sync::Arc, thread};

use anyhow::{Context as _, Result, anyhow};
use siskin_tests::netns;

/// A network namespace for the loads: every port is free there, and what they leave behind goes
/// away with it.
#[derive(Clone)]
pub struct Network(Arc<File>);

impl Network {
    /// Makes one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new() -> Result<Self> {
        let made = thread::spawn(|| -> Result<File> {
            netns::enter_new().context("cannot make a network namespace")?;
            for (name, value) in [("ip_local_port_range", "10000 65000"), ("tcp_max_tw_buckets", "8192")] {
                netns::set(name, value).with_context(|| format!("cannot set net.ipv4.{name}"))?;
            }
            File::open("/proc/thread-self/ns/net").context("cannot open the network namespace")
        });
        Ok(Self(Arc::new(made.join().map_err(|_| anyhow!("making a network namespace panicked"))??)))
    }

    /// Moves the calling thread into it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self) -> Result<()> {
        // SAFETY: takes a descriptor that is open and a number.
        let result = unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) };
        if result != 0 {
            return Err(std::io::Error::last_os_error()).context("cannot enter the network namespace");
        }
        Ok(())
    }
}
