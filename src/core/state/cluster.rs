//! The cluster row: who this cluster is, what timing it promises, which nodes it has seen start.
//!
//! The feature level and the incarnation only rise. Node ids are never given twice (I9), not even
//! to a node whose row was removed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::describe::check_text;
use super::election::{self, Election};
use super::journal::Draft;
use super::partition::Partition;
use super::role;
use super::service::{self, Life, Service};
use super::tables::Tables;
use crate::effect::ClockEffect;
use crate::id::{Incarnation, NodeId, Nonce, Revision};
use crate::limits::{LEAST_HOLD_MS, MAX_NAME_BYTES, MAX_NODES, MAX_TEXT_BYTES, MAX_TTL_MS};
use crate::reply::{Rejection, Reply};
use crate::timing::{Timing, TimingError};

/// Everything replicated about the cluster itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRow {
    /// What people call it; empty until `Bootstrap`.
    pub name: String,
    /// Which life it is in; the counter is 0 until `Bootstrap`.
    pub incarnation: Incarnation,
    /// What C6 judges ttls by.
    pub timing: Timing,
    /// Level whose entries every member can read (see [`super::version`]).
    pub feature_level: u32,
    /// The newest start each node reported.
    pub boots: BTreeMap<NodeId, NodeBoot>,
    /// Highest node id ever allocated, recorded or made a member.
    pub highest_node: NodeId,
    /// Voters of the newest membership entry.
    pub voters: Vec<NodeId>,
    /// Learners of the newest membership entry.
    pub learners: Vec<NodeId>,
    /// Revision of `Bootstrap`; 0 until then.
    pub created: Revision,
    /// Revision of the last change of this row.
    pub changed: Revision,
    /// In a new life: nothing is granted until the leader has waited for leases with a ttl of so many
    /// milliseconds, which holders of the life before may still believe in (S5). 0: nothing is held
    /// back.
    pub grants_held_ms: u64,
}

/// One node's newest start (PROTOCOL.md B).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeBoot {
    /// Random id of its data directory.
    pub disk: u64,
    /// Boot counter, fsynced, one more at each start.
    pub boot: u64,
    /// Which process.
    pub nonce: Nonce,
    /// When it was recorded.
    pub recorded: Revision,
}

impl Default for ClusterRow {
    fn default() -> Self {
        Self {
            name: String::new(),
            incarnation: Incarnation::default(),
            timing: Timing::LAN,
            feature_level: super::version::FIRST_FEATURE_LEVEL,
            boots: BTreeMap::new(),
            highest_node: NodeId(0),
            voters: Vec::new(),
            learners: Vec::new(),
            created: Revision(0),
            changed: Revision(0),
            grants_held_ms: 0,
        }
    }
}

impl ClusterRow {
    /// Whether `Bootstrap` was applied.
    pub fn is_bootstrapped(&self) -> bool {
        self.created != Revision(0)
    }
}

pub(super) fn bootstrap(
    draft: &mut Draft<'_>,
    incarnation: Incarnation,
    name: String,
    timing: Timing,
) -> Result<Reply, Rejection> {
    check_text("cluster", &name, MAX_NAME_BYTES)?;
    check_timing(&timing)?;
    let row = draft.rows().cluster().clone();
    if row.is_bootstrapped() {
        // The first leader may have died before it heard that it had succeeded.
        if row.incarnation == incarnation && row.name == name {
            return Ok(Reply::Done { revision: row.created });
        }
        let what = "cluster".to_owned();
        return Err(Rejection::AlreadyExists { what, name: row.name, revision: row.created });
    }
    if incarnation.counter == 0 {
        return Err(Rejection::IncarnationStale { have: row.incarnation, got: incarnation });
    }
    let outcome = format!("incarnation {incarnation}");
    let (created, changed) = (draft.revision, draft.revision);
    draft.set_cluster(ClusterRow {
        name: name.clone(),
        incarnation,
        timing,
        created,
        changed,
        ..row
    });
    draft.note("cluster.bootstrap", &name, "", &outcome);
    Ok(Reply::Done { revision: draft.revision })
}

/// A new life (PROTOCOL.md B, G). What was promised in the old one is void: sessions, leases, queue
/// places, partition owners; services are unadopted. Epochs stay: they may never go back.
///
/// Boots are forgotten too: node ids and disks of the cluster that was backed up say nothing about
/// the nodes that now begin, and would bar a new node with an old id from voting for ever.
///
/// One audit record tells of all leaderships that end: a hundred thousand would push everything
/// else out of the window, and say no more.
pub(super) fn begin_incarnation(
    draft: &mut Draft<'_>,
    incarnation: Incarnation,
    reason: &str,
    hold_ms: Option<u64>,
) -> Result<Reply, Rejection> {
    draft.bootstrapped()?;
    check_text("reason", reason, MAX_TEXT_BYTES)?;
    if let Some(hold_ms) = hold_ms.filter(|ms| *ms > MAX_TTL_MS) {
        let problem = format!("{hold_ms} ms is longer than a day, and so than any lease");
        let (field, fix) = ("hold_ms".to_owned(), format!("use at most {MAX_TTL_MS}"));
        return Err(Rejection::Invalid { field, problem, fix });
    }
    let row = draft.rows().cluster().clone();
    if row.incarnation == incarnation {
        return Ok(Reply::Done { revision: row.changed });
    }
    // An equal counter with another id is another cluster's restore of the same backup.
    if incarnation.counter <= row.incarnation.counter {
        return Err(Rejection::IncarnationStale { have: row.incarnation, got: incarnation });
    }
    let (leaderships, owners) = (void_elections(draft), void_partitions(draft));
    let sessions = draft.rows().sessions().len();
    let grants_held_ms = hold_ms.unwrap_or_else(|| hold_for(draft.rows()));
    role::life::begin_anew(draft);
    draft.void_sessions();
    unadopt_services(draft);
    let was = row.incarnation;
    let (boots, changed) = (BTreeMap::new(), draft.revision);
    let name = row.name.clone();
    draft.set_cluster(ClusterRow { incarnation, boots, changed, grants_held_ms, ..row });
    draft.clock(ClockEffect::Reset);
    let outcome = format!(
        "from {was} to {incarnation}; void: {sessions} sessions, {leaderships} leaderships, \
         {owners} partition owners; grants held back for ttls of {grants_held_ms} ms"
    );
    draft.note("cluster.incarnation", &name, reason, &outcome);
    Ok(Reply::Done { revision: draft.revision })
}

/// For how long a ttl a new life that follows this state waits before it grants anything.
pub(super) fn hold_for(tables: &Tables) -> u64 {
    let ttls = tables.sessions().values().map(|session| session.ttl_ms);
    // A life that begins while the one before it waits owes that wait as well.
    ttls.max().unwrap_or(0).max(tables.cluster().grants_held_ms).max(LEAST_HOLD_MS)
}

/// No holder of the life before can believe in a lease any more: whoever waits is granted.
pub(super) fn open_grants(
    draft: &mut Draft<'_>,
    incarnation: Incarnation,
) -> Result<Reply, Rejection> {
    draft.bootstrapped()?;
    let row = draft.rows().cluster().clone();
    if incarnation != row.incarnation {
        return Err(Rejection::IncarnationStale { have: row.incarnation, got: incarnation });
    }
    if row.grants_held_ms == 0 {
        return Ok(Reply::Unchanged { revision: row.changed });
    }
    if !election::grant_free(draft) {
        // The leader proposes the rest as long as the row says that grants are held back.
        return Ok(Reply::Done { revision: draft.revision });
    }
    let (name, changed) = (row.name.clone(), draft.revision);
    let outcome = format!("grants were held back for ttls of {} ms", row.grants_held_ms);
    draft.set_cluster(ClusterRow { grants_held_ms: 0, changed, ..row });
    draft.note("cluster.grants", &name, "no lease of the life before is believed in", &outcome);
    Ok(Reply::Done { revision: draft.revision })
}

fn void_elections(draft: &mut Draft<'_>) -> usize {
    let placed: Vec<_> = draft
        .rows()
        .elections()
        .iter()
        .filter(|(_, row)| row.holder.is_some() || !row.queue.is_empty())
        .map(|(name, row)| (name.clone(), row.clone()))
        .collect();
    let mut held = 0;
    for (name, row) in placed {
        held += usize::from(row.holder.is_some());
        let Election { epoch, preferred, created, .. } = Election::clone(&row);
        let changed = draft.revision;
        let row = Election { epoch, holder: None, queue: Vec::new(), preferred, created, changed };
        draft.set_election(&name, Some(row));
    }
    held
}

fn void_partitions(draft: &mut Draft<'_>) -> usize {
    let owned: Vec<_> = draft
        .rows()
        .partitions()
        .iter()
        .filter(|(_, row)| row.owner.is_some())
        .map(|(key, row)| (key.clone(), row.epoch))
        .collect();
    for (key, epoch) in &owned {
        let row = Partition { epoch: *epoch, owner: None, changed: draft.revision };
        draft.set_partition(key, Some(row));
    }
    owned.len()
}

fn unadopt_services(draft: &mut Draft<'_>) {
    let rows: Vec<_> = draft
        .rows()
        .services()
        .iter()
        .filter(|(_, row)| row.life != Life::Unadopted)
        .map(|(name, row)| (name.clone(), row.clone()))
        .collect();
    for (name, row) in rows {
        let changed = draft.revision;
        let row = Service { life: Life::Unadopted, changed, ..Service::clone(&row) };
        draft.set_service(&name, Some(row));
    }
}

/// Changes the profile; what is leased or declared already must still satisfy C6.
pub(super) fn set_timing(draft: &mut Draft<'_>, timing: Timing) -> Result<Reply, Rejection> {
    draft.bootstrapped()?;
    check_timing(&timing)?;
    let row = draft.rows().cluster().clone();
    if row.timing == timing {
        return Ok(Reply::Done { revision: row.changed });
    }
    for (id, session) in draft.rows().sessions() {
        let ask = session.ask();
        if !timing.allows(&ask) {
            return Err(Rejection::TtlTooShort {
                ttl_ms: ask.ttl_ms,
                least_ms: timing.least_ttl_like(&ask),
                terms: format!("session {id} of {}: {}", session.owner, timing.terms(&ask)),
            });
        }
    }
    for (name, service) in draft.rows().services() {
        let problems = service.spec.validate(&timing);
        service::first_problem(problems, &format!("services.{name}."))?;
    }
    let outcome = format!(
        "heartbeat {} ms, election {} to {} ms, commit tick {} ms, round {} ms, dial {} ms",
        timing.heartbeat_ms,
        timing.election_min_ms,
        timing.election_max_ms,
        timing.commit_tick_ms,
        timing.round_ms,
        timing.dial_ms
    );
    let name = row.name.clone();
    draft.set_cluster(ClusterRow { timing, changed: draft.revision, ..row });
    draft.note("cluster.timing", &name, "", &outcome);
    Ok(Reply::Done { revision: draft.revision })
}

/// Raises the level. Whether this binary can read it is not asked here (see [`super::version`]).
pub(super) fn raise_feature_level(draft: &mut Draft<'_>, to: u32) -> Result<Reply, Rejection> {
    draft.bootstrapped()?;
    let row = draft.rows().cluster().clone();
    let have = row.feature_level;
    if to < have {
        return Err(Rejection::Invalid {
            field: "to".to_owned(),
            problem: format!("feature level {to} is below {have}"),
            fix: "a level is never lowered: entries of it are in the logs".to_owned(),
        });
    }
    if to == have {
        return Ok(Reply::Done { revision: row.changed });
    }
    let name = row.name.clone();
    draft.set_cluster(ClusterRow { feature_level: to, changed: draft.revision, ..row });
    draft.note("cluster.feature_level", &name, "", &format!("from {have} to {to}"));
    Ok(Reply::Done { revision: draft.revision })
}

/// Records a node's start. A disk that is not the recorded one, or is older than recorded, may have
/// forgotten a vote or an acknowledged entry: its node may not vote (PROTOCOL.md B).
pub(super) fn record_boot(
    draft: &mut Draft<'_>,
    node: NodeId,
    start: NodeBoot,
) -> Result<Reply, Rejection> {
    let mut row = draft.rows().cluster().clone();
    if let Some(was) = row.boots.get(&node) {
        let same = (was.disk, was.boot, was.nonce) == (start.disk, start.boot, start.nonce);
        if same {
            return Ok(Reply::Done { revision: was.recorded });
        }
        if was.disk != start.disk || start.boot <= was.boot {
            let (recorded, reported) = (was.boot, start.boot);
            return Err(Rejection::DiskWentBack { node, recorded, reported });
        }
    } else if row.boots.len() >= MAX_NODES {
        let what = "nodes ever started".to_owned();
        return Err(Rejection::Quota { what, limit: MAX_NODES as u64 });
    }
    let outcome = format!("boot {} on disk {:016x}", start.boot, start.disk);
    row.boots.insert(node, NodeBoot { recorded: draft.revision, ..start });
    row.highest_node = row.highest_node.max(node);
    row.changed = draft.revision;
    draft.set_cluster(row);
    draft.note("node.boot", &format!("node {node}"), "", &outcome);
    Ok(Reply::Done { revision: draft.revision })
}

/// Allocates a node id: the revision, unless a node of the first hours has a higher one already.
pub(super) fn allocate_node(draft: &mut Draft<'_>, label: &str) -> Result<Reply, Rejection> {
    check_text("label", label, MAX_TEXT_BYTES)?;
    let mut row = draft.rows().cluster().clone();
    let node = NodeId(draft.revision.0.max(row.highest_node.0.saturating_add(1)));
    row.highest_node = node;
    row.changed = draft.revision;
    draft.set_cluster(row);
    draft.note("node.allocated", &format!("node {node}"), "", label);
    Ok(Reply::NodeAllocated { node, revision: draft.revision })
}

/// Takes over a membership that consensus has committed.
pub(super) fn set_members(draft: &mut Draft<'_>, voters: Vec<NodeId>, learners: Vec<NodeId>) {
    let mut row = draft.rows().cluster().clone();
    if row.voters == voters && row.learners == learners {
        return;
    }
    let list = |nodes: &[NodeId]| {
        let texts: Vec<_> = nodes.iter().map(NodeId::to_string).collect();
        if texts.is_empty() { "none".to_owned() } else { texts.join(",") }
    };
    let was = format!("was: voters {}; learners {}", list(&row.voters), list(&row.learners));
    let outcome = format!("voters {}; learners {}", list(&voters), list(&learners));
    let highest = voters.iter().chain(&learners).copied().max().unwrap_or_default();
    row.highest_node = row.highest_node.max(highest);
    row.voters = voters;
    row.learners = learners;
    row.changed = draft.revision;
    draft.set_cluster(row);
    draft.note("members.changed", "cluster", &was, &outcome);
}

fn check_timing(timing: &Timing) -> Result<(), Rejection> {
    timing.check().map_err(|TimingError { field, problem, fix }| Rejection::Invalid {
        field: format!("timing.{field}"),
        problem,
        fix: fix.to_owned(),
    })
}
