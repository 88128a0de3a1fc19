//! How long an operation waits for those who follow the service's routes (DESIGN.md 7).
//!
//! What they say is a courtesy to clients: one that says nothing, or lies, costs time or an error, and
//! never a second primary.

use super::Look;
use crate::decide::facts::Routers;
use crate::id::Revision;
use crate::role::Phase;
use crate::spec::AwaitRouters;
use crate::state::role::row::Operation;
use crate::time::Micros;

impl Look<'_> {
    /// How long this leader has seen the routes of `row` closed; `None`: they are open.
    pub(super) fn drained_for(&mut self, id: Revision, row: &Operation) -> Option<Micros> {
        if row.phase != Phase::Drain {
            self.memory.drain = None;
            return None;
        }
        let now = self.view.now;
        let since = match self.memory.drain {
            Some((of, since)) if of == id => since,
            _ => {
                self.memory.drain = Some((id, now));
                now
            }
        };
        Some(now.since(since))
    }

    /// What is still waited for before the fence of `row`, whose routes are closed.
    pub(super) fn routers_to_leave(&mut self, id: Revision, row: &Operation) -> Option<String> {
        let drained = self.drained_for(id, row)?;
        let closed = row.history.iter().rfind(|(phase, ..)| *phase == Phase::Drain)?.1;
        self.awaited(closed, drained)
    }

    /// What is still waited for before the newest operation is called done: its routes are open.
    pub(super) fn routers_to_come(&self) -> Option<String> {
        let (service, id) = (self.name.clone(), self.role.operation?);
        let row = self.view.state.operations().get(&(service, id))?;
        let since = self.role.promoted?.revision;
        let (of, at) = self.memory.repair?;
        let is_open = row.phase == Phase::Repair && self.role.routes_open && of == since;
        let waited = self.view.now.since(at);
        self.awaited(since, waited).filter(|_| is_open)
    }

    fn awaited(&self, revision: Revision, waited: Micros) -> Option<String> {
        let AwaitRouters { percent, within_ms } = self.spec.policy.await_routers;
        if percent == 0 || waited >= Micros::from_ms(within_ms) {
            return None;
        }
        let Some(routers) = self.view.facts.routers(self.name) else {
            return Some("routers are asked what they have applied".to_owned());
        };
        let Routers { applied, silent_nodes } = routers;
        let (have, all) = (routers.have(revision), applied.len());
        match silent_nodes {
            _ if routers.share_has(revision, percent) => None,
            0 => Some(format!("{have} of {all} routers have applied the change")),
            _ => Some(format!("{silent_nodes} nodes do not say what their routers have applied")),
        }
    }
}
