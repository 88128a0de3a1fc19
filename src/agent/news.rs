//! What the fencer says without being asked, and what follows from it.

use regent_core::agent::{Right, Step};
use regent_rpc::client::SessionLease;

use crate::guard::News;
use crate::run::Agent;

impl Agent {
    pub(crate) fn news(&mut self, news: News) {
        let guard = self.guard.clone();
        tokio::spawn(async move { guard.look().await });
        match news {
            News::Stopped { sequence, .. } if self.guard.has_started_since(sequence) => {
                tracing::debug!(sequence, "told late of an end before the last start");
            }
            News::Stopped { proven, in_order, fired, sequence } => {
                tracing::info!(proven, in_order, fired, "nothing of the database runs any more");
                self.local.last_end = sequence;
                // An end that a step brought about is told by the step.
                let asked = self.busy.as_ref().is_some_and(|(step, _)| {
                    matches!(step, Step::Kill | Step::ShutDown | Step::ShutReaders)
                });
                if !asked {
                    self.local.ended(proven, in_order);
                    // E4: only a renewal of after the crash starts it again.
                    self.right = Right::default();
                    let known = self.session.as_ref().and_then(SessionLease::deadline);
                    self.crashed_at = known.map(|deadline| deadline.number);
                    self.reported = None;
                }
            }
            News::Crashed { at } => {
                let of_this = !self.guard.is_younger_than(at);
                self.local.crashed = of_this && self.local.running && !self.local.stopping;
                self.reported = None;
            }
            News::Lost => {
                tracing::error!("the fencer is gone, and everything under it");
                // Whatever is said from here on would be a guess: a new start of the agent finds
                // out what became of it (E2).
                self.is_over = true;
            }
        }
    }
}
