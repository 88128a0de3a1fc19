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

use super::change::Event;
use super::hub::Shared;
use super::join::HeadShown;
use super::mailbox::{Found, Watcher};

/// Served on joining, encoded when it is read: a large snapshot is never in memory twice.
#[derive(Default)]
pub(super) struct Head {
    messages: std::vec::IntoIter<(Arc<Event>, HeadShown)>,
    end: Option<Bytes>,
}

impl Head {
    pub(super) fn new(messages: Vec<(Arc<Event>, HeadShown)>, end: Bytes) -> Self {
        Self { messages: messages.into_iter(), end: Some(end) }
    }

    fn next(&mut self) -> Option<Bytes> {
        match self.messages.next() {
            Some((event, HeadShown::Change(shown))) => Some(event.encoded(shown)),
            Some((event, HeadShown::Row { label, masked })) => Some(event.encode(label, masked)),
            None => self.end.take(),
        }
    }
}

/// A watch: encoded responses of `ObserveResponse` or `WatchServicesResponse`, as the topic is.
/// Dropping it ends the watch.
pub struct WatchStream {
    hub: Arc<Shared>,
    watcher: Arc<Watcher>,
    head: Head,
}

impl WatchStream {
    pub(super) fn new(hub: Arc<Shared>, watcher: Arc<Watcher>) -> Self {
        Self { hub, watcher, head: Head::default() }
    }

    pub(super) fn with_head(mut self, head: Head) -> Self {
        self.head = head;
        self
    }

    /// As messages, for the generated trait and for tests. Costs a decoding per message: the
    /// product serves the encoded ones, see [`super::serve`].
    pub fn decoded<T: Message + Default>(self) -> Decoded<T> {
        Decoded { stream: self, message: PhantomData }
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

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // A watcher that was cut off while it read its snapshot is told at once: the rest of the
        // snapshot is of no use to it.
        if !self.watcher.has_ended()
            && let Some(bytes) = self.head.next()
        {
            return Poll::Ready(Some(Ok(bytes)));
        }
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
    }
}

/// A watch as messages.
pub struct Decoded<T> {
    stream: WatchStream,
    message: PhantomData<fn() -> T>,
}

impl<T: Message + Default> Stream for Decoded<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let decode = |bytes: Bytes| {
            T::decode(bytes).map_err(|error| Status::internal(format!("a message: {error}")))
        };
        Pin::new(&mut self.stream).poll_next(cx).map(|item| item.map(|got| got.and_then(decode)))
    }
}
