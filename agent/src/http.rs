//! The HTTP server: four pages, read-only.
//!
//! * the telemetry path: metrics in the text format 0.0.4; reads the kernel
//! * `/healthz`: 200 while the process answers; never touches the kernel
//! * `/readyz`: 200 when everything runs that this kernel allows, else 503; then every probe, and what it lacks
//! * `/`: a page for people

use std::{convert::Infallible, future::Future, io, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::{
    collect::{Collector, Snapshot},
    page,
};

/// What the pages are made of.
pub struct Site {
    /// Reads the probes.
    pub collector: Collector,
    /// Path of the metrics.
    pub telemetry_path: String,
}

/// Connections served at once; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 64;
/// A client that takes longer to send its request line and headers is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long requests under way may take after shutdown began.
const GRACE: Duration = Duration::from_millis(500);

/// Serves until `shutdown` completes.
///
/// # Errors
/// When the listener breaks.
pub async fn run(
    listener: TcpListener,
    site: Arc<Site>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let mut shutdown = pin!(shutdown);
    let mut connections = JoinSet::new();
    let (leave, leaving) = watch::channel(());
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(TokioIo::new(stream), Arc::clone(&site), leaving.clone()));
                }
                // Out of descriptors, or a peer that went away: neither ends the server.
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    // Idle connections end at once, those with a request after their answer; a client that does not read it is cut off.
    drop(leave);
    let _ = tokio::time::timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
    Ok(())
}

async fn serve(stream: TokioIo<TcpStream>, site: Arc<Site>, mut leaving: watch::Receiver<()>) {
    let service = service_fn(move |request| {
        let site = Arc::clone(&site);
        async move { Ok::<_, Infallible>(respond(&request, site).await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(stream, service)
    );
    let served = tokio::select! {
        served = connection.as_mut() => served,
        // Never changes: an error says that the sender is gone.
        _ = leaving.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!("connection ended: {error}");
    }
}

async fn respond(request: &Request<Incoming>, site: Arc<Site>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let path = request.uri().path();
    if path == "/healthz" {
        return plain(StatusCode::OK, "ok\n");
    }
    let metrics = path == site.telemetry_path;
    if !metrics && path != "/" && path != "/readyz" {
        return plain(StatusCode::NOT_FOUND, "no such page; see /\n");
    }
    let path = path.to_owned();
    let has_body = request.method() == Method::GET;
    // Reading the kernel takes milliseconds; the thread that answers /healthz does not wait for it.
    let made = tokio::task::spawn_blocking(move || {
        let snapshot = site.collector.snapshot();
        match path.as_str() {
            "/readyz" => ready(&snapshot),
            "/" => {
                reply(StatusCode::OK, "text/html; charset=utf-8", page::html(&snapshot, &site.telemetry_path))
            }
            _ => {
                if has_body {
                    site.collector.scraped(&snapshot);
                }
                reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", snapshot.text.clone())
            }
        }
    });
    made.await.unwrap_or_else(|error| {
        tracing::error!("a reading failed: {error}");
        plain(StatusCode::INTERNAL_SERVER_ERROR, "the reading failed; see the log\n")
    })
}

fn ready(snapshot: &Snapshot) -> Response<Full<Bytes>> {
    let status = match snapshot.readiness.is_ready() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    plain(status, &snapshot.readiness.text())
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", text.to_owned())
}

fn reply(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}
