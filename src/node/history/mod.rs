//! The audit records that outgrew the replicated window, in a sled store on each node.
//!
//! Everything here can be rebuilt: from the window of the replicated state, and beyond that from a
//! peer. So nothing acknowledged depends on it, a store that does not open is set aside and begun
//! anew, and a record that does not verify counts as missing. It must never be in the way of
//! `apply`: records are handed over through a bounded queue, and what does not fit is a gap that is
//! filled later.

mod gaps;
mod store;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;

use futures::future::BoxFuture;
use regent_core::state::audit::AuditRecord;

pub use gaps::Missing;
pub use writer::{History, HistoryConfig, HistoryStatus, Page};

/// Where missing records come from.
pub trait RecordSource: Send + Sync + 'static {
    /// Records `missing.first` to `missing.last` that the replicated window still holds, in order;
    /// may be fewer.
    fn window_records(&self, missing: Missing) -> Vec<Arc<AuditRecord>>;

    /// The same from any peer that has them; may be fewer. Errors are an empty answer: it is asked
    /// again later.
    fn peer_records(&self, missing: Missing) -> BoxFuture<'static, Vec<AuditRecord>>;
}
