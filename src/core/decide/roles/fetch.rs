//! A recruit that would be the next primary and is behind another one fetches first (PROTOCOL.md D,
//! fetch): who holds most may be one that is never promoted, or is too far away.

use super::candidates::Candidate;
use super::verdict;
use super::{Look, Verdict};
use crate::command::Command;
use crate::id::Revision;
use crate::role::{Order, Position, Proof, Receipt};
use crate::state::role::row::Fence;
use crate::time::{Micros, Reading};

/// A fetch whose receipt does not rise for this long is given up: the next candidate is tried, or
/// people are asked. Streaming begins within tens of milliseconds, and nobody takes writes meanwhile.
const FETCH_WITHIN: Micros = Micros::from_ms(3_000);

/// A fetch that is under way: since when its receipt has been as it is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    directive: Revision,
    position: Option<Position>,
    since: Reading,
}

impl Look<'_> {
    /// Notes how the fetch of this fence goes.
    pub(super) fn note_fetch(&mut self, fence: &Fence) {
        let fetching = self.role.instances.iter().find_map(|(name, row)| {
            let ours =
                matches!(row.directive.order, Order::Fetch { fence: of, .. } if of == fence.fence);
            ours.then_some((row.directive.revision, fence.receipts.get(name)?.position))
        });
        let was = self.memory.fetch.map(|was| (was.directive, was.position));
        if fetching != was {
            let since = self.view.now;
            self.memory.fetch =
                fetching.map(|(directive, position)| Progress { directive, position, since });
        }
    }

    /// What `candidate` still has to fetch from another recruit that lives; `None`: nothing, or it
    /// has tried for long enough.
    pub(super) fn fetch(&self, fence: &Fence, candidate: &Candidate<'_>) -> Option<Verdict> {
        let to = &candidate.spec.name;
        let is_recruit = |receipt: &&Receipt| receipt.proof == Proof::Recruited;
        fence.receipts.get(to).filter(is_recruit)?;
        let ahead = |(name, receipt)| {
            let fact = self.view.facts.of(self.name, name);
            let lives = fact.is_some_and(|fact| verdict::is_fresh(fact, self.view.now));
            let position = Some(receipt).filter(|one| lives && is_recruit(one))?.position?;
            (!candidate.position.covers(&position)).then_some((position, name))
        };
        let most = fence.receipts.iter().filter_map(ahead).max_by_key(|(position, _)| *position);
        let (position, from) = most?;
        let text = format!("{to} fetches from {from}, which holds more: up to {position}");
        match &self.role.instances.get(to)?.directive.order {
            Order::Fetch { fence: of, from: at, .. } if *of == fence.fence && at == from => {
                let since = self.memory.fetch.map_or(self.view.now, |fetch| fetch.since);
                let goes_on = self.view.now.since(since) < FETCH_WITHIN;
                goes_on.then_some(Verdict::Wait(text))
            }
            _ => {
                let (service, to, from) = (self.name.clone(), to.clone(), from.clone());
                let command = Command::OrderFetch { service, fence: fence.fence, to, from };
                Some(Verdict::Do(command, text))
            }
        }
    }
}
