//! Accepting: bounded in every direction, so that no stranger can make a node slow for others.
//!
//! ```text
//! accept -> a place among all connections? -> [task: first byte -> a place among the handshakes ->
//!   handshake -> identity] -> tonic
//!          no: closed at once                 deadline for all of it
//! ```
//! A peer that connects and says nothing holds a place among the connections until the deadline,
//! but none among the handshakes, and one that begins and does not go on holds that for a moment
//! only: those who speak do not wait for it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::Stream;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tokio_stream::wrappers::ReceiverStream;

use super::connection::Connection;
use super::verify::ExpectPeer;
use super::{Tls, facts};

/// A handshake keeps its place among those that are computed for so long: a round trip to another
/// continent. It may go on without, and makes room: a first byte costs a stranger nothing.
const TURN: Duration = Duration::from_millis(200);

/// Bounds of one port.
#[derive(Clone, Copy, Debug)]
pub struct AcceptLimits {
    /// Connections open or being opened; one more is closed at once.
    pub connections: usize,
    /// Handshakes computed at the same time; others wait within their deadline.
    pub handshakes: usize,
    /// From the TCP connection to the end of the handshake.
    pub deadline: Duration,
}

impl Default for AcceptLimits {
    fn default() -> Self {
        Self { connections: 20_000, handshakes: 64, deadline: Duration::from_secs(5) }
    }
}

/// Counters of one process's TLS, for metrics.
#[derive(Debug, Default)]
pub struct TlsStats {
    accepted: AtomicU64,
    open: Arc<AtomicU64>,
    failed: AtomicU64,
    over_limit: AtomicU64,
    revoked: AtomicU64,
    reloads: AtomicU64,
    failed_reloads: AtomicU64,
}

impl TlsStats {
    /// Connections let in.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
    /// Of those, the ones that are open now.
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }
    /// Handshakes that failed or took too long.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
    /// Connections closed because [`AcceptLimits::connections`] were open.
    pub fn over_limit(&self) -> u64 {
        self.over_limit.load(Ordering::Relaxed)
    }
    /// Connections refused or ended because their certificate is not accepted any more.
    pub fn revoked(&self) -> u64 {
        self.revoked.load(Ordering::Relaxed)
    }
    /// Reloads that brought new certificates into force.
    pub fn reloads(&self) -> u64 {
        self.reloads.load(Ordering::Relaxed)
    }
    /// Looks at files that were not usable; the old ones stayed in force.
    pub fn failed_reloads(&self) -> u64 {
        self.failed_reloads.load(Ordering::Relaxed)
    }
    pub(super) fn count_reload<E>(&self, outcome: &Result<bool, E>) {
        let counter = match outcome {
            Ok(true) => &self.reloads,
            Ok(false) => return,
            Err(_) => &self.failed_reloads,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
    pub(super) fn count_revoked(&self, count: u64) {
        self.revoked.fetch_add(count, Ordering::Relaxed);
    }
}

/// A connection's place among those of its port, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    open: Arc<AtomicU64>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn take(stats: &TlsStats, permit: OwnedSemaphorePermit) -> Self {
        stats.open.fetch_add(1, Ordering::Relaxed);
        Self { open: Arc::clone(&stats.open), _permit: permit }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Tls {
    /// Accepts on `listener` until the stream is dropped: what tonic's `serve_with_incoming` takes.
    /// The stream never ends and never yields an error by itself.
    pub fn incoming(
        self: &Arc<Self>,
        listener: TcpListener,
        limits: AcceptLimits,
    ) -> impl Stream<Item = io::Result<Connection>> + Send + use<> {
        // A short queue: tonic takes connections at once; the places are what bounds.
        let (tx, rx) = mpsc::channel(64);
        tokio::spawn(accept_loop(Arc::clone(self), listener, limits, tx));
        ReceiverStream::new(rx)
    }

    /// One handshake on a connection that somebody else accepted, for HTTP/1.1: the same
    /// certificates, rules and registry of open connections as on the gRPC port.
    ///
    /// # Errors
    /// The handshake failed, or the certificate is not accepted.
    pub async fn accept_http(
        self: Arc<Self>,
        tcp: TcpStream,
        addr: SocketAddr,
    ) -> io::Result<Connection> {
        let mut config = (*self.current().server).clone();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = TlsAcceptor::from(Arc::new(config)).accept(tcp).await?;
        self.admit(TlsStream::from(stream), addr, None)
    }

    /// Dials `address` (`host:port`) and makes sure that `expect` answers.
    ///
    /// # Errors
    /// Resolution, TCP, TLS, or a peer that is not `expect`.
    pub async fn dial(&self, address: &str, expect: &ExpectPeer) -> io::Result<Connection> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let addr = tcp.peer_addr()?;
        let material = self.current();
        let name = addr.ip().into();
        let connector = TlsConnector::from(material.client(expect));
        let stream = connector.connect(name, tcp).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(io::Error::other("the server does not offer HTTP/2 (ALPN h2)"));
        }
        self.admit(TlsStream::from(stream), addr, None)
    }

    /// Registers a finished handshake, unless the deny list refuses its certificate.
    fn admit(
        &self,
        stream: TlsStream<TcpStream>,
        addr: SocketAddr,
        permit: Option<OwnedSemaphorePermit>,
    ) -> io::Result<Connection> {
        let chain: Vec<_> = stream
            .get_ref()
            .1
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .map(|cert| cert.clone().into_owned())
            .collect();
        let leaf = chain.first().ok_or_else(|| io::Error::other("no certificate was shown"))?;
        let facts = facts(leaf).map_err(io::Error::other)?;
        // The newest list, not the one of the handshake: a reload in between must not be missed,
        // and one after this line finds the connection in the registry.
        let registered = self.registry.add(chain.clone(), facts.clone());
        let material = self.current();
        if let Err(problem) = material.accepts(&chain, &facts) {
            self.stats.count_revoked(1);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
        }
        let peer = facts.peer(&material.trust, addr);
        let place = permit.map(|permit| Place::take(&self.stats, permit));
        Ok(Connection::new(stream, peer, registered, place))
    }
}

async fn accept_loop(
    tls: Arc<Tls>,
    listener: TcpListener,
    limits: AcceptLimits,
    tx: mpsc::Sender<io::Result<Connection>>,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let handshakes = Arc::new(Semaphore::new(limits.handshakes));
    loop {
        let accepted = tokio::select! {
            () = tx.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let (tcp, addr) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: trying again at once would only burn the CPU.
                tracing::error!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            if tls.stats.over_limit.fetch_add(1, Ordering::Relaxed).is_power_of_two() {
                tracing::warn!(%addr, limit = limits.connections, "too many connections");
            }
            continue;
        };
        let (tls, tx, handshakes) = (Arc::clone(&tls), tx.clone(), Arc::clone(&handshakes));
        tokio::spawn(async move {
            let shaken = timeout(limits.deadline, handshake(&tls, &handshakes, tcp, addr, place));
            let problem = match shaken.await {
                Ok(Ok(connection)) => {
                    tls.stats.accepted.fetch_add(1, Ordering::Relaxed);
                    // The only way this fails is that the server has stopped.
                    let _ = tx.send(Ok(connection)).await;
                    return;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no handshake within {} ms", limits.deadline.as_millis()),
            };
            tls.stats.failed.fetch_add(1, Ordering::Relaxed);
            tracing::info!(%addr, problem, "a connection was refused");
        });
    }
}

async fn handshake(
    tls: &Tls,
    handshakes: &Semaphore,
    tcp: TcpStream,
    addr: SocketAddr,
    place: OwnedSemaphorePermit,
) -> io::Result<Connection> {
    tcp.set_nodelay(true)?;
    // `readable` may say yes to a socket that has nothing; a byte that can be seen cannot lie.
    if tcp.peek(&mut [0]).await? == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed without a word"));
    }
    let turn = handshakes.acquire().await.map_err(io::Error::other)?;
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.current().server));
    let mut shaking = std::pin::pin!(acceptor.accept(tcp));
    let stream = match timeout(TURN, &mut shaking).await {
        Ok(shaken) => shaken?,
        Err(_) => {
            drop(turn);
            shaking.await?
        }
    };
    tls.admit(TlsStream::from(stream), addr, Some(place))
}
