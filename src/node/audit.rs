//! The audit chain as this node can tell it: what the replicated state still holds.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use regent_rpc::convert::audit::record_out;
use regent_rpc::pb::v1::{AuditHeadResponse, AuditRecord, ListAuditRequest};
use tonic::Status;

use crate::shell::Shell;

impl Shell {
    /// The records asked for, oldest first.
    ///
    /// # Errors
    /// None at present.
    pub fn list_audit(
        self: &Arc<Self>,
        ask: ListAuditRequest,
    ) -> Result<BoxStream<'static, Result<AuditRecord, Status>>, Status> {
        let state = self.state.read();
        let head = state.audit().head().number;
        let first = match ask.last {
            0 => ask.from,
            last => ask.from.max(head.saturating_sub(last) + 1),
        };
        let limit = usize::try_from(ask.limit).ok().filter(|l| *l > 0).unwrap_or(usize::MAX);
        let records = state.audit().records().filter(|r| r.number >= first).take(limit);
        let records: Vec<_> = records.cloned().collect();
        drop(state);
        Ok(futures::stream::iter(records.into_iter().map(|r| Ok(record_out(&r)))).boxed())
    }

    /// The end of the chain.
    ///
    /// # Errors
    /// None at present.
    pub fn audit_head(self: &Arc<Self>) -> Result<AuditHeadResponse, Status> {
        let state = self.state.read();
        let head = state.audit().head();
        Ok(AuditHeadResponse {
            stamp: Some(self.stamp(&state, 0)),
            number: head.number,
            hash: head.hash.to_vec().into(),
            oldest: state.audit().anchor().number + 1,
        })
    }
}
