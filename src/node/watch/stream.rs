//! What one watcher reads: first what it is served on joining, then its mailbox.

use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use prost::Message;
use regent_rpc::pb::v1;
use tonic::Status;

use super::hub::Shared;
use super::mailbox::{Ending, Found, Watcher};

/// A watch: encoded responses of `ObserveResponse` or `WatchServicesResponse`, as the topic is.
/// Dropping it ends the watch.
pub struct WatchStream {
    hub: Arc<Shared>,
    watcher: Arc<Watcher>,
}

impl WatchStream {
    pub(super) fn new(hub: Arc<Shared>, watcher: Arc<Watcher>) -> Self {
        Self { hub, watcher }
    }

    /// As messages, for the generated trait and for tests. Costs a decoding per message: the
    /// product serves the encoded ones, see [`super::serve`].
    pub fn decoded<T: Message + Default>(self) -> Decoded<T> {
        Decoded::of(self)
    }

    /// The type of `ElectionService.Observe`.
    pub fn elections(self) -> Decoded<v1::ObserveResponse> {
        self.decoded()
    }

    /// The type of `TopologyService.WatchServices`.
    pub fn services(self) -> Decoded<v1::WatchServicesResponse> {
        self.decoded()
    }
}

impl Stream for WatchStream {
    type Item = Result<Bytes, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // A watcher that was cut off while it read its snapshot is told at once: the rest of the
        // snapshot is of no use to it, and was given back.
        self.watcher.register(cx.waker());
        match self.watcher.take() {
            Found::Message(bytes) => Poll::Ready(Some(Ok(bytes))),
            Found::Ended(why) => Poll::Ready(Some(Err(why.status()))),
            Found::Over => Poll::Ready(None),
            Found::Nothing => Poll::Pending,
        }
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.hub.leave(&self.watcher);
        // The hub may know the watcher for a moment longer; what it has not read goes now.
        self.watcher.end(Ending::Closing);
    }
}

/// A watch as messages.
pub struct Decoded<T, S = WatchStream> {
    stream: S,
    message: PhantomData<fn() -> T>,
}

impl<T, S> Decoded<T, S> {
    /// Of encoded ones.
    pub fn of(stream: S) -> Self {
        Self { stream, message: PhantomData }
    }
}

impl<T, S> Stream for Decoded<T, S>
where
    T: Message + Default,
    S: Stream<Item = Result<Bytes, Status>> + Unpin,
{
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let decode = |bytes: Bytes| {
            T::decode(bytes).map_err(|error| Status::internal(format!("a message: {error}")))
        };
        Pin::new(&mut self.stream).poll_next(cx).map(|item| item.map(|got| got.and_then(decode)))
    }
}
