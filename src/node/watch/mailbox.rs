//! What one watcher has not read yet: bounded, and cut off when it overflows.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use regent_core::id::Revision;
use regent_rpc::convert::status;
use tonic::{Code, Status};

use super::head::Head;
use super::{Filter, Topic};

/// Why this node ended a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It read too slowly; after this revision it can go on.
    Slow,
    /// What lies between cannot be told any more: a snapshot was installed.
    Compacted,
    /// A new incarnation began: every watch of before is void.
    Incarnation,
    /// The node is shutting down.
    Closing,
}

impl Ending {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Compacted => "compacted",
            Self::Incarnation => "incarnation",
            Self::Closing => "closing",
        }
    }

    /// What the client is told.
    pub fn status(self) -> Status {
        match self {
            Self::Slow => {
                let mut refused = status::Refused::of(status::rule::SLOW_WATCHER);
                refused.hint = "go on after the last revision you saw, and read faster".into();
                refused.into_status(
                    Code::ResourceExhausted,
                    "the watcher fell too far behind and was cut off",
                )
            }
            Self::Compacted => status::compacted(
                "this node took over a snapshot and cannot tell what lies between: begin anew",
            ),
            Self::Incarnation => status::compacted(
                "a new incarnation of the cluster began, every earlier watch is void: begin anew",
            ),
            Self::Closing => status::unavailable(
                "closing",
                "this node is shutting down: go on with another one",
                Duration::ZERO,
            ),
        }
    }
}

/// Bounds of one mailbox.
#[derive(Clone, Copy, Debug)]
pub(super) struct MailboxBounds {
    pub messages: usize,
    pub bytes: usize,
}

/// One message that waits.
struct Mail {
    /// Entry it stems from; `None`: a belief or a bookmark.
    entry: Option<Revision>,
    bytes: Bytes,
}

/// A watcher that has read nothing of what it was served on joining while so many bookmarks were
/// due is cut off: in a quiet cluster its mailbox never overflows, and its rows would stay for ever.
const MAX_UNREAD_BOOKMARKS: u32 = 3;

#[derive(Default)]
struct Inner {
    /// What it is served on joining, as far as it has not read it: it comes before the queue.
    head: Option<Head>,
    /// Bookmarks since it last read of the head.
    unread: u32,
    queue: VecDeque<Mail>,
    bytes: usize,
    /// Up to here the watcher was served otherwise (snapshot, ring). `None`: it is still joining.
    after: Option<Revision>,
    /// Belief is told only after the pump has passed `after`.
    settled: bool,
    /// Whether anything but bookmarks was sent since the last bookmark.
    busy: bool,
    ended: Option<Ending>,
    told: bool,
}

/// A watcher that has not read the state yet: whatever happens before, it will see.
const JOINING: u64 = u64::MAX;

/// One watcher.
pub(super) struct Watcher {
    pub id: u64,
    pub topic: Topic,
    pub filter: Filter,
    /// Of the feed when it joined; [`JOINING`] until then.
    generation: AtomicU64,
    inner: Mutex<Inner>,
    waker: AtomicWaker,
}

/// What a stream finds in its mailbox.
pub(super) enum Found {
    Message(Bytes),
    Ended(Ending),
    /// Ended, and the client was told.
    Over,
    Nothing,
}

impl Watcher {
    pub(super) fn new(id: u64, topic: Topic, filter: Filter) -> Self {
        Self {
            id,
            topic,
            filter,
            generation: AtomicU64::new(JOINING),
            inner: Mutex::default(),
            waker: AtomicWaker::new(),
        }
    }

    /// A change of entry `revision`. Returns false if that was one too many: cut off.
    pub(super) fn deliver(&self, revision: Revision, bytes: Bytes, bounds: MailboxBounds) -> bool {
        let mut inner = self.inner.lock();
        if inner.ended.is_some() || inner.after.is_some_and(|after| revision <= after) {
            return true;
        }
        self.push(&mut inner, Mail { entry: Some(revision), bytes }, bounds)
    }

    /// A change of belief; only for those who have what it refers to.
    pub(super) fn deliver_belief(&self, bytes: Bytes, bounds: MailboxBounds) -> bool {
        let mut inner = self.inner.lock();
        if inner.ended.is_some() || !inner.settled {
            return true;
        }
        self.push(&mut inner, Mail { entry: None, bytes }, bounds)
    }

    /// What the watcher is to read before its mailbox.
    pub(super) fn serve(&self, head: Head) {
        let mut inner = self.inner.lock();
        if inner.ended.is_none() {
            inner.head = Some(head);
        }
    }

    /// A bookmark, unless something else told the watcher already how far it is. Returns false if
    /// it does not read what it was served on joining: cut off.
    pub(super) fn deliver_bookmark(&self, bytes: Bytes, even_if_busy: bool) -> bool {
        let mut inner = self.inner.lock();
        if inner.head.is_some() && !even_if_busy {
            inner.unread += 1;
            if inner.unread > MAX_UNREAD_BOOKMARKS {
                inner.end(Ending::Slow);
                self.waker.wake();
                return false;
            }
        }
        let wanted = even_if_busy || !inner.busy;
        inner.busy = false;
        // One that waits already says less, and one behind unread changes says nothing new.
        if inner.ended.is_none() && inner.settled && wanted && inner.queue.is_empty() {
            let bounds = MailboxBounds { messages: usize::MAX, bytes: usize::MAX };
            self.push(&mut inner, Mail { entry: None, bytes }, bounds);
            inner.busy = false;
        }
        true
    }

    fn push(&self, inner: &mut Inner, mail: Mail, bounds: MailboxBounds) -> bool {
        inner.bytes += mail.bytes.len();
        inner.queue.push_back(mail);
        inner.busy = true;
        let fits = inner.queue.len() <= bounds.messages && inner.bytes <= bounds.bytes;
        if !fits {
            inner.end(Ending::Slow);
        }
        self.waker.wake();
        fits
    }

    /// Whether it began with the state as it was before `generation`.
    pub(super) fn is_older_than(&self, generation: u64) -> bool {
        self.generation.load(Ordering::SeqCst) < generation
    }

    /// The watcher has everything up to `after` of `generation`; drops what is doubled.
    pub(super) fn join(&self, after: Revision, generation: u64) {
        self.generation.store(generation, Ordering::SeqCst);
        let mut inner = self.inner.lock();
        inner.after = Some(after);
        let Inner { queue, bytes, .. } = &mut *inner;
        queue.retain(|mail| {
            let keep = mail.entry.is_none_or(|revision| revision > after);
            if !keep {
                *bytes -= mail.bytes.len();
            }
            keep
        });
    }

    pub(super) fn settle(&self) {
        self.inner.lock().settled = true;
    }

    /// Ends the watch; what waits is dropped, for it cannot be complete.
    pub(super) fn end(&self, why: Ending) {
        let mut inner = self.inner.lock();
        if inner.ended.is_none() {
            inner.end(why);
            self.waker.wake();
        }
    }

    pub(super) fn register(&self, waker: &std::task::Waker) {
        self.waker.register(waker);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.inner.lock().ended.is_some()
    }

    pub(super) fn take(&self) -> Found {
        let mut inner = self.inner.lock();
        if let Some(head) = &mut inner.head {
            let next = head.next();
            if head.is_read() {
                inner.head = None;
            }
            if let Some(bytes) = next {
                inner.unread = 0;
                return Found::Message(bytes);
            }
        }
        if let Some(mail) = inner.queue.pop_front() {
            inner.bytes -= mail.bytes.len();
            return Found::Message(mail.bytes);
        }
        match inner.ended {
            None => Found::Nothing,
            Some(_) if inner.told => Found::Over,
            Some(why) => {
                inner.told = true;
                Found::Ended(why)
            }
        }
    }
}

impl Inner {
    fn end(&mut self, why: Ending) {
        self.ended = Some(why);
        self.head = None;
        // Those are whole changes in order, so they could still be sent; but a watcher that is cut
        // off for being slow must give its memory back now.
        self.queue = VecDeque::new();
        self.bytes = 0;
    }
}
