//! Applications that read: each keeps one session to a standby that lets it in, until it is sent away. And
//! their judge: who came in to read never writes, because nobody is in between a promotion and its epoch
//! (PROTOCOL.md D), and nobody is let in to a history that is not the present epoch's.

use super::world::{Place, World};
use crate::agents::machine::MS;

/// One of them.
#[derive(Debug, Default)]
pub struct Reader {
    /// The instance it is connected to, and the run of its server.
    at: Option<(usize, u64)>,
}

impl World {
    /// A reader looks at what it has, and reads.
    pub fn read(&mut self, r: usize) {
        let wait = self.beside.between(20 * MS, 180 * MS);
        self.later(wait, Place::World, move |world| world.read(r));
        let is_in = |(i, run): &(usize, u64)| {
            let server = self.hosts.get(*i).and_then(|host| host.server.as_ref());
            server.is_some_and(|it| it.run == *run && it.readers.contains(&r))
        };
        let Some((i, _)) = self.readers[r].at.filter(is_in) else { return self.comes_in(r) };
        let host = &self.hosts[i];
        let awake = host.up && host.machine.runs(self.now);
        let Some(server) = host.server.as_ref().filter(|it| awake && it.frozen_until <= self.now)
        else {
            return;
        };
        if server.primary {
            return self
                .check
                .broken(format!("D: a session that came in to read can write at {i}"));
        }
        self.check.stats.reads += 1;
    }

    fn comes_in(&mut self, r: usize) {
        let (i, now) = (self.beside.index(self.hosts.len()), self.now);
        let host = &mut self.hosts[i];
        let awake = host.up && host.machine.runs(now);
        let server = host.server.as_mut().filter(|it| {
            awake && it.up && it.open && !it.primary && !it.stopping && it.deaf_until <= now
        });
        self.readers[r].at = server.map(|server| {
            server.readers.push(r);
            (i, server.run)
        });
    }

    /// The server of a host ends recovery: whoever is in, or comes in now, would write before the epoch.
    pub(super) fn judge_promotion(&mut self, i: usize) {
        let Some(server) = &self.hosts[i].server else { return };
        if server.open || !server.readers.is_empty() {
            let count = server.readers.len();
            let text = format!("D: {i} is promoted open to readers, {count} of whom are in");
            self.check.broken(text);
        }
    }

    /// A standby lets readers in. One that knows of the epoch in force has nothing that its holder lacks,
    /// which may not have been promoted yet.
    pub(super) fn judge_let_in(&mut self, i: usize) {
        let Some((epoch, to, led)) = self.check.in_force() else { return };
        let host = &self.hosts[i];
        let told = host.book.as_ref().and_then(|book| book.directive.as_ref());
        let primary = self.hosts.iter().find(|it| {
            let wal = &it.dir.wal;
            let has_it = !led || wal.epoch(wal.end()) == epoch;
            it.name == to && it.dir.present && !it.dir.broken && has_it
        });
        let Some(primary) = primary.filter(|_| told.is_some_and(|it| it.epoch >= epoch)) else {
            return;
        };
        let (shared, end) = (host.dir.wal.shared(&primary.dir.wal), host.dir.wal.end());
        if shared < end && !self.check.copied {
            let text =
                format!("D: {i} lets readers in to {} records that {epoch} lacks", end - shared);
            self.check.broken(text);
        }
    }
}
