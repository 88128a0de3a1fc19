//! PostgreSQL, as far as the protocol looks: a directory, a server over it, walreceivers that stream
//! from a slot, commits that wait in SyncRep until a walsender, by the names that *it* has read,
//! releases them.

use regent_core::mutant::{Mutant, leaves_out};

use super::check::RESTARTED;
use super::net::End;
use super::wal::{Kind, Record, Wal};
use super::world::{Place, World};
use crate::agents::machine::{MS, SECOND, Time};

/// `synchronous_standby_names`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// A list that nobody matches.
    #[default]
    Blocked,
    /// `ANY k` of these, a bit for each instance.
    Any { k: u32, members: u32 },
    /// Empty: nothing waits.
    Unprotected,
}

impl Names {
    /// As a session shows them.
    pub fn text(self) -> String {
        format!("{self:?}")
    }

    fn holds(self, i: usize) -> bool {
        matches!(self, Self::Any { members, .. } if members >> i & 1 == 1)
    }
}

/// A data directory.
#[derive(Clone, Debug, Default)]
pub struct Dir {
    /// There is a database.
    pub present: bool,
    /// A rewind or a clone was interrupted.
    pub broken: bool,
    /// standby.signal.
    pub signal: bool,
    pub upstream: Option<usize>,
    pub names: Names,
    pub wal: Wal,
    pub generation: u64,
    /// After a rewind or a clone it is no database before this is replayed.
    pub min_recovery: usize,
    /// The last end was an orderly shutdown whose record ends the WAL.
    pub clean: bool,
    /// The highest timeline that its history files know.
    pub timelines: u32,
    /// There is a slot for each other instance.
    pub slots: bool,
}

/// What waits for a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiter {
    Writer(usize, u64),
    /// A commit of this start of the instance's own agent, with its number.
    Agent(u64, u64),
}

struct Waiting {
    end: usize,
    id: u64,
    who: Waiter,
}

/// A walsender.
pub struct Sender {
    /// Which instance it says to be: what names are matched with.
    pub name: usize,
    pub conn: u64,
    pub names: Names,
    /// As the standby said last.
    pub flushed: Option<usize>,
}

/// A running server.
pub struct Server {
    pub run: u64,
    /// Under the fencer; else somebody else started it as it lies on disk.
    pub fenced: bool,
    /// Takes queries.
    pub up: bool,
    pub primary: bool,
    /// Lets clients in.
    pub open: bool,
    pub stopping: bool,
    pub frozen_until: Time,
    /// The postmaster alone stands still.
    pub deaf_until: Time,
    /// Flushes take this long until then.
    pub stalled_until: Time,
    /// What the postmaster has read.
    pub names: Names,
    /// Commits wait: switched by the checkpointer.
    pub waits: bool,
    pub upstream: Option<usize>,
    pub receiver: Option<u64>,
    pub senders: Vec<Sender>,
    waiting: Vec<Waiting>,
    released: usize,
    /// Writers that are connected.
    pub sessions: Vec<usize>,
    /// Readers that are.
    pub readers: Vec<usize>,
    pub slots: bool,
    flushing: bool,
}

/// A walreceiver's connection.
pub struct Conn {
    pub from: usize,
    pub to: usize,
    pub from_run: u64,
    pub to_run: u64,
    /// When something last came through.
    pub alive: Time,
    pumping: bool,
}

/// A walreceiver or a walsender that hears nothing for this long gives up.
const REPLICATION_TIMEOUT: Time = 2 * SECOND;

impl World {
    pub fn run_of(&self, i: usize) -> Option<u64> {
        self.hosts[i].server.as_ref().map(|server| server.run)
    }

    /// Whether a connection from `from` to the server of `i` would be answered.
    pub fn answers(&self, from: End, i: usize) -> bool {
        let host = &self.hosts[i];
        let awake = host.up && host.machine.runs(self.now);
        let server = host.server.as_ref().filter(|server| server.fenced && server.up);
        awake
            && self.net.joins(from, End::Instance(i))
            && server.is_some_and(|it| it.frozen_until <= self.now && it.deaf_until <= self.now)
    }

    /// A server starts over the directory; it takes queries a little later.
    pub fn start_server(&mut self, i: usize, fenced: bool) -> u64 {
        let run = self.fresh();
        let host = &mut self.hosts[i];
        let dir = &mut host.dir;
        // The first thing a server does after a crash is to flush all there is.
        dir.wal.flushed = dir.wal.end();
        let was_clean = std::mem::take(&mut dir.clean);
        host.server = Some(Server {
            run,
            fenced,
            up: false,
            primary: !dir.signal,
            open: false,
            stopping: false,
            frozen_until: 0,
            deaf_until: 0,
            stalled_until: 0,
            names: dir.names,
            waits: false,
            upstream: dir.upstream,
            receiver: None,
            senders: Vec::new(),
            waiting: Vec::new(),
            released: 0,
            sessions: Vec::new(),
            readers: Vec::new(),
            slots: dir.slots,
            flushing: false,
        });
        let recovery = if was_clean { 20 * MS } else { 150 * MS };
        let wait = self.random.between(3 * MS, recovery);
        self.later(wait, Place::Server(i, run), move |world| world.server_up(i, run));
        // The checkpointer gets to the names in its own time.
        let wait = self.random.between(MS, 60 * MS);
        self.later(wait, Place::Server(i, run), move |world| {
            if let Some(server) = world.hosts[i].server.as_mut() {
                server.waits = server.names != Names::Unprotected;
            }
        });
        run
    }

    fn server_up(&mut self, i: usize, run: u64) {
        let host = &mut self.hosts[i];
        let Some(server) = host.server.as_mut() else { return };
        // Not consistent yet: only what it streams makes it so.
        if !server.primary && host.dir.wal.flushed < host.dir.min_recovery {
            self.later(20 * MS, Place::Server(i, run), move |world| world.server_up(i, run));
            return;
        }
        server.up = true;
        if !server.fenced {
            // What lies closed has no address where anybody could connect (E3).
            server.open = server.primary && leaves_out(Mutant::ClosedOnDisk);
        }
        if server.primary && server.fenced {
            self.judge_primary(i, RESTARTED);
        }
    }

    /// Every process of the server is gone.
    pub fn end_server(&mut self, i: usize) {
        if let Some(server) = self.hosts[i].server.take() {
            if server.primary && server.fenced {
                self.check.primary_ended.insert(i, self.now);
            }
            self.trace(&[20, i as u64]);
            let ends: Vec<u64> = self
                .conns
                .iter()
                .filter(|(_, it)| it.from == i || it.to == i)
                .map(|(id, _)| *id)
                .collect();
            for id in ends {
                // The other end hears of it at once, if the kernel is there to say so.
                let (from, to) = (self.conns[&id].from, self.conns[&id].to);
                if self.hosts[i].up && self.net.joins(End::Instance(from), End::Instance(to)) {
                    self.drop_conn(id);
                }
            }
        }
    }

    fn drop_conn(&mut self, id: u64) {
        let Some(conn) = self.conns.remove(&id) else { return };
        if let Some(up) = self.hosts[conn.from].server.as_mut().filter(|it| it.run == conn.from_run)
        {
            up.senders.retain(|sender| sender.conn != id);
        }
        if let Some(down) = self.hosts[conn.to].server.as_mut().filter(|it| it.run == conn.to_run) {
            down.receiver = down.receiver.filter(|receiver| *receiver != id);
        }
    }

    /// The walreceiver is ended; what it wrote is flushed.
    pub fn end_receiver(&mut self, i: usize) {
        let Some(server) = self.hosts[i].server.as_mut() else { return };
        let ended = server.receiver.take();
        let wal = &mut self.hosts[i].dir.wal;
        wal.flushed = wal.end();
        if let Some(id) = ended {
            let conn = &self.conns[&id];
            if self.net.joins(End::Instance(conn.from), End::Instance(i)) {
                self.drop_conn(id);
            }
        }
    }

    /// Receivers connect, connections that hear nothing end.
    pub fn keep_connections(&mut self) {
        let wait = self.random.between(40 * MS, 120 * MS);
        self.later(wait, Place::World, Self::keep_connections);
        let ids: Vec<u64> = self.conns.keys().copied().collect();
        for id in ids {
            let conn = &self.conns[&id];
            let (from, to, alive) = (conn.from, conn.to, conn.alive);
            let runs = |i: usize, run: u64| {
                let host = &self.hosts[i];
                let server = host.server.as_ref().filter(|server| server.run == run);
                host.up
                    && host.machine.runs(self.now)
                    && server.is_some_and(|it| it.frozen_until <= self.now)
            };
            let fine = runs(from, conn.from_run)
                && runs(to, conn.to_run)
                && self.net.joins(End::Instance(from), End::Instance(to));
            if fine {
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.alive = self.now;
                }
                self.pump(id);
            } else if self.now > alive + REPLICATION_TIMEOUT {
                self.drop_conn(id);
            }
        }
        for i in 0..self.hosts.len() {
            self.connect_receiver(i);
        }
    }

    /// A standby without a walreceiver tries to have one.
    fn connect_receiver(&mut self, i: usize) {
        let host = &self.hosts[i];
        let Some(server) = host.server.as_ref() else { return };
        let awake = host.up && host.machine.runs(self.now) && server.frozen_until <= self.now;
        let Some(from) = server
            .upstream
            .filter(|_| awake && !server.primary && server.receiver.is_none() && !server.stopping)
        else {
            return;
        };
        if from == i || !self.answers(End::Instance(i), from) {
            return;
        }
        let Some(up) = self.hosts[from].server.as_ref() else { return };
        // No slot, or it is asked for more than it has, or for a timeline that it does not know.
        let (mine, theirs) = (&host.dir.wal, &self.hosts[from].dir.wal);
        if !up.slots || up.stopping || mine.end() > theirs.flushed {
            return;
        }
        if mine.parts_from(theirs) < mine.end() {
            return;
        }
        let (from_run, to_run, names, name) = (up.run, server.run, up.names, host.name);
        let id = self.fresh();
        let conn = Conn { from, to: i, from_run, to_run, alive: self.now, pumping: false };
        self.conns.insert(id, conn);
        let sender = Sender { name, conn: id, names, flushed: None };
        if let Some(up) = self.hosts[from].server.as_mut() {
            up.senders.push(sender);
        }
        if let Some(server) = self.hosts[i].server.as_mut() {
            server.receiver = Some(id);
        }
        if mine_diverged(&self.hosts[i].dir.wal, &self.hosts[from].dir.wal) {
            self.check.diverged(i, from);
        }
        self.pump(id);
    }

    /// WAL goes over a connection, a little later.
    fn pump(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if std::mem::replace(&mut conn.pumping, true) {
            return;
        }
        let place = Place::Server(conn.from, conn.from_run);
        let late = self.random.chance(20);
        let wait =
            if late { self.random.between(MS, 80 * MS) } else { self.random.between(100, 2 * MS) };
        self.later(wait, place, move |world| world.send_wal(id));
    }

    /// What there is goes over a connection now.
    pub fn pump_now(&mut self, id: u64) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.pumping = true;
            self.send_wal(id);
        }
    }

    fn send_wal(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.pumping = false;
        let (from, to, to_run) = (conn.from, conn.to, conn.to_run);
        if !self.net.joins(End::Instance(from), End::Instance(to)) {
            return;
        }
        let upto = self.hosts[from].dir.wal.flushed;
        if self.hosts[to].server.as_ref().is_none_or(|it| it.run != to_run) {
            return;
        }
        let place = Place::Server(to, to_run);
        self.later(100, place, move |world| {
            let Some(conn) = world.conns.get(&id) else { return };
            if world.hosts[to].server.as_ref().and_then(|it| it.receiver) != Some(id)
                || !world.net.joins(End::Instance(from), End::Instance(to))
                || world.hosts[from].server.as_ref().is_none_or(|it| it.run != conn.from_run)
            {
                return;
            }
            let (to_dir, from_dir) = two(&mut world.hosts, to, from);
            let timelines = to_dir.timelines.max(from_dir.timelines);
            to_dir.timelines = timelines;
            let upto = upto.min(from_dir.wal.end());
            to_dir.wal.extend(&from_dir.wal, upto);
            world.flush(to);
        });
    }

    /// What is written becomes durable, when the disk gets to it.
    fn flush(&mut self, i: usize) {
        let Some(server) = self.hosts[i].server.as_mut() else { return };
        if std::mem::replace(&mut server.flushing, true) {
            return;
        }
        let run = server.run;
        let stalled = server.stalled_until.saturating_sub(self.now);
        let wait = stalled + self.random.between(50, MS);
        self.later(wait, Place::Server(i, run), move |world| world.flushed(i));
    }

    fn flushed(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        let Some(server) = host.server.as_mut() else { return };
        server.flushing = false;
        host.dir.wal.flushed = host.dir.wal.end();
        let end = host.dir.wal.flushed;
        if !server.primary
            && let Some(id) = server.receiver
        {
            self.reply(i, id, end);
        }
        let Some(server) = self.hosts[i].server.as_ref() else { return };
        let conns: Vec<u64> = server.senders.iter().map(|sender| sender.conn).collect();
        for id in conns {
            self.pump(id);
        }
        self.release(i, None);
    }

    /// A standby says how far it has flushed.
    fn reply(&mut self, i: usize, id: u64, end: usize) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (from, run) = (conn.from, conn.from_run);
        let wait = self.random.between(100, 2 * MS);
        self.later(wait, Place::Server(from, run), move |world| {
            if !world.conns.contains_key(&id)
                || !world.net.joins(End::Instance(i), End::Instance(from))
            {
                return;
            }
            let Some(server) = world.hosts[from].server.as_mut() else { return };
            let Some(at) = server.senders.iter().position(|sender| sender.conn == id) else {
                return;
            };
            server.senders[at].flushed = Some(end);
            world.release(from, Some(at));
        });
    }

    /// A walsender looks whether commits can be released, by the names that it has read, over all
    /// walsenders that count by the names that *they* have read. Without one: commits that need not
    /// wait.
    fn release(&mut self, i: usize, by: Option<usize>) {
        let host = &mut self.hosts[i];
        let Some(server) = host.server.as_mut() else { return };
        if let Some(by) = by {
            let Names::Any { k, .. } = server.senders[by].names else { return };
            if !server.senders[by].names.holds(server.senders[by].name) {
                return;
            }
            let counts = server.senders.iter().filter(|it| it.names.holds(it.name));
            let mut ends: Vec<usize> = counts.filter_map(|it| it.flushed).collect();
            ends.sort_unstable_by(|a, b| b.cmp(a));
            let Some(end) = ends.get(k as usize - 1) else { return };
            server.released = server.released.max(*end);
        }
        let (released, waits, flushed) = (server.released, server.waits, host.dir.wal.flushed);
        let is_done = |it: &Waiting| it.end <= flushed && (!waits || it.end <= released);
        let done: Vec<Waiting> = server.waiting.extract_if(.., |it| is_done(it)).collect();
        for Waiting { end, id, who } in done {
            self.committed(i, end, id, who, waits);
        }
    }

    /// A transaction of `who` is written and waits to be told that it is done.
    pub fn commit_write(&mut self, i: usize, kind: Kind, who: Waiter) -> Option<u64> {
        let id = self.fresh();
        let host = &mut self.hosts[i];
        let server = host.server.as_mut()?;
        if !server.primary || !server.up || server.stopping {
            return None;
        }
        let end = host.dir.wal.push(Record { id, kind });
        server.waiting.push(Waiting { end, id, who });
        self.flush(i);
        Some(id)
    }

    /// Nobody waits any more for what this waits for.
    pub fn give_up(&mut self, i: usize, gone: impl Fn(&Waiter) -> bool) {
        if let Some(server) = self.hosts[i].server.as_mut() {
            server.waiting.retain(|it| !gone(&it.who));
        }
    }

    fn committed(&mut self, i: usize, end: usize, id: u64, who: Waiter, waited: bool) {
        match who {
            Waiter::Writer(w, serial) => self.acknowledged(w, serial, i, end, id, waited),
            Waiter::Agent(life, number) => {
                self.later(200, Place::Agent(i, life), move |world| world.returned(i, number));
            }
        }
    }

    /// Whether a commit of an agent waits in SyncRep here.
    pub fn waits_in_syncrep(&self, i: usize, number: u64) -> bool {
        let host = &self.hosts[i];
        host.server.as_ref().is_some_and(|server| {
            let mine = |it: &Waiting| matches!(it.who, Waiter::Agent(_, of) if of == number);
            server.waits
                && server.waiting.iter().any(|it| mine(it) && it.end <= host.dir.wal.flushed)
        })
    }

    /// Settings on disk are read: by the postmaster now, by the others when they get to it.
    pub fn reload(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        let Some(server) = host.server.as_mut() else { return };
        if server.deaf_until > self.now {
            let (wait, run) = (server.deaf_until - self.now, server.run);
            self.later(wait, Place::Server(i, run), move |world| world.reload(i));
            return;
        }
        let run = server.run;
        (server.names, server.upstream) = (host.dir.names, host.dir.upstream);
        let conns: Vec<u64> = server.senders.iter().map(|sender| sender.conn).collect();
        for id in conns {
            let wait = self.reads_late();
            self.later(wait, Place::Server(i, run), move |world| {
                let Some(server) = world.hosts[i].server.as_mut() else { return };
                let names = server.names;
                if let Some(sender) = server.senders.iter_mut().find(|it| it.conn == id) {
                    sender.names = names;
                }
            });
        }
        let wait = self.reads_late();
        self.later(wait, Place::Server(i, run), move |world| {
            let Some(server) = world.hosts[i].server.as_mut() else { return };
            server.waits = server.names != Names::Unprotected;
            world.release(i, None);
        });
        let wait = self.reads_late();
        self.later(wait, Place::Server(i, run), move |world| world.receiver_reads(i));
    }

    /// The startup process restarts a walreceiver whose upstream changed.
    fn receiver_reads(&mut self, i: usize) {
        let Some(server) = self.hosts[i].server.as_ref() else { return };
        let of = server.receiver.and_then(|id| self.conns.get(&id)).map(|conn| conn.from);
        if of.is_some() && of != server.upstream {
            self.end_receiver(i);
        }
    }

    fn reads_late(&mut self) -> Time {
        match self.random.chance(self.plan.weights.late) {
            true => self.random.between(50 * MS, 700 * MS),
            false => self.random.between(100, 6 * MS),
        }
    }

    /// Recovery ends: a new timeline, the first that this instance knows nothing of, and `least` at
    /// the least.
    pub fn end_recovery(&mut self, i: usize, least: u32) {
        self.end_receiver(i);
        let id = self.fresh();
        let dir = &mut self.hosts[i].dir;
        let known = dir.timelines.max(dir.wal.timeline(dir.wal.end()));
        let timeline = least.max(known + 1);
        dir.timelines = timeline;
        dir.wal.push(Record { id, kind: Kind::Timeline(timeline) });
        dir.wal.flushed = dir.wal.end();
        (dir.signal, dir.upstream) = (false, None);
        if let Some(server) = self.hosts[i].server.as_mut() {
            server.primary = true;
            server.upstream = None;
        }
        self.judge_promotion(i);
        self.judge_primary(i, "is promoted");
    }
}

fn mine_diverged(mine: &Wal, theirs: &Wal) -> bool {
    mine.shared(theirs) < mine.end()
}

/// Two directories, one of them to be changed.
fn two(hosts: &mut [super::host::Host], one: usize, other: usize) -> (&mut Dir, &Dir) {
    if one < other {
        let (low, high) = hosts.split_at_mut(other);
        (&mut low[one].dir, &high[0].dir)
    } else {
        let (low, high) = hosts.split_at_mut(one);
        (&mut high[0].dir, &low[other].dir)
    }
}
