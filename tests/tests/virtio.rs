//! The disk probe on a real device driver: the scratch disk of a virtual machine.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    thread,
    time::{Duration, Instant},
};

use siskin_tests::{
    agent::Agent,
    disk::{Done, Requests},
    guest::is_guest,
};

const DISK: &str = "vda";
const BLOCK: usize = 16 << 10;

/// Opens the scratch disk. The same name may be the disk of this host: what is not a guest never gets here.
fn scratch_disk() -> File {
    assert!(is_guest(), "this writes to /dev/{DISK}: only in a machine that `cargo xtask vm` made");
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(format!("/dev/{DISK}"))
        .expect("the disk opens")
}

#[test]
#[ignore = "writes to a disk: `cargo xtask vm` runs it, on a scratch disk"]
fn reads_writes_and_flushes_of_a_virtio_disk_are_what_was_asked_and_what_the_kernel_counts() {
    let disk = scratch_disk();
    let agent = Agent::start(&[]);
    let (before, by_kernel) = (agent.scrape(), Done::by_kernel(DISK));
    // Direct I/O takes aligned memory.
    let mut memory = vec![7u8; 2 * BLOCK];
    let offset = memory.as_ptr().align_offset(BLOCK);
    let block = &mut memory[offset..offset + BLOCK];
    let begin = Instant::now();
    for number in 0..200 {
        disk.write_all_at(&block[..512 << (number % 6)], number * BLOCK as u64).expect("a write");
    }
    for number in 0..150 {
        disk.read_exact_at(&mut block[..4096], number * BLOCK as u64).expect("a read");
    }
    (0..20).for_each(|_| disk.sync_data().expect("a flush"));
    let wall = begin.elapsed().as_secs_f64();

    let bytes = (0..200).map(|number| 512 << (number % 6)).sum();
    // A flush is carried by a write without bytes.
    let expected = Done {
        write: Requests { ios: 220, bytes },
        read: Requests { ios: 150, bytes: 150 * 4096 },
        flush: Requests { ios: 20, bytes: 0 },
        ..Done::default()
    };
    // The kernel counts a request after it woke who waits for it.
    let deadline = Instant::now() + Duration::from_secs(5);
    while Done::by_kernel(DISK) - by_kernel != expected && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(Done::by_kernel(DISK) - by_kernel, expected, "the kernel's statistics");
    let after = agent.scrape();
    assert_eq!(Done::seen(&after, DISK) - Done::seen(&before, DISK), expected, "the agent's metrics");
    for op in ["read", "write"] {
        let labels = [("device", DISK), ("op", op)];
        let sum = |name| after.sum(name, &labels) - before.sum(name, &labels);
        let (total, by_device) = (sum("siskin_disk_io_seconds_sum"), sum("siskin_disk_device_seconds_sum"));
        println!("{op}: {total} s, on the device {by_device} s, in all {wall} s");
        assert!(total > 0.0 && total <= wall && by_device <= total, "{op}: {by_device} of {total} of {wall}");
    }
}
