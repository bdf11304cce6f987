//! A network namespace of a load maker's own: its ports, its sysctls, nobody else's traffic.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

/// Moves the calling thread into a new network namespace whose loopback is up. Sockets that it has stay where they are.
///
/// # Errors
/// When the kernel refuses.
pub fn enter_new() -> io::Result<()> {
    // SAFETY: takes no addresses.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    up("lo")
}

fn up(interface: &str) -> io::Result<()> {
    let mut request = request(interface);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    ask(libc::SIOCSIFFLAGS, &request)
}

fn request(interface: &str) -> libc::ifreq {
    // SAFETY: a struct of integers, valid for every bit pattern.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request
}

fn ask(command: libc::Ioctl, request: &libc::ifreq) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: `request` is what these calls read.
    match unsafe { libc::ioctl(socket.as_raw_fd(), command, &raw const *request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives an interface of this network namespace an IPv4 address, in a network of 256, and turns it on.
///
/// # Errors
/// When there is no such interface, or the kernel refuses.
pub fn address(interface: &str, address: Ipv4Addr) -> io::Result<()> {
    let name = |address: [u8; 4]| libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        // A port, then the address.
        sa_data: std::array::from_fn(|index| match index {
            2..6 => address[index - 2] as libc::c_char,
            _ => 0,
        }),
    };
    let mut request = request(interface);
    request.ifr_ifru.ifru_addr = name(address.octets());
    ask(libc::SIOCSIFADDR, &request)?;
    request.ifr_ifru.ifru_netmask = name([255, 255, 255, 0]);
    ask(libc::SIOCSIFNETMASK, &request)?;
    up(interface)
}

// include/uapi/linux/if_link.h and include/uapi/linux/veth.h, 6.18.
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;

/// Makes a cable: one end, `name`, in this network namespace, the other of the same name in that of a process.
///
/// # Errors
/// When the kernel refuses.
pub fn cable(name: &str, to: u32) -> io::Result<()> {
    let name = attribute(libc::IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
    // `struct ifinfomsg`: all of it is optional here.
    let end = [0u8; 16];
    let peer = [&end[..], &name, &attribute(libc::IFLA_NET_NS_PID, &to.to_ne_bytes())].concat();
    let link = [
        attribute(libc::IFLA_INFO_KIND, b"veth"),
        attribute(IFLA_INFO_DATA, &attribute(VETH_INFO_PEER, &peer)),
    ];
    let body = [&end[..], &name, &attribute(libc::IFLA_LINKINFO, &link.concat())].concat();

    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let length = (16 + body.len()) as u32;
    let head = [
        &length.to_ne_bytes()[..],
        &libc::RTM_NEWLINK.to_ne_bytes(),
        &(flags as u16).to_ne_bytes(),
        // A sequence number, and the kernel as the receiver.
        &[0; 8],
    ];
    let message = [&head.concat()[..], &body].concat();
    // SAFETY: takes no addresses.
    let fd =
        unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: new and ours.
    let mut socket = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    socket.write_all(&message)?;
    let mut answer = [0; 4096];
    let length = socket.read(&mut answer)?;
    // A head like ours, then the error, negative, or zero.
    let error = answer[..length].get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match error {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::Error::other("a short answer")),
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Sets `net.ipv4.NAME` of the calling thread's network namespace, where the kernel knows it.
///
/// # Errors
/// When the kernel refuses the value.
pub fn set(name: &str, value: &str) -> io::Result<()> {
    let path = Path::new("/proc/sys/net/ipv4").join(name);
    if path.exists() { fs::write(path, value) } else { Ok(()) }
}
