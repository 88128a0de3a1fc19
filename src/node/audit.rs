//! The audit chain as this node can tell it: the newest records from the replicated window, older
//! ones from its history on disk.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use parking_lot::RwLock;
use regent_core::state::State;
use regent_core::state::audit::AuditRecord as Record;
use regent_rpc::convert::audit::record_out;
use regent_rpc::convert::status;
use regent_rpc::pb::v1::{AuditHeadResponse, AuditRecord, ListAuditRequest};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use crate::history::{History, Missing, RecordSource};
use crate::shell::Shell;

/// Exports of the chain under way on one node. Each reads the disk a page at a time; a few keep it
/// busy, and more would only take turns. It bounds what readers that do not read can hold, too: an
/// export lasts for as long as its reader wants.
const MAX_EXPORTS: usize = 32;
/// Records read from disk at a time: a blocking thread is taken for one page and given back, never
/// held while a reader is slow. The same threads copy the state and save snapshots, and `apply`
/// waits for those.
const PAGE: usize = 1_000;

/// Advice when to come back while all places are taken: exports last seconds, not milliseconds.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Where this node's history gets what it lacks.
pub struct Window(pub Arc<RwLock<State>>);

impl RecordSource for Window {
    fn window_records(&self, missing: Missing) -> Vec<Arc<Record>> {
        let state = self.0.read();
        let wanted = missing.first..=missing.last;
        state.audit().records().filter(|r| wanted.contains(&r.number)).cloned().collect()
    }

    fn peer_records(&self, _missing: Missing) -> BoxFuture<'static, Vec<Record>> {
        // No node may read another's chain at present; what left the window before this node saw
        // it is on the nodes that were there.
        Box::pin(async { Vec::new() })
    }
}

impl Shell {
    /// The records asked for, oldest first, as far as this node has them.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when as many exports as this node serves at once are under way.
    pub fn list_audit(
        self: &Arc<Self>,
        ask: ListAuditRequest,
    ) -> Result<BoxStream<'static, Result<AuditRecord, Status>>, Status> {
        let (head, window) = {
            let state = self.state.read();
            let records: Vec<Arc<Record>> = state.audit().records().cloned().collect();
            (state.audit().head().number, records)
        };
        let first = match ask.last {
            0 => ask.from.max(1),
            last => ask.from.max(head.saturating_sub(last) + 1),
        };
        let limit = usize::try_from(ask.limit).ok().filter(|l| *l > 0).unwrap_or(usize::MAX);
        self.exports.begin(self.history.clone(), window, first, limit)
    }

    /// The end of the chain.
    ///
    /// # Errors
    /// None at present.
    pub fn audit_head(self: &Arc<Self>) -> Result<AuditHeadResponse, Status> {
        let state = self.state.read();
        let head = state.audit().head();
        let window = state.audit().anchor().number + 1;
        Ok(AuditHeadResponse {
            stamp: Some(self.stamp(&state, 0)),
            number: head.number,
            hash: head.hash.to_vec().into(),
            oldest: self.history.oldest().map_or(window, |oldest| oldest.min(window)),
        })
    }
}

/// The exports under way on one node; clones share the places.
#[derive(Clone, Debug)]
pub struct Exports {
    places: Arc<Semaphore>,
}

impl Default for Exports {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(MAX_EXPORTS)) }
    }
}

impl Exports {
    /// The records from `first` on, at most `limit`: older ones from `history`, the newest from
    /// `window`. Its place is free again when the stream has ended or is dropped.
    fn begin(
        &self,
        history: History,
        window: Vec<Arc<Record>>,
        first: u64,
        limit: usize,
    ) -> Result<BoxStream<'static, Result<AuditRecord, Status>>, Status> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            let text = format!("this node serves {MAX_EXPORTS} exports of the audit chain already");
            status::overloaded(text, RETRY_AFTER)
        })?;
        let export = Export {
            history,
            begin: window.first().map_or(u64::MAX, |record| record.number),
            window: window.into_iter(),
            page: Vec::new().into_iter(),
            next: first,
            left: limit,
            _place: place,
        };
        // Nothing runs ahead of the reader: a record is looked up when it is asked for.
        let records = stream::try_unfold(export, |mut export| async move {
            let record = export.next().await?;
            Ok(record.map(|record| (record_out(&record), export)))
        });
        Ok(records.boxed())
    }
}

/// One export under way.
struct Export {
    history: History,
    /// Number of the first record of the window as it was; all before it are in the history.
    begin: u64,
    window: std::vec::IntoIter<Arc<Record>>,
    page: std::vec::IntoIter<Arc<Record>>,
    /// Number to go on from.
    next: u64,
    left: usize,
    _place: OwnedSemaphorePermit,
}

impl Export {
    async fn next(&mut self) -> Result<Option<Arc<Record>>, Status> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        loop {
            if let Some(record) = self.page.next() {
                self.next = record.number + 1;
                return Ok(Some(record));
            }
            if self.next >= self.begin {
                let next = self.next;
                return Ok(self.window.find(|record| record.number >= next));
            }
            self.page = self.older().await?.into_iter();
            if self.page.len() == 0 {
                // The oldest that is left may be above what was asked for; numbers tell the reader.
                self.next = self.begin;
            }
        }
    }

    /// The next page of the history.
    async fn older(&self) -> Result<Vec<Arc<Record>>, Status> {
        let (history, next, begin) = (self.history.clone(), self.next, self.begin);
        let page = tokio::task::spawn_blocking(move || history.list(next, PAGE)).await;
        let page = page.map_err(|_| Status::internal("the history could not be read"))?;
        Ok(page.records.into_iter().filter(|record| record.number < begin).collect())
    }
}

#[cfg(test)]
mod tests;
