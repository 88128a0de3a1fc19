//! UDP and TCP around the answers. Whoever may send here is trusted in nothing: what one message or
//! one connection can cost is bounded, and no bytes end the loops.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::answer::{Outcome, Over, answer};
use crate::{Source, Zone};

/// Longest question that is read: a name has 255 bytes, options are few.
const MAX_QUESTION: usize = 4_096;
/// After an error of a socket, so that one that lasts costs nothing.
const AFTER_ERROR: Duration = Duration::from_millis(20);
/// How often another port is tried where the system chooses one.
const PORT_ATTEMPTS: usize = 16;

/// What those who ask over TCP may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at a time; more are closed at once.
    pub connections: usize,
    /// Of them from one address.
    pub of_one_address: usize,
    /// For the next question, all of it, and as long for taking its answer.
    pub idle: Duration,
    /// For a connection as a whole: a resolver opens another one.
    pub life: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 128,
            of_one_address: 16,
            idle: Duration::from_secs(5),
            life: Duration::from_secs(60),
        }
    }
}

/// The two sockets of a responder, at one address.
#[derive(Debug)]
pub struct Ports {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Ports {
    /// Opens both at `address`; with port 0 at one that is free for both.
    ///
    /// # Errors
    /// The system's.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let mut attempts = if address.port() == 0 { PORT_ATTEMPTS } else { 1 };
        loop {
            let tcp = TcpListener::bind(address).await?;
            attempts -= 1;
            match UdpSocket::bind(tcp.local_addr()?).await {
                Ok(udp) => return Ok(Self { udp, tcp }),
                Err(error) if attempts == 0 => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Where they are.
    ///
    /// # Errors
    /// The system's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }
}

/// Answers on `ports` for as long as it is polled.
pub async fn serve<S: Source>(ports: Ports, zone: Zone, source: Arc<S>, bounds: Bounds) {
    let Ports { udp, tcp } = ports;
    let zone = Arc::new(zone);
    tokio::join!(datagrams(udp, &zone, source.as_ref()), connections(tcp, &zone, &source, bounds));
}

/// The answer, whatever the bytes. They come from anybody, and what decodes them is not ours: a
/// panic there must not end a coordinator.
fn guarded<S: Source>(zone: &Zone, source: &S, bytes: &[u8], over: Over) -> Option<Vec<u8>> {
    let answered = catch_unwind(AssertUnwindSafe(|| answer(zone, source, bytes, over)));
    let (reply, outcome) = answered.unwrap_or_else(|_| {
        tracing::error!(
            length = bytes.len(),
            "a question of DNS was dropped: a bug in decoding it"
        );
        (None, Outcome::Dropped)
    });
    source.noted(outcome);
    reply
}

/// One datagram after the other: an answer takes microseconds, and what the system has no more room
/// for is lost, as datagrams are.
async fn datagrams<S: Source>(udp: UdpSocket, zone: &Zone, source: &S) {
    let mut buffer = vec![0; MAX_QUESTION];
    loop {
        let (length, from) = match udp.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "no datagram");
                sleep(AFTER_ERROR).await;
                continue;
            }
        };
        if let Some(reply) = guarded(zone, source, &buffer[..length], Over::Udp)
            && let Err(error) = udp.send_to(&reply, from).await
        {
            tracing::debug!(%from, %error, "an answer was not sent");
        }
    }
}

async fn connections<S: Source>(
    tcp: TcpListener,
    zone: &Arc<Zone>,
    source: &Arc<S>,
    bounds: Bounds,
) {
    let mut open = JoinSet::new();
    let mut whose: HashMap<Id, IpAddr> = HashMap::new();
    loop {
        let accepted = tokio::select! {
            accepted = tcp.accept() => accepted,
            Some(ended) = open.join_next_with_id() => {
                let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                whose.remove(&id);
                continue;
            }
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "no connection");
                sleep(AFTER_ERROR).await;
                continue;
            }
        };
        let of_it = whose.values().filter(|ip| **ip == from.ip()).count();
        if open.len() >= bounds.connections || of_it >= bounds.of_one_address {
            continue;
        }
        let (zone, source) = (zone.clone(), source.clone());
        let task = open.spawn(async move {
            // Whatever ends it, there is nobody to tell.
            let _ = converse(stream, &zone, source.as_ref(), bounds).await;
        });
        whose.insert(task.id(), from.ip());
    }
}

/// Questions of one connection, each answered before the next is read: whoever sends many at once
/// gets their answers in that order, and whoever takes none is read no more.
async fn converse<S: Source>(
    mut stream: TcpStream,
    zone: &Zone,
    source: &S,
    bounds: Bounds,
) -> io::Result<()> {
    let _ = stream.set_nodelay(true);
    let until = Instant::now() + bounds.life;
    let mut buffer = vec![0; MAX_QUESTION];
    loop {
        let soon = until.min(Instant::now() + bounds.idle);
        let length = timeout_at(soon, question(&mut stream, &mut buffer)).await??;
        let Some(reply) = guarded(zone, source, &buffer[..length], Over::Tcp) else {
            return Ok(());
        };
        let Ok(prefix) = u16::try_from(reply.len()) else { return Ok(()) };
        let mut framed = prefix.to_be_bytes().to_vec();
        framed.extend(reply);
        timeout(bounds.idle, stream.write_all(&framed)).await??;
    }
}

/// Reads the next question into `buffer`; how long it is.
async fn question(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let length = usize::from(stream.read_u16().await?);
    let Some(room) = buffer.get_mut(..length) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too long"));
    };
    stream.read_exact(room).await?;
    Ok(length)
}
