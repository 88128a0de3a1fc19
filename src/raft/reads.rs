//! Rounds for linearizable reads: ReadIndex, never a lease, and one round for all who wait.
//!
//! A round answers only callers that were there before it began: what was acknowledged to anybody
//! before a caller asked is then covered (S11). Leader leases are not used, because they rest on
//! clocks of equal speed without any margin (RELIABILITY 3.3).

use std::sync::Weak;
use std::time::Duration;

use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use regent_core::id::Revision;
use tokio::sync::{mpsc, oneshot};

use crate::api::ConsensusError;
use crate::consensus::{Inner, forwarded, stopped};
use crate::types::revision;

/// A caller that waits for a round.
pub(crate) type Reader = oneshot::Sender<Result<Revision, ConsensusError>>;

/// Callers that one round answers at most.
const READERS_PER_ROUND: usize = 4_096;

/// Waits for the next round.
pub(crate) async fn ask(
    rounds: &mpsc::Sender<Reader>,
    deadline: Duration,
) -> Result<Revision, ConsensusError> {
    let (reader, answer) = oneshot::channel();
    rounds.try_send(reader).map_err(|e| match e {
        mpsc::error::TrySendError::Full(_) => ConsensusError::Overloaded,
        mpsc::error::TrySendError::Closed(_) => ConsensusError::Stopped("shut down".into()),
    })?;
    match tokio::time::timeout(deadline, answer).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(ConsensusError::Stopped("shut down".into())),
        Err(_) => Err(ConsensusError::NoQuorum),
    }
}

/// Makes rounds until the node stops.
pub(crate) async fn run(inner: Weak<Inner>, mut waiting: mpsc::Receiver<Reader>) {
    let mut readers = Vec::new();
    loop {
        if waiting.recv_many(&mut readers, READERS_PER_ROUND).await == 0 {
            return;
        }
        readers.retain(|reader| !reader.is_closed());
        if readers.is_empty() {
            continue;
        }
        let Some(inner) = inner.upgrade() else { return };
        let result = round(&inner).await;
        for reader in readers.drain(..) {
            // A caller that gave up does not care.
            let _ = reader.send(result.clone());
        }
    }
}

async fn round(inner: &Inner) -> Result<Revision, ConsensusError> {
    let limit = Duration::from_millis(2 * inner.config.timing.election_max_ms);
    let round = inner.raft.get_read_log_id(ReadPolicy::ReadIndex);
    match tokio::time::timeout(limit, round).await {
        Ok(Ok((read, _))) => Ok(revision(read.log_id().index())),
        Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to)))) => {
            Err(forwarded(inner.config.id, to))
        }
        Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) | Err(_) => {
            Err(ConsensusError::NoQuorum)
        }
        Ok(Err(RaftError::Fatal(e))) => Err(stopped(e)),
    }
}
