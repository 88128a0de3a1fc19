//! The leader's end of a follower's stream of forwarded entries.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::stream::BoxStream;
use regent_core::command::Entry;
use regent_core::id::NodeId;
use regent_core::limits::MAX_ENTRY_BYTES;
use regent_rpc::pb::v1::answer::Outcome;
use regent_rpc::pb::v1::{Answer, AnswerBatch, Call, CallBatch};
use tokio::time::Instant;
use tonic::{Status, Streaming};
use tracing::Instrument as _;

use super::guard::{MAX_DEADLINE, went_back};
use super::mux;
use crate::admission::Pass;
use crate::shell::Shell;
use crate::telemetry::request::{RequestId, forwarded_span};

/// Entries of one follower that are under way at most.
const MAX_UNDER_WAY: usize = 8_192;

/// Proposes what `from` sends; the answers end when it stops sending and all is answered.
pub fn serve(
    shell: &Arc<Shell>,
    mut from: Pass,
    calls: Streaming<CallBatch>,
) -> BoxStream<'static, Result<AnswerBatch, Status>> {
    let (shell, node) = (shell.clone(), from.node());
    let judge = move || {
        from.still_good().map_err(|why| {
            tracing::warn!(from = %from.node(), why, "forwarding was ended");
            went_back(why)
        })
    };
    mux::serve(calls, MAX_UNDER_WAY, judge, move |call| {
        let id = RequestId::given(&call.request_id);
        let span = forwarded_span(&id, node);
        propose(shell.clone(), node, call).instrument(span).boxed()
    })
}

async fn propose(shell: Arc<Shell>, from: NodeId, call: Call) -> Answer {
    let Call { id, ttl_ms, request: entry, .. } = call;
    let ttl = Duration::from_millis(ttl_ms.into()).min(MAX_DEADLINE);
    // The sender has checked it; a damaged one must not get into the log all the same.
    let outcome = if entry.len() > MAX_ENTRY_BYTES || Entry::decode(&entry).is_err() {
        tracing::error!(%from, bytes = entry.len(), "a node forwarded an unreadable entry");
        mux::failure(&Status::invalid_argument("the entry cannot be read"), String::new())
    } else {
        match shell.proposer.as_leader(entry, Instant::now() + ttl).await {
            Ok(reply) => Outcome::Response(
                postcard::to_stdvec(&reply).expect("a reply has no type postcard refuses").into(),
            ),
            Err(status) => {
                tracing::debug!(code = ?status.code(), why = status.message(), "refused");
                mux::failure(&status, String::new())
            }
        }
    };
    Answer { id, outcome: Some(outcome) }
}
