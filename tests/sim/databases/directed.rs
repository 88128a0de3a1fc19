//! Faults of several parts, each aimed at one rule: chance alone would bring them together too seldom.

use regent_core::command::Command;
use regent_core::role::Loss;

use super::Profile;
use super::net::End;
use super::plan::{index_of, instance_name, service_name};
use super::world::{Place, World};
use crate::agents::machine::{MS, SECOND, Time};

impl World {
    pub(super) fn holder(&self) -> Option<usize> {
        self.coord.role()?.holder.as_ref().map(index_of)
    }

    pub(super) fn ends(&self, of: usize, with_peers: bool) -> Vec<(End, End)> {
        let me = End::Instance(of);
        let peers = (0..self.hosts.len()).filter(|it| *it != of && with_peers).map(End::Instance);
        let nodes = (0..self.coord.nodes.len()).map(End::Node);
        nodes.chain(peers).flat_map(|it| [(me, it), (it, me)]).collect()
    }

    fn cut_for(&mut self, cuts: Vec<(End, End)>, lasts: Time) {
        for (from, to) in &cuts {
            self.net.cut(*from, *to);
        }
        self.later(lasts, Place::World, move |world| world.net.heal(&cuts));
    }

    /// C1 against C2: the primary acts to the end of its lease, and a machine that A1 allows stands
    /// still within it.
    pub(super) fn long_cut(&mut self) {
        let Some(holder) = self.holder() else { return };
        let ttl = self.plan.ttl_ms * MS;
        let cuts = self.ends(holder, true);
        self.cut_for(cuts, ttl + ttl / 5);
        if self.random.chance(700) {
            let (wait, class) = (self.random.between(MS, ttl * 9 / 10), self.options.class);
            self.later(wait, Place::World, move |world| {
                world.hosts[holder].machine.pause(world.now, class, &mut world.random);
            });
        }
        // An agent shuts its clients out before the end: without it the fencer alone is left.
        let until = self.now + ttl + ttl / 5;
        if self.hosts[holder].agent.is_some() && self.random.chance(700) {
            self.hang_agent(holder, until);
        }
    }

    /// D, detach: a primary that serves on by certificates, while people fence it.
    pub(super) fn cut_and_fail(&mut self) {
        let Some(holder) = self.holder() else { return };
        let lasts = self.random.between(4 * SECOND, 12 * SECOND);
        let cuts = self.ends(holder, false);
        self.cut_for(cuts, lasts);
        let wait = self.random.between(50 * MS, 900 * MS);
        self.later(wait, Place::World, |world| world.fail_over(None));
    }

    /// E5: what its renewals said of the pause is all that is known of a primary that is alone.
    pub(super) fn pause_and_cut(&mut self) {
        let Some(holder) = self.holder() else { return };
        self.set_pause(true);
        let ttl = self.plan.ttl_ms * MS;
        let wait = match self.random.chance(500) {
            true => self.random.between(MS, 400 * MS),
            false => self.random.between(400 * MS, 2 * SECOND),
        };
        let cuts = self.ends(holder, true);
        // Below the level at which renewals say anything people are asked about each loss first.
        let lasts = if self.options.profile == Profile::Upgrades { 10 * ttl } else { 3 * ttl };
        self.later(wait, Place::World, move |world| world.cut_for(cuts, lasts));
        let resumed = wait + self.random.between(20 * MS, 2 * ttl);
        self.later(resumed, Place::World, |world| world.set_pause(false));
    }

    /// D, changing a set: `away` streams again at about the time when the primary gets the names of the
    /// set without it; then only `stays` is left, which had a slow disk meanwhile.
    pub(super) fn flap(&mut self) {
        let Some(holder) = self.holder() else { return };
        let others = self.others(holder);
        let away = others[self.random.index(others.len())];
        let stays: Vec<usize> = others.into_iter().filter(|it| *it != away).collect();
        let (me, it) = (End::Instance(holder), End::Instance(away));
        let heals = self.random.between(3_000 * MS, 3_700 * MS);
        self.cut_for(vec![(me, it), (it, me)], heals);
        let until = self.now + heals + 2_500 * MS;
        self.later(heals.saturating_sub(700 * MS), Place::World, move |world| {
            for i in stays {
                if let Some(server) = world.hosts[i].server.as_mut() {
                    server.stalled_until = until;
                }
            }
        });
        let gone = self.now + heals + 700 * MS;
        self.flapping = Some((holder, away, gone));
    }

    /// The set without the one that is away is covered, as the primary says: now both are gone.
    pub(super) fn covered(&mut self) {
        let Some((holder, away, gone)) = self.flapping.filter(|(_, _, gone)| self.now <= *gone)
        else {
            return;
        };
        let Some(role) = self.coord.role().filter(|role| role.is_covered()) else { return };
        let without =
            role.set.as_ref().is_some_and(|it| !it.members.contains(&instance_name(away)));
        let early = self.now + 1_000 * MS < gone;
        if !without || role.holder != Some(instance_name(holder)) || early {
            return;
        }
        self.flapping = None;
        // Before the leader has seen who streams again, another one leads, and sees it no more.
        self.later(1, Place::World, move |world| {
            world.elect();
            for i in [holder, away] {
                if world.hosts[i].up {
                    world.power_off(i);
                    let off = world.random.between(3 * SECOND, 6 * SECOND);
                    world.later(off, Place::World, move |world| world.power_on(i, 0));
                }
            }
        });
    }

    /// OUT (c): the primary and one member of its set on one side, all who could prove something on the
    /// other.
    pub(super) fn split(&mut self) {
        let Some(holder) = self.holder() else { return };
        let others = self.others(holder);
        let with = others[self.random.index(others.len())];
        let both = [End::Instance(holder), End::Instance(with)];
        let mut cuts = self.ends(holder, true);
        cuts.extend(self.ends(with, true));
        cuts.retain(|(from, to)| !(both.contains(from) && both.contains(to)));
        let lasts = self.random.between(6 * SECOND, 12 * SECOND);
        self.cut_for(cuts, lasts);
        self.later(500 * MS, Place::World, |world| world.fail_over(None));
    }

    /// D, receipts: one standby alone gets what the primary acknowledges last; then that is gone, and
    /// its heir too, as soon as it is granted.
    pub(super) fn heir_dies(&mut self) {
        let Some(holder) = self.holder() else { return };
        let others = self.others(holder);
        let heir = others[self.random.index(others.len())];
        let me = End::Instance(holder);
        let behind = others.iter().filter(|it| **it != heir).map(|it| End::Instance(*it));
        let cuts = behind.flat_map(|it| [(me, it), (it, me)]).collect();
        let away = self.random.between(12 * SECOND, 25 * SECOND);
        self.cut_for(cuts, away);
        let wait = self.random.between(150 * MS, 900 * MS);
        self.later(wait, Place::World, move |world| {
            let epoch = world.coord.role().map(|role| role.epoch);
            let Some(epoch) = epoch.filter(|_| world.holder() == Some(holder)) else { return };
            if world.hosts[holder].up {
                world.power_off(holder);
                world.later(away, Place::World, move |world| world.power_on(holder, 0));
                world.heir = Some((heir, epoch));
            }
        });
    }

    /// Somebody is granted. If it is the heir, its host is gone before it acts, and people do not wait
    /// for it: their fence is there when it comes back.
    pub(super) fn granted(&mut self) {
        let Some((heir, before)) = self.heir else { return };
        let Some(epoch) = self.coord.role().map(|role| role.epoch).filter(|it| *it > before) else {
            return;
        };
        self.heir = None;
        if self.holder() != Some(heir) {
            return;
        }
        self.later(1, Place::World, move |world| {
            if !world.hosts[heir].up {
                return;
            }
            world.power_off(heir);
            let off = world.random.between(SECOND, 4 * SECOND);
            world.later(off, Place::World, move |world| world.power_on(heir, 0));
            let wait = world.random.between(20 * MS, 900 * MS);
            world.later(wait, Place::World, move |world| {
                if world.coord.role().is_some_and(|role| role.epoch == epoch) {
                    world.fail_over(None);
                }
            });
        });
    }

    /// S6: what is granted rests on the log, and on nothing that its proposer thought.
    pub(super) fn rogue(&mut self, i: usize) {
        let (name, service) = (self.name_of(i), service_name());
        let Some(role) = self.coord.role() else { return };
        let Some(fence) = role.fence.as_ref().map(|fence| fence.fence) else {
            let Some(set) = role.set.clone() else { return };
            if role.holder.as_ref() == Some(&name) {
                return;
            }
            let (seen, members) = (set.revision, [name].into());
            return self.propose_at_leader(&Command::ChangeSet { service, seen, members, k: 1 });
        };
        let operation = role
            .operation
            .and_then(|id| self.coord.state.operations().get(&(service_name(), id)).cloned());
        let approval = operation.and_then(|row| row.approval.as_ref().map(|asked| asked.id));
        let loss = match self.random.chance(500) {
            true => Loss::default(),
            false => Loss { ms: Some(0), bytes: Some(0) },
        };
        let command = match self.random.below(6) {
            5 => {
                let (candidate, question) = (name, "well?".into());
                let (loss, without_out) = (Loss::default(), true);
                Command::OpenApproval { service, fence, candidate, loss, without_out, question }
            }
            0 => Command::CutStandbys { service, fence },
            1 => {
                let (verdict, reason) = ("PrimaryProcessDead".into(), "because".into());
                Command::TakeOverFence { service, fence, verdict, reason }
            }
            _ => Command::GrantRole { service, fence, candidate: name, loss, approval },
        };
        self.propose_at_leader(&command);
        let again = self.random.between(2 * MS, 40 * MS);
        if self.random.chance(800) {
            let i = self.random.index(self.hosts.len());
            self.later(again, Place::World, move |world| world.rogue(i));
        }
    }

    fn propose_at_leader(&mut self, command: &Command) {
        let (leader, by) = (self.coord.leader, regent_core::authz::Principal::cluster());
        self.propose(leader, by, command, Box::new(|_, _| {}));
    }
}
