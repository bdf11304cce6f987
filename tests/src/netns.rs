//! A network namespace of a load maker's own: its ports, its sysctls, nobody else's traffic.

use std::{fs, io, path::Path};

/// Moves the calling thread into a new network namespace whose loopback is up. Sockets that it has stay where they are.
///
/// # Errors
/// When the kernel refuses.
pub fn enter_new() -> io::Result<()> {
    // SAFETY: takes no addresses.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a struct of integers, valid for every bit pattern.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: `request` is what this call reads.
    match unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets `net.ipv4.NAME` of the calling thread's network namespace, where the kernel knows it.
///
/// # Errors
/// When the kernel refuses the value.
pub fn set(name: &str, value: &str) -> io::Result<()> {
    let path = Path::new("/proc/sys/net/ipv4").join(name);
    if path.exists() { fs::write(path, value) } else { Ok(()) }
}
