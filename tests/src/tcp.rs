//! TCP load whose truth is known: a process of its own, told what to do line by line, so that its sockets belong to its
//! cgroup. What it understands stands in `bin/load.rs`.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use crate::{cgroup::Cgroup, metrics::Metrics};

/// A running load maker. It ends with the value.
#[derive(Debug)]
pub struct Load {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Load {
    /// Starts the load maker.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the load maker starts");
        let commands = child.stdin.take().expect("stdin is piped");
        let answers = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Self { child, commands, answers }
    }

    /// Moves the load maker to a cgroup. Sockets that it has stay with the one that they were made in.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn move_to(&self, cgroup: &Cgroup) {
        std::fs::write(cgroup.path().join("cgroup.procs"), self.child.id().to_string())
            .expect("the load maker moves");
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives a command and does not wait for its answer.
    ///
    /// # Panics
    /// When the load maker is gone.
    pub fn tell(&mut self, command: impl AsRef<str>) {
        writeln!(self.commands, "{}", command.as_ref()).expect("the load maker reads");
    }

    /// The answer to the oldest command not yet answered: a number, 0 when there is nothing to say.
    ///
    /// # Panics
    /// When the command failed.
    pub fn answer(&mut self) -> u64 {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the load maker answers");
        line.trim().parse().unwrap_or_else(|_| panic!("the load maker: {line:?}"))
    }

    /// Gives a command and waits for its answer.
    ///
    /// # Panics
    /// When the command failed.
    pub fn ask(&mut self, command: impl AsRef<str>) -> u64 {
        self.tell(command);
        self.answer()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a scrape itself moved over TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moved {
    /// Bytes of the request.
    pub request: u64,
    /// Bytes of the answer, head and body.
    pub answer: u64,
}

/// One scrape, and how many bytes it moved.
///
/// # Panics
/// When the agent does not answer with metrics.
pub fn scrape(address: SocketAddr) -> (Metrics, Moved) {
    let mut stream = TcpStream::connect(address).expect("the agent accepts");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout can be set");
    let request = "GET /metrics HTTP/1.1\r\nHost: siskin\r\nConnection: close\r\n\r\n";
    // At once: an agent that saw half a request would count half a request.
    stream.write_all(request.as_bytes()).expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
    let moved = Moved { request: request.len() as u64, answer: answer.len() as u64 };
    (Metrics::parse(body), moved)
}

/// Bytes sent, bytes received and connections of one flow of a cgroup; zeros when it has no row.
pub fn flow(metrics: &Metrics, cgroup: &Cgroup, role: &str, peer: &str, port: u64) -> [f64; 3] {
    let port = port.to_string();
    let labels = [("protocol", "tcp"), ("role", role), ("peer", peer), ("port", &port)];
    let labels = [&cgroup.labels()[..], &labels].concat();
    ["siskin_flow_sent_bytes_total", "siskin_flow_received_bytes_total", "siskin_flow_connections_total"]
        .map(|name| metrics.sum(name, &labels))
}

/// Connections that a cgroup opened, as a client and as a server.
pub fn opened(metrics: &Metrics, cgroup: &Cgroup) -> [f64; 2] {
    by_role(metrics, cgroup, "siskin_tcp_connections_opened_total")
}

/// Connections that a cgroup has open, as a client and as a server.
pub fn open(metrics: &Metrics, cgroup: &Cgroup) -> [f64; 2] {
    by_role(metrics, cgroup, "siskin_tcp_connections_open")
}

fn by_role(metrics: &Metrics, cgroup: &Cgroup, name: &str) -> [f64; 2] {
    ["client", "server"].map(|role| metrics.sum(name, &[&cgroup.labels()[..], &[("role", role)]].concat()))
}

/// Connections of a cgroup that failed: refused, timed out, reset, other.
pub fn failed(metrics: &Metrics, cgroup: &Cgroup) -> [f64; 4] {
    let name = "siskin_tcp_connections_failed_total";
    ["refused", "timeout", "reset", "other"]
        .map(|reason| metrics.sum(name, &[&cgroup.labels()[..], &[("reason", reason)]].concat()))
}
