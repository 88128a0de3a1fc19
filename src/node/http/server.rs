//! Serving the HTTP port: axum behind whatever turns a TCP connection into a verified stream.
//!
//! Handshakes run in their own tasks with a deadline and a bound on how many there are at once; a
//! place among the connections is for who has finished one, so that strangers cannot keep a scrape
//! from being answered. A connection has a longest life, so that one that sends nothing is not kept
//! for ever.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Sleep;

use regent_rpc::tls::{Connection, Tls};

use super::health::Health;
use super::metrics::{Kind, Metrics};

/// Connections served at once: a handful of scrapers and probes; more is a mistake or an attack.
const MAX_CONNECTIONS: usize = 64;
/// Handshakes at once; one more is closed. Strangers can be many.
const MAX_HANDSHAKES: usize = 1_024;
/// A handshake takes two round trips; this is generous for other continents.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Scrapers connect again without noticing; what sends nothing is dropped by then.
const MAX_CONNECTION_LIFE: Duration = Duration::from_secs(300);

/// Turns an accepted connection into a stream of a verified peer (`regent_rpc::tls`), or fails.
pub trait Secure: Send + Sync + 'static {
    /// The stream that HTTP is spoken on.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// One handshake.
    fn secure(
        &self,
        stream: TcpStream,
        from: SocketAddr,
    ) -> BoxFuture<'static, io::Result<Self::Io>>;
}

/// No TLS, for scrapers that cannot speak it (kubelets, old Prometheus). Only on loopback: a
/// sidecar proxy or `ssh -L` must stand in front. [`refuse_plaintext`] refuses any other address.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plaintext;

impl Secure for Plaintext {
    type Io = TcpStream;
    fn secure(
        &self,
        stream: TcpStream,
        from: SocketAddr,
    ) -> BoxFuture<'static, io::Result<TcpStream>> {
        Box::pin(async move {
            if from.ip().is_loopback() {
                Ok(stream)
            } else {
                Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "plaintext is for loopback only",
                ))
            }
        })
    }
}

/// Mutual TLS, as on the gRPC port: whoever the trust domain knows may look at health and metrics
/// (every role has `status.read`).
#[derive(Clone, Debug)]
pub struct Verified(pub Arc<Tls>);

impl Secure for Verified {
    type Io = Connection;
    fn secure(
        &self,
        stream: TcpStream,
        from: SocketAddr,
    ) -> BoxFuture<'static, io::Result<Connection>> {
        let tls = Arc::clone(&self.0);
        Box::pin(async move {
            let connection = tls.accept_http(stream, from).await?;
            match &connection.peer().principal {
                Ok(_) => Ok(connection),
                Err(problem) => {
                    Err(io::Error::new(io::ErrorKind::PermissionDenied, problem.to_string()))
                }
            }
        })
    }
}

/// `http_plaintext` with an address that others can reach.
#[derive(Debug, thiserror::Error)]
#[error("http_plaintext is allowed on loopback only, and {0} is not")]
pub struct PlaintextExposed(pub SocketAddr);

/// Refuses plaintext elsewhere than on loopback.
///
/// # Errors
/// [`PlaintextExposed`].
pub fn refuse_plaintext(addr: SocketAddr, plaintext: bool) -> Result<(), PlaintextExposed> {
    if plaintext && !addr.ip().is_loopback() {
        return Err(PlaintextExposed(addr));
    }
    Ok(())
}

#[derive(Clone)]
struct Shared {
    metrics: Arc<Metrics>,
    health: Health,
}

/// The routes; also what tests call without a socket.
pub fn router(metrics: Arc<Metrics>, health: Health) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(Shared { metrics, health })
}

async fn scrape(State(shared): State<Shared>) -> impl IntoResponse {
    let content = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content)], shared.metrics.render())
}

async fn livez(State(shared): State<Shared>) -> impl IntoResponse {
    match shared.health.get().dead {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("dead: {reason}\n")),
    }
}

async fn readyz(State(shared): State<Shared>) -> impl IntoResponse {
    let readiness = shared.health.get();
    let code = if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, readiness.body())
}

/// Serves until `stop` says true or its sender is gone.
///
/// # Errors
/// Only when the listener itself is lost; failed handshakes are counted and go on.
pub async fn serve<S: Secure>(
    listener: TcpListener,
    secure: S,
    metrics: Arc<Metrics>,
    health: Health,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let addr = listener.local_addr()?;
    let (ready_tx, ready) = mpsc::channel(1);
    let accepting = tokio::spawn(accept_loop(listener, secure, metrics.clone(), ready_tx));
    let serving = axum::serve(Ready { ready, addr }, router(metrics, health))
        .with_graceful_shutdown(async move {
            let _ = stop.wait_for(|stop| *stop).await;
        })
        .into_future();
    let outcome = serving.await;
    accepting.abort();
    outcome
}

async fn accept_loop<S: Secure>(
    listener: TcpListener,
    secure: S,
    metrics: Arc<Metrics>,
    ready: mpsc::Sender<(Bounded<S::Io>, SocketAddr)>,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: going on at once would spin.
                tracing::warn!(%error, "the HTTP port cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(turn) = handshakes.clone().try_acquire_owned() else { continue };
        let secured = secure.secure(stream, from);
        let slots = slots.clone();
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, async move {
            let stream = secured.await?;
            // Who is known waits for a place, for as long as a handshake may take.
            let slot = slots.acquire_owned().await.map_err(io::Error::other)?;
            drop(turn);
            Ok::<_, io::Error>((stream, slot))
        });
        let open = metrics.connections.get_or_create_owned(&Kind { kind: "http" });
        let failed = metrics.tls_handshakes_failed.get_or_create_owned(&Kind { kind: "http" });
        let ready = ready.clone();
        tokio::spawn(async move {
            let (stream, slot) = match handshake.await {
                Ok(Ok(shaken)) => shaken,
                Ok(Err(error)) => {
                    failed.inc();
                    tracing::debug!(%from, %error, "an HTTP handshake failed");
                    return;
                }
                Err(_) => {
                    failed.inc();
                    tracing::debug!(%from, "an HTTP handshake took too long");
                    return;
                }
            };
            open.inc();
            let life = Box::pin(tokio::time::sleep(MAX_CONNECTION_LIFE));
            let _ = ready.send((Bounded { stream, life, _slot: slot, open }, from)).await;
        });
    }
}

/// Hands finished handshakes to axum.
struct Ready<Io> {
    ready: mpsc::Receiver<(Io, SocketAddr)>,
    addr: SocketAddr,
}

impl<Io: AsyncRead + AsyncWrite + Unpin + Send + 'static> axum::serve::Listener for Ready<Io> {
    type Io = Io;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Io, SocketAddr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            // The accept loop ended; only the shutdown signal can end the server now.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addr)
    }
}

/// A stream that fails once it has lived long enough, and gives its slot back when dropped.
struct Bounded<Io> {
    stream: Io,
    life: Pin<Box<Sleep>>,
    _slot: tokio::sync::OwnedSemaphorePermit,
    open: super::metrics::Gauge,
}

impl<Io> Drop for Bounded<Io> {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Bounded<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.life.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Bounded<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.life.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn get_page(addr: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(addr).await.expect("connects");
        let ask = format!("GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.expect("writes");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("reads");
        let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        let body = answer.split_once("\r\n\r\n").expect("a body").1.to_owned();
        (code, body)
    }

    /// Never finishes a handshake for the first `stuck` connections.
    struct Stuck(std::sync::atomic::AtomicUsize);
    impl Secure for Stuck {
        type Io = TcpStream;
        fn secure(
            &self,
            stream: TcpStream,
            _: SocketAddr,
        ) -> BoxFuture<'static, io::Result<TcpStream>> {
            let left = self.0.fetch_update(
                std::sync::atomic::Ordering::SeqCst,
                std::sync::atomic::Ordering::SeqCst,
                |left| left.checked_sub(1),
            );
            Box::pin(async move {
                if left.is_ok() {
                    std::future::pending::<()>().await;
                }
                Ok(stream)
            })
        }
    }

    async fn start<S: Secure>(secure: S, health: &Health) -> (SocketAddr, watch::Sender<bool>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("an address");
        let (stop, stopped) = watch::channel(false);
        let metrics = Arc::new(Metrics::new());
        tokio::spawn(serve(listener, secure, metrics, health.clone(), stopped));
        (addr, stop)
    }

    #[tokio::test]
    async fn readiness_names_every_reason_and_liveness_does_not_depend_on_them() {
        let health = Health::starting();
        let (addr, _stop) = start(Plaintext, &health).await;
        assert_eq!(get_page(addr, "/livez").await, (200, "ok\n".to_owned()));
        health.set("leader", Some("none known for 900 ms"));
        let (code, body) = get_page(addr, "/readyz").await;
        assert_eq!(code, 503);
        assert_eq!(body, "leader: none known for 900 ms\nstart: the node is starting\n");
        health.set("start", None);
        health.set("leader", None);
        assert_eq!(get_page(addr, "/readyz").await, (200, "ok\n".to_owned()));
        health.set_dead("the state differs from the majority's");
        assert_eq!(get_page(addr, "/livez").await.0, 503);
        assert_eq!(get_page(addr, "/readyz").await.0, 503);
    }

    #[tokio::test]
    async fn metrics_are_open_metrics_and_other_pages_do_not_exist() {
        let (addr, _stop) = start(Plaintext, &Health::starting()).await;
        let (code, body) = get_page(addr, "/metrics").await;
        assert_eq!(code, 200);
        assert!(body.contains("regent_process_build_info{version="));
        assert!(body.contains("regent_rpc_connections_count{kind=\"http\"} 1"));
        assert_eq!(get_page(addr, "/secrets").await.0, 404);
    }

    #[tokio::test]
    async fn a_peer_that_never_finishes_its_handshake_does_not_keep_others_out() {
        let many = MAX_CONNECTIONS + 20;
        let (addr, _stop) = start(Stuck(many.into()), &Health::starting()).await;
        let mut stuck = Vec::new();
        for _ in 0..many {
            stuck.push(TcpStream::connect(addr).await.expect("connects"));
        }
        let soon = tokio::time::timeout(HANDSHAKE_TIMEOUT / 2, get_page(addr, "/livez"));
        assert_eq!(soon.await.expect("before they are given up").0, 200);
    }

    #[test]
    fn plaintext_is_refused_on_an_address_others_can_reach() {
        for (addr, plaintext, fine) in [
            ("0.0.0.0:80", true, false),
            ("10.0.0.1:80", true, false),
            ("0.0.0.0:80", false, true),
            ("127.0.0.1:80", true, true),
        ] {
            let got = refuse_plaintext(addr.parse().expect("an address"), plaintext);
            assert_eq!(got.is_ok(), fine, "{addr} {plaintext}");
        }
    }
}
