//! Applications: each keeps one session to whatever primary lets it in, and writes.

use super::postgres::Waiter;
use super::wal::Kind;
use super::world::{Place, World};
use crate::agents::machine::{MS, SECOND, Time};

/// One of them.
#[derive(Debug, Default)]
pub struct Writer {
    /// The instance it is connected to, and the run of its server.
    at: Option<(usize, u64)>,
    /// The write that waits for its answer, and since when.
    waits: Option<(u64, Time)>,
    serial: u64,
}

impl World {
    /// A writer looks at what it has, and writes.
    pub fn write(&mut self, w: usize) {
        let wait = self.random.between(20 * MS, 180 * MS);
        self.later(wait, Place::World, move |world| world.write(w));
        let gone = |world: &Self, (i, run): (usize, u64)| {
            let server = world.hosts[i].server.as_ref().filter(|server| server.run == run);
            server.is_none_or(|server| !server.sessions.contains(&w))
        };
        if self.writers[w].at.is_some_and(|at| gone(self, at)) {
            // What it waited for is unknown.
            (self.writers[w].at, self.writers[w].waits) = (None, None);
        }
        if let Some((_, since)) = self.writers[w].waits {
            // One that waits for long gives up and goes elsewhere; most wait on.
            if self.now < since + 8 * SECOND || self.random.chance(900) {
                return;
            }
            if let Some((i, _)) = self.writers[w].at.take() {
                self.give_up(i, |who| matches!(who, Waiter::Writer(of, _) if *of == w));
                if let Some(server) = self.hosts[i].server.as_mut() {
                    server.sessions.retain(|of| *of != w);
                }
            }
            self.writers[w].waits = None;
        }
        if self.writers[w].at.is_none() {
            let i = self.random.index(self.hosts.len());
            let now = self.now;
            let host = &mut self.hosts[i];
            let awake = host.up && host.machine.runs(now);
            let lets_in = |it: &&mut super::postgres::Server| {
                awake && it.up && it.open && it.primary && !it.stopping && it.deaf_until <= now
            };
            let Some(server) = host.server.as_mut().filter(lets_in) else { return };
            server.sessions.push(w);
            self.writers[w].at = Some((i, server.run));
        }
        let Some((i, run)) = self.writers[w].at else { return };
        self.writers[w].serial += 1;
        let serial = self.writers[w].serial;
        self.writers[w].waits = Some((serial, self.now));
        self.later(200, Place::Server(i, run), move |world| {
            world.commit_write(i, Kind::Write, Waiter::Writer(w, serial));
        });
    }

    /// A session that was being let in just when the door was closed: nobody saw it to end it.
    pub fn slips_in(&mut self, i: usize) {
        let Some(w) = self.writers.iter().position(|it| it.waits.is_none()) else { return };
        if let Some(server) = self.hosts[i].server.as_mut() {
            server.sessions.push(w);
            self.writers[w].at = Some((i, server.run));
        }
    }

    /// A write is acknowledged: the server says so, and the writer is there to hear it.
    pub fn acknowledged(
        &mut self,
        w: usize,
        serial: u64,
        i: usize,
        end: usize,
        id: u64,
        waited: bool,
    ) {
        let run = self.run_of(i);
        let writer = &mut self.writers[w];
        if writer.at.map(|(_, run)| run) != run || writer.waits.is_none_or(|(of, _)| of != serial) {
            return;
        }
        writer.waits = None;
        self.judge_write(i, end, id, waited);
    }
}
