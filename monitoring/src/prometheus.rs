//! A real Prometheus, for as long as a test takes.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;

/// A running server. It ends, and its data goes, with the value.
pub struct Prometheus {
    child: Child,
    address: SocketAddr,
    folder: PathBuf,
}

impl Prometheus {
    /// Starts the server with this configuration on a free port of loopback.
    ///
    /// # Errors
    /// When it is not ready within twenty seconds.
    pub fn start(binary: &Path, config: &str) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("siskin-prometheus-{}", std::process::id()));
        fs::create_dir_all(&folder).context("cannot make a folder for Prometheus")?;
        let file = folder.join("prometheus.yaml");
        fs::write(&file, config).context("cannot write the configuration of Prometheus")?;
        // The port is free until somebody else takes it, which nobody does within milliseconds.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut data = std::ffi::OsString::from("--storage.tsdb.path=");
        data.push(folder.join("data"));
        let mut configuration = std::ffi::OsString::from("--config.file=");
        configuration.push(&file);
        let child = Command::new(binary)
            .arg(configuration)
            .arg(data)
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn")
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let mut server = Self { child, address, folder };
        let deadline = Instant::now() + Duration::from_secs(20);
        while get(address, "/-/ready").is_err() {
            if let Some(status) = server.child.try_wait()? {
                bail!("Prometheus ended ({status}); what it says stands above");
            }
            if Instant::now() > deadline {
                bail!("Prometheus is not ready after twenty seconds");
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(server)
    }

    /// The values that an expression has now.
    ///
    /// # Errors
    /// What the server says against the expression.
    pub fn query(&self, expr: &str) -> Result<Vec<f64>> {
        let data = self.api(&format!("query?query={}", encoded(expr)))?;
        let number = |value: &Value| value[1].as_str().and_then(|text| text.parse().ok());
        let values = match data["resultType"].as_str() {
            Some("vector") => data["result"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|sample| number(&sample["value"]))
                .collect(),
            Some("scalar") => vec![number(&data["result"])],
            other => bail!("`{expr}` is of the type {other:?}"),
        };
        values
            .into_iter()
            .map(|value| value.ok_or_else(|| anyhow!("`{expr}`: a value is no number")))
            .collect()
    }

    /// The names of all series.
    ///
    /// # Errors
    /// When the server does not say.
    pub fn names(&self) -> Result<BTreeSet<String>> {
        let data = self.api("label/__name__/values")?;
        let names = data.as_array().into_iter().flatten().filter_map(Value::as_str);
        Ok(names.map(str::to_owned).collect())
    }

    /// The answer of one of the server's pages below `/api/v1`.
    ///
    /// # Errors
    /// When it is an error.
    pub fn api(&self, page: &str) -> Result<Value> {
        let text = get(self.address, &format!("/api/v1/{page}"))?;
        let mut answer: Value = serde_json::from_str(&text).context("Prometheus does not answer in JSON")?;
        if answer["status"] != "success" {
            bail!("{}", answer["error"].as_str().unwrap_or("Prometheus does not say why"));
        }
        Ok(answer["data"].take())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended already; what is left is a folder of /tmp.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Everything but letters and digits by its number.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// The body of a page; an answer of 4xx has one too. HTTP/1.0 keeps it in one piece.
fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a head")?;
    if head.split(' ').nth(1).is_none_or(|status| status.starts_with('5')) {
        bail!("{}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

/// Serves one text at every path, for as long as the process lives.
///
/// # Errors
/// When there is no free port.
pub fn serve(text: String) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            // Whoever hangs up does not want the answer.
            let _ = stream.read(&mut request).and_then(|_| {
                write!(stream, "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\r\n{text}")
            });
        }
    });
    Ok(address)
}
