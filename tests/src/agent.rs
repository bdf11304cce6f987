//! The agent under test, as its own process: what is tested is the binary that ships.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{guest::is_guest, metrics::Metrics};

/// A running agent. It ends with the value.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    /// Where it serves.
    pub address: SocketAddr,
    log: Arc<Mutex<String>>,
}

/// The binary under test.
///
/// # Panics
/// When it was not built.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("SISKIN_BIN").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/siskin")),
        PathBuf::from,
    );
    assert!(path.exists(), "{} is missing: run `cargo xtask test`", path.display());
    path
}

impl Agent {
    /// Starts the agent on a free port and waits until it serves. Scrapes are never answered from an earlier reading, and
    /// unless the flags say how it samples it takes every event.
    ///
    /// # Panics
    /// When it does not serve within ten seconds; the message has its log.
    pub fn start(flags: &[&str]) -> Self {
        let sampled = ["--budget.cpu", "--debug.sampling-period"];
        let is_sampled = flags.iter().any(|flag| sampled.iter().any(|sampled| flag.starts_with(sampled)));
        let unlimited = if is_sampled { None } else { Some("--budget.cpu=unlimited") };
        let mut child = Command::new(binary())
            .args(["run", "--web.listen-address=127.0.0.1:0", "--collect.min-interval=0s"])
            .args(unlimited)
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the agent starts");
        let mut lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        let mut log = String::new();
        let address = loop {
            let Some(Ok(line)) = lines.next() else {
                panic!("the agent ended with {:?} before it served:\n{log}", child.wait());
            };
            log.push_str(&line);
            log.push('\n');
            if let Some((_, url)) = line.split_once("serving on http://") {
                break url.split('/').next().expect("an address").parse().expect("an address");
            }
        };
        let log = Arc::new(Mutex::new(log));
        let sink = Arc::clone(&log);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut log = sink.lock().expect("the log");
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { child, address, log }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it logged so far.
    ///
    /// # Panics
    /// When the thread that reads the log panicked.
    pub fn log(&self) -> String {
        self.log.lock().expect("the log").clone()
    }

    /// Status and body of a page.
    ///
    /// # Panics
    /// When the agent does not answer within ten seconds.
    pub fn get(&self, path: &str) -> (u16, String) {
        request(self.address, "GET", path)
    }

    /// Reads the metrics as they are: what the budget could not pay for is older.
    ///
    /// # Panics
    /// When the agent does not answer with metrics.
    pub fn scrape_once(&self) -> Metrics {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200, "{text}");
        Metrics::parse(&text)
    }

    /// Reads the metrics until all that happened before the call is in them, or a minute has
    /// passed: what the budget cannot pay for is read after half a minute.
    ///
    /// # Panics
    /// When the agent does not answer with metrics.
    pub fn scrape(&self) -> Metrics {
        let (began, deadline) = (unix_seconds(), Instant::now() + Duration::from_secs(60));
        loop {
            let metrics = self.scrape_once();
            if metrics.are_since(began) || Instant::now() > deadline {
                return metrics;
            }
            // Being asked costs the agent something, too.
            thread::sleep(Duration::from_millis(300));
        }
    }

    /// Scrapes until `done` or ten seconds have passed, a minute in a virtual machine, and returns the last metrics either way: the caller's assertion
    /// then says what was wrong with them.
    ///
    /// # Panics
    /// When the agent does not answer.
    pub fn scrape_until(&self, done: impl Fn(&Metrics) -> bool) -> Metrics {
        let deadline = patience();
        loop {
            let metrics = self.scrape();
            if done(&metrics) || Instant::now() > deadline {
                return metrics;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends a signal and waits for the end. Returns the status and how long that took.
    ///
    /// # Panics
    /// When the agent has not ended after ten seconds.
    pub fn stop(mut self, signal: i32) -> (ExitStatus, Duration) {
        let begin = Instant::now();
        // SAFETY: a signal to our own child, which has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
        loop {
            if let Some(status) = self.child.try_wait().expect("the agent can be waited for") {
                return (status, begin.elapsed());
            }
            assert!(begin.elapsed() < Duration::from_secs(10), "the agent does not end:\n{}", self.log());
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Also ends an agent whose test failed; it may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// When a test has waited long enough. Emulated CPUs are twenty times slower.
fn patience() -> Instant {
    Instant::now() + Duration::from_secs(if is_guest() { 60 } else { 10 })
}

/// Seconds of Unix time.
pub fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64())
}

/// One HTTP request on a connection of its own; status and body.
///
/// # Panics
/// When there is no answer within ten seconds.
pub fn request(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the agent accepts");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout can be set");
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: siskin\r\nConnection: close\r\n\r\n")
        .expect("a request");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_owned())
}
