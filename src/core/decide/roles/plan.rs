//! A switchover that is announced: when its fence is opened, and when it is given up.

use super::{Look, Verdict};
use crate::command::Command;
use crate::id::Revision;
use crate::mutant::{Mutant, leaves_out};
use crate::role::Phase;
use crate::state::role::judge::electable;
use crate::state::role::plan;
use crate::state::role::row::Operation;
use crate::time::Micros;

/// A checkpoint may write out all memory to a slow disk, and the primary serves meanwhile; one that
/// takes longer than this is looked at by people first.
const PREPARE_WITHIN: Micros = Micros::from_ms(300_000);
/// What closed routes may last beyond the wait for routers, before they are opened again.
const DRAIN_MORE_MS: u64 = 2_000;

impl Look<'_> {
    fn announced(&self) -> Option<(Revision, Operation)> {
        let (id, row) = plan::of(self.view.state, self.name, self.role)?;
        Some((id, row.clone()))
    }

    /// Gives up what cannot be any more, whatever is the matter with the primary.
    pub(super) fn plan_is_over(&mut self) -> Option<Verdict> {
        let Some((id, _)) = self.announced() else {
            self.memory.plan = None;
            return None;
        };
        let since = match self.memory.plan {
            Some((of, since)) if of == id => since,
            _ => {
                self.memory.plan = Some((id, self.view.now));
                self.view.now
            }
        };
        let (id, row) = self.announced()?;
        let waited = self.view.now.since(since);
        let drained = self.drained_for(id, &row);
        let longest = Micros::from_ms(self.spec.policy.await_routers.within_ms + DRAIN_MORE_MS);
        let reason = if row.from != self.role.holder {
            "the primary is another one by now".to_owned()
        } else if drained.is_some_and(|drained| drained >= longest) {
            // Closed routes are an outage to whoever is new: it has its own, shorter end.
            "its routes are closed, and the primary is in no state to be fenced in order".to_owned()
        } else if row.phase == Phase::Prepare && waited >= PREPARE_WITHIN {
            format!("the primary did not finish its checkpoint within {} s", waited.as_ms() / 1_000)
        } else {
            let to = row.kind.wanted()?;
            electable(self.spec, self.role, to).err()?
        };
        let text = format!("the switchover is given up: {reason}");
        let command = Command::CloseFence { service: self.name.clone(), fence: id, reason };
        Some(Verdict::Do(command, text))
    }

    /// Its fence, once the primary has written out what a stop would have to.
    pub(super) fn plan(&mut self) -> Option<Verdict> {
        let (id, row) = self.announced()?;
        let holder = self.role.holder.as_ref()?;
        let fact = self.view.facts.of(self.name, holder)?;
        if row.phase == Phase::Prepare && fact.observation.prepared != Some(id) {
            let text = "a switchover is announced: the primary serves and checkpoints first";
            return Some(Verdict::Wait(text.to_owned()));
        }
        // A primary that is in no route has none to be taken out of.
        let awaits = self.spec.policy.await_routers.percent > 0
            && self.role.routes_open
            && !leaves_out(Mutant::RoutesFirst);
        if row.phase == Phase::Prepare && awaits {
            let (service, operation) = (self.name.clone(), id);
            let text = "the primary has checkpointed: routers are to leave it first".to_owned();
            return Some(Verdict::Do(Command::CloseRoutes { service, operation }, text));
        }
        if row.phase == Phase::Drain
            && let Some(waits) = self.routers_to_leave(id, &row)
        {
            return Some(Verdict::Wait(waits));
        }
        let command = Command::OpenFence {
            service: self.name.clone(),
            kind: row.kind.clone(),
            seen: self.role.epoch,
            reason: row.reason.clone(),
        };
        let text = "the primary has checkpointed: it is to stop and resign".to_owned();
        Some(Verdict::Do(command, text))
    }
}
