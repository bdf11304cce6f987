//! The `control` map, shared with the programs by memory: no system call to look at it or to change it.

use std::{
    io,
    mem::offset_of,
    os::fd::{AsFd, OwnedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use siskin_ebpf::{Control as Layout, MAX_PERIOD, PROBES, Probe, Rate, TABLES, Table, cpus_per_shard_log2};

/// [`Layout`] as atomics, which have the same size and alignment.
#[repr(C)]
struct Shared {
    active: [AtomicU64; TABLES],
    full: [AtomicU64; TABLES],
    rows: [[AtomicU64; 2]; TABLES],
    sockets: AtomicU64,
    sockets_limit: AtomicU64,
    tcp_shed: AtomicU64,
    cpus_per_shard_log2: AtomicU64,
    sweep_stop: AtomicU64,
    rates: [[AtomicU64; 6]; PROBES],
    paused: [AtomicU64; PROBES],
}

const _: () = assert!(
    size_of::<Shared>() == size_of::<Layout>()
        && offset_of!(Shared, full) == offset_of!(Layout, full)
        && offset_of!(Shared, rows) == offset_of!(Layout, rows)
        && offset_of!(Shared, sockets) == offset_of!(Layout, sockets)
        && offset_of!(Shared, sockets_limit) == offset_of!(Layout, sockets_limit)
        && offset_of!(Shared, tcp_shed) == offset_of!(Layout, tcp_shed)
        && offset_of!(Shared, sweep_stop) == offset_of!(Layout, sweep_stop)
        && offset_of!(Shared, rates) == offset_of!(Layout, rates)
        && offset_of!(Shared, paused) == offset_of!(Layout, paused)
        && offset_of!(Rate, period) == 0
        && offset_of!(Rate, duty) == 8
        && offset_of!(Rate, tick) == 16
        && offset_of!(Rate, allowance) == 24
        && offset_of!(Rate, overload_runs) == 32
        && offset_of!(Rate, generation) == 40
);

/// The mapped element.
#[derive(Debug)]
pub struct Control {
    shared: NonNull<Shared>,
    length: usize,
}

// SAFETY: all access goes through atomics, in memory that is unmapped only by the drop.
unsafe impl Send for Control {}
// SAFETY: as above.
unsafe impl Sync for Control {}

impl Control {
    /// Maps the element of the `control` map.
    ///
    /// # Errors
    /// When the kernel refuses to map it (before 5.5 it has no memory-mapped arrays).
    pub fn map(map: &OwnedFd) -> io::Result<Self> {
        let length = size_of::<Shared>().next_multiple_of(rustix::param::page_size());
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            mmap(
                ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map.as_fd(),
                0,
            )
        }?;
        let shared =
            NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mmap returned address 0"))?;
        Ok(Self { shared, length })
    }

    fn shared(&self) -> &Shared {
        // SAFETY: the mapping is at least as long as `Shared`, page-aligned, and lives as long as self.
        unsafe { self.shared.as_ref() }
    }

    /// The bank of `table` that the programs write to.
    pub fn active(&self, table: Table) -> usize {
        self.shared().active[table as usize].load(SeqCst) as usize & 1
    }

    /// Turns the programs to the other bank, which is empty.
    pub fn activate(&self, table: Table, bank: usize) {
        self.shared().active[table as usize].store(bank as u64, SeqCst);
        self.shared().full[table as usize].store(0, SeqCst);
    }

    /// Whether the active bank refused a row.
    pub fn full(&self, table: Table) -> bool {
        self.shared().full[table as usize].load(SeqCst) != 0
    }

    /// Rows in a bank of `table`.
    pub fn rows(&self, table: Table, bank: usize) -> u64 {
        self.shared().rows[table as usize][bank].load(SeqCst)
    }

    /// Says that a bank was emptied. A program that was still writing to it may have called the table full since.
    pub fn emptied(&self, table: Table, bank: usize) {
        self.shared().rows[table as usize][bank].store(0, SeqCst);
        self.shared().full[table as usize].store(0, SeqCst);
    }

    /// Sockets followed now.
    pub fn sockets(&self) -> u64 {
        self.shared().sockets.load(SeqCst)
    }

    /// How a probe's events are sampled now.
    pub fn rate(&self, probe: Probe) -> Rate {
        let [period, duty, tick, allowance, overload_runs, generation] = &self.shared().rates[probe as usize];
        Rate {
            period: period.load(SeqCst).max(1),
            duty: duty.load(SeqCst).max(1),
            tick: tick.load(SeqCst),
            allowance: allowance.load(SeqCst),
            overload_runs: overload_runs.load(SeqCst),
            generation: generation.load(SeqCst),
        }
    }

    /// Sets for which share of the time a probe is attached, as one part in `duty`: before the
    /// first event of a window, because what is sampled from now on stands for so much more.
    pub fn set_duty(&self, probe: Probe, duty: u64) {
        let [_, of, .., generation] = &self.shared().rates[probe as usize];
        of.store(duty, SeqCst);
        generation.fetch_add(1, SeqCst);
    }

    /// Sets how a probe's events are sampled while it is attached: all of `rate` but the share of
    /// the time. The programs look at it when the generation has changed, which is last.
    pub fn set_rate(&self, probe: Probe, rate: &Rate) {
        let [period, _, tick, allowance, overload_runs, generation] = &self.shared().rates[probe as usize];
        allowance.store(rate.allowance, SeqCst);
        overload_runs.store(rate.overload_runs, SeqCst);
        period.store(rate.period.clamp(1, MAX_PERIOD), SeqCst);
        tick.store(rate.tick, SeqCst);
        generation.fetch_add(1, SeqCst);
    }

    /// Has no program of the probe notify an overload until its rate is set again.
    pub fn mute(&self, probe: Probe) {
        self.shared().rates[probe as usize][4].store(0, SeqCst);
    }

    /// Has those programs of a probe count nothing, or count again, that stay attached when the others are detached.
    pub fn set_paused(&self, probe: Probe, paused: bool) {
        self.shared().paused[probe as usize].store(paused.into(), SeqCst);
    }

    /// Whether there may be connections that are not followed because of the CPU budget.
    pub fn tcp_shed(&self) -> bool {
        self.shared().tcp_shed.load(SeqCst) != 0
    }

    /// Says whether there may be such connections.
    pub fn set_tcp_shed(&self, shed: bool) {
        self.shared().tcp_shed.store(shed.into(), SeqCst);
    }

    /// Sets the number of the socket at which a sweep stops, counted from its beginning; 0 is none.
    pub fn set_sweep_stop(&self, number: u64) {
        self.shared().sweep_stop.store(number, SeqCst);
    }

    /// Sets how many sockets are followed now, as counted.
    pub fn set_sockets(&self, sockets: u64) {
        self.shared().sockets.store(sockets, SeqCst);
    }

    /// Sets how many possible CPUs there are.
    pub fn set_cpus(&self, cpus: u32) {
        self.shared().cpus_per_shard_log2.store(cpus_per_shard_log2(cpus).into(), SeqCst);
    }

    /// Sets how many sockets may be followed.
    pub fn limit_sockets(&self, limit: u64) {
        self.shared().sockets_limit.store(limit, SeqCst);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and no reference into it outlives self.
        if let Err(error) = unsafe { munmap(self.shared.as_ptr().cast(), self.length) } {
            tracing::debug!("cannot unmap the control map: {error}");
        }
    }
}
