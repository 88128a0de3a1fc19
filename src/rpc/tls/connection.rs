//! A connection that can be ended from outside: its identity may be revoked while it is open.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tonic::transport::server::Connected;

use super::accept::Place;
use super::gather::Gather;
use super::identity::PeerIdentity;
use super::registry::Registered;

/// Ends one connection. The waker is the reading side's: hyper drives both directions of a
/// connection from one task, and that task always waits for something to read.
#[derive(Debug, Default)]
pub(super) struct Kill {
    killed: AtomicBool,
    waker: AtomicWaker,
}

impl Kill {
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn check(&self) -> io::Result<()> {
        if self.killed.load(Ordering::Acquire) {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the peer's certificate is no longer accepted",
            ));
        }
        Ok(())
    }
}

/// An authenticated connection, accepted or dialled.
#[derive(Debug)]
pub struct Connection {
    stream: Gather<TlsStream<TcpStream>>,
    peer: PeerIdentity,
    kill: Arc<Kill>,
    _registered: Registered,
    _place: Option<Place>,
}

impl Connection {
    pub(super) fn new(
        stream: TlsStream<TcpStream>,
        peer: PeerIdentity,
        registered: Registered,
        place: Option<Place>,
    ) -> Self {
        let kill = registered.kill();
        Self { stream: Gather::new(stream), peer, kill, _registered: registered, _place: place }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// Where it comes from, or goes to.
    pub fn addr(&self) -> SocketAddr {
        self.peer.addr
    }
}

impl Connected for Connection {
    type ConnectInfo = PeerIdentity;
    fn connect_info(&self) -> PeerIdentity {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Registered before the flag is looked at: a kill between the two is then not missed.
        self.kill.waker.register(cx.waker());
        self.kill.check()?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.kill.check()?;
        Pin::new(&mut self.stream).poll_write(cx, data)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.kill.check()?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.kill.check()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
