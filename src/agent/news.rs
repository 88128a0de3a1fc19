//! What the fencer says without being asked, and what follows from it.

use regent_core::agent::{Right, Step};
use regent_rpc::client::SessionLease;

use crate::guard::News;
use crate::run::Agent;

impl Agent {
    /// E4: what ended is started again by a renewal of after that only, whoever ended it. One from before
    /// a fence must not start it once that fence is given up.
    pub(crate) fn renounce(&mut self) {
        self.right = Right::default();
        let known = self.session.as_ref().and_then(SessionLease::deadline);
        self.crashed_at = known.map(|deadline| deadline.number);
    }

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
                let asked = self.busy.as_ref().map(|(step, _)| step);
                let is_standby = matches!(asked, Some(Step::ShutReaders));
                if !is_standby && !matches!(asked, Some(Step::Kill | Step::ShutDown)) {
                    self.local.ended(proven, in_order);
                    self.reported = None;
                }
                if !is_standby {
                    self.renounce();
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
