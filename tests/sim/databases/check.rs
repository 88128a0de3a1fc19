//! The judge: looks at what really is, from outside, and never at what anybody believes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use regent_core::agent::Notebook;
use regent_core::effect::{Applied, Change};
use regent_core::id::{Epoch, RenewalNumber, Revision, SessionId};
use regent_core::limits::PAUSE_MARGIN_MS;
use regent_core::role::{CompleteProof, DirectiveNumber, Loss, OutProof};
use regent_core::spec::{LossBound, Mode};
use regent_core::state::role::row::ServiceRole;
use regent_core::state::version::REPORTS_LEVEL;

use super::agent::Agent;
use super::plan::{index_of, service_name};
use super::world::World;
use super::{LIVENESS_MS, Stats};
use crate::agents::Class;
use crate::agents::machine::{MS, SECOND, Time};

/// A write that a client was told is done.
#[derive(Clone, Copy, Debug)]
struct Acked {
    end: usize,
    id: u64,
    epoch: Epoch,
    at: Time,
    /// It waited for standbys.
    waited: bool,
    /// People have given up the sets that it was acknowledged under, and nothing covers it since.
    struck: bool,
}

/// An epoch that was given.
#[derive(Clone, Copy, Debug)]
struct Grant {
    to: usize,
    from: Option<usize>,
    out: Option<OutProof>,
    complete: Option<CompleteProof>,
    loss: Loss,
    /// When it was committed: the old primary was out by then.
    at: Time,
    /// It was acted on.
    led: bool,
}

/// How a primary comes up that was one before.
pub const RESTARTED: &str = "starts as a primary";

/// The judge's memory.
pub struct Check {
    class: Class,
    pub stats: Stats,
    pub violations: Vec<String>,
    acked: Vec<Acked>,
    highest: Epoch,
    last_ack: Time,
    grants: BTreeMap<Epoch, Grant>,
    confirmed: BTreeSet<Epoch>,
    /// The highest directive on each disk.
    seen: BTreeMap<(usize, u64), DirectiveNumber>,
    /// When each acknowledged last.
    last_of: BTreeMap<usize, Time>,
    /// When each last ended as a primary.
    pub primary_ended: BTreeMap<usize, Time>,
    /// When each agent last heard that a renewal was taken.
    pub heard: BTreeMap<usize, Time>,
    /// The role before the present entry.
    pub(super) before: Option<Arc<ServiceRole>>,
    /// The holder's session under the open fence, and its newest renewal then.
    pub(super) fenced: Option<(Revision, SessionId, RenewalNumber)>,
    /// How long agents and hosts stood still at most.
    pub hung: Time,
    /// Something is struck.
    struck: bool,
    /// Who acknowledged under each epoch, in the order in which they began to.
    ackers: BTreeMap<Epoch, Vec<usize>>,
    /// An image of a disk was taken for the disk itself (A2): what is lost by that is counted.
    pub copied: bool,
}

impl Check {
    pub fn new(class: Class) -> Self {
        Self {
            class,
            stats: Stats::default(),
            violations: Vec::new(),
            acked: Vec::new(),
            highest: Epoch::NONE,
            last_ack: 0,
            grants: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            seen: BTreeMap::new(),
            last_of: BTreeMap::new(),
            primary_ended: BTreeMap::new(),
            heard: BTreeMap::new(),
            before: None,
            fenced: None,
            hung: 0,
            struck: false,
            ackers: BTreeMap::new(),
            copied: false,
        }
    }

    pub(super) fn broken(&mut self, text: String) {
        self.violations.push(text);
    }

    /// Something that rests on clocks: beyond A1 it is counted and no more.
    pub(super) fn broken_within(&mut self, text: String) {
        match self.class {
            Class::Within => self.broken(text),
            Class::Beyond => self.stats.overlaps += 1,
        }
    }

    /// Where commits wait for nobody this rests on clocks. Where they wait, it rests on the word of those
    /// they wait for, which an image of a disk can give in the place of the disk (A2).
    fn two_primaries(&mut self, waited: bool, text: String) {
        match waited {
            true if self.copied => self.stats.overlaps += 1,
            true => self.broken(text),
            false => self.broken_within(text),
        }
    }

    /// Whether this epoch was given to this instance.
    pub(super) fn is_granted(&self, epoch: Epoch, name: usize) -> bool {
        self.grants.get(&epoch).is_some_and(|grant| grant.to == name)
    }

    /// The epoch in force, if it was given to another than this one, which led `epoch`, because the end of
    /// that was proven: neither people nor the names of a set stand for it.
    pub(super) fn replaced(&self, epoch: Epoch, name: usize) -> Option<Epoch> {
        let mut since = self.grants.range((Excluded(epoch), Unbounded));
        let (newest, last) = since.clone().next_back()?;
        let proven = since
            .all(|(_, it)| !matches!(it.out, Some(OutProof::Approved | OutProof::QuorumRevoked)));
        (proven && last.to != name).then_some(*newest)
    }

    /// The epoch in force, who was given it, and whether that was acted on.
    pub(super) fn in_force(&self) -> Option<(Epoch, usize, bool)> {
        let newest = self.grants.last_key_value();
        newest.map(|(epoch, grant)| (*epoch, grant.to, grant.led))
    }

    /// OUT (e): people were told, after this epoch, that the end of whoever leads is not proven, and gave
    /// the next one all the same. What comes of it is theirs, for as long as that one runs.
    fn is_given_up(&self, epoch: Epoch) -> bool {
        let mut since = self.grants.range((Excluded(epoch), Unbounded));
        since.any(|(_, it)| it.out == Some(OutProof::Approved))
    }

    /// A disk went back in time.
    pub fn went_back(&mut self, i: usize, disk: u64) {
        self.seen.remove(&(i, disk));
    }

    /// WAL is streamed onto a history that is another one.
    pub fn diverged(&mut self, to: usize, from: usize) {
        if self.copied {
            self.stats.excused += 1;
            return;
        }
        self.broken(format!("S2: {to} streams from {from} on top of records that are not its own"));
    }
}

impl World {
    /// A client was told that its write is done.
    pub fn judge_write(&mut self, i: usize, end: usize, id: u64, waited: bool) {
        let epoch = self.hosts[i].dir.wal.epoch(end);
        self.trace(&[30, i as u64, id]);
        let quorum = self.plan.mode == Mode::Quorum && waited;
        let highest = self.check.highest;
        self.check.stats.acked += 1;
        let at = format!("at {}.{:06} s", self.now / SECOND, self.now % SECOND);
        if self.check.is_given_up(epoch) {
            self.check.stats.overlaps += 1;
            return;
        }
        if epoch < highest {
            let text = format!("S1: {at} {i} acknowledges under {epoch} after {highest} did");
            self.check.two_primaries(quorum, text);
        }
        let name = self.hosts[i].name;
        if self.check.grants.get(&epoch).is_none_or(|grant| grant.to != name) {
            self.check
                .broken(format!("S6: {at} {i} acknowledges under {epoch}, never granted to it"));
        }
        let ackers = self.check.ackers.entry(epoch).or_default();
        if ackers.last() != Some(&i) {
            // One that moved to another host does not act on in the place that it left.
            let back = ackers.contains(&i);
            ackers.push(i);
            if back {
                let text = format!("S1: {at} {i} acknowledges under {epoch} after its twin did");
                self.check.two_primaries(quorum, text);
            }
        }
        if !waited {
            for other in (0..self.hosts.len()).filter(|other| *other != i) {
                if self.is_able(other) && !self.is_given_up(other) {
                    let text =
                        format!("S1: {at} {i} acknowledges under {epoch}, and {other} can too");
                    self.check.broken_within(text);
                }
            }
        }
        if waited && epoch >= highest && std::mem::take(&mut self.check.struck) {
            // What its holder has is on enough of its set again. That the log knows of no other set says
            // nothing of it: an approval strikes those of before.
            self.check.acked.iter_mut().for_each(|it| it.struck = false);
        }
        self.check.highest = highest.max(epoch);
        if epoch >= highest {
            self.check.last_ack = self.now;
        }
        self.check.last_of.insert(i, self.now);
        let (at, acked) = (self.now, &mut self.check.acked);
        acked.push(Acked { end, id, epoch, at, waited, struck: false });
    }

    /// Whether an instance could acknowledge a write without anybody's help.
    fn is_able(&self, i: usize) -> bool {
        let host = &self.hosts[i];
        let awake = host.up && host.machine.runs(self.now);
        let server = host.server.as_ref().filter(|it| awake && it.up && it.primary && !it.waits);
        server.is_some_and(|it| {
            let lets_in = it.open && it.deaf_until <= self.now || !it.sessions.is_empty();
            !it.stopping && it.frozen_until <= self.now && lets_in
        })
    }

    /// The run of an instance leads an epoch that people gave up.
    fn is_given_up(&self, i: usize) -> bool {
        let led = self.hosts[i].book.as_ref().map_or(Epoch::NONE, |book| book.led);
        self.check.is_given_up(led)
    }

    /// An instance becomes a primary under its fencer.
    pub fn judge_primary(&mut self, i: usize, how: &str) {
        let led = self.hosts[i].book.as_ref().map_or(Epoch::NONE, |book| book.led);
        let at = format!("at {}.{:06} s", self.now / SECOND, self.now % SECOND);
        self.check.stats.primaries += 1;
        self.say(|| format!("{i} {how} under {led}"));
        let grant = self.check.grants.get(&led).copied();
        let name = self.hosts[i].name;
        let Some(grant) = grant.filter(|grant| grant.to == name) else {
            return self.check.broken(format!("S6: {at} {i} {how} under {led}, not granted to it"));
        };
        if !self.check.confirmed.contains(&led) {
            return self
                .check
                .broken(format!("C8: {at} {i} {how} under {led}, which no renewal named"));
        }
        // E4: whoever crashed has heard since that nobody fenced it. (A promotion is no restart.)
        let ended = self.check.primary_ended.get(&i).copied();
        let heard = self.check.heard.get(&i).copied();
        if how == RESTARTED && ended.is_some() && heard < ended {
            let text = format!("E4: {at} {i} {how} by a renewal from before its end");
            return self.check.broken(text);
        }
        if let Some(grant) = self.check.grants.get_mut(&led) {
            grant.led = true;
        }
        let wal = &self.hosts[i].dir.wal;
        let lost = |it: &&Acked| it.epoch <= led && !wal.holds(it.end, it.id);
        let lost: Vec<Acked> = self.check.acked.iter().filter(lost).copied().collect();
        if lost.is_empty() {
            return;
        }
        let ids: BTreeSet<u64> = lost.iter().map(|it| it.id).collect();
        let by_people = grant.complete == Some(CompleteProof::Approved)
            || grant.out == Some(OutProof::Approved);
        if by_people || self.check.copied || lost.iter().all(|it| it.struck) {
            self.check.stats.excused += lost.len() as u64;
        } else if grant.complete == Some(CompleteProof::WithinBound) {
            self.judge_loss(&grant, &lost);
        } else {
            let first = *lost.iter().find(|it| !it.struck).unwrap_or(&lost[0]);
            let text = format!(
                "S2: {at} {i} {how} under {led} ({:?}, {:?}) without {} acknowledged writes, the \
                 first at {} of {}, acknowledged at {} ms",
                grant.out,
                grant.complete,
                lost.len(),
                first.end,
                first.epoch,
                first.at / MS,
            );
            match self.plan.mode == Mode::Quorum && first.waited {
                true => self.check.broken(text),
                false => self.check.broken_within(text),
            }
        }
        self.check.acked.retain(|it| !ids.contains(&it.id));
    }

    /// S7: what is lost was acknowledged within the bound that the grant carried.
    fn judge_loss(&mut self, grant: &Grant, lost: &[Acked]) {
        self.check.stats.lost += lost.len() as u64;
        let most = self.plan.spec().policy.loss_bound.max_ms.max(LossBound::usual_ms(4_500));
        let (Some(ms), Some(from)) = (grant.loss.ms.filter(|ms| *ms <= most), grant.from) else {
            let text = format!("S7: {:?} is lost without an approval, above {most} ms", grant.loss);
            return self.check.broken(text);
        };
        let first = lost.iter().map(|it| it.at).min().unwrap_or_default();
        // Who never acted lost nothing: what counts is the end of the last that did.
        let acted = self.check.grants.iter().rev().find(|(_, it)| it.led && it.at < grant.at);
        let from = acted.map_or(from, |(_, it)| it.to);
        // It stood still, or was ended, after the last write that it acknowledged.
        let out = self.check.last_of.get(&from).copied().unwrap_or(first);
        let out = out.min(grant.at);
        // The bound is of clocks that may run slow by rho, and may stand still for a margin. Where
        // renewals say nothing, it is of reports, which may be older than the leader takes them for,
        // by an agent that stood still, or by their way.
        let exact = self.plan.level >= REPORTS_LEVEL;
        let known = if exact { PAUSE_MARGIN_MS * MS } else { self.check.hung + 2 * SECOND };
        let most = ms * MS * 102 / 100 + known;
        if out.saturating_sub(first) > most {
            let text = format!(
                "S7: a write of {} ms before the end of {from} is lost, and the bound was {ms} ms",
                (out - first) / MS
            );
            self.check.broken_within(text);
        }
    }

    /// An agent wrote its notebook.
    pub fn judge_notebook(&mut self, i: usize, book: &Notebook) {
        let highest = self.check.seen.entry((i, book.disk)).or_default();
        if book.seen() < *highest {
            let text = format!("S4: {i} obeys {:?} after {highest:?}", book.seen());
            self.check.broken(text);
            return;
        }
        *highest = book.seen();
    }

    /// An entry was committed.
    pub fn judge_entry(&mut self, applied: &Applied) {
        self.judge_order();
        let Some(role) = self.coord.role() else { return };
        let epoch = role.epoch;
        let named = role.lease.as_ref().is_some_and(|lease| {
            let session = self.coord.state.sessions().get(&lease.session);
            session.is_some_and(|session| session.known_grant >= lease.mark)
        });
        if named || role.confirmed {
            self.check.confirmed.insert(epoch);
        }
        let changed = applied.changes.iter().any(|change| matches!(change, Change::Role(..)));
        if !changed {
            return;
        }
        let newest = self.check.grants.last_key_value().map_or(Epoch::NONE, |(epoch, _)| *epoch);
        let service = &self.coord.state.services()[&service_name()];
        let still = service.quarantine.clone();
        let operation = role
            .operation
            .and_then(|id| self.coord.state.operations().get(&(service_name(), id)).cloned());
        if epoch < newest {
            self.check.broken(format!("S3: {newest} was granted, and now {epoch}"));
        }
        if let (true, Some(holder)) = (epoch > newest, &role.holder) {
            let of = operation.filter(|row| row.epoch == Some(epoch));
            let mut grant = Grant {
                to: index_of(holder),
                from: of.as_ref().and_then(|row| row.from.as_ref()).map(index_of),
                out: of.as_ref().and_then(|row| row.out),
                complete: of.as_ref().and_then(|row| row.complete),
                loss: of.as_ref().map(|row| row.loss).unwrap_or_default(),
                at: self.now,
                led: false,
            };
            // Nothing was added to what it may lack since a grant that it did not act on.
            let before = self.check.grants.last_key_value().map(|(_, before)| *before);
            if let Some(before) = before.filter(|it| it.to == grant.to && !it.led)
                && grant.complete == Some(CompleteProof::LastHolder)
            {
                grant = Grant { out: before.out, ..before };
            }
            if grant.complete == Some(CompleteProof::Approved) && self.plan.mode == Mode::Quorum {
                self.check.acked.iter_mut().for_each(|it| it.struck = true);
                self.check.struck = true;
            }
            self.check.stats.grants += 1;
            let resigned = grant.complete == Some(CompleteProof::HoldsResign);
            self.check.stats.resigned += u64::from(resigned);
            self.check.grants.insert(epoch, grant);
            self.say(|| format!("{epoch} is granted to {}: {grant:?}", grant.to));
            self.judge_pages();
        }
        if let Some(still) = still {
            self.check.broken(format!("an entry broke an invariant of the state: {still:?}"));
        }
    }

    /// Whether writes have been acknowledged lately, under the newest epoch.
    pub fn serves(&self) -> bool {
        let newest = self.check.grants.last_key_value().map(|(epoch, _)| *epoch);
        Some(self.check.highest) == newest && self.now < self.check.last_ack + SECOND
    }

    /// S13: with nothing broken any more, somebody serves, or people are asked.
    pub fn judge_the_end(&mut self) {
        let is_well = self.serves() && self.is_routed() && !self.is_changing();
        if !self.options.liveness || !self.check.violations.is_empty() || is_well {
            return;
        }
        let Some(role) = self.coord.role() else { return };
        let operation = role
            .operation
            .and_then(|id| self.coord.state.operations().get(&(service_name(), id)).cloned());
        let asks = operation.as_ref().is_some_and(|row| row.approval.is_some());
        if asks && role.fence.is_some() || self.needs_people() {
            self.check.stats.asked += 1;
            return;
        }
        let agents: Vec<_> =
            self.hosts.iter().map(|host| host.agent.as_ref().map(Agent::told)).collect();
        let text = format!(
            "S13: {} s after the last fault nobody serves, or is sent to who does, or a role change goes \
             on; agents {agents:?}; \
             role {role:#?}, operation {operation:?}",
            LIVENESS_MS / 1_000
        );
        self.check.broken(text);
    }

    /// Routers send to the primary.
    pub(super) fn is_routed(&self) -> bool {
        self.coord.role().is_some_and(|role| role.routes_open)
    }

    /// No rule can bring it back: too few sound copies are left.
    fn needs_people(&self) -> bool {
        let Some(role) = self.coord.role() else { return true };
        let sound = role.instances.iter().filter(|(_, row)| row.quarantined.is_none());
        let sound = sound.map(|(name, _)| index_of(name)).filter(|i| self.hosts[*i].up);
        let sound: Vec<usize> = sound.collect();
        let whole = |i: &&usize| {
            let dir = &self.hosts[**i].dir;
            dir.present && !dir.broken && dir.wal.flushed >= dir.min_recovery
        };
        let needed = if self.plan.mode == Mode::Quorum { 2 } else { 1 };
        let electable = |i: &&usize| !self.plan.spare || **i + 1 < self.plan.instances;
        sound.len() < needed || !sound.iter().filter(whole).any(|i| electable(&i))
    }
}
