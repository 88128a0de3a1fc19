//! What an agent knows of its instance at one instant.

use crate::id::{Epoch, InstanceName, Revision};
use crate::role::observe::Run;
use crate::role::{Position, Proof};

/// Everything [`super::next`] looks at beside the notebook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    /// Who this is.
    pub me: InstanceName,
    /// Whether the log has accepted this start of the agent: before it nothing starts.
    pub accepted: bool,
    /// Whether writes may be served now, by a confirmed and held lease or by a certificate.
    pub may_serve: bool,
    /// Whether the *lease* is confirmed and held: only that starts or promotes a primary (C8, E4).
    pub holds_lease: bool,
    /// What lies on disk.
    pub data: Data,
    /// What runs.
    pub run: Run,
    /// Whether the postmaster answers queries.
    pub answers: bool,
    /// Whether a walreceiver is there.
    pub has_receiver: bool,
    /// Standby: that receives from its upstream, as far as it is known.
    pub streams: bool,
    /// Standby: it has had an upstream for long that answers, and does not stream.
    pub starved: bool,
    /// Standby: everything received is replayed, and the position stands.
    pub replayed: bool,
    /// Flushed end.
    pub position: Option<Position>,
    /// Standby: how far its WAL reached at the last look, though more may come.
    pub received: Option<Position>,
    /// The others have slots here.
    pub has_slots: bool,
    /// The set whose names are on disk and loaded.
    pub names: Option<Revision>,
    /// The set whose names every walsender and backend uses.
    pub in_force: Option<Revision>,
    /// Highest epoch written into the WAL.
    pub written: Epoch,
    /// Clients may connect.
    pub open: bool,
    /// The policy is strict, and commits of clients may wait for nobody: the names are not the set's.
    pub strange: bool,
    /// With clients let in: whom the policy refuses is not who is refused, or a session is to be ended.
    pub lowered: bool,
    /// Nobody but Regent's roles is in, and nobody can get in: known, not only hoped.
    pub shut: bool,
    /// A role change is open, and this is likely to be the next primary.
    pub expected: bool,
    /// Whether its WAL left the upstream's history; `None`: not known yet.
    pub diverged: Option<bool>,
    /// The first timeline that a promotion may begin; 0: nobody has said.
    pub timeline: u32,
    /// The epoch whose promotion the log knows of.
    pub promoted: Epoch,
    /// The log knows of it, and nobody is sent here all the same, nor is that about to be changed: a fence
    /// was given up.
    pub unrouted: bool,
    /// The set that the log knows to be covered.
    pub covered: Option<Revision>,
    /// The best receipt of this instance in the log.
    pub committed: Option<(Revision, Proof, Option<Position>)>,
    /// The last end of the postmaster was an orderly shutdown whose record is on disk.
    pub shut_down: bool,
    /// With nothing running: whether the end of every process was seen (namespace, cgroup), and not
    /// only looked for.
    pub proven: bool,
}

/// A data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// There is none.
    Empty,
    /// An interrupted rewind or clone, or damage: only a clone helps.
    Broken,
    /// A database.
    Present(OnDisk),
}

/// As what a database would start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnDisk {
    /// As a primary, closed (E3).
    Primary,
    /// As a standby of this instance, or of nobody.
    Standby(Option<InstanceName>),
}

impl World {
    /// Of whom it would be a standby; `None`: it is none.
    pub fn upstream(&self) -> Option<&Option<InstanceName>> {
        match &self.data {
            Data::Present(OnDisk::Standby(upstream)) => Some(upstream),
            _ => None,
        }
    }

    /// Whether any process of it runs.
    pub fn is_running(&self) -> bool {
        self.run != Run::Down
    }
}
