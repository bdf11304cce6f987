//! A block device of a test's own: a loop device on memory. What it does is what the test asked for, and the kernel's
//! own statistics of it are there to compare with.
//!
//! The device goes away when its last descriptor is closed, so also with a test that was killed.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
    ptr, thread,
    time::{Duration, Instant},
};

use crate::{
    cgroup::{Cgroup, unified},
    metrics::Metrics,
};

/// A loop device on a file in memory, with I/O that passes the page cache by: a call is a request.
#[derive(Debug)]
pub struct LoopDevice {
    /// `loopN`.
    pub name: String,
    device: File,
    backing: File,
    buffer: Buffer,
}

/// The longest read or write of [`LoopDevice`]. No kernel splits one of that size.
pub const MAX_BYTES: usize = 128 << 10;

/// Requests of one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// How many completed.
    pub ios: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a device did, in the groups of the kernel's own statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Reads.
    pub read: Requests,
    /// Writes of data, of nothing but a flush, and of zeroes.
    pub write: Requests,
    /// Discards.
    pub discard: Requests,
    /// Flushes that reached the device.
    pub flush: Requests,
}

impl std::ops::Sub for Requests {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { ios: self.ios - before.ios, bytes: self.bytes - before.bytes }
    }
}

impl std::ops::Sub for Done {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            read: self.read - before.read,
            write: self.write - before.write,
            discard: self.discard - before.discard,
            flush: self.flush - before.flush,
        }
    }
}

impl Done {
    /// What the agent counted for a device.
    pub fn seen(metrics: &Metrics, device: &str) -> Self {
        let of = |op| Requests::seen(metrics, device, op);
        Self { read: of("read"), write: of("write"), discard: of("discard"), flush: of("flush") }
    }

    /// What the kernel's statistics (`/sys/block/*/stat`, Documentation/block/stat.rst) say of a device.
    ///
    /// # Panics
    /// When there is no such device.
    pub fn by_kernel(device: &str) -> Self {
        let text = fs::read_to_string(format!("/sys/block/{device}/stat")).expect("the device's statistics");
        let fields: Vec<u64> =
            text.split_whitespace().map(|field| field.parse().expect("a number")).collect();
        let at = |ios: usize, sectors: usize| Requests { ios: fields[ios], bytes: fields[sectors] * 512 };
        let flush = Requests { ios: fields[15], bytes: 0 };
        Self { read: at(0, 2), write: at(4, 6), discard: at(11, 13), flush }
    }
}

impl Requests {
    /// What the agent counted for a device and an operation.
    pub fn seen(metrics: &Metrics, device: &str, op: &str) -> Self {
        let labels = [("device", device), ("op", op)];
        Self {
            ios: metrics.sum("siskin_disk_requests_total", &labels) as u64,
            bytes: metrics.sum("siskin_disk_bytes_total", &labels) as u64,
        }
    }
}

// include/uapi/linux/loop.h and include/uapi/linux/fs.h, 6.18.
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
const BLKDISCARD: libc::c_ulong = 0x1277;
const BLKZEROOUT: libc::c_ulong = 0x127f;

/// `struct loop_config` with the `struct loop_info64` in it.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    lo_device: [u64; 5],
    lo_number: [u32; 3],
    lo_flags: u32,
    lo_names: [u64; 22],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopConfig>() == 8 + 232 + 64);

impl LoopDevice {
    /// Makes a device of that many bytes, and waits until whoever looks at new devices has looked.
    ///
    /// # Panics
    /// When the machine has no loop devices.
    pub fn new(bytes: u64) -> Self {
        // SAFETY: the name is a string with its end, and the descriptor is new and ours.
        let backing = unsafe {
            let fd = libc::memfd_create(c"siskin-test".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            File::from_raw_fd(fd)
        };
        backing.set_len(bytes).expect("the file grows");
        let (name, device) = attach(&backing);
        let new = Self { name, device, backing, buffer: Buffer::new() };
        new.quiet();
        new
    }

    /// The path of a setting of its queue.
    pub fn setting(&self, name: &str) -> PathBuf {
        format!("/sys/block/{}/queue/{name}", self.name).into()
    }

    /// Reads so many bytes at an offset, in one request.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read(&self, offset: u64, bytes: usize) -> io::Result<()> {
        // SAFETY: the buffer is at least that long.
        done(bytes, unsafe {
            libc::pread(self.device.as_raw_fd(), self.buffer.0, self.buffer.holds(bytes), offset as i64)
        })
    }

    /// Writes so many bytes at an offset, in one request.
    ///
    /// # Errors
    /// When the device fails.
    pub fn write(&self, offset: u64, bytes: usize) -> io::Result<()> {
        self.write_with(offset, bytes, 0)
    }

    /// Writes as [`write`](Self::write) does, and has the data on stable storage afterwards: the request is marked
    /// as FUA, and a flush follows.
    ///
    /// # Errors
    /// When the device fails.
    pub fn write_through(&self, offset: u64, bytes: usize) -> io::Result<()> {
        self.write_with(offset, bytes, libc::RWF_DSYNC)
    }

    fn write_with(&self, offset: u64, bytes: usize, flags: i32) -> io::Result<()> {
        let part = libc::iovec { iov_base: self.buffer.0, iov_len: self.buffer.holds(bytes) };
        // SAFETY: the buffer is at least that long.
        done(bytes, unsafe {
            libc::pwritev2(self.device.as_raw_fd(), &raw const part, 1, offset as i64, flags)
        })
    }

    /// Flushes the device's cache.
    ///
    /// # Panics
    /// When the device fails.
    pub fn flush(&self) {
        self.device.sync_data().expect("the device flushes");
    }

    /// Discards a range.
    ///
    /// # Panics
    /// When the device fails.
    pub fn discard(&self, offset: u64, bytes: u64) {
        self.range(BLKDISCARD, offset, bytes);
    }

    /// Writes zeroes to a range, without sending them to the device.
    ///
    /// # Panics
    /// When the device fails.
    pub fn write_zeroes(&self, offset: u64, bytes: u64) {
        self.range(BLKZEROOUT, offset, bytes);
    }

    fn range(&self, request: libc::c_ulong, offset: u64, bytes: u64) {
        let range = [offset, bytes];
        // SAFETY: both requests read two words.
        let result = unsafe { libc::ioctl(self.device.as_raw_fd(), request as _, range.as_ptr()) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }

    /// Cuts the file off below the device. What lies past its end can be neither read nor written from now on.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn cut_off(&self, bytes: u64) {
        self.backing.set_len(bytes).expect("the file shrinks");
        // SAFETY: takes a number.
        let result = unsafe { libc::fcntl(self.backing.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_GROW) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }

    /// What the kernel says that the device did since `before`. The kernel counts a request after it woke who waits for
    /// it, so this waits until the kernel says `expected`, for five seconds at most.
    pub fn kernel_since(&self, before: Done, expected: Done) -> Done {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let since = Done::by_kernel(&self.name) - before;
            if since == expected || Instant::now() > deadline {
                return since;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until the device has done nothing for a while: udev reads every new device.
    fn quiet(&self) {
        let (mut last, mut since) = (Done::by_kernel(&self.name), Instant::now());
        let deadline = since + Duration::from_secs(5);
        while since.elapsed() < Duration::from_millis(100) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
            let now = Done::by_kernel(&self.name);
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
    }
}

/// A free loop device, opened and attached to the file.
fn attach(backing: &File) -> (String, File) {
    let control = File::open("/dev/loop-control").expect("this machine has loop devices");
    for _ in 0..100 {
        // SAFETY: takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
        assert!(number >= 0, "no free loop device: {}", io::Error::last_os_error());
        let name = format!("loop{number}");
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(format!("/dev/{name}"))
            .expect("the loop device opens");
        // Kernels that cannot pass the page cache of this file by leave the flag out.
        let config = LoopConfig {
            fd: backing.as_raw_fd() as u32,
            block_size: 512,
            lo_device: [0; 5],
            lo_number: [0; 3],
            lo_flags: LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
            lo_names: [0; 22],
            reserved: [0; 8],
        };
        // SAFETY: the request reads a `loop_config`.
        if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) } == 0 {
            return (name, device);
        }
        let error = io::Error::last_os_error();
        // Someone else took it meanwhile.
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY), "cannot set up {name}: {error}");
    }
    panic!("every free loop device is taken by someone else at once");
}

/// Memory that direct I/O takes.
#[derive(Debug)]
struct Buffer(*mut libc::c_void);

impl Buffer {
    fn new() -> Self {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new memory anywhere.
        let memory = unsafe { libc::mmap(ptr::null_mut(), MAX_BYTES, access, kind, -1, 0) };
        assert_ne!(memory, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Self(memory)
    }

    fn holds(&self, bytes: usize) -> usize {
        assert!(bytes <= MAX_BYTES, "{bytes} bytes would be split");
        bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`.
        unsafe { libc::munmap(self.0, MAX_BYTES) };
    }
}

/// The result of a call that is to move so many bytes.
fn done(bytes: usize, result: isize) -> io::Result<()> {
    match usize::try_from(result) {
        Ok(moved) if moved == bytes => Ok(()),
        Ok(moved) => Err(io::Error::other(format!("{moved} of {bytes} bytes"))),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// A cgroup that disk I/O is charged to: of the v1 hierarchy of `blkio` where the machine has that, else of cgroup2 with
/// its controllers `io` and `memory`, by which the kernel knows who wrote a page.
#[derive(Debug)]
pub struct IoCgroup {
    /// The cgroup.
    pub cgroup: Cgroup,
    /// Where this process goes back to.
    home: PathBuf,
    /// Where controllers are to be turned off again, and which.
    turned_on: Vec<(PathBuf, &'static str)>,
}

impl IoCgroup {
    /// Makes a cgroup with a name of its own that contains `name`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(name: &str) -> Self {
        let v1 = Path::new("/sys/fs/cgroup/blkio");
        if v1.join("cgroup.procs").exists() {
            let container = format!("/siskin-test-{name}-{}", std::process::id());
            let cgroup = Cgroup::under(v1, &container);
            return Self { cgroup, home: v1.join(own_path("blkio")), turned_on: Vec::new() };
        }
        let control = unified().join("cgroup.subtree_control");
        let controllers = fs::read_to_string(&control).expect("the root's controllers");
        let is_off = |wanted: &&str| controllers.split_whitespace().all(|controller| controller != *wanted);
        let turned_on = ["io", "memory"].into_iter().filter(is_off).map(|controller| {
            fs::write(&control, format!("+{controller}")).expect("the machine charges disk I/O to cgroups");
            (control.clone(), controller)
        });
        let turned_on = turned_on.collect();
        let home = unified().join(own_path(""));
        Self { cgroup: Cgroup::new(name), home, turned_on }
    }

    /// Whether the kernel charges a page that is written back to who wrote it: cgroup v1 charges who submits the request.
    pub fn knows_who_wrote(&self) -> bool {
        self.cgroup.path().join("memory.stat").exists()
    }

    /// Runs `work` with this process in the cgroup.
    ///
    /// # Panics
    /// When the process cannot move.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        struct Back<'a>(&'a Path);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                let moved = fs::write(self.0.join("cgroup.procs"), "0");
                assert!(thread::panicking() || moved.is_ok(), "this process cannot go back: {moved:?}");
            }
        }
        self.cgroup.enter();
        let _back = Back(&self.home);
        work()
    }
}

impl Drop for IoCgroup {
    fn drop(&mut self) {
        for (control, controller) in &self.turned_on {
            // Whoever uses it by now keeps it.
            let _ = fs::write(control, format!("-{controller}"));
        }
    }
}

/// The path of this process in the hierarchy of a v1 controller, or of cgroup2 for `""`, without its first slash.
fn own_path(controller: &str) -> String {
    let text = fs::read_to_string("/proc/self/cgroup").expect("this process's cgroups");
    let path = text.lines().find_map(|line| {
        let (_, of) = line.split_once(':')?;
        let (controllers, path) = of.split_once(':')?;
        controllers.split(',').any(|other| other == controller).then(|| path[1..].to_owned())
    });
    path.expect("this process is in a cgroup of the hierarchy")
}
