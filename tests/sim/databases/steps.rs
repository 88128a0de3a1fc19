//! The deeds of a simulated agent: `src/agent/steps.rs` and what the engine does for it. Each takes
//! time, and may fail, be aborted or be overtaken by a crash at any instant of it.

use regent_core::agent::{Local, Step};
use regent_core::id::Epoch;
use regent_core::mutant::{Mutant, leaves_out};
use regent_core::role::SyncSet;
use regent_fencer::Arm;
use regent_fencer::wire::{Bound, StopMode};

use super::net::End;
use super::plan::index_of;
use super::postgres::Names;
use super::senses::found;
use super::wal::{Kind, Wal};
use super::world::World;
use crate::agents::machine::{MS, SECOND, Time};

/// What a step changed, to be told to [`Local`].
pub type Change = Box<dyn FnOnce(&mut Local)>;
/// What goes on when a commit has returned or not.
pub type Job = Box<dyn FnOnce(&mut World, bool)>;

/// Bound on a small change.
const SOON: Time = 1_500 * MS;
/// Bound on sending readers away before a promotion.
const READERS: Time = 500 * MS;
/// Bound on a commit that waits for standbys.
const COMMIT: Time = 5 * SECOND;

/// A step that is at work.
#[derive(Clone, Copy)]
struct At {
    i: usize,
    id: u64,
}

impl World {
    fn is_at(&self, at: At) -> bool {
        let agent = self.hosts[at.i].agent.as_ref();
        agent.and_then(|agent| agent.busy.as_ref()).is_some_and(|(id, _)| *id == at.id)
    }

    /// After a while, unless the step was aborted.
    fn then(&mut self, at: At, wait: Time, act: impl FnOnce(&mut Self) + 'static) {
        let place = self.agent_place(at.i);
        self.later(wait, place, move |world| {
            if world.is_at(at) {
                act(world);
            }
        });
    }

    fn ok(&mut self, at: At, change: impl FnOnce(&mut Local) + 'static) {
        // Word of what was done may be lost: the step failed, and was done all the same.
        if self.random.chance(self.plan.weights.doubt) {
            return self.failed(at, "its answer was lost");
        }
        self.done(at.i, at.id, Ok(Box::new(change)));
    }

    fn failed(&mut self, at: At, why: &'static str) {
        self.done(at.i, at.id, Err(why));
    }

    /// The server of the instance answers its agent: else the step fails in time.
    fn asks(&mut self, at: At) -> bool {
        if self.answers(End::Instance(at.i), at.i) {
            return true;
        }
        let there = self.hosts[at.i].server.as_ref().is_some_and(|server| server.up);
        let wait = if there { SOON } else { 2 * MS };
        self.then(at, wait, move |world| world.failed(at, "it does not answer"));
        false
    }

    /// What another directory can be compared with and made from: a primary that answers.
    fn is_source(&self, i: usize, up: usize) -> bool {
        let server = self.hosts[up].server.as_ref();
        self.answers(End::Instance(i), up) && server.is_some_and(|server| server.primary)
    }

    fn small(&mut self) -> Time {
        match self.random.below(100) {
            0..2 => self.random.between(20 * MS, 900 * MS),
            _ => self.random.between(MS, 6 * MS),
        }
    }

    /// Does a step.
    pub fn deed(&mut self, i: usize, id: u64, step: Step, arm: Option<Arm>) {
        let at = At { i, id };
        match step {
            Step::Kill => self.kill(at),
            Step::ShutDown => self.shut_down(at),
            Step::CloseOnDisk => self.close_on_disk(at),
            Step::FindEnd => self.find_end(at),
            Step::Detach => self.detach(at),
            Step::Replay => self.replay(at),
            Step::StartStandby(upstream) => {
                let wait = self.small();
                self.then(at, wait, move |world| {
                    let host = &mut world.hosts[i];
                    if host.dir.broken || !host.dir.present {
                        return world.failed(at, "quarantined");
                    }
                    (host.dir.signal, host.dir.names) = (true, Names::Blocked);
                    host.dir.upstream = upstream.as_ref().map(index_of);
                    match world.fenced_start(i, &Bound::Unbound) {
                        Ok(after) => {
                            world.ok(at, move |local| local.started_standby(after, upstream));
                        }
                        Err(why) => world.failed(at, why),
                    }
                });
            }
            Step::StartPrimary => self.start_primary(at, arm),
            Step::Follow(name) => self.follow(at, name),
            Step::Compare(name) => {
                let up = index_of(&name);
                let wait = self.small();
                self.then(at, wait, move |world| {
                    if !world.is_source(i, up) {
                        return world.failed(at, "the upstream is no primary that answers");
                    }
                    let (mine, theirs) = (&world.hosts[i].dir.wal, &world.hosts[up].dir.wal);
                    let diverged = mine.parts_from(theirs) < mine.end();
                    world.ok(at, move |local| local.compared(diverged));
                });
            }
            Step::Rewind(name) => self.rebuild(at, index_of(&name), true),
            Step::Clone(name) => self.rebuild(at, index_of(&name), false),
            Step::EnsureSlots => self.ensure_slots(at),
            Step::SetNames(set) => self.set_names(at, &set),
            Step::Promote(timeline) => self.promote(at, timeline, arm),
            Step::WriteEpoch(epoch) => self.write_epoch(at, epoch),
            Step::Open => self.open(at),
            Step::Close => self.close(at),
            Step::ShutReaders => self.shut_readers(at),
            // Done by the loop itself.
            _ => {}
        }
    }

    /// The fencer has stopped the server; its agent hears of it.
    fn ended(&mut self, at: At, change: impl FnOnce(&mut Local) + 'static) {
        let wait = self.random.between(100, 2 * MS);
        self.then(at, wait, move |world| world.done(at.i, at.id, Ok(Box::new(change))));
    }

    fn kill(&mut self, at: At) {
        self.fenced_stop(at.i, StopMode::Kill, move |world| {
            let proven = !world.plan.weak;
            world.ended(at, move |local| local.ended(proven, false));
        });
    }

    fn ensure_slots(&mut self, at: At) {
        if !self.asks(at) {
            return;
        }
        let wait = self.small();
        self.then(at, wait, move |world| {
            if let Some(server) = world.hosts[at.i].server.as_mut() {
                server.slots = true;
            }
            world.hosts[at.i].dir.slots = true;
            world.ok(at, |local| local.has_slots = true);
        });
    }

    fn shut_down(&mut self, at: At) {
        if !self.asks(at) {
            return;
        }
        let slow = self.random.chance(50) && !self.is_clean(at.i);
        let wait = self.random.between(MS, if slow { 5 * SECOND } else { 40 * MS });
        self.then(at, wait, move |world| {
            if !world.answers(End::Instance(at.i), at.i) {
                return world.failed(at, "checkpoint");
            }
            world.fenced_stop(at.i, StopMode::Fast, move |world| {
                let dir = &world.hosts[at.i].dir;
                let clean = dir.clean.then(|| dir.wal.position(dir.wal.end()));
                let proven = !world.plan.weak;
                world.ended(at, move |local| local.stopped(proven, clean, false));
            });
        });
    }

    fn close_on_disk(&mut self, at: At) {
        let wait = self.small();
        self.then(at, wait, move |world| {
            let dir = &mut world.hosts[at.i].dir;
            if dir.broken {
                return world.failed(at, "quarantined");
            }
            if !leaves_out(Mutant::ClosedOnDisk) {
                (dir.signal, dir.upstream, dir.names) = (true, None, Names::Blocked);
            }
            world.ok(at, Local::closed_on_disk);
        });
    }

    fn find_end(&mut self, at: At) {
        let wait = self.small();
        self.then(at, wait, move |world| {
            let host = &world.hosts[at.i];
            let end = host.dir.wal.position(host.dir.wal.end());
            let led = host.agent.as_ref().map_or(Epoch::NONE, |agent| {
                if leaves_out(Mutant::EndCarriesDirective) {
                    agent.book.led
                } else {
                    agent.book.may_carry()
                }
            });
            world.ok(at, move |local| local.found_end(end, led));
        });
    }

    fn detach(&mut self, at: At) {
        let i = at.i;
        if !leaves_out(Mutant::DetachedOnDisk) {
            self.hosts[i].dir.upstream = None;
        }
        if !self.asks(at) {
            return;
        }
        let wait = self.small();
        self.then(at, wait, move |world| {
            if !world.asks(at) {
                return;
            }
            world.reload(i);
            if let Some(server) = world.hosts[i].server.as_mut() {
                server.upstream = None;
            }
            world.end_receiver(i);
            let wait = world.small();
            world.then(at, wait, move |world| {
                let streams = world.hosts[i].server.as_ref().is_none_or(|it| it.receiver.is_some());
                if streams {
                    return world.failed(at, "the receiver does not end");
                }
                world.ok(at, |local| local.detached(None));
            });
        });
    }

    fn replay(&mut self, at: At) {
        let wait = self.small();
        self.then(at, wait, move |world| {
            if !world.asks(at) {
                return;
            }
            let host = &world.hosts[at.i];
            let server = host.server.as_ref();
            if server.is_none_or(|server| server.receiver.is_some() || server.primary) {
                return world.failed(at, "it is not detached");
            }
            let end = host.dir.wal.position(host.dir.wal.flushed);
            world.ok(at, move |local| local.has_replayed(end));
        });
    }

    fn start_primary(&mut self, at: At, arm: Option<Arm>) {
        let Some(arm) = arm else { return self.failed(at, "there is no deadline") };
        let wait = self.small();
        self.then(at, wait, move |world| {
            let dir = &mut world.hosts[at.i].dir;
            if dir.broken {
                return world.failed(at, "quarantined");
            }
            (dir.signal, dir.upstream, dir.names) = (false, None, Names::Blocked);
            match world.fenced_start(at.i, &Bound::Until(arm)) {
                Ok(after) => world.ok(at, move |local| local.started_primary(after)),
                Err(why) => world.failed(at, why),
            }
        });
    }

    fn follow(&mut self, at: At, name: regent_core::id::InstanceName) {
        let (i, up) = (at.i, index_of(&name));
        if !self.asks(at) {
            return;
        }
        let wait = self.small();
        self.then(at, wait, move |world| {
            world.hosts[i].dir.upstream = Some(up);
            world.reload(i);
            let wait = world.small();
            world.then(at, wait, move |world| {
                if world.hosts[i].server.as_ref().is_none_or(|it| it.upstream != Some(up)) {
                    return world.failed(at, "it does not follow");
                }
                world.ok(at, move |local| local.follows(name));
            });
        });
    }

    /// A rewind or a clone; until it is done the directory is unusable.
    fn rebuild(&mut self, at: At, up: usize, rewinds: bool) {
        let i = at.i;
        let begin = self.small();
        self.then(at, begin, move |world| {
            if !world.is_source(i, up) || world.hosts[i].server.is_some() {
                return world.failed(at, "it cannot begin");
            }
            let dir = &world.hosts[i].dir;
            if rewinds && dir.wal.parts_from(&world.hosts[up].dir.wal) == 0 {
                return world.failed(at, "the histories share no timeline");
            }
            world.hosts[i].dir.broken = true;
            let wait = world.random.between(40 * MS, if rewinds { 700 * MS } else { 1_800 * MS });
            world.then(at, wait, move |world| world.rebuilt(at, up, rewinds));
        });
    }

    fn rebuilt(&mut self, at: At, up: usize, rewinds: bool) {
        let i = at.i;
        if !self.is_source(i, up) {
            let found = found(&self.hosts[i].dir);
            return self.done(i, at.id, Ok(Box::new(move |local| local.discovered(found))));
        }
        let generation = self.fresh();
        let source = &self.hosts[up].dir;
        let (theirs, timelines) = (source.wal.clone(), source.timelines);
        let dir = &mut self.hosts[i].dir;
        let end = theirs.flushed;
        if rewinds {
            let cut = dir.wal.parts_from(&theirs);
            dir.wal.truncate(cut);
        } else {
            dir.wal = Wal::default();
            dir.wal.extend(&theirs, end);
        }
        dir.wal.flushed = dir.wal.end();
        (dir.present, dir.broken, dir.clean) = (true, false, false);
        (dir.signal, dir.upstream, dir.names) = (true, None, Names::Blocked);
        (dir.min_recovery, dir.generation) = (end, generation);
        (dir.timelines, dir.slots) = (timelines, false);
        let found = found(dir);
        self.check.stats.rebuilt += 1;
        self.ok(at, move |local| {
            local.discovered(found);
            local.rebuilt(generation);
        });
    }

    // --- names ---

    fn set_names(&mut self, at: At, set: &SyncSet) {
        let i = at.i;
        let revision = set.revision;
        if !self.hosts[i].runs_fenced() {
            return self.then(at, MS, move |world| {
                world.done(i, at.id, Ok(Box::new(move |local| local.will_have_names(revision))));
            });
        }
        let names = match set.is_degraded() {
            true => Names::Unprotected,
            false => Names::Any {
                k: set.k,
                members: set.members.iter().map(|name| 1 << index_of(name)).sum(),
            },
        };
        if !self.asks(at) {
            return;
        }
        let by = self.now + COMMIT;
        let wait = self.small();
        let primary = self.hosts[i].server.as_ref().is_some_and(|server| server.primary);
        let change = move |local: &mut Local| local.has_names(revision, names.text());
        if !primary {
            return self.then(at, wait, move |world| {
                world.put_names(i, names);
                let wait = world.small();
                world.then(at, wait, move |world| match world.has_names(i, names) {
                    true => world.ok(at, change),
                    false => world.failed(at, "the names were not read"),
                });
            });
        }
        if names == Names::Unprotected {
            return self.then(at, wait, move |world| {
                world.put_names(i, names);
                world.prove_names(at, names, by, Box::new(change));
            });
        }
        // Through nobody, so that no mixture of two sets releases anything.
        self.then(at, wait, move |world| {
            world.put_names(i, Names::Blocked);
            let number = world.own_commit(i, Kind::Write, COMMIT, Box::new(|_, _| {}));
            world.block(at, names, number, by, Box::new(change));
        });
    }

    fn put_names(&mut self, i: usize, names: Names) {
        self.hosts[i].dir.names = names;
        self.reload(i);
    }

    fn has_names(&self, i: usize, names: Names) -> bool {
        self.hosts[i].server.as_ref().is_some_and(|server| server.names == names)
    }

    /// Until no walsender holds the old names and a probe is seen waiting.
    fn block(&mut self, at: At, names: Names, probe: u64, by: Time, change: Change) {
        let i = at.i;
        let Some(server) = self.hosts[i].server.as_ref() else {
            return self.failed(at, "it ended");
        };
        let settled = server.names == Names::Blocked
            && server.senders.iter().all(|sender| sender.names == Names::Blocked);
        let passes = leaves_out(Mutant::NamesThroughNobody);
        if passes || settled && self.waits_in_syncrep(i, probe) {
            self.put_names(i, names);
            let wait = self.small();
            return self.then(at, wait, move |world| world.prove_names(at, names, by, change));
        }
        if self.now >= by || !self.answers(End::Instance(i), i) {
            return self.failed(at, "timed out");
        }
        let wait = self.random.between(MS, 5 * MS);
        self.then(at, wait, move |world| world.block(at, names, probe, by, change));
    }

    /// Until a commit that was begun under the names has returned.
    fn prove_names(&mut self, at: At, names: Names, by: Time, change: Change) {
        if leaves_out(Mutant::CoveredByNewTransaction) {
            return self.ok(at, change);
        }
        if !self.has_names(at.i, names) {
            return self.failed(at, "the names were not read");
        }
        let within = by.saturating_sub(self.now).max(MS);
        let told = move |world: &mut Self, returned: bool| {
            if !world.is_at(at) {
            } else if returned {
                world.ok(at, change);
            } else {
                world.failed(at, "no commit returned");
            }
        };
        self.own_commit(at.i, Kind::Write, within, Box::new(told));
    }

    // --- the primary ---

    fn promote(&mut self, at: At, timeline: u32, arm: Option<Arm>) {
        let i = at.i;
        let Some(arm) = arm else { return self.failed(at, "there is no deadline") };
        self.then(at, 300, move |world| {
            if !world.hosts[i].fencer.up {
                return world.failed(at, "there is no fencer");
            }
            world.arm(i, &arm);
            if !world.asks(at) {
                return;
            }
            let is_left_out = leaves_out(Mutant::ReadersShut);
            let host = &world.hosts[i];
            let fits = host.dir.upstream.is_none()
                && host.server.as_ref().is_some_and(|it| !it.primary && (is_left_out || !it.open));
            let Some(run) = world.run_of(i).filter(|_| fits) else {
                return world.failed(at, "it is not a detached standby");
            };
            let set_aside = !leaves_out(Mutant::TimelineSetAside);
            if set_aside && world.hosts[i].dir.timelines >= timeline {
                return world.failed(at, "its timeline was begun here already");
            }
            let least = if set_aside { timeline } else { 0 };
            let wait = world.random.between(3 * MS, 60 * MS);
            // The server does it, whatever becomes of who asked; who asks twice is too late for the second.
            world.later(wait, super::world::Place::Server(i, run), move |world| {
                if world.hosts[i].server.as_ref().is_some_and(|it| !it.primary) {
                    world.end_recovery(i, least);
                }
            });
            world.then(at, wait + MS, move |world| {
                let host = &world.hosts[i];
                if host.server.as_ref().is_none_or(|it| it.run != run || !it.primary) {
                    return world.failed(at, "recovery did not end");
                }
                let timeline = host.dir.wal.timeline(host.dir.wal.end());
                world.ok(at, move |local| local.promoted(timeline));
            });
        });
    }

    fn write_epoch(&mut self, at: At, epoch: Epoch) {
        if !self.asks(at) {
            return;
        }
        let told = move |world: &mut Self, returned: bool| {
            if !world.is_at(at) {
            } else if returned {
                world.ok(at, move |local| local.wrote(epoch));
            } else {
                world.failed(at, "no commit returned");
            }
        };
        let number = self.own_commit(at.i, Kind::Epoch(epoch), COMMIT, Box::new(told));
        if leaves_out(Mutant::CoveredByNewTransaction) {
            self.then(at, MS, move |world| world.returned(at.i, number));
        }
    }

    fn open(&mut self, at: At) {
        if !self.asks(at) {
            return;
        }
        let wait = self.small();
        self.then(at, wait, move |world| {
            if !world.asks(at) {
                return;
            }
            if let Some(server) = world.hosts[at.i].server.as_mut().filter(|it| !it.stopping) {
                server.open = true;
                let primary = server.primary;
                world.check.stats.opened += u64::from(primary);
                if !primary {
                    world.judge_let_in(at.i);
                }
            }
            world.ok(at, |local| local.opened(Vec::new()));
        });
    }

    fn close(&mut self, at: At) {
        if !self.asks(at) {
            return;
        }
        let wait = self.small();
        self.then(at, wait, move |world| {
            if !world.asks(at) {
                return;
            }
            world.send_away(at.i);
            if world.random.chance(150) {
                world.slips_in(at.i);
            }
            world.ok(at, Local::closed);
        });
    }

    fn send_away(&mut self, i: usize) {
        if let Some(server) = self.hosts[i].server.as_mut() {
            server.open = false;
            (server.sessions, server.readers) = (Vec::new(), Vec::new());
        }
        self.give_up(i, |who| matches!(who, super::postgres::Waiter::Writer(..)));
    }

    /// Before a promotion those who are only logging in are looked for, and ended too: nobody slips in.
    /// Where somebody does not go, or the server does not answer, all is ended, and comes up closed.
    fn shut_readers(&mut self, at: At) {
        let is_read = self.hosts[at.i].server.as_ref().is_some_and(|it| !it.readers.is_empty());
        let stays = is_read && self.beside.chance(100);
        let wait = self.small();
        self.then(at, wait, move |world| {
            if stays || !world.answers(End::Instance(at.i), at.i) {
                world.check.stats.stubborn += 1;
                return world.then(at, READERS, move |world| world.kill(at));
            }
            world.send_away(at.i);
            world.ok(at, Local::closed);
        });
    }
}
