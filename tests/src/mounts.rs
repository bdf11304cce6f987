//! A mount namespace of a thread's own, in which the host's directories are elsewhere, as for an agent in a container.

use std::{ffi::CString, fs, io, os::unix::ffi::OsStrExt as _, path::Path, ptr, thread};

/// Runs `work` in a thread with mounts of its own: what it starts sees them, nobody else does.
///
/// # Panics
/// When `work` does, or the kernel refuses the namespace.
pub fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: takes no addresses; holds for this thread only.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "{}", io::Error::last_os_error());
            mount(None, Path::new("/"), libc::MS_REC | libc::MS_PRIVATE);
            work()
        });
        thread.join().expect("the thread ends")
    })
}

/// Shows a directory with all that is mounted below it in another place as well, which is made.
///
/// # Panics
/// When the kernel refuses.
pub fn show(from: &Path, at: &Path) {
    fs::create_dir_all(at).expect("a directory of our own");
    mount(Some(from), at, libc::MS_BIND | libc::MS_REC);
}

/// Puts a file or directory in front of another one of the same kind.
///
/// # Panics
/// When the kernel refuses.
pub fn cover(front: &Path, at: &Path) {
    mount(Some(front), at, libc::MS_BIND);
}

fn mount(from: Option<&Path>, at: &Path, flags: libc::c_ulong) {
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).expect("no zero in a path");
    let (from, target) = (from.map(text), text(at));
    let source = from.as_ref().map_or(ptr::null(), |from| from.as_ptr());
    // SAFETY: both are strings that live until it returns; these kinds of mount take neither type nor data.
    let result = unsafe { libc::mount(source, target.as_ptr(), ptr::null(), flags, ptr::null()) };
    assert_eq!(result, 0, "{}: {}", at.display(), io::Error::last_os_error());
}
