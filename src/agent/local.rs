//! What the agent knows of its database, kept between looks, and how that becomes the core's world
//! and an observation for the coordinators.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use regent_core::agent::{Data, Notebook, OnDisk, World};
use regent_core::id::{Epoch, InstanceName, Revision};
use regent_core::role::observe::{Canary, Guarded, Observation, Probe, Receiver, Run, Sender};
use regent_core::role::{Position, Proof};
use regent_core::time::Reading;
use regent_engine as engine;
use regent_engine::Discovery;

use crate::senses::NoLogin;

/// An answer older than this says nothing about now.
const ANSWERS_WITHIN: Duration = Duration::from_millis(1_500);
/// A standby that does not stream for this long from an upstream that answers has to be looked at:
/// many times what a reconnection takes.
const STARVED_AFTER: Duration = Duration::from_secs(4);

/// One that still does not stream after this long is compared with its upstream once more.
const COMPARE_AGAIN: Duration = Duration::from_secs(30);

/// A look at the names is at most this old when it is heard of.
const STRANGE_AFTER: Duration = Duration::from_millis(500);

/// Everything local.
#[derive(Debug)]
pub struct Local {
    me: InstanceName,
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
    /// The last observation of this run, and when.
    pub seen: Option<(engine::Observation, Instant)>,
    /// Read before that observation was asked for: what was acknowledged by then lies in it.
    pub sampled: Reading,
    /// The newest probe.
    pub probe: Probe,
    /// Since when probes fail.
    pub failing: Option<Instant>,
    /// While they fail: the server's first process works all the same.
    pub works: bool,
    /// The newest own commit.
    pub canary: Option<(Instant, Option<bool>)>,
    /// The others have slots here.
    pub has_slots: bool,
    /// The set whose names are on disk and loaded.
    pub names: Option<Revision>,
    /// Those names, as PostgreSQL shows them.
    pub names_text: String,
    /// Since when PostgreSQL shows others, that nobody was told to set.
    pub strange_names: Option<Instant>,
    /// Sessions of clients whose commits wait for less than the set.
    pub lowered: engine::Lowered,
    /// Whom the access list refuses for that; `None`: nobody has looked.
    pub refused: Option<Vec<engine::Override>>,
    /// The set that is in force everywhere.
    pub in_force: Option<Revision>,
    /// The switchover that is announced, and since when this run knows of it.
    pub announced: Option<(Revision, Instant)>,
    /// The one that this run has checkpointed for, and when.
    pub prepared: Option<(Revision, Instant)>,
    /// Clients may connect: to write, or at a standby to read.
    pub open: bool,
    /// Nobody but Regent's roles is in, or can get in: it was started so, or shut since.
    pub shut: bool,
    /// Highest epoch this run has written.
    pub written: Epoch,
    /// Since when a standby that has an upstream does not stream.
    pub streamless: Option<Instant>,
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
            lowered: engine::Lowered::default(),
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

    /// What lies on disk, as the engine found it. Whom a standby follows is not believed from a
    /// file: "itself" stands for "not known", which no directive asks for.
    pub fn discovered(&mut self, found: &Discovery) {
        self.data = match found {
            Discovery::Empty => Data::Empty,
            Discovery::Cluster(cluster) => {
                self.system = cluster.system_identifier;
                self.generation = cluster.generation.map_or(0, |generation| generation.0);
                Data::Present(match cluster.standby_signal {
                    true => OnDisk::Standby(Some(self.me.clone())),
                    false => OnDisk::Primary,
                })
            }
            Discovery::Quarantined { interrupted } => {
                self.problem = format!("{interrupted} was interrupted");
                Data::Broken
            }
            Discovery::Foreign { found, wanted } => {
                self.problem =
                    format!("the data directory is of cluster {found}, and not of {wanted}");
                Data::Broken
            }
            Discovery::Unsafe { why } => {
                self.problem.clone_from(why);
                Data::Broken
            }
        };
    }

    /// Whom it follows on disk is not known any more.
    pub fn doubt_upstream(&mut self) {
        if matches!(self.data, Data::Present(OnDisk::Standby(_))) {
            self.data = Data::Present(OnDisk::Standby(Some(self.me.clone())));
        }
    }

    /// Everything of this run is over.
    pub fn ended(&mut self, proven: bool, in_order: bool) {
        (self.running, self.stopping, self.open) = (false, false, false);
        (self.crashed, self.shut) = (false, true);
        (self.seen, self.failing, self.canary) = (None, None, None);
        (self.names, self.in_force, self.replayed) = (None, None, None);
        (self.probe, self.streamless) = (Probe::Unknown, None);
        (self.announced, self.prepared) = (None, None);
        self.has_slots = false;
        (self.lowered, self.refused) = (engine::Lowered::default(), None);
        self.proven = proven;
        self.stopped_in_order = in_order;
        self.shut_down = false;
        self.end = None;
    }

    /// A run began, after the end with this receipt. One that ended before its start was told
    /// stays ended: nobody would say so again.
    pub fn started(&mut self, after: u64) {
        if self.last_end > after {
            return;
        }
        self.ended(false, false);
        self.running = true;
    }

    /// The engine answered; it was asked at `asked`.
    pub fn observed(&mut self, asked: Reading, seen: engine::Observation) {
        self.sampled = asked;
        self.written = self.written.max(seen.position.epoch);
        if !seen.in_recovery {
            // A promotion that outlasted its step: it is not closed on disk any more.
            self.data = Data::Present(OnDisk::Primary);
        }
        let wants = matches!(self.data, Data::Present(OnDisk::Standby(Some(_))));
        let streams = seen.receiver.as_ref().is_some_and(|it| it.status == "streaming");
        if seen.in_recovery && wants && !streams {
            let since = *self.streamless.get_or_insert_with(Instant::now);
            if since.elapsed() >= COMPARE_AGAIN {
                // What was found then is not so any more: the WAL it needs may be gone.
                self.diverged = None;
            }
        } else {
            self.streamless = None;
        }
        self.seen = Some((seen, Instant::now()));
    }

    /// Names that somebody changed by hand are in force no more, and are to be set again. Not at the
    /// first sight of them: a look may be older than the last change of ours.
    pub fn judge_names(&mut self) {
        if self.in_force.is_none() || self.run() != Run::Primary || self.has_its_names() {
            self.strange_names = None;
            return;
        }
        let since = *self.strange_names.get_or_insert_with(Instant::now);
        if since.elapsed() >= STRANGE_AFTER {
            let found = self.seen.as_ref().map_or("", |(seen, _)| seen.sync_names.as_str());
            tracing::warn!(
                found,
                "the names were changed by hand: the committed ones are put back"
            );
            (self.names, self.in_force, self.strange_names) = (None, None, None);
        }
    }

    /// Whether the names that PostgreSQL shows are those of the set in force.
    pub fn has_its_names(&self) -> bool {
        self.seen.as_ref().is_some_and(|(seen, _)| seen.sync_names == self.names_text)
    }

    /// Whether a walreceiver streamed at the last look.
    pub fn streams(&self) -> bool {
        let receiver = self.seen.as_ref().and_then(|(seen, _)| seen.receiver.as_ref());
        receiver.is_some_and(|receiver| receiver.status == "streaming")
    }

    /// A fresh connection was tried.
    pub fn probed(&mut self, outcome: Result<Duration, NoLogin>) {
        match outcome {
            Ok(took) => {
                (self.failing, self.works) = (None, false);
                self.probe = Probe::Answered(millis(took));
            }
            Err(NoLogin { why, works }) => {
                self.works = works;
                let since = *self.failing.get_or_insert_with(Instant::now);
                self.probe = Probe::Failed { since_ms: millis(since.elapsed()), why };
            }
        }
    }

    fn fresh(&self) -> Option<&engine::Observation> {
        let (seen, at) = self.seen.as_ref()?;
        (at.elapsed() < ANSWERS_WITHIN).then_some(seen)
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

    /// How far its flushed WAL reaches.
    pub fn position(&self) -> Option<Position> {
        match self.run() {
            Run::Down => self.end,
            _ => self.replayed.max(self.seen.as_ref().map(|(seen, _)| seen.position)),
        }
    }

    /// What it does now, for people: a step, or what goes on beside.
    fn doing(&self) -> String {
        match self.announced {
            Some((operation, since)) if self.doing.is_empty() && self.prepared.is_none() => {
                let seconds = since.elapsed().as_secs();
                format!("Checkpoint for switchover {operation}, since {seconds} s")
            }
            _ => self.doing.clone(),
        }
    }

    /// The core's world.
    pub fn world(&self, told: &Told) -> World {
        let run = self.run();
        let seen = self.fresh();
        let has_receiver = self.seen.as_ref().is_some_and(|(seen, _)| seen.receiver.is_some());
        World {
            me: self.me.clone(),
            accepted: told.accepted,
            may_serve: told.may_serve,
            holds_lease: told.holds_lease,
            data: self.data.clone(),
            run,
            answers: seen.is_some(),
            has_receiver: has_receiver && run != Run::Down,
            starved: told.upstream_answers
                && self.streamless.is_some_and(|since| since.elapsed() >= STARVED_AFTER),
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
            strange: self.is_strange(told),
            lowered: self.is_lowered(told),
            shut: self.shut,
            expected: told.expected,
            diverged: self.diverged,
            timeline: told.timeline,
            promoted: told.promoted,
            covered: told.covered,
            committed: told.committed,
            shut_down: self.shut_down,
            proven: self.proven,
        }
    }

    /// What the coordinators are told.
    pub fn observation(&self, told: &Told, notebook: &Notebook) -> Observation {
        let run = self.run();
        let seen = self.seen.as_ref().map(|(seen, _)| seen);
        let serving = match run {
            Run::Primary if self.open => notebook.led,
            _ => Epoch::NONE,
        };
        Observation {
            // That it is dead is news at once; that nothing is left of it is a receipt's to say.
            run: if self.crashed && run == Run::Primary { Run::Down } else { run },
            stopped_in_order: run == Run::Down && self.stopped_in_order,
            position: self.position(),
            replay_lag_bytes: seen.map_or(0, engine::Observation::replay_lag_bytes),
            receiver: seen.and_then(|seen| seen.receiver.as_ref()).map(|it| receiver(it, told)),
            senders: seen
                .map(|seen| seen.senders.iter().filter_map(sender).collect())
                .unwrap_or_default(),
            probe: match (&self.probe, self.failing) {
                (Probe::Failed { why, .. }, Some(since)) => {
                    Probe::Failed { since_ms: millis(since.elapsed()), why: why.clone() }
                }
                (probe, _) => probe.clone(),
            },
            canary: self
                .canary
                .map(|(begun, returned)| Canary { age_ms: millis(begun.elapsed()), returned }),
            set_in_force: self.in_force,
            covered: self.in_force,
            prepared: self.prepared.map(|(operation, _)| operation),
            serving,
            sights: Vec::new(),
            seen: notebook.seen(),
            doing: self.doing(),
            problem: self.problem.clone(),
            tampered: self.tampered(told),
            works: self.works,
            disk_free_bytes: seen.map_or(0, |seen| seen.disk_free_bytes),
            guard: Guarded::default(),
        }
    }
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
    /// The set the log knows to be covered.
    pub covered: Option<Revision>,
    /// The best receipt of this instance in the log.
    pub committed: Option<(Revision, Proof, Option<Position>)>,
    /// The instance it is to follow answers connections.
    pub upstream_answers: bool,
    /// Whose address is whose.
    pub addresses: BTreeMap<String, InstanceName>,
}

fn receiver(seen: &engine::Receiver, told: &Told) -> Receiver {
    Receiver {
        from: told.addresses.get(&format!("{}:{}", seen.host, seen.port)).cloned(),
        streams: seen.status == "streaming",
        silent_ms: seen.last_message_age.map_or(u64::MAX, millis),
    }
}

fn sender(seen: &engine::Sender) -> Option<Sender> {
    Some(Sender {
        to: seen.name.parse().ok()?,
        streams: seen.state == "streaming",
        is_sync: matches!(seen.sync_state.as_str(), "sync" | "quorum"),
        flushed: seen.flushed.unwrap_or_default(),
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_run_that_ended_before_its_start_was_told_stays_ended() {
        let mut local = Local::new("pg1".parse().unwrap());
        local.started(0);
        assert_eq!(local.run(), Run::Starting);
        // It ends at once, and word of that comes first.
        local.last_end = 4;
        local.ended(true, false);
        local.started(3);
        assert_eq!(local.run(), Run::Down);
        local.started(4);
        assert_eq!(local.run(), Run::Starting, "the next run");
    }
}
