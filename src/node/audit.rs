//! The audit chain as this node can tell it: the newest records from the replicated window, older
//! ones from its history on disk.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use parking_lot::RwLock;
use regent_core::state::State;
use regent_core::state::audit::AuditRecord as Record;
use regent_rpc::convert::audit::record_out;
use regent_rpc::pb::v1::{AuditHeadResponse, AuditRecord, ListAuditRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::history::{History, Missing, RecordSource};
use crate::shell::Shell;

/// Records on their way to one caller: enough to keep a connection busy.
const MAX_UNDER_WAY: usize = 256;
/// Records read from disk at a time.
const PAGE: usize = 1_000;

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
    /// None at present.
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
        let (out, records) = mpsc::channel(MAX_UNDER_WAY);
        let history = self.history.clone();
        tokio::task::spawn_blocking(move || tell(&history, window, first, limit, &out));
        Ok(ReceiverStream::new(records).boxed())
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

/// Sends the records from `first` on; ends when the caller is gone.
fn tell(
    history: &History,
    window: Vec<Arc<Record>>,
    first: u64,
    limit: usize,
    out: &mpsc::Sender<Result<AuditRecord, Status>>,
) {
    let begin = window.first().map_or(u64::MAX, |record| record.number);
    let (mut next, mut left) = (first, limit);
    let mut send = |record: &Record| {
        left -= 1;
        out.blocking_send(Ok(record_out(record))).is_ok() && left > 0
    };
    while next < begin {
        let page = history.list(next, PAGE);
        let older: Vec<_> = page.records.iter().filter(|r| r.number < begin).collect();
        // The oldest stored may be above what was asked for; numbers tell the reader so.
        let Some(last) = older.last() else { break };
        next = last.number + 1;
        for record in older {
            if !send(record) {
                return;
            }
        }
    }
    for record in window.iter().filter(|record| record.number >= next) {
        if !send(record) {
            return;
        }
    }
}
