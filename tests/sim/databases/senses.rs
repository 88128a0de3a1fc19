//! What a simulated agent feels without being asked: looks at its server, fresh connections, own
//! commits (`src/agent/senses.rs`, `sights.rs`).

use regent_core::agent::{Found, Seen, SeenReceiver};
use regent_core::mutant::{Mutant, leaves_out};
use regent_core::role::Lsn;
use regent_core::role::observe::Sender;
use regent_core::time::Reading;

use super::agent::{REPORT_EVERY, Tried};
use super::net::End;
use super::plan::{address_of, instance_name};
use super::postgres::{Dir, Waiter};
use super::wal::Kind;
use super::world::World;
use crate::agents::machine::{MS, SECOND, Time};

/// What hears whether a commit returned in time.
type Told = Box<dyn FnOnce(&mut World, bool)>;

/// What lies in a data directory.
pub(super) fn found(dir: &Dir) -> Found {
    match dir {
        Dir { broken: true, .. } => Found::Broken("it was interrupted".into()),
        Dir { present: false, .. } => Found::Empty,
        Dir { signal, generation, .. } => {
            Found::Cluster { system: 1, generation: *generation, is_standby: *signal }
        }
    }
}

impl World {
    pub(super) fn observes(&mut self, i: usize) {
        let seen = self.look_at_server(i);
        let running = self.agent(i).local.running;
        let pause = match &seen {
            None if running => 12 * MS,
            Some((_, seen)) if seen.in_recovery => 60 * MS,
            _ => REPORT_EVERY,
        };
        let place = self.agent_place(i);
        self.later(pause, place, move |world| world.observes(i));
        self.deliver(i, seen);
    }

    /// A look is wanted now.
    pub fn look(&mut self, i: usize) {
        if std::mem::replace(&mut self.agent(i).looks, true) {
            return;
        }
        let place = self.agent_place(i);
        self.later(MS / 2, place, move |world| {
            world.agent(i).looks = false;
            let seen = world.look_at_server(i);
            world.deliver(i, seen);
        });
    }

    pub(super) fn deliver(&mut self, i: usize, seen: Option<(Reading, Seen)>) {
        let Some((asked, seen)) = seen else { return };
        let wait = self.random.between(50, 2 * MS);
        let place = self.agent_place(i);
        self.later(wait, place, move |world| {
            let now = world.hosts[i].machine.read(world.now);
            let agent = world.agent(i);
            if agent.local.running {
                let streamed = agent.local.streams();
                agent.local.observed(asked, seen, now);
                if agent.busy.is_none() {
                    agent.local.judge_names(now);
                }
                if streamed && !agent.local.streams() {
                    agent.reported = None;
                }
            }
            world.turn(i);
        });
    }

    pub(super) fn look_at_server(&self, i: usize) -> Option<(Reading, Seen)> {
        if !self.answers(End::Instance(i), i) {
            return None;
        }
        let host = &self.hosts[i];
        let server = host.server.as_ref()?;
        let receiver = server.receiver.and_then(|id| self.conns.get(&id));
        let receiver = receiver.map(|conn| SeenReceiver {
            address: address_of(conn.from),
            streams: true,
            silent_ms: (self.now - conn.alive) / MS,
        });
        let sender = |it: &super::postgres::Sender| Sender {
            to: instance_name(it.name),
            streams: it.flushed.is_some(),
            is_sync: true,
            flushed: Lsn(it.flushed.unwrap_or_default() as u64),
        };
        let seen = Seen {
            in_recovery: !server.primary,
            position: host.dir.wal.position(host.dir.wal.flushed),
            replay_lag_bytes: 0,
            receiver,
            senders: server.senders.iter().map(sender).collect(),
            sync_names: server.names.text(),
            overrides: Vec::new(),
            disk_free_bytes: 0,
        };
        Some((host.machine.read(self.now), seen))
    }

    /// Fresh connections: to its own server, and to the neighbours.
    pub(super) fn probes(&mut self, i: usize) {
        let place = self.agent_place(i);
        self.later(REPORT_EVERY, place, move |world| world.probes(i));
        let answered = self.answers(End::Instance(i), i);
        let now = self.now;
        let mut tried = Vec::new();
        if self.agent(i).instruction.is_some() {
            for other in self.others(self.hosts[i].name) {
                let host = &self.hosts[other];
                let reached = host.up
                    && host.machine.runs(now)
                    && self.net.joins(End::Instance(i), End::Instance(other));
                let listens = host.server.as_ref().is_some_and(|it| it.fenced && it.up);
                tried.push((other, self.answers(End::Instance(i), other), reached && !listens));
            }
        }
        let read = self.hosts[i].machine.read(now);
        let agent = self.agent(i);
        if agent.local.running {
            match answered {
                true => agent.local.answered(1),
                false => agent.local.unanswered("silent".into(), false, read, read),
            }
        }
        for (other, answers, refused) in tried {
            let before = agent.sights.get(&other).and_then(|it| it.answered);
            let answered = if answers { Some(now) } else { before };
            agent.sights.insert(other, Tried { answered, refused, tried: now });
        }
    }

    /// Own commits while there is a set to certify.
    pub(super) fn certifies(&mut self, i: usize) {
        let Some(set) = self.agent(i).canary else {
            self.agent(i).certifying = false;
            return;
        };
        let begun = self.hosts[i].machine.read(self.now);
        let place = self.agent_place(i);
        let since = self.now;
        let returned = move |world: &mut World, returned: bool| {
            let now = world.hosts[i].machine.read(world.now);
            let agent = world.agent(i);
            let same = agent.canary == Some(set);
            agent.local.committed(returned, now);
            let sound = returned && agent.local.has_its_names() && same;
            if sound {
                let latched = agent.book.latched && !leaves_out(Mutant::CertificatesLatched);
                agent.right.certified(begun, set, latched);
                if !latched {
                    world.pages.certified(i, since);
                }
                world.check.stats.certificates += 1;
            }
            world.later(300 * MS, place, move |world| world.certifies(i));
            world.turn(i);
        };
        self.own_commit(i, Kind::Write, 5 * SECOND, Box::new(returned));
    }

    /// A commit of the agent's own; `told` whether it returned in time.
    pub fn own_commit(&mut self, i: usize, kind: Kind, within: Time, told: Told) -> u64 {
        let number = self.fresh();
        let place = self.agent_place(i);
        let life = self.agent(i).life;
        let written = match self.answers(End::Instance(i), i) {
            true => self.commit_write(i, kind, Waiter::Agent(life, number)),
            false => None,
        };
        self.agent(i).commits.insert(number, told);
        let wait = if written.is_some() { within } else { MS };
        self.later(wait, place, move |world| {
            if let Some(told) = world.agent(i).commits.remove(&number) {
                world.give_up(i, |who| matches!(who, Waiter::Agent(_, of) if *of == number));
                told(world, false);
            }
        });
        number
    }

    /// An own commit returned.
    pub fn returned(&mut self, i: usize, number: u64) {
        if let Some(told) = self.agent(i).commits.remove(&number) {
            told(self, true);
        }
    }
}
