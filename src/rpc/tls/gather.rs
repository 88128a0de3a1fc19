//! Writes of one turn of the scheduler go out together.
//!
//! HTTP/2 flushes after each frame that it is handed, and each flush is a record of TLS and a call
//! of the kernel. Where a thousand streams are told the same thing, a connection is handed hundreds of
//! frames one after the other by as many tasks: it lets those run first, and then writes once.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is gathered at most: one record of TLS.
const MOST: usize = 16 * 1024;
/// What is kept of the buffer: there are many connections, and most are quiet.
const KEPT: usize = 512;

/// A stream that writes when it is flushed, or when much is gathered.
#[derive(Debug)]
pub(super) struct Gather<S> {
    stream: S,
    gathered: Vec<u8>,
    /// Of that, what is written.
    written: usize,
    /// A flush has let the other tasks run first.
    waited: bool,
}

impl<S> Gather<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, gathered: Vec::new(), written: 0, waited: false }
    }
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.gathered.len() {
            let rest = &self.gathered[self.written..];
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        self.written = 0;
        self.gathered.clear();
        self.gathered.shrink_to(KEPT);
        self.waited = false;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.gathered.len() + data.len() > MOST {
            ready!(self.poll_drain(cx))?;
        }
        if data.len() > MOST {
            return Pin::new(&mut self.stream).poll_write(cx, data);
        }
        self.gathered.extend_from_slice(data);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.gathered.is_empty() && !std::mem::replace(&mut self.waited, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length: usize = data.iter().map(|part| part.len()).sum();
        if self.gathered.len() + length > MOST {
            ready!(self.poll_drain(cx))?;
        }
        if length > MOST {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        }
        for part in data {
            self.gathered.extend_from_slice(part);
        }
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        // Several parts are one write, whatever is below.
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use proptest::prelude::*;

    use super::*;

    /// Takes a few bytes at a time, and every other time none.
    #[derive(Default)]
    struct Narrow {
        taken: Vec<u8>,
        writes: usize,
        blocked: bool,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            data: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.blocked = !self.blocked;
            if self.blocked {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let some = data.len().min(700);
            self.taken.extend_from_slice(&data[..some]);
            self.writes += 1;
            Poll::Ready(Ok(some))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    struct Idle;
    impl Wake for Idle {
        fn wake(self: Arc<Self>) {}
    }

    fn finish(mut step: impl FnMut(&mut Context<'_>) -> Poll<io::Result<()>>) {
        let waker = Waker::from(Arc::new(Idle));
        let mut cx = Context::from_waker(&waker);
        for _ in 0..100_000 {
            if let Poll::Ready(done) = step(&mut cx) {
                return done.expect("nothing fails");
            }
        }
        panic!("it never ends");
    }

    proptest! {
        /// Whatever is written, by whatever call, comes out in its order once it is flushed.
        #[test]
        fn nothing_is_lost_nor_comes_twice(
            writes in prop::collection::vec((0_usize..40_000, any::<bool>(), any::<bool>()), 1..12)
        ) {
            let mut gather = Gather::new(Narrow::default());
            let mut wanted = Vec::new();
            for (at, (length, vectored, flush)) in writes.into_iter().enumerate() {
                let data: Vec<u8> = (0..length).map(|byte| (byte + at * 7) as u8).collect();
                let mut done = 0;
                while done < data.len() {
                    let (mut wrote, rest) = (0, &data[done..]);
                    finish(|cx| {
                        let half = rest.len() / 2;
                        let parts = [io::IoSlice::new(&rest[..half]), io::IoSlice::new(&rest[half..])];
                        let written = match vectored {
                            true => Pin::new(&mut gather).poll_write_vectored(cx, &parts),
                            false => Pin::new(&mut gather).poll_write(cx, rest),
                        };
                        written.map_ok(|written| wrote = written)
                    });
                    prop_assert!(wrote > 0);
                    done += wrote;
                }
                wanted.extend_from_slice(&data);
                if flush {
                    finish(|cx| Pin::new(&mut gather).poll_flush(cx));
                    prop_assert_eq!(&gather.stream.taken, &wanted);
                    prop_assert!(gather.gathered.capacity() <= KEPT);
                }
                prop_assert!(gather.gathered.len() <= MOST);
            }
            finish(|cx| Pin::new(&mut gather).poll_shutdown(cx));
            prop_assert_eq!(&gather.stream.taken, &wanted);
        }
    }

    /// The tasks that are ready run first, and what they write goes out with it; whoever is flushed must be
    /// looked at again.
    #[test]
    fn a_flush_lets_the_others_run_once_and_then_writes_all_at_once() {
        struct Woken(AtomicUsize);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let woken = Arc::new(Woken(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let mut gather = Gather::new(Narrow::default());
        for _ in 0..2 {
            let mut wrote = 0;
            for _ in 0..3 {
                let Poll::Ready(Ok(written)) = Pin::new(&mut gather).poll_write(&mut cx, &[1; 100])
                else {
                    panic!("there is room");
                };
                wrote += written;
                if wrote == 100 {
                    assert!(Pin::new(&mut gather).poll_flush(&mut cx).is_pending());
                    assert_eq!(woken.0.swap(0, Ordering::Relaxed), 1);
                }
            }
            let before = gather.stream.writes;
            finish(|cx| Pin::new(&mut gather).poll_flush(cx));
            assert_eq!((wrote, gather.stream.writes), (300, before + 1));
        }
        // Nothing is there to wait for.
        assert!(Pin::new(&mut gather).poll_flush(&mut cx).is_ready());
    }
}
