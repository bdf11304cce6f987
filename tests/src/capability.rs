//! Running something with few capabilities.

use std::thread;

// include/uapi/linux/capability.h, 6.18.
/// What lets tracing programs read kernel memory.
pub const CAP_PERFMON: u32 = 38;
/// What lets programs be loaded.
pub const CAP_BPF: u32 = 39;

/// Runs `work` in a thread whose processes can have only these capabilities.
///
/// # Panics
/// When `work` does, or the kernel does not drop a capability.
pub fn with_only<T: Send>(capabilities: &[u32], work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            for capability in (0..64).filter(|capability| !capabilities.contains(capability)) {
                // SAFETY: takes a number; of those that the kernel does not know it says so. Holds for this thread only.
                let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability)) };
                assert!(result == 0 || capability > CAP_BPF, "{}", std::io::Error::last_os_error());
            }
            work()
        });
        thread.join().expect("the thread ends")
    })
}
