//! What people do: role changes that they ask for, as the node's handlers put them into the log
//! (`src/node/rpc/operation.rs`), pauses, answers, and the care for what is quarantined.

use regent_core::command::{Command, Expect};
use regent_core::id::InstanceName;
use regent_core::role::{FenceKind, Order};
use regent_core::spec::Mode;
use regent_core::state::role::plan;
use regent_core::state::version::PREPARE_LEVEL;

use super::net::End;
use super::plan::{index_of, instance_name, service_name};
use super::world::{Place, World};
use crate::agents::machine::{MS, SECOND, Time};

impl World {
    /// A switchover: announced, where the cluster has the level for that.
    pub(super) fn switch_over(&mut self, to: Option<InstanceName>) {
        let Some(role) = self.coord.role() else { return };
        let (seen, reason, service) = (role.epoch, "because".into(), service_name());
        let command = match self.coord.state.cluster().feature_level < PREPARE_LEVEL {
            false => Command::PlanSwitchover { service, to, seen, reason },
            true => {
                let kind = FenceKind::Switchover { to };
                Command::OpenFence { service, kind, seen, reason }
            }
        };
        self.person(&command);
    }

    /// A failover: it takes over a switchover whose fence is open.
    pub(super) fn fail_over(&mut self, to: Option<InstanceName>) {
        let Some(role) = self.coord.role() else { return };
        let (reason, service) = ("because".into(), service_name());
        let verdict = "operator".into();
        let open = role.fence.as_ref().filter(|fence| fence.kind.is_planned());
        let command = match open {
            Some(open) => {
                // Whom people wish for is said once.
                if to.is_some() && open.kind.wanted() != to.as_ref() {
                    return;
                }
                Command::TakeOverFence { service, fence: open.fence, verdict, reason }
            }
            None => {
                let (kind, seen) = (FenceKind::Failover { verdict, to }, role.epoch);
                Command::OpenFence { service, kind, seen, reason }
            }
        };
        self.person(&command);
    }

    /// What is under way is given up, announced or fenced.
    pub(super) fn abort(&mut self) {
        let service = service_name();
        let Some(role) = self.coord.role() else { return };
        let open = role.fence.as_ref().map(|open| open.fence);
        let announced = || plan::of(&self.coord.state, &service, role).map(|(id, _)| id);
        let Some(fence) = open.or_else(announced) else { return };
        let reason = "because".into();
        self.person(&Command::CloseFence { service, fence, reason });
    }

    /// D: at most one role change. Who begins another one in the middle of it is refused, or takes it
    /// over; whatever comes of that, it comes to an end.
    pub(super) fn meddle(&mut self, more: u64) {
        let i = self.random.index(self.plan.instances);
        let to = self.random.chance(600).then(|| instance_name(i));
        match self.random.below(9) {
            0..3 => self.switch_over(to),
            3..6 => self.fail_over(to),
            6 => self.abort(),
            7 => {
                let lasts = self.random.between(10 * MS, 2 * SECOND);
                self.set_pause(true);
                self.later(lasts, Place::World, |world| world.set_pause(false));
            }
            _ => self.change_policy(),
        }
        let most = if self.random.chance(700) { 300 * MS } else { 2 * SECOND };
        let wait = self.random.between(MS, most);
        if more > 0 {
            self.later(wait, Place::World, move |world| world.meddle(more - 1));
        }
    }

    /// C7: a policy changes under a holder.
    pub(super) fn change_policy(&mut self) {
        self.plan.ttl_ms = [2_500, 3_000, 4_500][self.random.index(3)];
        if self.plan.mode == Mode::Quorum && self.plan.instances > 3 {
            self.plan.two_needed = self.random.chance(400);
        }
        let spec = Box::new(self.plan.spec());
        self.person(&Command::PutService { spec, expect: Expect::Any });
    }

    /// People keep Regent's hands off for a while; some do so because something is about to break.
    pub(super) fn pause_for(&mut self, i: usize, lasts: Time) {
        self.set_pause(true);
        self.later(lasts, Place::World, |world| world.set_pause(false));
        if self.random.chance(600) {
            let wait = self.random.between(10 * MS, lasts + 500 * MS);
            let me = End::Instance(i);
            let cuts: Vec<_> = self.nodes().flat_map(|it| [(me, it), (it, me)]).collect();
            self.later(wait, Place::World, move |world| world.cut(cuts));
        }
    }

    pub(super) fn set_pause(&mut self, paused: bool) {
        let (service, reason) = (service_name(), "because".into());
        self.person(&Command::SetPause { service, paused, reason });
    }

    /// People look after what is quarantined, and answer what they are asked.
    pub fn people(&mut self) {
        self.later(2 * SECOND, Place::World, Self::people);
        let Some(role) = self.coord.role() else { return };
        let is_out = |row: &regent_core::state::role::row::InstanceRow| {
            row.quarantined.is_some() && matches!(row.directive.order, Order::Quarantined)
        };
        let out = role.instances.iter().filter(|(name, row)| {
            is_out(row) && role.holder.as_ref() != Some(name) && !role.counts(name)
        });
        let out: Vec<usize> = out.map(|(name, _)| index_of(name)).collect();
        let asked = role.operation.and_then(|id| {
            let row = self.coord.state.operations().get(&(service_name(), id))?;
            row.approval.as_ref().filter(|asked| asked.answer.is_none()).map(|asked| asked.id)
        });
        for i in out {
            if self.hosts[i].up && self.hosts[i].book.is_some() && self.random.chance(300) {
                self.power_off(i);
                self.wipe(i);
                self.later(SECOND, Place::World, move |world| world.power_on(i, 0));
            }
        }
        if let Some(approval) = asked.filter(|_| self.random.chance(self.plan.answers)) {
            let (service, reason) = (service_name(), "because".into());
            self.person(&Command::AnswerApproval { service, approval, granted: true, reason });
        }
    }

    /// Whoever paused it resumes it, however often that takes.
    pub(super) fn resume(&mut self) {
        if self.coord.role().is_some_and(|role| role.paused.is_some()) {
            self.set_pause(false);
        }
        self.later(2 * SECOND, Place::World, Self::resume);
    }
}
