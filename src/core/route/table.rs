//! The routes of one service: derived from its rows, from what the leader said of its standbys, and
//! from this node's belief; never stored.
//!
//! Who takes writes follows from the log: nobody from the entry that opens a fence until the one
//! that records a verified promotion, and nobody whom this node's clock does not believe live
//! (PROTOCOL.md C3, S8). Who takes reads is fail-static: what is not known any more stays as it was.

use std::collections::BTreeMap;
use std::fmt;

use super::fitness::Fitness;
use crate::id::{Epoch, Incarnation, InstanceName, Locality, Revision, ServiceName, SessionId};
use crate::mutant::{Mutant, leaves_out};
use crate::spec::{CoordinatorLoss, InstanceSpec, Mode, TopologyKind};
use crate::state::role::plan;
use crate::state::role::row::{Operation, ServiceRole};
use crate::state::service::Service;

/// What was last said of the instances of one service.
pub type Fitnesses = BTreeMap<InstanceName, Fitness>;

/// What a node has heard of them.
#[derive(Clone, Copy, Debug)]
pub struct Heard<'a> {
    /// What was said.
    pub rows: &'a Fitnesses,
    /// It has listened for long enough: of whom it has heard nothing, nobody knows anything.
    pub settled: bool,
}

/// The routes of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    /// Whose.
    pub service: ServiceName,
    /// Of the role; routers are told, and acknowledge it.
    pub epoch: Epoch,
    /// The revision of the newest change of the rows: the newer of two tables has the higher one.
    pub at: (Incarnation, Revision),
    /// Where writes go.
    pub write: Write,
    /// Who took writes before, while a role change is under way or just over: nobody is sent there,
    /// but routers that know it yet can see for themselves that it is gone, and cut its sessions.
    pub former: Option<Endpoint>,
    /// Who takes reads, in the order of the declaration; the primary is none of them.
    pub reads: Vec<Endpoint>,
    /// Nobody of these is known, and this node has only begun to listen: whom another one named before
    /// is not taken back.
    pub reads_unknown: bool,
    /// All declared instances, for those who ask every one of them by itself.
    pub all: Vec<Endpoint>,
}

/// Where writes go: one instance or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// To the holder of a lease that is believed live, after its promotion was verified.
    To(Endpoint),
    /// To nobody.
    Nobody(Closed),
}

/// Why nobody takes writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// No instance was ever granted the role, or the service is active-active.
    NoPrimary,
    /// A role change is under way, and the old primary out of the routes.
    Fenced {
        /// Its kind, in one word.
        kind: &'static str,
    },
    /// A switchover is about to begin: the primary serves those who are there, and nobody new is sent.
    Draining,
    /// Somebody was granted the role and has not promoted yet.
    Promoting,
    /// The primary's lease is over, and no role change has begun.
    Lapsed,
    /// The primary is declared no more.
    Undeclared,
    /// This node cannot prove that the primary's lease still runs. `holds`: what was said before need
    /// not be taken back.
    Unproven {
        /// By the policy the primary serves on without the coordinators (PROTOCOL.md F), or this node
        /// has only begun to look.
        holds: bool,
    },
}

/// Whether a node may name the holder of a session (C3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belief {
    /// It may.
    Live,
    /// It has only begun to look: a node that was just started knows nothing for as long as a renewal
    /// takes. It names nobody, and takes nothing back that another one said.
    NotYet,
    /// It must not.
    Over,
}

/// An instance, as a router needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Who.
    pub instance: InstanceName,
    /// `host:port` for clients.
    pub address: String,
    /// `host:port` where its agent answers health checks; empty: it has never said.
    pub check: String,
    /// Where it is.
    pub locality: Locality,
    /// Received and not replayed there, when last heard; 0 for a primary.
    pub lag_bytes: u64,
    /// Share of the reads of its tier, in percent of a standby that is up to date.
    pub weight: u32,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPrimary => f.write_str("it has no primary yet"),
            Self::Fenced { kind } => write!(f, "a {kind} is under way"),
            Self::Draining => f.write_str("a switchover is about to begin"),
            Self::Promoting => f.write_str("the new primary has not promoted yet"),
            Self::Lapsed => f.write_str("the primary's lease is over"),
            Self::Undeclared => f.write_str("the primary is declared no more"),
            Self::Unproven { .. } => {
                f.write_str("this node cannot prove that the primary's lease still runs")
            }
        }
    }
}

impl Write {
    /// The instance that takes writes.
    pub fn primary(&self) -> Option<&Endpoint> {
        match self {
            Self::To(endpoint) => Some(endpoint),
            Self::Nobody(_) => None,
        }
    }
}

impl Routes {
    /// The routes of `service`, whose rows changed last at revision `at`. `newest`: the newest
    /// operation; `heard`: what the leader said last of its instances; `believes`: whether this node
    /// may name the holder of a session (C3).
    pub fn of(
        at: (Incarnation, Revision),
        service: &Service,
        role: Option<&ServiceRole>,
        newest: Option<&Operation>,
        heard: Heard<'_>,
        believes: impl FnOnce(SessionId) -> Belief,
    ) -> Self {
        let fit = heard.rows;
        let all: Vec<Endpoint> =
            service.spec.instances.iter().map(|one| endpoint(one, fit)).collect();
        let write = write(service, role, newest, &all, believes);
        let holder = role.and_then(|role| role.holder.as_ref());
        let standbys = || all.iter().filter(|one| Some(&one.instance) != holder);
        let takes_reads = |one: &&Endpoint| fit.get(&one.instance).is_some_and(|fit| fit.reads);
        let reads: Vec<_> = standbys().filter(takes_reads).cloned().collect();
        let reads_unknown = reads.is_empty()
            && !heard.settled
            && standbys().any(|one| !fit.contains_key(&one.instance));
        let former = role.and_then(|role| former(role, newest));
        let former = all.iter().find(|one| Some(&one.instance) == former).cloned();
        let epoch = role.map_or(Epoch::NONE, |role| role.epoch);
        let service = service.spec.name.clone();
        Self { service, epoch, at, write, former, reads, reads_unknown, all }
    }

    /// Whether a router that has applied `other` need not be told of this.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let at = self.at;
        *self == Self { at, ..other.clone() }
    }
}

fn endpoint(spec: &InstanceSpec, fit: &Fitnesses) -> Endpoint {
    let fit = fit.get(&spec.name);
    Endpoint {
        instance: spec.name.clone(),
        address: spec.address.clone(),
        check: fit.map_or_else(String::new, |fit| fit.check_of(&spec.address)),
        locality: spec.locality.clone(),
        lag_bytes: fit.map_or(0, |fit| fit.lag_bytes),
        weight: fit.map_or(100, Fitness::weight),
    }
}

/// The holder, once nobody is sent there any more; the one before, until its change is over.
fn former<'a>(role: &'a ServiceRole, newest: Option<&'a Operation>) -> Option<&'a InstanceName> {
    let holder = role.holder.as_ref();
    if role.fence.is_some() || newest.is_some_and(|row| plan::is_drained(row, role)) {
        return holder;
    }
    let before = newest.filter(|row| !row.phase.is_over()).and_then(|row| row.from.as_ref());
    before.filter(|before| Some(*before) != holder)
}

/// S8, for nodes: the only place that names who takes writes.
fn write(
    service: &Service,
    role: Option<&ServiceRole>,
    newest: Option<&Operation>,
    all: &[Endpoint],
    believes: impl FnOnce(SessionId) -> Belief,
) -> Write {
    let held = role.and_then(|role| Some((role, role.holder.as_ref()?)));
    let Some((role, holder)) = held else { return Write::Nobody(Closed::NoPrimary) };
    if service.spec.topology == TopologyKind::ActiveActive {
        return Write::Nobody(Closed::NoPrimary);
    }
    if let Some(fence) = &role.fence {
        return Write::Nobody(Closed::Fenced { kind: fence.kind.name() });
    }
    if newest.is_some_and(|row| plan::is_drained(row, role)) {
        return Write::Nobody(Closed::Draining);
    }
    if !role.routes_open {
        return Write::Nobody(Closed::Promoting);
    }
    let Some(lease) = &role.lease else { return Write::Nobody(Closed::Lapsed) };
    let Some(primary) = all.iter().find(|one| one.instance == *holder) else {
        return Write::Nobody(Closed::Undeclared);
    };
    let policy = &service.spec.policy;
    let holds = policy.mode == Mode::Quorum && policy.on_coordinator_loss == CoordinatorLoss::Hold;
    match believes(lease.session) {
        _ if leaves_out(Mutant::RoutesBelieve) => {}
        Belief::Live => {}
        Belief::NotYet => return Write::Nobody(Closed::Unproven { holds: true }),
        Belief::Over => return Write::Nobody(Closed::Unproven { holds }),
    }
    Write::To(Endpoint { lag_bytes: 0, weight: 100, ..primary.clone() })
}

#[cfg(test)]
#[path = "tests/table.rs"]
mod tests;
