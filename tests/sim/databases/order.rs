//! The judge of role changes: one at a time, each step after the one that it needs (PROTOCOL.md D).

use regent_core::role::{Order, Phase, Proof};
use regent_core::state::role::plan;
use regent_core::state::role::row::{Fence, ServiceRole};

use super::plan::service_name;
use super::world::World;

impl World {
    /// What each step of a role change needs of the one before it (D).
    pub(super) fn judge_order(&mut self) {
        let before = self.check.before.take();
        let now = self.coord.state.roles().get(&service_name()).cloned();
        self.check.before.clone_from(&now);
        let Some(now) = now else { return };
        let lease = now.lease.as_ref().map(|lease| lease.session);
        let renewed =
            lease.and_then(|id| Some((id, self.coord.state.sessions().get(&id)?.renewed)));
        let fence = now.fence.as_ref().map(|fence| fence.fence);
        let is = fence.zip(renewed).map(|(fence, (id, number))| (fence, id, number));
        if let (Some((fence, id, was)), Some((of, same, is))) = (self.check.fenced, is)
            && (fence, id) == (of, same)
            && is > was
        {
            self.check.broken(format!("D: the holder renews under the open fence {fence}"));
        }
        self.check.fenced = is;
        let Some(before) = before else { return };
        self.judge_operations(&before, &now);
        self.judge_routes_first(&before, &now);
        self.judge_fetches(&before, &now);
        let Some(open) = &before.fence else { return };
        let old = before.holder.as_ref();
        let same = now.fence.as_ref().filter(|it| it.fence == open.fence);
        // The receipt and the cut may be of one entry.
        let proof = |of: &Fence| Some(of.receipts.get(old?)?.proof);
        let early = |it: &Fence| !it.uncut && proof(it) != Some(Proof::Resigned);
        if open.uncut && same.is_some_and(early) {
            self.check.broken("D: standbys are cut from a primary that has not resigned".into());
        }
        if let (true, Some(new)) = (now.epoch > before.epoch, &now.holder) {
            let receipt = open.receipts.get(new);
            let says = receipt.is_some_and(|it| it.position.is_some()) || old == Some(new);
            if !says {
                let text = format!("D: {new} is granted, and where its WAL ends is not known");
                self.check.broken(text);
            }
            let order = before.instances.get(new).map(|row| &row.directive.order);
            self.check.stats.fetched += u64::from(matches!(order, Some(Order::Fetch { .. })));
        }
        if let Some(same) = same {
            self.judge_receipts(open, same);
        } else if let Some(next) = &now.fence {
            self.judge_takeover(open, next);
        }
    }

    /// At most one role change is under way, and one that is announced gives no order.
    fn judge_operations(&mut self, before: &ServiceRole, now: &ServiceRole) {
        if before.operation == now.operation && before.fence.is_some() == now.fence.is_some() {
            return;
        }
        let operations = self.coord.state.operations();
        let open = operations.values().filter(|row| !row.phase.is_over()).count();
        if open > 1 {
            self.check.broken(format!("D: {open} role changes are under way"));
        }
        let newest = now.operation.filter(|id| before.operation != Some(*id));
        let phase = newest.and_then(|id| operations.get(&(service_name(), id))).map(|it| it.phase);
        if phase != Some(Phase::Prepare) {
            return;
        }
        self.check.stats.announced += 1;
        let told = |role: &ServiceRole| -> Vec<_> {
            role.instances
                .iter()
                .map(|(name, row)| (name.clone(), row.directive.number()))
                .collect()
        };
        if told(before) != told(now) || before.fence.is_some() || now.fence.is_some() {
            self.check.broken("D: a switchover that is only announced changes something".into());
        }
    }

    /// S8: where a planned change waits for routers, its fence begins after the route is removed.
    fn judge_routes_first(&mut self, before: &ServiceRole, now: &ServiceRole) {
        let planned = now.fence.as_ref().is_some_and(|fence| fence.kind.is_planned());
        if !planned || before.fence.is_some() || !self.plan.awaits {
            return;
        }
        self.check.stats.drained += 1;
        if before.routes_open {
            self.check.broken("S8: a planned fence begins while routers send to its holder".into());
        }
        let operations = self.coord.state.operations();
        let row = before.operation.and_then(|id| operations.get(&(service_name(), id)));
        let closed = row.and_then(|row| row.history.iter().rfind(|it| it.0 == Phase::Drain));
        let routers = self.coord.facts.routers(&service_name());
        let all_left = closed.zip(routers).is_some_and(|(it, all)| all.share_has(it.1, 100));
        self.check.stats.left += u64::from(all_left);
    }

    /// D, fetch: from a recruit of the same fence only.
    fn judge_fetches(&mut self, before: &ServiceRole, now: &ServiceRole) {
        for (name, row) in &now.instances {
            let Order::Fetch { fence, from, .. } = &row.directive.order else { continue };
            let same = before.instances.get(name).is_some_and(|was| was.directive == row.directive);
            if same {
                continue;
            }
            self.check.stats.fetches += 1;
            let open = now.fence.as_ref().filter(|open| open.fence == *fence);
            let of = open.and_then(|open| open.receipts.get(from));
            if of.is_none_or(|receipt| receipt.proof != Proof::Recruited) {
                let text =
                    format!("D: {name} is told to fetch from {from}, no recruit of its fence");
                self.check.broken(text);
            }
        }
    }

    /// D: under one fence a receipt may only rise.
    fn judge_receipts(&mut self, was: &Fence, is: &Fence) {
        for (name, old) in &was.receipts {
            let Some(new) = is.receipts.get(name) else { continue };
            let holds =
                old.position.is_none_or(|old| new.position.is_some_and(|it| it.covers(&old)));
            if new.proof < old.proof || !holds {
                self.check.broken(format!("D: the receipt of {name} fell from {old:?} to {new:?}"));
            }
        }
    }

    /// D: a fence takes the place of another only as a failover that takes a switchover over, of whose
    /// receipts the resignation alone stays.
    fn judge_takeover(&mut self, was: &Fence, is: &Fence) {
        self.check.stats.taken_over += 1;
        let takes = was.kind.is_planned() && is.taken_over == Some(was.fence);
        let left = is.receipts.values().all(|receipt| receipt.proof == Proof::Resigned);
        if !takes || !left || is.kind.is_planned() {
            self.check.broken(format!("D: {is:?} takes the place of {was:?}"));
        }
    }

    /// Whether a role change is under way that nobody has been granted by.
    pub(super) fn is_changing(&self) -> bool {
        let announced =
            |role: &ServiceRole| plan::of(&self.coord.state, &service_name(), role).is_some();
        self.coord.role().is_some_and(|role| role.fence.is_some() || announced(role))
    }
}
