//! What the agent's own steps change in what it knows: when one begins, when it is done or has failed,
//! and when nothing of the database runs any more.
//!
//! It must never take a step for done that has failed: it may have been done all the same, or half, and
//! a receipt that says otherwise would be false.

use super::local::Local;
use super::lowered::{Lowered, Override};
use super::{Data, OnDisk, Step};
use crate::id::{Epoch, InstanceName, Revision};
use crate::role::Position;
use crate::role::observe::{Probe, Run};

impl Step {
    /// Whether a new directive does not wait for this step of the old one, which may take long.
    pub fn is_interrupted(&self, run: Run) -> bool {
        match self {
            Self::Clone(_)
            | Self::Rewind(_)
            | Self::SetNames(_)
            | Self::WriteEpoch(_)
            | Self::Replay
            | Self::Compare(_) => true,
            // Readers.
            Self::Open => run == Run::Standby,
            _ => false,
        }
    }

    /// Whether the directory is no database while it is at work.
    pub fn rebuilds(&self) -> bool {
        matches!(self, Self::Clone(_) | Self::Rewind(_))
    }

    /// Whether it ends everything.
    pub fn ends(&self) -> bool {
        matches!(self, Self::Kill | Self::ShutDown)
    }
}

impl Local {
    /// A step is about to be done.
    pub fn begins(&mut self, step: &Step) {
        self.doing = format!("{step:?}");
        match step {
            _ if step.ends() => (self.stopping, self.open) = (true, false),
            _ if step.rebuilds() => self.rebuilding = true,
            Step::Open => self.shut = false,
            _ => {}
        }
    }

    /// It is over, one way or another.
    pub fn is_over(&mut self, step: &Step) {
        // A look may be older than the step; letting in and shutting out change no names.
        if !matches!(step, Step::Open | Step::Close | Step::ShutOut) {
            self.strange_names = None;
        }
        (self.rebuilding, self.stopping) = (false, false);
        self.doing.clear();
    }

    /// It failed, and may have been done all the same, or half; `runs`: the fencer has something running.
    pub fn failed(&mut self, step: &Step, runs: bool) {
        // The disk may name an upstream.
        if matches!(step, Step::Follow(_) | Step::StartStandby(_)) {
            self.doubt_upstream();
        }
        let starts = matches!(step, Step::StartStandby(_) | Step::StartPrimary);
        if starts && !self.running && runs {
            self.started(self.last_end);
            self.shut = false;
        }
    }

    /// Whom it follows on disk is not known any more.
    fn doubt_upstream(&mut self) {
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
        (self.lowered, self.refused) = (Lowered::default(), None);
        self.proven = proven;
        self.stopped_in_order = in_order;
        self.shut_down = false;
        self.end = None;
    }

    /// A run began, after the end with this receipt. One that ended before its start was told stays ended:
    /// nobody would say so again.
    pub fn started(&mut self, after: u64) {
        if self.last_end > after {
            return;
        }
        self.ended(false, false);
        self.running = true;
    }

    /// It was started as a standby of this instance, or of nobody.
    pub fn started_standby(&mut self, after: u64, upstream: Option<InstanceName>) {
        self.started(after);
        self.data = Data::Present(OnDisk::Standby(upstream));
    }

    /// It was started as a primary.
    pub fn started_primary(&mut self, after: u64) {
        self.started(after);
        self.data = Data::Present(OnDisk::Primary);
    }

    /// It was stopped: in order, if it is known where that `clean` end is, and without the epoch that its
    /// WAL carries. `closed`: nobody can start it as a primary by what lies on disk.
    pub fn stopped(&mut self, proven: bool, clean: Option<Position>, closed: bool) {
        let epoch = self.written;
        self.ended(proven, false);
        if closed {
            self.closed_on_disk();
        }
        self.shut_down = clean.is_some();
        self.end = clean.map(|end| Position { epoch, ..end });
    }

    /// What lies on disk comes up as a standby of nobody.
    pub fn closed_on_disk(&mut self) {
        self.data = Data::Present(OnDisk::Standby(None));
    }

    /// Where the WAL of a database that is down ends, without its epoch: never less than what it
    /// `may_carry`, since a recruit that says too little loses writes.
    pub fn found_end(&mut self, end: Position, may_carry: Epoch) {
        let epoch = self.written.max(may_carry);
        self.end = Some(Position { epoch, ..end });
    }

    /// It has no upstream any more; where its WAL ends, if all of that was replayed at once.
    pub fn detached(&mut self, replayed: Option<Position>) {
        self.data = Data::Present(OnDisk::Standby(None));
        self.replayed = replayed;
        self.written = self.written.max(replayed.map_or(Epoch::NONE, |end| end.epoch));
        if let Some((seen, _)) = &mut self.seen {
            seen.receiver = None;
        }
    }

    /// All that was received is replayed.
    pub fn has_replayed(&mut self, end: Position) {
        self.replayed = Some(end);
        self.written = self.written.max(end.epoch);
    }

    /// It follows another one from here on.
    pub fn follows(&mut self, upstream: InstanceName) {
        self.data = Data::Present(OnDisk::Standby(Some(upstream)));
        self.replayed = None;
        // They went with the upstream that was set.
        self.names = None;
        // What was seen was the last upstream's.
        if let Some((seen, _)) = &mut self.seen {
            seen.receiver = None;
        }
    }

    /// Its WAL was compared with its upstream's.
    pub fn compared(&mut self, diverged: bool) {
        self.diverged = Some(diverged);
    }

    /// It was rewound or cloned.
    pub fn rebuilt(&mut self, generation: u64) {
        self.generation = generation;
        self.diverged = Some(false);
        self.data = Data::Present(OnDisk::Standby(None));
        self.written = Epoch::NONE;
    }

    /// The names of a set are on disk and loaded, which reads as `text`. On a primary a transaction that
    /// was begun under them has returned.
    pub fn has_names(&mut self, set: Revision, text: String) {
        self.names = Some(set);
        self.names_text = text;
        let primary = self.seen.as_ref().is_some_and(|(seen, _)| !seen.in_recovery);
        self.in_force = primary.then_some(set);
    }

    /// Nothing runs: they are set, and waited for, right after the start.
    pub fn will_have_names(&mut self, set: Revision) {
        self.names = Some(set);
    }

    /// Recovery is over, and this timeline has begun.
    pub fn promoted(&mut self, timeline: u32) {
        self.data = Data::Present(OnDisk::Primary);
        self.replayed = None;
        if let Some((seen, _)) = &mut self.seen {
            seen.in_recovery = false;
            seen.position.timeline = timeline;
        }
    }

    /// The first transaction of the epoch returned.
    pub fn wrote(&mut self, epoch: Epoch) {
        self.written = self.written.max(epoch);
        // A transaction begun after the promotion returned under the names set before it.
        self.in_force = self.in_force.or(self.names);
    }

    /// Clients are let in, but for these.
    pub fn opened(&mut self, refused: Vec<Override>) {
        (self.open, self.shut) = (true, false);
        self.refused = Some(refused);
    }

    /// Clients are shut out, and none is left.
    pub fn closed(&mut self) {
        (self.open, self.shut) = (false, true);
    }

    /// These are refused, and the sessions that were to end are over.
    pub fn has_shut_out(&mut self, refused: Vec<Override>) {
        self.refused = Some(refused);
        self.lowered.sessions.clear();
    }
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

    #[test]
    fn after_a_start_whose_word_was_lost_nobody_believes_the_disk_or_that_it_is_shut() {
        let mut local = Local::new("a".parse().unwrap());
        local.closed_on_disk();
        let step = Step::StartStandby(Some("b".parse().unwrap()));
        local.begins(&step);
        local.is_over(&step);
        local.failed(&step, true);
        assert_eq!((local.run(), local.shut), (Run::Starting, false));
        assert_eq!(local.data, Data::Present(OnDisk::Standby(Some("a".parse().unwrap()))));
    }
}
