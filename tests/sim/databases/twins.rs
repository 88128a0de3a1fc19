//! A host that was cloned while it ran: its data directory, its agent's notebook and what its fencer left
//! are started elsewhere under the same name, so that two agents speak for one instance (PROTOCOL.md B).
//!
//! The address of the instance stays with the first: nobody streams from the twin, and the twin reaches
//! all others. What an instance acknowledged since its last accepted start is not on an image of it, and
//! A2 promises nothing of that (docs/adr/0010, 1): once a twin is accepted, the judge counts what is lost
//! and blames nobody. That there is one primary at a time is not excused by anything.

use regent_core::id::InstanceName;

use super::host::Host;
use super::net::End;
use super::plan::instance_name;
use super::world::{Place, World};
use crate::agents::machine::{MS, Machine, SECOND};

impl World {
    /// The name under which the agent of a host speaks.
    pub(super) fn name_of(&self, i: usize) -> InstanceName {
        instance_name(self.hosts[i].name)
    }

    /// Hosts that stand where they are declared to be, but for one.
    pub(super) fn others(&self, than: usize) -> Vec<usize> {
        (0..self.plan.instances).filter(|it| *it != than).collect()
    }

    /// An image of a host is taken; some time later it is started as a twin, perhaps while the first is
    /// alone, and somebody finds it after a while.
    pub(super) fn host_is_cloned(&mut self, i: usize) {
        let host = &self.hosts[i];
        // An image of while a start is asked for looks like its lost answer.
        let known = host.book.as_ref().is_some_and(|book| book.attempt == book.confirmed);
        let is_one = i < self.plan.instances && host.up && known;
        if !is_one || self.hosts.len() > self.plan.instances && self.hosts[self.plan.instances].up {
            return;
        }
        let machine = Machine::new(self.options.class, &mut self.random);
        let (boot, life) = (self.fresh() << 32, self.fresh() << 32);
        let twin = self.hosts[i].twin(machine, boot, life);
        let wait = match self.random.chance(500) {
            true => self.random.between(MS, 500 * MS),
            false => self.random.between(SECOND, 12 * SECOND),
        };
        self.later(wait, Place::World, move |world| world.start_twin(i, twin));
    }

    fn start_twin(&mut self, of: usize, twin: Host) {
        let j = self.plan.instances;
        if self.now >= self.calm || self.hosts.get(j).is_some_and(|before| before.up) {
            return;
        }
        self.hosts.truncate(j);
        self.hosts.push(twin);
        self.say(|| format!("-- a twin of {of} starts"));
        if self.random.chance(600) {
            let me = End::Instance(of);
            let cuts = match self.random.chance(500) {
                true => self.nodes().flat_map(|it| [(me, it), (it, me)]).collect(),
                false => self.ends(of, true),
            };
            self.cut(cuts);
        }
        self.born(j);
        let stays = self.random.between(2 * SECOND, 20 * SECOND);
        self.later(stays, Place::World, Self::end_twin);
    }

    /// Somebody finds it, and ends it for good; the agent whose place it took is started anew, and is
    /// judged then: before, it comes with a session of before that of the twin, and is refused for that.
    pub(super) fn end_twin(&mut self) {
        let j = self.plan.instances;
        if self.hosts.get(j).is_some_and(|twin| twin.up) {
            self.say(|| "-- the twin is found".into());
            self.power_off(j);
            if self.check.copied {
                let of = self.hosts[j].name;
                self.die(of);
            }
        }
    }

    /// A start was accepted: if it is a twin's, A2 does not hold any more.
    pub(super) fn twin_is_accepted(&mut self, i: usize) {
        if i >= self.plan.instances && !self.check.copied {
            self.say(|| format!("-- the twin is accepted as {}", self.name_of(i)));
            self.check.copied = true;
            self.check.stats.twins += 1;
        }
    }
}
