//! What one watcher is served on joining, until it has read it.
//!
//! A snapshot is rows of the state as they were, kept for a reader of its own pace: the one thing a
//! watcher may hold much of. So all of them together are bounded: a place for each row is taken
//! before the rows are made, and given back when the watcher has read them or is ended.

use std::sync::Arc;

use bytes::Bytes;
use regent_rpc::convert::status;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::change::Event;
use super::join::HeadShown;
use crate::refuse::RETRY_AFTER;

/// Rows that wait to be read, of all watchers of a node.
#[derive(Debug)]
pub(super) struct Unread {
    most: usize,
    rows: Arc<Semaphore>,
}

impl Unread {
    /// Room for `most` rows.
    pub(super) fn new(most: usize) -> Self {
        Self { most, rows: Arc::new(Semaphore::new(most)) }
    }

    /// Room for `rows` more.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED while others have not read theirs.
    pub(super) fn enter(&self, rows: usize) -> Result<OwnedSemaphorePermit, Status> {
        let places = u32::try_from(rows).unwrap_or(u32::MAX);
        self.rows.clone().try_acquire_many_owned(places).map_err(|_| {
            let text = format!(
                "watchers have not read their snapshots yet: {rows} more rows do not fit into the \
                 {} that this node keeps for them",
                self.most
            );
            status::overloaded(text, RETRY_AFTER)
        })
    }
}

/// Served on joining, encoded when it is read: a large snapshot is never in memory twice.
pub(super) struct Head {
    messages: std::vec::IntoIter<(Arc<Event>, HeadShown)>,
    end: Option<Bytes>,
    _room: OwnedSemaphorePermit,
}

impl Head {
    pub(super) fn new(
        messages: Vec<(Arc<Event>, HeadShown)>,
        end: Bytes,
        room: OwnedSemaphorePermit,
    ) -> Self {
        Self { messages: messages.into_iter(), end: Some(end), _room: room }
    }

    /// Whether nothing is left of it.
    pub(super) fn is_read(&self) -> bool {
        self.end.is_none()
    }

    pub(super) fn next(&mut self) -> Option<Bytes> {
        match self.messages.next() {
            Some((event, HeadShown::Change(shown))) => Some(event.encoded(shown)),
            Some((event, HeadShown::Row { label, masked })) => Some(event.encode(label, masked)),
            None => self.end.take(),
        }
    }
}
