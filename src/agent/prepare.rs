//! What a primary does for a switchover that is announced: it writes out what a stop would have to,
//! while it serves.
//!
//! It must never keep the agent from anything: the checkpoint runs beside the steps, and whoever is
//! told something else, or loses its right, does that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use regent_core::id::Revision;
use regent_engine::{Engine, SqlError};
use tokio::sync::{mpsc, watch};

use crate::run::{Agent, Report};

/// Bound on one checkpoint; the leader has given the switchover up by then.
const WITHIN: Duration = Duration::from_secs(300);
/// What was written meanwhile is a checkpoint more, unless the last one was as short as this.
const SHORT: Duration = Duration::from_millis(500);
/// A primary that is written to faster than its disk takes it has no short one.
const ROUNDS: usize = 3;
/// After one that failed.
const PAUSE: Duration = Duration::from_secs(1);

impl Agent {
    /// Asks for what is announced, of a primary that answers.
    pub(crate) fn prepare(&mut self) {
        let told = self.instruction.as_ref().and_then(|told| told.prepare);
        if self.local.announce(told, regent_fencer::clock::now()) {
            self.reported = None;
        }
        let wants = self.local.announced.map(|(operation, _)| operation);
        self.prepare.send_if_modified(|now| std::mem::replace(now, wants) != wants);
    }

    /// The checkpoint for `operation` is over.
    pub(crate) fn prepared(&mut self, operation: Revision) {
        if self.local.checkpointed(operation, regent_fencer::clock::now()) {
            tracing::info!(%operation, "checkpointed for the switchover that is announced");
            self.reported = None;
        }
    }
}

/// Checkpoints for each switchover that is announced.
pub async fn checkpoint(
    engine: Arc<dyn Engine>,
    mut announced: watch::Receiver<Option<Revision>>,
    reports: mpsc::UnboundedSender<Report>,
) {
    loop {
        let Some(operation) = *announced.borrow_and_update() else {
            if announced.changed().await.is_err() {
                return;
            }
            continue;
        };
        let written = tokio::select! {
            written = write(engine.as_ref()) => written,
            changed = announced.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        match written {
            Ok(()) if reports.send(Report::Prepared(operation)).is_err() => return,
            Ok(()) => {
                if announced.changed().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, %operation, "the checkpoint for a switchover failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn write(engine: &dyn Engine) -> Result<(), SqlError> {
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        engine.checkpoint(WITHIN).await?;
        if begun.elapsed() < SHORT {
            break;
        }
    }
    Ok(())
}
