//! What an agent knows of its database, kept between looks: what was seen and when, what its own steps
//! have changed, and how that becomes the world of [`super::next`] and an observation for the coordinators.
//!
//! It must never look at a clock: each reading comes from the shell, and what was seen too long ago says
//! nothing of now. What steps change is in [`super::deeds`], lowered commits in [`super::lowered`].

use std::collections::BTreeMap;

use super::lowered::{Lowered, Override};
use super::{Data, Naming, Notebook, OnDisk, World};
use crate::id::{Epoch, InstanceName, Revision};
use crate::mutant::{Mutant, leaves_out};
use crate::role::observe::{Canary, Guarded, Observation, Probe, Receiver, Run, Sender};
use crate::role::{DataIdentity, HolderInstant, Position, Proof, Watermark};
use crate::time::{Micros, Reading};

/// An answer older than this says nothing about now.
const ANSWERS_WITHIN: Micros = Micros::from_ms(1_500);
/// A standby that does not stream for this long from an upstream that answers has to be looked at:
/// many times what a reconnection takes.
const STARVED_AFTER: Micros = Micros::from_ms(4_000);
/// One that still does not stream after this long is compared with its upstream once more.
const COMPARE_AGAIN: Micros = Micros::from_ms(30_000);
/// A look at the names is at most this old when it is heard of.
const STRANGE_AFTER: Micros = Micros::from_ms(500);

/// What lies in a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Empty,
    /// A database that can be started.
    Cluster {
        /// Its identity.
        system: u64,
        /// Which copy of it this is.
        generation: u64,
        /// It would come up in recovery.
        is_standby: bool,
    },
    /// What cannot be started, and why.
    Broken(String),
}

/// What a look at a running server shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// It is a standby.
    pub in_recovery: bool,
    /// Flushed end, with the epoch that the WAL carries as far as it is replayed.
    pub position: Position,
    /// Received and not replayed.
    pub replay_lag_bytes: u64,
    /// A standby's stream.
    pub receiver: Option<SeenReceiver>,
    /// Streams to others.
    pub senders: Vec<Sender>,
    /// The names that commits wait for, as a new session has them.
    pub sync_names: String,
    /// What lowers `synchronous_commit` for a role or a database.
    pub overrides: Vec<Override>,
    /// Room on the disk of the data directory.
    pub disk_free_bytes: u64,
}

/// A walreceiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenReceiver {
    /// Where it streams from, as `host:port`.
    pub address: String,
    /// It says that it streams.
    pub streams: bool,
    /// Since the last message of the sender.
    pub silent_ms: u64,
}

/// What the agent was told, beyond the notebook.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The log has accepted this start.
    pub accepted: bool,
    /// Writes may be served now.
    pub may_serve: bool,
    /// The lease is confirmed and held.
    pub holds_lease: bool,
    /// Lowered commits are not only told of.
    pub is_strict: bool,
    /// It is likely to be the next primary.
    pub expected: bool,
    /// The first timeline that a promotion may begin; 0: nobody has said.
    pub timeline: u32,
    /// The epoch whose promotion the log knows of.
    pub promoted: Epoch,
    /// The log knows of it, and its routes wait for this agent's word.
    pub unrouted: bool,
    /// The set the log knows to be covered.
    pub covered: Option<Revision>,
    /// The best receipt of this instance in the log.
    pub committed: Option<(Revision, Proof, Option<Position>)>,
    /// The instance it is to follow answers connections.
    pub upstream_answers: bool,
    /// Whose address is whose.
    pub addresses: BTreeMap<String, InstanceName>,
}

/// Everything local.
#[derive(Debug)]
pub struct Local {
    pub(super) me: InstanceName,
    /// What lies on disk.
    pub data: Data,
    /// Its identity, as it was last read.
    pub system: u64,
    /// Of the data directory.
    pub generation: u64,
    /// A process of it runs, as the fencer says.
    pub running: bool,
    /// Asked to stop, not gone yet.
    pub stopping: bool,
    /// Its postmaster crashed, and what is left of it is being ended.
    pub crashed: bool,
    /// A rewind or a clone is under way.
    pub rebuilding: bool,
    /// What this run was last seen to be, and when that was heard.
    pub seen: Option<(Seen, Reading)>,
    /// Read before that look was begun: what was acknowledged by then lies in it.
    pub sampled: Reading,
    /// The newest probe.
    pub probe: Probe,
    /// Since when probes fail.
    pub failing: Option<Reading>,
    /// While they fail: the server's first process works all the same.
    pub works: bool,
    /// When the newest own commit was heard of, and whether it returned.
    pub canary: Option<(Reading, bool)>,
    /// The others have slots here.
    pub has_slots: bool,
    /// The set whose names are on disk and loaded.
    pub names: Option<Revision>,
    /// Those names, as PostgreSQL shows them.
    pub names_text: String,
    /// Since when PostgreSQL shows others, that nobody was told to set.
    pub strange_names: Option<Reading>,
    /// Sessions of clients whose commits wait for less than the set.
    pub lowered: Lowered,
    /// Whom the access list refuses for that; `None`: nobody has looked.
    pub refused: Option<Vec<Override>>,
    /// The set that is in force everywhere.
    pub in_force: Option<Revision>,
    /// The switchover that is announced, and since when this run knows of it.
    pub announced: Option<(Revision, Reading)>,
    /// The one that this run has checkpointed for, and when.
    pub prepared: Option<(Revision, Reading)>,
    /// Clients may connect: to write, or at a standby to read.
    pub open: bool,
    /// Nobody but Regent's roles is in, or can get in: it was started so, or shut since.
    pub shut: bool,
    /// Highest epoch this run has written.
    pub written: Epoch,
    /// Since when a standby that has an upstream does not stream.
    pub streamless: Option<Reading>,
    /// Whether its WAL left the upstream's history.
    pub diverged: Option<bool>,
    /// Everything received is replayed up to here.
    pub replayed: Option<Position>,
    /// Where its WAL ends, of one that is down.
    pub end: Option<Position>,
    /// The last end of the postmaster was an orderly shutdown.
    pub shut_down: bool,
    /// The last end was by itself and in order: somebody stopped it.
    pub stopped_in_order: bool,
    /// The last end of everything is proven.
    pub proven: bool,
    /// The receipt of the newest end that was heard of.
    pub last_end: u64,
    /// What the agent does now, and what keeps it from it.
    pub doing: String,
    /// What went wrong last.
    pub problem: String,
}

impl Local {
    /// Nothing is known yet.
    pub fn new(me: InstanceName) -> Self {
        Self {
            me,
            data: Data::Empty,
            system: 0,
            generation: 0,
            running: false,
            stopping: false,
            crashed: false,
            rebuilding: false,
            seen: None,
            sampled: Reading::default(),
            probe: Probe::Unknown,
            failing: None,
            works: false,
            canary: None,
            has_slots: false,
            names: None,
            names_text: String::new(),
            strange_names: None,
            lowered: Lowered::default(),
            refused: None,
            in_force: None,
            announced: None,
            prepared: None,
            open: false,
            shut: true,
            written: Epoch::NONE,
            streamless: None,
            diverged: None,
            replayed: None,
            end: None,
            shut_down: false,
            stopped_in_order: false,
            proven: false,
            last_end: 0,
            doing: String::new(),
            problem: String::new(),
        }
    }

    /// What lies on disk, as it was found. Whom a standby follows is not believed from a file: "itself"
    /// stands for "not known", which no directive asks for.
    pub fn discovered(&mut self, found: Found) {
        self.data = match found {
            Found::Empty => Data::Empty,
            Found::Cluster { system, generation, is_standby } => {
                (self.system, self.generation) = (system, generation);
                Data::Present(match is_standby {
                    true => OnDisk::Standby(Some(self.me.clone())),
                    false => OnDisk::Primary,
                })
            }
            Found::Broken(why) => {
                self.problem = why;
                Data::Broken
            }
        };
    }

    /// A look was answered, which was begun at `asked`.
    pub fn observed(&mut self, asked: Reading, seen: Seen, now: Reading) {
        self.sampled = asked;
        self.written = self.written.max(seen.position.epoch);
        if !seen.in_recovery {
            // A promotion that outlasted its step: it is not closed on disk any more.
            self.data = Data::Present(OnDisk::Primary);
        }
        let wants = matches!(self.data, Data::Present(OnDisk::Standby(Some(_))));
        let streams = seen.receiver.as_ref().is_some_and(|it| it.streams);
        if seen.in_recovery && wants && !streams {
            let since = *self.streamless.get_or_insert(now);
            if now.since(since) >= COMPARE_AGAIN {
                // What was found then is not so any more: the WAL it needs may be gone.
                self.diverged = None;
            }
        } else {
            self.streamless = None;
        }
        self.seen = Some((seen, now));
    }

    /// Names that somebody changed by hand are in force no more, and are to be set again; whether that was
    /// found just now. Not at the first sight of them: a look may be older than the last change of ours.
    pub fn judge_names(&mut self, now: Reading) -> bool {
        if self.in_force.is_none() || self.run() != Run::Primary || self.has_its_names() {
            self.strange_names = None;
            return false;
        }
        let since = *self.strange_names.get_or_insert(now);
        let are_strange = now.since(since) >= STRANGE_AFTER;
        if are_strange {
            (self.names, self.in_force, self.strange_names) = (None, None, None);
        }
        are_strange
    }

    /// The names that PostgreSQL shows.
    pub fn shown_names(&self) -> &str {
        self.seen.as_ref().map_or("", |(seen, _)| seen.sync_names.as_str())
    }

    /// Whether the names that PostgreSQL shows are those of the set in force.
    pub fn has_its_names(&self) -> bool {
        self.seen.as_ref().is_some_and(|(seen, _)| seen.sync_names == self.names_text)
    }

    /// Whether a walreceiver streamed at the last look.
    pub fn streams(&self) -> bool {
        let receiver = self.seen.as_ref().and_then(|(seen, _)| seen.receiver.as_ref());
        receiver.is_some_and(|receiver| receiver.streams)
    }

    /// Standby: its server receives from whom it follows by its disk. A stream that it was only just told
    /// to leave is none: what came over that may be nowhere else.
    fn streams_from_upstream(&self, told: &Told) -> bool {
        let Data::Present(OnDisk::Standby(Some(upstream))) = &self.data else { return false };
        let receiver = self.seen.as_ref().and_then(|(seen, _)| seen.receiver.as_ref());
        let receiver = receiver.filter(|receiver| receiver.streams);
        receiver.is_some_and(|it| told.addresses.get(&it.address) == Some(upstream))
    }

    /// A fresh connection was made, within so many milliseconds.
    pub fn answered(&mut self, took_ms: u64) {
        (self.failing, self.works) = (None, false);
        self.probe = Probe::Answered(took_ms);
    }

    /// A fresh connection that was begun at `begun` was not made. `works`: the server's first process did
    /// something meanwhile.
    pub fn unanswered(&mut self, why: String, works: bool, begun: Reading, now: Reading) {
        self.works = works;
        let since = *self.failing.get_or_insert(begun);
        self.probe = Probe::Failed { since_ms: now.since(since).as_ms(), why };
    }

    /// An own commit returned, or did not in time.
    pub fn committed(&mut self, returned: bool, now: Reading) {
        self.canary = Some((now, returned));
    }

    /// What is announced to it, if it serves: whether that is another switchover than before, or none any
    /// more. It is prepared for that one only.
    pub fn announce(&mut self, told: Option<Revision>, now: Reading) -> bool {
        let wants = told.filter(|_| self.serves());
        let changes = self.announced.map(|(operation, _)| operation) != wants;
        if changes {
            self.announced = wants.map(|operation| (operation, now));
            self.prepared = None;
        }
        changes
    }

    /// What a stop would have to write is written; whether that is still asked for.
    pub fn checkpointed(&mut self, operation: Revision, now: Reading) -> bool {
        let counts = self.announced.is_some_and(|(announced, _)| announced == operation);
        if counts {
            self.prepared = Some((operation, now));
        }
        counts
    }

    fn fresh(&self, now: Reading) -> Option<&Seen> {
        let (seen, at) = self.seen.as_ref()?;
        (now.since(*at) < ANSWERS_WITHIN).then_some(seen)
    }

    /// What runs.
    pub fn run(&self) -> Run {
        if self.rebuilding {
            return Run::Rebuilding;
        }
        if !self.running {
            return Run::Down;
        }
        if self.stopping {
            return Run::Stopping;
        }
        match &self.seen {
            None => Run::Starting,
            Some((seen, _)) if seen.in_recovery => Run::Standby,
            Some(_) => Run::Primary,
        }
    }

    /// It is a primary that lets clients in.
    pub fn serves(&self) -> bool {
        self.open && self.run() == Run::Primary
    }

    /// S8: for how long it may be named the primary, of what its rights alone would allow.
    pub fn named(&self, naming: Naming) -> Naming {
        if self.serves() { naming } else { Naming::Never }
    }

    /// How far its flushed WAL reaches.
    pub fn position(&self) -> Option<Position> {
        match self.run() {
            Run::Down => self.end,
            _ => self.replayed.max(self.seen.as_ref().map(|(seen, _)| seen.position)),
        }
    }

    /// H: how far the WAL of a primary reached, and when that was asked.
    pub fn watermark(&self) -> Option<Watermark> {
        let primary = self.data == Data::Present(OnDisk::Primary) && self.running;
        let seen = self.seen.as_ref().filter(|(seen, _)| primary && !seen.in_recovery);
        let sampled = HolderInstant(self.sampled.boottime_us);
        seen.map(|(seen, _)| Watermark { at: seen.position, sampled })
    }

    /// B: which data a start of the agent presents, on an instance that has led `led`.
    pub fn identity(&self, led: Epoch) -> Option<DataIdentity> {
        matches!(self.data, Data::Present(_)).then(|| DataIdentity {
            system: self.system,
            generation: self.generation,
            epoch: led.max(self.written),
            position: self.position(),
            out_of_recovery: self.data == Data::Present(OnDisk::Primary),
        })
    }

    /// What it does now, for people: a step, or what goes on beside.
    fn doing(&self, now: Reading) -> String {
        match self.announced {
            Some((operation, since)) if self.doing.is_empty() && self.prepared.is_none() => {
                let seconds = now.since(since).as_ms() / 1_000;
                format!("Checkpoint for switchover {operation}, since {seconds} s")
            }
            _ => self.doing.clone(),
        }
    }

    /// The core's world.
    pub fn world(&self, told: &Told, now: Reading) -> World {
        let run = self.run();
        let has_receiver = self.seen.as_ref().is_some_and(|(seen, _)| seen.receiver.is_some());
        World {
            me: self.me.clone(),
            accepted: told.accepted,
            may_serve: told.may_serve,
            holds_lease: told.holds_lease,
            data: self.data.clone(),
            run,
            answers: self.fresh(now).is_some(),
            has_receiver: has_receiver && run != Run::Down,
            streams: self.streams_from_upstream(told) && run != Run::Down,
            starved: told.upstream_answers
                && self.streamless.is_some_and(|since| now.since(since) >= STARVED_AFTER),
            replayed: self.replayed.is_some(),
            position: match run {
                Run::Standby => self.replayed,
                _ => self.position(),
            },
            received: self.position(),
            has_slots: self.has_slots,
            names: self.names,
            in_force: self.in_force,
            written: self.written,
            open: self.open,
            strange: self.is_strange(told, now),
            lowered: self.is_lowered(told),
            shut: self.shut || leaves_out(Mutant::ReadersShut),
            expected: told.expected,
            diverged: self.diverged,
            timeline: told.timeline,
            promoted: told.promoted,
            unrouted: told.unrouted,
            covered: told.covered,
            committed: told.committed,
            shut_down: self.shut_down,
            proven: self.proven,
        }
    }

    /// What the coordinators are told; the shell adds what it sees of others and of its fencer.
    pub fn observation(&self, told: &Told, notebook: &Notebook, now: Reading) -> Observation {
        let run = self.run();
        let seen = self.seen.as_ref().map(|(seen, _)| seen);
        let receiver = |it: &SeenReceiver| Receiver {
            from: told.addresses.get(&it.address).cloned(),
            streams: it.streams,
            silent_ms: it.silent_ms,
        };
        Observation {
            // That it is dead is news at once; that nothing is left of it is a receipt's to say.
            run: if self.crashed && run == Run::Primary { Run::Down } else { run },
            stopped_in_order: run == Run::Down && self.stopped_in_order,
            position: self.position(),
            replay_lag_bytes: seen.map_or(0, |seen| seen.replay_lag_bytes),
            receiver: seen.and_then(|seen| seen.receiver.as_ref()).map(receiver),
            senders: seen.map(|seen| seen.senders.clone()).unwrap_or_default(),
            probe: match (&self.probe, self.failing) {
                (Probe::Failed { why, .. }, Some(since)) => {
                    Probe::Failed { since_ms: now.since(since).as_ms(), why: why.clone() }
                }
                (probe, _) => probe.clone(),
            },
            canary: self.canary.map(|(at, returned)| Canary {
                age_ms: now.since(at).as_ms(),
                returned: Some(returned),
            }),
            set_in_force: self.in_force,
            covered: self.in_force,
            prepared: self.prepared.map(|(operation, _)| operation),
            serving: if self.serves() { notebook.led } else { Epoch::NONE },
            sights: Vec::new(),
            seen: notebook.seen(),
            doing: self.doing(now),
            problem: self.problem.clone(),
            tampered: self.tampered(told, now),
            works: self.works,
            disk_free_bytes: seen.map_or(0, |seen| seen.disk_free_bytes),
            guard: Guarded::default(),
            check: String::new(),
        }
    }
}
