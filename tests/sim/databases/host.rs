//! A host: power, clocks, a disk, and the fencer that PostgreSQL cannot outlive. The fencer's rules
//! of deadlines are the real ones; what it does with processes is a model of `src/fencer/init`.

use regent_core::agent::Notebook;
use regent_core::id::{Nonce, Revision};
use regent_fencer::Arm;
use regent_fencer::lease::Lease;
use regent_fencer::receipt::{ExitStatus, Proof, Reason, Receipt};
use regent_fencer::wire::{Bound, Protection, StopMode};

use super::agent::Agent;
use super::postgres::{Dir, Server};
use super::wal::{Kind, Record};
use super::world::{Place, World};
use crate::agents::machine::{MS, Machine, SECOND, Time};

/// How long a fencer may take to end everything (C6).
pub const FENCE_BUDGET_MS: u64 = 250;

/// A host and what lies on its disk.
pub struct Host {
    /// The instance that its agent speaks for.
    pub name: usize,
    pub machine: Machine,
    pub up: bool,
    /// Which boot of the machine this is.
    pub boot: u64,
    pub dir: Dir,
    /// The agent's notebook, as it is fsynced.
    pub book: Option<Notebook>,
    /// An image of both, taken earlier.
    pub image: Option<(Dir, Notebook)>,
    pub fencer: Fencer,
    pub server: Option<Server>,
    pub agent: Option<Agent>,
}

/// A fencer.
pub struct Fencer {
    pub up: bool,
    pub life: u64,
    pub lease: Lease,
    pub receipt: Option<Receipt>,
    timer: u64,
}

/// What a fencer says of itself, as far as its agent keeps it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Status {
    /// Something runs, and has no deadline.
    pub unbounded: bool,
    /// The newest pause that it obeyed.
    pub pause: Revision,
}

/// What the agent hears of it.
#[derive(Clone, Copy, Debug)]
pub enum News {
    Stopped { proven: bool, in_order: bool, sequence: u64 },
    Lost,
}

impl Host {
    pub fn new(i: usize, machine: Machine) -> Self {
        let mut dir =
            Dir { present: i == 0, timelines: 1, generation: i as u64 + 1, ..Dir::default() };
        if i == 0 {
            dir.wal.push(Record { id: 1, kind: Kind::Write });
            dir.wal.flushed = 1;
        }
        Self {
            name: i,
            machine,
            up: true,
            boot: 1,
            dir,
            book: None,
            image: None,
            fencer: Fencer { up: false, life: 0, lease: Lease::default(), receipt: None, timer: 0 },
            server: None,
            agent: None,
        }
    }

    /// Another machine with what lies on the disk of this one, as after a power cut.
    pub fn twin(&self, machine: Machine, boot: u64, life: u64) -> Self {
        let mut dir = self.dir.clone();
        let flushed = dir.wal.flushed;
        dir.wal.truncate(flushed);
        let receipt = self.fencer.receipt.clone();
        let fencer = Fencer { up: false, life, lease: Lease::default(), receipt, timer: 0 };
        let (book, (server, agent)) = (self.book.clone(), (None, None));
        let name = self.name;
        Self { name, machine, up: true, boot, dir, book, image: None, fencer, server, agent }
    }

    /// What its fencer would say.
    pub fn status(&self) -> Status {
        let view = self.fencer.lease.view();
        let unbounded = self.runs_fenced() && view.until.is_none();
        Status { unbounded, pause: view.pause }
    }

    /// Whether the end of what ran last is proven, to an agent that comes up.
    pub fn is_proven(&self) -> bool {
        let receipt = self.fencer.receipt.as_ref();
        receipt.is_some_and(|receipt| receipt.proves_end(&self.boot.to_string()))
    }

    /// Whether the fencer has something running.
    pub fn runs_fenced(&self) -> bool {
        self.server.as_ref().is_some_and(|server| server.fenced)
    }
}

impl Fencer {
    /// The number of the newest receipt.
    pub fn sequence(&self) -> u64 {
        self.receipt.as_ref().map_or(0, |receipt| receipt.sequence)
    }
}

impl World {
    fn fencer_place(&self, i: usize) -> Place {
        Place::Fencer(i, self.hosts[i].fencer.life)
    }

    /// A fencer is launched, where none is left.
    pub fn launch_fencer(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        if host.fencer.up {
            return;
        }
        host.fencer.up = true;
        host.fencer.life += 1;
        host.fencer.lease = Lease::after(host.fencer.receipt.as_ref());
    }

    /// A deadline is posted; posts arrive in their order.
    pub fn post_arm(&mut self, i: usize, arm: Arm) {
        let place = self.fencer_place(i);
        self.later(200, place, move |world| world.arm(i, &arm));
    }

    /// No deadline is wanted: under this pause, or as the one that was obeyed last.
    pub fn post_disarm(&mut self, i: usize, pause: Option<Revision>) {
        let place = self.fencer_place(i);
        self.later(200, place, move |world| {
            let lease = &mut world.hosts[i].fencer.lease;
            let _ = lease.disarm(pause.unwrap_or(lease.view().pause));
            world.fencer_says(i);
        });
    }

    /// What the fencer answers is known to its agent a moment later.
    fn fencer_says(&mut self, i: usize) {
        let status = self.hosts[i].status();
        let Some(life) = self.hosts[i].agent.as_ref().map(|agent| agent.life) else { return };
        self.later(100, Place::Agent(i, life), move |world| world.agent(i).fencer = status);
    }

    /// A later deadline.
    pub fn arm(&mut self, i: usize, arm: &Arm) {
        let _ = self.hosts[i].fencer.lease.arm(arm);
        self.set_timer(i);
        self.fencer_says(i);
    }

    fn set_timer(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        host.fencer.timer += 1;
        let (timer, now) = (host.fencer.timer, host.machine.read(self.now));
        let Some(left) = host.fencer.lease.left_us(now) else { return };
        let wait = host.machine.real_after(self.now, left) - self.now;
        let place = self.fencer_place(i);
        self.later(wait, place, move |world| {
            if world.hosts[i].fencer.timer == timer {
                world.look_at_deadline(i);
            }
        });
    }

    fn look_at_deadline(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        let now = host.machine.read(self.now);
        let until = host.fencer.lease.view().until;
        if !host.fencer.lease.due(now) {
            return self.set_timer(i);
        }
        host.fencer.lease.fire();
        self.check.stats.fired += 1;
        self.say(|| format!("{i}: the fencer fires"));
        // It ends everything within its budget of the deadline; after a sleep, at once.
        let late = until.map_or(0, |until| now.since(until).0);
        let budget = (FENCE_BUDGET_MS * MS * 95 / 100).saturating_sub(late);
        let wait = if self.plan.at_bound { budget } else { self.random.between(0, budget) };
        let place = self.fencer_place(i);
        self.later(wait, place, move |world| world.fenced(i, Reason::Deadline, None));
    }

    /// Everything under the fencer is ended, and a receipt says so.
    pub fn fenced(&mut self, i: usize, reason: Reason, exit: Option<i32>) {
        if !self.hosts[i].runs_fenced() {
            return;
        }
        let weak = self.plan.weak;
        match weak && exit != Some(0) && self.random.chance(400) {
            true => self.outlive(i),
            false => self.end_server(i),
        }
        let host = &mut self.hosts[i];
        let now = host.machine.read(self.now);
        let (view, sequence) = (host.fencer.lease.view(), host.fencer.sequence() + 1);
        host.fencer.receipt = Some(Receipt {
            sequence,
            boot_id: host.boot.to_string(),
            fencer: Nonce(host.fencer.life),
            epoch: view.epoch,
            number: view.number,
            reason,
            exit: exit.map(ExitStatus::Code),
            protection: match weak {
                true => Protection::Weak { reason: "there is no namespace".into() },
                false => Protection::Namespace,
            },
            proof: if weak { Proof::Weak } else { Proof::Namespace },
            started_at: None,
            killed_at: now,
            ended_at: now,
        });
        host.fencer.lease.ended();
        let in_order = reason == Reason::PostmasterExit && exit == Some(0);
        self.say(|| format!("{i}: nothing runs any more ({reason:?})"));
        self.fencer_says(i);
        self.tell(i, News::Stopped { proven: !weak, in_order, sequence });
    }

    /// E1: who was not found by a fencer without a namespace goes on for a moment. No session begins
    /// without the first process, and none is answered that is new.
    fn outlive(&mut self, i: usize) {
        let wait = self.random.between(20 * MS, 2 * SECOND);
        let Some(server) = self.hosts[i].server.as_mut() else { return };
        (server.fenced, server.open, server.upstream) = (false, false, None);
        let run = server.run;
        if server.primary {
            self.check.primary_ended.insert(i, self.now);
        }
        self.check.stats.outlived += 1;
        self.say(|| format!("{i}: somebody was not found"));
        self.later(wait, Place::Server(i, run), move |world| world.end_server(i));
    }

    fn tell(&mut self, i: usize, news: News) {
        let Some(life) = self.hosts[i].agent.as_ref().map(|agent| agent.life) else { return };
        let wait = self.random.between(100, 3 * MS);
        self.later(wait, Place::Agent(i, life), move |world| world.news(i, news));
    }

    /// The fencer starts the server. The number of the last receipt, or why not.
    pub fn fenced_start(&mut self, i: usize, bound: &Bound) -> Result<u64, &'static str> {
        let host = &mut self.hosts[i];
        if !host.fencer.up {
            return Err("there is no fencer");
        }
        let sequence = host.fencer.sequence();
        if host.runs_fenced() {
            return Ok(sequence);
        }
        let now = host.machine.read(self.now);
        host.fencer.lease =
            host.fencer.lease.started(bound, now).map_err(|_| "the fencer refused")?;
        if let Some(server) = host.server.as_mut() {
            // Somebody else's server has the directory: this one ends at once.
            server.fenced = false;
            return Err("another server runs there");
        }
        self.start_server(i, true);
        self.set_timer(i);
        self.fencer_says(i);
        Ok(sequence)
    }

    /// The fencer is asked to stop the server; `told` hears when nothing runs.
    pub fn fenced_stop(
        &mut self,
        i: usize,
        mode: StopMode,
        told: impl FnOnce(&mut Self) + 'static,
    ) {
        let place = self.fencer_place(i);
        if !self.hosts[i].runs_fenced() {
            self.later(200, place, told);
            return;
        }
        if mode == StopMode::Kill {
            let wait = self.random.between(200, 8 * MS);
            self.later(wait, place, move |world| {
                world.fenced(i, Reason::Stop(mode), None);
                told(world);
            });
            return;
        }
        // A fast shutdown: sessions end, a checkpoint, its record goes to the standbys.
        let Some(server) = self.hosts[i].server.as_mut() else { return };
        (server.stopping, server.open) = (true, false);
        (server.sessions, server.readers) = (Vec::new(), Vec::new());
        let run = server.run;
        self.give_up(i, |_| true);
        let slow = self.random.chance(60);
        let wait = self.random.between(5 * MS, if slow { 6 * SECOND } else { 60 * MS });
        self.later(wait, Place::Server(i, run), move |world| world.shut_down_record(i));
        self.later(wait + 60 * MS, place, move |world| {
            if world.run_of(i) == Some(run) {
                world.hosts[i].dir.clean = world.shutdown_is_last(i);
                world.fenced(i, Reason::Stop(mode), Some(0));
            }
            told(world);
        });
    }

    /// The last record of an orderly shutdown; standbys get it before the end.
    pub fn shut_down_record(&mut self, i: usize) {
        let id = self.fresh();
        let host = &mut self.hosts[i];
        let Some(server) = host.server.as_ref() else { return };
        if server.primary {
            host.dir.wal.push(Record { id, kind: Kind::Shutdown });
        }
        host.dir.wal.flushed = host.dir.wal.end();
        let conns: Vec<u64> = server.senders.iter().map(|sender| sender.conn).collect();
        for conn in conns {
            self.pump_now(conn);
        }
    }

    /// Whether the shutdown's record is the end of the WAL.
    pub fn shutdown_is_last(&self, i: usize) -> bool {
        self.hosts[i].dir.wal.ends_with_shutdown()
    }

    /// The postmaster ends by itself; its fencer ends what is left and says so.
    pub fn crash_server(&mut self, i: usize) {
        let place = self.fencer_place(i);
        let wait = self.random.between(100, 20 * MS);
        self.later(wait, place, move |world| world.fenced(i, Reason::PostmasterExit, Some(1)));
    }

    /// The fencer dies, and with its namespace all that it started.
    pub fn crash_fencer(&mut self, i: usize) {
        if !self.hosts[i].fencer.up {
            return;
        }
        if self.hosts[i].runs_fenced() {
            match self.plan.weak && self.random.chance(400) {
                true => self.outlive(i),
                false => self.end_server(i),
            }
        }
        self.hosts[i].fencer.up = false;
        self.tell(i, News::Lost);
    }

    /// Power goes: what was not flushed is lost.
    pub fn power_off(&mut self, i: usize) {
        self.end_server(i);
        let host = &mut self.hosts[i];
        host.up = false;
        host.fencer.up = false;
        host.agent = None;
        let flushed = host.dir.wal.flushed;
        host.dir.wal.truncate(flushed);
        // Nobody says goodbye: who was connected finds out.
        for id in self.streams_of(super::net::End::Instance(i)) {
            let wait = self.random.between(300 * MS, 900 * MS);
            self.later(wait, Place::World, move |world| world.end_stream(id));
        }
    }

    /// Power is back: perhaps the distribution's unit starts what lies there, then the agent comes.
    pub fn power_on(&mut self, i: usize, stranger_for: Time) {
        if i >= self.plan.instances && self.now >= self.calm {
            return;
        }
        let host = &mut self.hosts[i];
        host.up = true;
        host.boot += 1;
        host.machine.asleep_until = 0;
        if stranger_for > 0 && self.hosts[i].dir.present && !self.hosts[i].dir.broken {
            let run = self.start_server(i, false);
            self.say(|| format!("{i}: started as it lies on disk"));
            self.later(stranger_for, Place::Server(i, run), move |world| {
                if world.hosts[i].server.as_ref().is_some_and(|server| !server.fenced) {
                    world.end_server(i);
                }
            });
        }
        let wait = self.random.between(50 * MS, 3 * SECOND);
        self.later(wait, Place::Host(i), move |world| world.born(i));
    }
}
