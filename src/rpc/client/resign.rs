//! Telling the cluster that a place was given up.
//!
//! While nobody can be told (no leader, no network) the session may live on: renewals go by another
//! way and are patient. Then the election is held by nobody who acts, and nobody else may have it,
//! until the cluster hears of the resignation. So it is told again and again, for as long as that
//! makes a difference.

use std::sync::Arc;
use std::time::Duration;

use regent_core::id::{ElectionName, Epoch, Nonce, SessionId};
use tokio::sync::oneshot;

use super::keeper::Kept;
use super::seat::Seat;
use super::{CallError, Client};

/// Pause between two attempts. Each has its own deadline and has paused within it.
const PAUSE: Duration = Duration::from_millis(500);

/// A place of a session that was given up.
pub(super) struct Resignation {
    pub client: Client,
    /// Void once the session is over, closed or dropped: it is not kept alive by this.
    pub kept: Arc<Kept>,
    pub session: SessionId,
    pub nonce: Nonce,
    pub election: ElectionName,
    /// The epoch it led under; `None`: it waited in the queue.
    pub epoch: Option<Epoch>,
    pub seat: Arc<Seat>,
    /// Of the seat when it was freed.
    pub generation: u64,
}

impl Resignation {
    /// Tells the cluster until it knows. What came of the first attempt goes to `first`.
    pub async fn run(self, first: oneshot::Sender<Result<(), CallError>>) {
        let mut outcome = self.tell().await;
        // Nobody waits for it when the place was dropped.
        let _ = first.send(outcome.clone());
        while let Err(error) = outcome {
            tracing::debug!(election = %self.election, %error, "a place given up is not resigned");
            if !error.is_transient() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
            outcome = self.tell().await;
        }
    }

    /// One attempt. The lane is free between two of them: a new campaign need not wait.
    async fn tell(&self) -> Result<(), CallError> {
        let mut lane = self.seat.lane.lock().await;
        if !self.stands() {
            return Ok(());
        }
        let id = lane.next();
        let told =
            self.client.resign(id, &self.election, self.session, self.nonce, self.epoch).await;
        told.map(|_| ())
    }

    /// Whether the cluster must still be told. A new campaign of this session decides about the
    /// seat itself, and the end of the session frees it.
    fn stands(&self) -> bool {
        self.seat.generation() == self.generation && !self.kept.is_gone()
    }
}
