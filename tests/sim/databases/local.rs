//! What a simulated agent knows of its database: `src/agent/local.rs` over simulated time. What is
//! judged there is judged here in the same words.

use regent_core::agent::{Data, Notebook, OnDisk, World};
use regent_core::id::{Epoch, InstanceName, Revision};
use regent_core::role::observe::{Canary, Observation, Probe, Receiver, Run, Sender};
use regent_core::role::{Lsn, Position, Proof};
use regent_core::time::Reading;

use super::plan::instance_name;
use super::postgres::{Dir, Names};
use crate::agents::machine::{MS, SECOND, Time};

const ANSWERS_WITHIN: Time = 1_500 * MS;
const STARVED_AFTER: Time = 4 * SECOND;

/// What a look at the server shows.
#[derive(Clone, Debug)]
pub struct Seen {
    pub in_recovery: bool,
    pub position: Position,
    /// The walreceiver: from whom, and how long it has heard nothing.
    pub receiver: Option<(usize, Time)>,
    /// Who streams from it, by the names they give.
    pub senders: Vec<(usize, Option<usize>)>,
    pub names: Names,
    /// The host's clock, read before anything was asked.
    pub asked: Reading,
}

/// Everything local.
#[derive(Debug)]
pub struct Local {
    me: InstanceName,
    pub data: Data,
    pub generation: u64,
    pub running: bool,
    pub stopping: bool,
    pub rebuilding: bool,
    pub seen: Option<(Seen, Time)>,
    pub probe: Probe,
    pub failing: Option<Time>,
    pub canary: Option<(Time, Option<bool>)>,
    pub has_slots: bool,
    pub names: Option<Revision>,
    pub names_text: Names,
    pub in_force: Option<Revision>,
    pub open: bool,
    /// Known to be shut, by a start or by this agent.
    pub shut: bool,
    pub written: Epoch,
    pub streamless: Option<Time>,
    pub diverged: Option<bool>,
    pub replayed: Option<Position>,
    pub end: Option<Position>,
    pub shut_down: bool,
    pub stopped_in_order: bool,
    pub proven: bool,
    pub last_end: u64,
    /// The switchover that it is to checkpoint for, and for which it has, and when.
    pub announced: Option<Revision>,
    pub prepared: Option<(Revision, Time)>,
}

/// What the agent was told, beyond the notebook.
#[derive(Clone, Debug, Default)]
pub struct Told {
    pub accepted: bool,
    pub may_serve: bool,
    pub holds_lease: bool,
    pub expected: bool,
    pub timeline: u32,
    pub promoted: Epoch,
    pub covered: Option<Revision>,
    pub committed: Option<(Revision, Proof, Option<Position>)>,
    pub upstream_answers: bool,
}

impl Local {
    pub fn new(name: usize) -> Self {
        Self {
            me: instance_name(name),
            data: Data::Empty,
            generation: 0,
            running: false,
            stopping: false,
            rebuilding: false,
            seen: None,
            probe: Probe::Unknown,
            failing: None,
            canary: None,
            has_slots: false,
            names: None,
            names_text: Names::Blocked,
            in_force: None,
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
            announced: None,
            prepared: None,
        }
    }

    pub fn discovered(&mut self, dir: &Dir) {
        self.data = match dir {
            Dir { broken: true, .. } => Data::Broken,
            Dir { present: false, .. } => Data::Empty,
            Dir { signal, generation, .. } => {
                self.generation = *generation;
                Data::Present(match signal {
                    true => OnDisk::Standby(Some(self.me.clone())),
                    false => OnDisk::Primary,
                })
            }
        };
    }

    pub fn doubt_upstream(&mut self) {
        if matches!(self.data, Data::Present(OnDisk::Standby(_))) {
            self.data = Data::Present(OnDisk::Standby(Some(self.me.clone())));
        }
    }

    pub fn ended(&mut self, proven: bool, in_order: bool) {
        (self.running, self.stopping, self.open) = (false, false, false);
        self.shut = true;
        (self.seen, self.failing, self.canary) = (None, None, None);
        (self.names, self.in_force, self.replayed) = (None, None, None);
        (self.probe, self.streamless) = (Probe::Unknown, None);
        self.has_slots = false;
        (self.announced, self.prepared) = (None, None);
        self.proven = proven;
        self.stopped_in_order = in_order;
        self.shut_down = false;
        self.end = None;
    }

    pub fn started(&mut self, after: u64) {
        if self.last_end > after {
            return;
        }
        self.ended(false, false);
        self.running = true;
    }

    pub fn observed(&mut self, seen: Seen, now: Time) {
        self.written = self.written.max(seen.position.epoch);
        if !seen.in_recovery {
            self.data = Data::Present(OnDisk::Primary);
        }
        let wants = matches!(self.data, Data::Present(OnDisk::Standby(Some(_))));
        if seen.in_recovery && wants && seen.receiver.is_none() {
            self.streamless.get_or_insert(now);
        } else {
            self.streamless = None;
        }
        self.seen = Some((seen, now));
    }

    pub fn has_its_names(&self) -> bool {
        self.seen.as_ref().is_some_and(|(seen, _)| seen.names == self.names_text)
    }

    pub fn streams(&self) -> bool {
        self.seen.as_ref().is_some_and(|(seen, _)| seen.receiver.is_some())
    }

    pub fn probed(&mut self, answered: bool, now: Time) {
        if answered {
            self.failing = None;
            self.probe = Probe::Answered(1);
        } else {
            let since = *self.failing.get_or_insert(now);
            self.probe = Probe::Failed { since_ms: (now - since) / MS, why: "silent".into() };
        }
    }

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

    pub fn position(&self) -> Option<Position> {
        match self.run() {
            Run::Down => self.end,
            _ => self.replayed.max(self.seen.as_ref().map(|(seen, _)| seen.position)),
        }
    }

    pub fn world(&self, told: &Told, now: Time) -> World {
        let run = self.run();
        let fresh = self.seen.as_ref().is_some_and(|(_, at)| now - at < ANSWERS_WITHIN);
        let receiver = self.seen.as_ref().is_some_and(|(seen, _)| seen.receiver.is_some());
        World {
            me: self.me.clone(),
            accepted: told.accepted,
            may_serve: told.may_serve,
            holds_lease: told.holds_lease,
            data: self.data.clone(),
            run,
            answers: fresh,
            has_receiver: receiver && run != Run::Down,
            starved: told.upstream_answers
                && self.streamless.is_some_and(|since| now - since >= STARVED_AFTER),
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
            strange: false,
            lowered: false,
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

    pub fn observation(&self, notebook: &Notebook, now: Time) -> Observation {
        let run = self.run();
        let seen = self.seen.as_ref().map(|(seen, _)| seen);
        let serving = match run {
            Run::Primary if self.open => notebook.led,
            _ => Epoch::NONE,
        };
        let receiver = seen.and_then(|seen| seen.receiver).map(|(from, silent)| Receiver {
            from: Some(instance_name(from)),
            streams: true,
            silent_ms: silent / MS,
        });
        let sender = |(to, flushed): &(usize, Option<usize>)| Sender {
            to: instance_name(*to),
            streams: flushed.is_some(),
            is_sync: true,
            flushed: Lsn(flushed.unwrap_or_default() as u64),
        };
        Observation {
            run,
            stopped_in_order: run == Run::Down && self.stopped_in_order,
            position: self.position(),
            receiver,
            senders: seen.map(|it| it.senders.iter().map(sender).collect()).unwrap_or_default(),
            probe: match (&self.probe, self.failing) {
                (Probe::Failed { why, .. }, Some(since)) => {
                    Probe::Failed { since_ms: (now - since) / MS, why: why.clone() }
                }
                (probe, _) => probe.clone(),
            },
            canary: self
                .canary
                .map(|(begun, returned)| Canary { age_ms: (now - begun) / MS, returned }),
            set_in_force: self.in_force,
            covered: self.in_force,
            prepared: self.prepared.map(|(operation, _)| operation),
            serving,
            seen: notebook.seen(),
            ..Observation::default()
        }
    }
}
