//! Watches: a snapshot, then every change once and in order, or a clear word that it cannot be (S12).
//!
//! ```text
//! apply (state locked) ─► Feed: ring of recent changes ─► pump ─► mailboxes of whom it concerns ─► streams
//!                         O(1) per change                 encodes a change once, masks it by C3
//! ```
//!
//! Nothing here may hold up `apply`: publishing appends to a ring and wakes one task. Nothing a
//! watcher does may hold up another: each has a bounded mailbox, and one that overflows is cut off
//! with a status that says where to go on. Nothing is named as a leader that this node's clocks do
//! not believe live (C3, S8): a holder that stops being believed is sent as a change to "none", and
//! back when it is believed again.

mod belief;
mod change;
mod feed;
mod head;
mod hub;
mod index;
mod join;
mod mailbox;
pub mod serve;
pub mod stream;
#[cfg(test)]
mod tests;

use regent_core::id::SessionId;

pub use change::{election_view, service_view};
pub use hub::{Hub, HubConfig};
pub use mailbox::Ending;
pub use stream::WatchStream;

/// What the hub must know of this node's clocks; implemented by the owner of `NodeClock`.
///
/// Called without any lock of the hub's that `publish` needs, but with the index of watchers
/// locked: an implementation takes its own lock, looks, and returns.
pub trait Believes: Send + Sync + 'static {
    /// Whether this node may name `session` as a holder now (C3).
    fn believed_live(&self, session: SessionId) -> bool;

    /// Age of the applied state that this node can prove, in milliseconds, for the stamps of
    /// bookmarks and snapshots.
    fn age_ms(&self) -> u64;
}

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Elections, by `ElectionService.Observe`.
    Elections,
    /// Services, by `TopologyService.WatchServices`.
    Services,
}

impl Topic {
    const ALL: [Self; 2] = [Self::Elections, Self::Services];

    /// For a metric's label.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Elections => "elections",
            Self::Services => "services",
        }
    }
}

/// Which rows of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The one with this name.
    One(String),
    /// All whose names begin with this; empty: all.
    Prefix(String),
}

impl Filter {
    fn covers(&self, name: &str) -> bool {
        match self {
            Self::One(one) => one == name,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }
}
