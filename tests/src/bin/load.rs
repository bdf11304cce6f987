//! Makes TCP load, one command a line, one answer a line: a number, or what went wrong. Sockets are numbered from 0 in
//! the order made.
//!
//! ```text
//! netns                          a network namespace of its own, loopback up
//! cable NAME PID                 to the network namespace of a process; both ends have this name
//! address NAME ADDRESS           of an interface
//! sysctl NAME VALUE              net.ipv4.NAME of that namespace
//! listen ADDRESS                 answers the port
//! backlog PORT LENGTH            how many connections wait to be accepted, less one
//! queued PORT                    waits until a connection waits to be accepted
//! unlisten PORT
//! connect ADDRESS                answers the socket
//! begin ADDRESS                  connects without waiting; answers the socket
//! fate SOCKET                    waits until a connect that began has ended; answers its errno
//! accept PORT                    answers the socket
//! send SOCKET BYTES
//! receive SOCKET BYTES           waits until so many came
//! finish SOCKET                  sends no more: a FIN
//! last SOCKET BYTES              sends so many, and the FIN with the last of them
//! end SOCKET                     waits for the peer's FIN, and nothing before it
//! broken SOCKET                  waits for the peer's reset
//! twin SOCKET                    answers a second descriptor of the same socket
//! close SOCKET
//! abort SOCKET                   closes by a reset
//! deaf SOCKET                    drops every segment that comes
//! hear SOCKET                    drops none any more
//! unacknowledged SOCKET          answers how many segments the peer has not acknowledged
//! retransmits SOCKET             answers how many segments were sent again
//! exchange ADDRESS N OUT IN      N connections in turn, each sends OUT bytes, receives IN bytes and closes
//! serve PORT N IN OUT            the other end of `exchange`
//! ```

use std::{
    io::{self, BufRead as _, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use siskin_tests::netns;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> Result<()> {
    let mut load = Load::default();
    for line in io::stdin().lock().lines() {
        let line = line?;
        match load.run(&line) {
            Ok(number) => println!("{number}"),
            Err(error) => println!("`{line}`: {error:#}"),
        }
    }
    Ok(())
}

#[derive(Default)]
struct Load {
    listeners: Vec<(u16, TcpListener)>,
    sockets: Vec<Option<TcpStream>>,
}

impl Load {
    fn run(&mut self, line: &str) -> Result<u64> {
        let mut words = line.split(' ');
        let command = words.next().unwrap_or_default();
        let mut words = Words(words);
        match command {
            "netns" => netns::enter_new()?,
            "cable" => netns::cable(&words.next::<String>()?, words.next()?)?,
            "address" => netns::address(&words.next::<String>()?, words.next()?)?,
            "sysctl" => netns::set(&words.next::<String>()?, &words.next::<String>()?)?,
            "listen" => {
                let address: SocketAddr = words.next()?;
                // A listener is called by its port, and the kernel chooses the same for two addresses at times.
                loop {
                    let listener = TcpListener::bind(address)?;
                    let port = listener.local_addr()?.port();
                    if address.port() != 0 || self.listener(port).is_err() {
                        self.listeners.push((port, listener));
                        return Ok(port.into());
                    }
                }
            }
            "backlog" => {
                let fd = self.listener(words.next()?)?.as_raw_fd();
                // SAFETY: takes no addresses.
                checked(unsafe { libc::listen(fd, words.next()?) })?;
            }
            "queued" => wait(self.listener(words.next()?)?, libc::POLLIN)?,
            "unlisten" => {
                let port: u16 = words.next()?;
                self.listeners.retain(|(of, _)| *of != port);
            }
            "connect" => {
                let stream = TcpStream::connect_timeout(&words.next()?, PATIENCE)?;
                return self.keep(stream);
            }
            "begin" => return self.keep(begin(words.next()?)?),
            "fate" => {
                let stream = self.socket(&mut words)?;
                wait(stream, libc::POLLOUT)?;
                let errno = stream.take_error()?.and_then(|error| error.raw_os_error());
                return Ok(errno.unwrap_or(0) as u64);
            }
            "accept" => {
                let listener = self.listener(words.next()?)?;
                wait(listener, libc::POLLIN)?;
                let (stream, _) = listener.accept()?;
                return self.keep(stream);
            }
            "send" => send(self.socket(&mut words)?, words.next()?)?,
            "receive" => receive(self.socket(&mut words)?, words.next()?)?,
            "finish" => self.socket(&mut words)?.shutdown(Shutdown::Write)?,
            "last" => {
                let stream = self.socket(&mut words)?;
                // Keeps what does not fill a segment, until there is nothing to come.
                set(stream, libc::IPPROTO_TCP, libc::TCP_CORK, &1)?;
                send(stream, words.next()?)?;
                stream.shutdown(Shutdown::Write)?;
            }
            "end" => end(self.socket(&mut words)?)?,
            "broken" => match self.socket(&mut words)?.read(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                other => bail!("no reset but {other:?}"),
            },
            "twin" => {
                let twin = self.socket(&mut words)?.try_clone()?;
                return self.keep(twin);
            }
            "close" => drop(self.take(&mut words)?),
            "abort" => {
                let stream = self.take(&mut words)?;
                set(&stream, libc::SOL_SOCKET, libc::SO_LINGER, &libc::linger { l_onoff: 1, l_linger: 0 })?;
            }
            "deaf" => {
                // A classic program of one instruction: return 0, keep nothing of the packet.
                let mut drop_all =
                    libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
                let program = libc::sock_fprog { len: 1, filter: &raw mut drop_all };
                set(self.socket(&mut words)?, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
            }
            "hear" => set(self.socket(&mut words)?, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0)?,
            "unacknowledged" => return Ok(info(self.socket(&mut words)?)?.tcpi_unacked.into()),
            "retransmits" => return Ok(info(self.socket(&mut words)?)?.tcpi_total_retrans.into()),
            "exchange" => {
                let address = words.next()?;
                let [connections, sent, received] = [words.next::<usize>()?, words.next()?, words.next()?];
                for _ in 0..connections {
                    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
                    stream.set_read_timeout(Some(PATIENCE))?;
                    send(&stream, sent)?;
                    receive(&stream, received)?;
                    // Waits for the other end, so that connections do not pile up there unaccepted.
                    stream.shutdown(Shutdown::Write)?;
                    end(&stream)?;
                }
            }
            "serve" => {
                let listener = self.listener(words.next()?)?;
                let [connections, received, sent] = [words.next::<usize>()?, words.next()?, words.next()?];
                for _ in 0..connections {
                    wait(listener, libc::POLLIN)?;
                    let (stream, _) = listener.accept()?;
                    stream.set_read_timeout(Some(PATIENCE))?;
                    receive(&stream, received)?;
                    send(&stream, sent)?;
                    end(&stream)?;
                }
            }
            _ => bail!("no such command"),
        }
        Ok(0)
    }

    fn listener(&self, port: u16) -> Result<&TcpListener> {
        let found = self.listeners.iter().find(|(of, _)| *of == port);
        Ok(&found.context("no such listener")?.1)
    }

    fn keep(&mut self, stream: TcpStream) -> Result<u64> {
        stream.set_read_timeout(Some(PATIENCE))?;
        self.sockets.push(Some(stream));
        Ok(self.sockets.len() as u64 - 1)
    }

    fn socket(&self, words: &mut Words<'_>) -> Result<&TcpStream> {
        self.sockets.get(words.next::<usize>()?).and_then(Option::as_ref).context("no such socket")
    }

    fn take(&mut self, words: &mut Words<'_>) -> Result<TcpStream> {
        self.sockets.get_mut(words.next::<usize>()?).and_then(Option::take).context("no such socket")
    }
}

/// The rest of a line.
struct Words<'a>(std::str::Split<'a, char>);

impl Words<'_> {
    fn next<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(&mut self) -> Result<T> {
        let word = self.0.next().context("a word is missing")?;
        word.parse().with_context(|| format!("`{word}` is something else"))
    }
}

fn send(mut stream: &TcpStream, bytes: usize) -> Result<()> {
    Ok(stream.write_all(&vec![b'x'; bytes])?)
}

fn receive(mut stream: &TcpStream, bytes: usize) -> Result<()> {
    Ok(stream.read_exact(&mut vec![0; bytes])?)
}

fn end(mut stream: &TcpStream) -> Result<()> {
    ensure!(stream.read(&mut [0])? == 0, "more than expected came");
    Ok(())
}

fn begin(address: SocketAddr) -> Result<TcpStream> {
    let SocketAddr::V4(address) = address else { bail!("not an IPv4 address") };
    let name = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: takes no addresses.
    let fd = checked(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0) })?;
    // SAFETY: a new descriptor of our own.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the name is as long as said.
    let result =
        unsafe { libc::connect(fd, (&raw const name).cast(), size_of_val(&name) as libc::socklen_t) };
    match checked(result) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error.into()),
        _ => Ok(socket.into()),
    }
}

fn wait(socket: &impl AsRawFd, events: libc::c_short) -> Result<()> {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
    // SAFETY: one entry, as said.
    let ready = checked(unsafe { libc::poll(&raw mut poll, 1, PATIENCE.as_millis() as libc::c_int) })?;
    ensure!(ready == 1, "nothing happened for {PATIENCE:?}");
    Ok(())
}

fn set<T>(socket: &impl AsRawFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    let fd = socket.as_raw_fd();
    // SAFETY: the value is as long as said.
    checked(unsafe { libc::setsockopt(fd, level, option, (&raw const *value).cast(), length) }).map(drop)
}

fn info(socket: &impl AsRawFd) -> io::Result<libc::tcp_info> {
    // SAFETY: a struct of integers, valid for every bit pattern.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    let (fd, value) = (socket.as_raw_fd(), (&raw mut info).cast());
    // SAFETY: the kernel fills in no more than `length` bytes.
    checked(unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, value, &raw mut length) })?;
    Ok(info)
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
