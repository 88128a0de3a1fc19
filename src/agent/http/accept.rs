//! One port, two protocols: whoever begins with a small letter speaks agent-check, the methods of
//! HTTP are capital letters.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::io::{AsyncWriteExt as _, BufReader, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;

use super::{Shared, check};

/// Connections at once: each load balancer keeps one, or makes one for each check.
const MAX_CONNECTIONS: usize = 512;
/// Who says nothing for this long is cut off.
const FIRST_BYTE_WITHIN: Duration = Duration::from_secs(5);
/// A whole agent-check takes no longer.
const CHECK_WITHIN: Duration = Duration::from_secs(1);
/// Balancers connect again without noticing; what sends nothing is dropped by then.
const MAX_LIFE: Duration = Duration::from_secs(300);
/// Longest line of an agent-check.
const MAX_LINE: u64 = 16;

/// The connections that speak HTTP.
pub struct Accepted {
    http: mpsc::Receiver<(Bounded, SocketAddr)>,
    address: SocketAddr,
}

/// A connection with its place among the others and its longest life.
pub struct Bounded {
    stream: TcpStream,
    ends: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Accepted {
    /// Accepts from `listener` from now on, and answers agent-checks from `page`.
    ///
    /// # Errors
    /// The listener's.
    pub fn new(listener: TcpListener, page: Shared) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (tx, http) = mpsc::channel(16);
        tokio::spawn(accept_forever(listener, page, tx));
        Ok(Self { http, address })
    }
}

async fn accept_forever(
    listener: TcpListener,
    page: Shared,
    http: mpsc::Sender<(Bounded, SocketAddr)>,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while !http.is_closed() {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: going on at once would spin.
                tracing::warn!(%error, "the port for health checks cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (page, http) = (page.clone(), http.clone());
        tokio::spawn(async move {
            let mut first = [0];
            let peeked = tokio::time::timeout(FIRST_BYTE_WITHIN, stream.peek(&mut first)).await;
            let Ok(Ok(1)) = peeked else { return };
            if first[0].is_ascii_lowercase() {
                let _ = tokio::time::timeout(CHECK_WITHIN, answer(stream, &page)).await;
                return;
            }
            let ends = Box::pin(tokio::time::sleep(MAX_LIFE));
            // Nobody listens: the agent ends.
            let _ = http.send((Bounded { stream, ends, _place: place }, from)).await;
        });
    }
}

async fn answer(stream: TcpStream, page: &Shared) -> io::Result<()> {
    let mut reader = BufReader::new(stream.take(MAX_LINE));
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    // Who asks for what is not known is told nothing, which changes nothing.
    let Some(side) = check::Side::parse(&line) else { return Ok(()) };
    // Read last: what is said is true when it is sent.
    let mut stream = reader.into_inner().into_inner();
    let now = page.lock().at(regent_fencer::clock::now());
    stream.write_all(check::answer(side, &now).as_bytes()).await?;
    stream.shutdown().await
}

impl axum::serve::Listener for Accepted {
    type Io = Bounded;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Bounded, SocketAddr) {
        match self.http.recv().await {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.ends.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Pin::new(&mut self.stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
