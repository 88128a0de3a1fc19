//! The rows of a service's role: who is primary, under which sets, and the one role change that may
//! be open (PROTOCOL.md D).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, InstanceName, Nonce, Revision, SessionId};
use crate::mutant::{Mutant, leaves_out};
use crate::role::{
    Armed, CompleteProof, DataIdentity, Directive, DirectiveNumber, FenceKind, Loss, Lsn, Order,
    OutProof, Phase, Receipt, SyncSet,
};
use crate::spec::Mode;
use crate::state::version::REPORTS_LEVEL;
use crate::time::WallMs;

/// Everything the log knows of one service's role. It appears with the first start of one of its
/// agents and goes with the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRole {
    /// Of the last grant; [`Epoch::NONE`] before the first.
    pub epoch: Epoch,
    /// To whom.
    pub holder: Option<InstanceName>,
    /// The holder's right; `None` once its session ended.
    pub lease: Option<RoleLease>,
    /// Its session lapsed, and how it was armed then: OUT (b).
    pub lapsed: Option<Armed>,
    /// Whether the holder has named its grant, as far as ended sessions said it; the session of
    /// `lease` may say so too. One that never has never acted (C8).
    pub confirmed: bool,
    /// What the holder is to use; `None` before the first grant and in lease mode.
    pub set: Option<SyncSet>,
    /// A: the sets under which the holder may be able to acknowledge.
    pub a: Vec<SyncSet>,
    /// C: the sets whose acknowledgements may not be covered yet by what follows; it holds A.
    pub c: Vec<SyncSet>,
    /// The role change that is open: fenced, not granted.
    pub fence: Option<Fence>,
    /// The promotion of the holder, once it is verified.
    pub promoted: Option<Promotion>,
    /// The highest timeline that any instance may have begun: each grant sets one number aside, so
    /// that none is ever begun twice. Its holder passes over all lower ones.
    pub timeline: u32,
    /// Whether the write route is open: after the promotion was verified, until the next fence.
    pub routes_open: bool,
    /// Set while people keep Regent's hands off (E5).
    pub paused: Option<Pause>,
    /// The declared instances that have ever started an agent.
    pub instances: BTreeMap<InstanceName, InstanceRow>,
    /// Newest operation that is not over, or the last one.
    pub operation: Option<Revision>,
    /// When automatic failovers were granted lately, newest last: flap control. Wall time, because
    /// it must outlive leaders; nothing of S1 to S7 rests on it.
    pub failovers: Vec<WallMs>,
    /// Revision of the last change.
    pub changed: Revision,
}

/// The right of the holder's present session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleLease {
    /// Its session.
    pub session: SessionId,
    /// The grant as renewals name it (C8): the revision that bound this session to the epoch. It is
    /// the epoch's own revision, or that of a later start of the same holder.
    pub mark: Revision,
    /// How PostgreSQL is tied to the fencer of *this* session's agent. A later start of the same
    /// instance may have a better fencer and says nothing about what still runs.
    pub fencer: Armed,
    /// Which run of the fencer that is; 0: not known.
    pub run: Nonce,
}

/// The open role change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// f: the revision that opened it, or that let a failover take over. Receipts are for it.
    pub fence: Revision,
    /// Its row among the operations.
    pub operation: Revision,
    /// Why.
    pub kind: FenceKind,
    /// A switchover whose standbys still have their upstream.
    pub uncut: bool,
    /// The switchover's fence that a failover took over: its Resign stays valid.
    pub taken_over: Option<Revision>,
    /// The best receipt of each instance, for this fence.
    pub receipts: BTreeMap<InstanceName, Receipt>,
}

/// What the log knows of one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRow {
    /// Counter of accepted starts.
    pub boot: u64,
    /// The start accepted last.
    pub nonce: Nonce,
    /// The disk it came from.
    pub disk: u64,
    /// The session it was last said over; it may be gone.
    pub session: SessionId,
    /// How PostgreSQL is tied to its fencer.
    pub fencer: Armed,
    /// Which run of the fencer.
    pub run: Nonce,
    /// The data directory, as it was reported at the last start or receipt.
    pub data: Option<DataIdentity>,
    /// Directive under which its newest receipt was given: an agent that knows of none as high has
    /// forgotten a pledge.
    pub pledged: DirectiveNumber,
    /// Why it has no role until it is cloned anew.
    pub quarantined: Option<String>,
    /// What it is to be.
    pub directive: Directive,
}

/// A verified promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    /// Its timeline.
    pub timeline: u32,
    /// Where it left the timeline before.
    pub switch: Lsn,
    /// When it was committed.
    pub revision: Revision,
}

/// A pause by people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Since which entry.
    pub since: Revision,
    /// Who.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// One run of a failover or a switchover.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Its kind.
    pub kind: FenceKind,
    /// Who began it: a person's certificate, or the cluster.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Primary before.
    pub from: Option<InstanceName>,
    /// Primary after, once granted.
    pub to: Option<InstanceName>,
    /// The epoch granted.
    pub epoch: Option<Epoch>,
    /// Why the old primary is out.
    pub out: Option<OutProof>,
    /// Why the new one is complete.
    pub complete: Option<CompleteProof>,
    /// What could be lost at most.
    pub loss: Loss,
    /// Where it stands.
    pub phase: Phase,
    /// Each phase, with the entry that began it and the proposer's wall clock, for people.
    pub history: Vec<(Phase, Revision, WallMs)>,
    /// The approval it waits for or was given.
    pub approval: Option<Approval>,
}

impl Operation {
    /// Nobody asked for it.
    pub fn is_automatic(&self) -> bool {
        self.by.starts_with("node/")
    }
}

/// A question to people (PROTOCOL.md H; its full form is yet to come).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Revision that asked: its id.
    pub id: Revision,
    /// Who would be primary.
    pub candidate: InstanceName,
    /// Ceilings: at the grant, no value may be above.
    pub loss: Loss,
    /// Whether the old primary's end is unproven.
    pub without_out: bool,
    /// What people are asked.
    pub question: String,
    /// What they said.
    pub answer: Option<Answer>,
}

/// What people said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Yes or no.
    pub granted: bool,
    /// Whose certificate.
    pub by: String,
    /// Why.
    pub reason: String,
}

impl ServiceRole {
    /// Of a service that nobody has been granted.
    pub(in crate::state) fn new(revision: Revision) -> Self {
        Self {
            epoch: Epoch::NONE,
            holder: None,
            lease: None,
            lapsed: None,
            confirmed: false,
            set: None,
            a: Vec::new(),
            c: Vec::new(),
            fence: None,
            promoted: None,
            timeline: 0,
            routes_open: false,
            paused: None,
            instances: BTreeMap::new(),
            operation: None,
            failovers: Vec::new(),
            changed: revision,
        }
    }

    /// Whether the end of the lease can prove anything about the holder (OUT (b)): in lease mode, and
    /// while commits may wait for nobody.
    pub fn lapse_counts(&self, mode: Mode) -> bool {
        mode == Mode::Lease || self.a.iter().any(SyncSet::is_degraded)
    }

    /// The highest timeline that anybody is known to have been on, or was given a number for.
    pub fn newest_timeline(&self) -> u32 {
        let receipts = self.fence.iter().flat_map(|fence| fence.receipts.values());
        let told = receipts.filter_map(|receipt| receipt.position);
        let starts = self.instances.values().filter_map(|row| row.data?.position);
        told.chain(starts).map(|position| position.timeline).fold(self.timeline, u32::max)
    }

    /// Whether an instance is counted in a set that is not covered yet.
    pub fn counts(&self, instance: &InstanceName) -> bool {
        self.a.iter().chain(&self.c).any(|set| set.members.contains(instance))
    }

    /// Tells an instance what to be. Its number rises only when that changes; who is quarantined
    /// stays so.
    pub(in crate::state) fn order(&mut self, to: &InstanceName, order: Order, revision: Revision) {
        let epoch = self.epoch;
        let Some(row) = self.instances.get_mut(to) else { return };
        let same = row.directive.order == order && row.directive.epoch == epoch;
        if row.quarantined.is_none() && !same {
            row.directive = Directive { epoch, revision, order };
        }
    }

    /// The pause that agents are told of, for the holder's to obey it (E5). None below the level at
    /// which renewals say that: a fencer that lost its deadline would stand behind renewals that name no
    /// pause, and a lapse would prove its end once the pause is over.
    pub fn pause_to_obey(&self, feature_level: u32) -> Option<Revision> {
        let told = feature_level >= REPORTS_LEVEL || leaves_out(Mutant::PauseNeedsLevel);
        self.paused.as_ref().filter(|_| told).map(|pause| pause.since)
    }

    /// The names that the holder is to use: none in lease mode, where no commit waits.
    pub(in crate::state) fn names(&self, revision: Revision) -> SyncSet {
        let none = || SyncSet { epoch: self.epoch, revision, members: BTreeSet::new(), k: 0 };
        self.set.clone().unwrap_or_else(none)
    }

    /// The instances that have ever started an agent, but for one.
    pub fn others(&self, than: &InstanceName) -> Vec<InstanceName> {
        self.instances.keys().filter(|name| *name != than).cloned().collect()
    }

    /// Whether nothing but the present set matters: what was acknowledged under any other is
    /// covered.
    pub fn is_covered(&self) -> bool {
        let present = self.set.as_ref();
        self.a.iter().all(|set| Some(set) == present)
            && self.c.iter().all(|set| Some(set) == present)
    }
}
