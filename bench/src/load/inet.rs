//! Load over UDP and TCP, to itself.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Result, bail};

use super::{
    job::{Count, Numbers, Sizes},
    pacer::{Pacer, Shared},
};

/// Payload of datagrams, requests and responses.
const PAYLOAD: usize = 64;
/// Payloads of datagrams of mixed size.
const MIXED: [usize; 8] = [64, 64, 64, 128, 128, 256, 512, 1400];
/// How long a load generator waits for its peer before it looks whether it is to stop.
const PATIENCE: Duration = Duration::from_millis(100);

fn udp_pair(port: u16) -> Result<(UdpSocket, UdpSocket)> {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    client.connect(server.local_addr()?)?;
    server.connect(client.local_addr()?)?;
    Ok((client, server))
}

/// Counts so many datagrams of that length, each sent or received.
fn add_datagrams(pacer: &Pacer<'_>, datagrams: u64, bytes: usize) {
    let bytes = bytes as u64;
    pacer.add(Count::Datagrams, datagrams);
    pacer.add(Count::DatagramBytes, datagrams * bytes);
    pacer.add(Count::DatagramSquares, datagrams * bytes * bytes);
}

/// Datagrams from one socket to another.
pub fn udp(port: u16, sizes: Sizes, pacer: &mut Pacer<'_>) -> Result<()> {
    let (client, server) = udp_pair(port)?;
    let (mut buffer, mut numbers) = ([0; 2048], Numbers::new(port.into()));
    while pacer.next() {
        let bytes = if sizes == Sizes::Same { PAYLOAD } else { numbers.pick(&MIXED) };
        client.send(&[0; 2048][..bytes])?;
        server.recv(&mut buffer)?;
        add_datagrams(pacer, 2, bytes);
    }
    Ok(())
}

/// Datagrams to another thread and back.
pub fn ping_pong(port: u16, shared: &Shared, pacer: &mut Pacer<'_>) -> Result<()> {
    let (client, server) = udp_pair(port)?;
    client.set_read_timeout(Some(PATIENCE))?;
    server.set_read_timeout(Some(PATIENCE))?;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; PAYLOAD];
            while !shared.is_over() {
                if server.recv(&mut buffer).is_ok() && server.send(&buffer).is_err() {
                    break;
                }
            }
        });
        let mut buffer = [0; PAYLOAD];
        while pacer.next() {
            client.send(&buffer)?;
            match client.recv(&mut buffer) {
                Ok(_) => add_datagrams(pacer, 4, PAYLOAD),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    })
}

/// Connections that are opened and closed.
pub fn connect(port: u16, pacer: &mut Pacer<'_>) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Not before the client is done: it waits for whom it connected to.
            while !over.load(Relaxed) {
                drop(listener.accept());
            }
        });
        let result = connects(port, pacer);
        over.store(true, Relaxed);
        // Wakes who accepts, so that it sees the end.
        if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
            pacer.add(Count::Connections, 1);
        }
        result
    })
}

fn connects(port: u16, pacer: &mut Pacer<'_>) -> Result<()> {
    while pacer.next() {
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
        if client.as_ref().is_err_and(|error| error.kind() == ErrorKind::Interrupted) {
            continue;
        }
        let mut client = client?;
        // The other side closes first: never more than one waits to be accepted, so no SYN is
        // dropped.
        let mut nothing = Vec::new();
        if client.read_to_end(&mut nothing)? != 0 {
            bail!("somebody else answers on port {port}");
        }
        pacer.add(Count::Connections, 1);
    }
    Ok(())
}

/// Requests and responses on one connection.
pub fn exchange(port: u16, pacer: &mut Pacer<'_>) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    let (mut server, _) = listener.accept()?;
    pacer.add(Count::Connections, 1);
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = [0; PAYLOAD];
            while server.read_exact(&mut buffer).is_ok() && server.write_all(&buffer).is_ok() {}
        });
        let mut buffer = [0; PAYLOAD];
        while pacer.next() {
            client.write_all(&buffer)?;
            client.read_exact(&mut buffer)?;
            pacer.add(Count::Exchanges, 1);
            // Sent and received, by the client and by the server.
            pacer.add(Count::TcpBytes, 4 * PAYLOAD as u64);
        }
        // The other side reads the end of the stream.
        drop(client);
        Ok(())
    })
}
