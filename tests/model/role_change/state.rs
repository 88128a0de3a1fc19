//! All that there is: the committed state of one service, three instances with their disks, the
//! messages that were ever sent, and what clients were told.

use super::wal::{Position, Wal, WriteId};

/// An instance, by its number.
pub type Id = u8;
/// The instance that is primary at first and two standbys.
pub const INSTANCES: usize = 3;
/// Epochs there may be: the first and two role changes.
pub const EPOCHS: usize = 4;
/// Index of an entry; a fence or a directive is numbered by it.
pub type Index = u8;

/// Every instance.
pub fn instances() -> impl Iterator<Item = Id> {
    0..INSTANCES as Id
}

/// Every instance but one.
pub fn others(than: Id) -> impl Iterator<Item = Id> {
    instances().filter(move |id| *id != than)
}

/// Instances, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Members(pub u8);

impl Members {
    /// Whether an instance is one of them.
    pub fn has(self, id: Id) -> bool {
        self.0 & (1 << id) != 0
    }

    /// With one more.
    pub fn with(self, id: Id) -> Self {
        Self(self.0 | 1 << id)
    }

    /// Those that are in both.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// How many.
    pub fn count(self) -> u8 {
        self.0.count_ones() as u8
    }
}

/// (epoch, members, k): `k` of the members hold a write before it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SyncSet {
    /// The epoch it was committed in.
    pub epoch: u8,
    /// Who counts.
    pub members: Members,
    /// How many of them are enough.
    pub k: u8,
}

impl SyncSet {
    /// As few members as have one in common with whatever `k` of them acknowledged.
    pub fn quorum(self) -> u8 {
        self.members.count() - self.k + 1
    }
}

/// What an instance is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// Be primary under this epoch, with these names; the names may change under one epoch.
    Lead(SyncSet),
    /// Stream from this instance.
    Follow(Id),
    /// D, detach, under a fence.
    Detach(Index),
    /// D, fetch: stream from this recruit of the same fence; the pledge stands.
    Fetch(Id, Index),
    /// D, stop, under a fence.
    Stop(Index),
    /// D, kind = planned: stop fast, then Resign.
    Resign(Index),
}

/// An order with its revision; once issued, the network may deliver it at any time, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Directive {
    /// Index of the entry.
    pub revision: Index,
    /// For whom.
    pub to: Id,
    /// What.
    pub order: Order,
}

/// What a receipt says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Proof {
    /// `detached` and `recruited` in one: between them nothing changes any more.
    Recruited,
    /// No process, closed on disk.
    Stopped,
    /// An orderly stop; the position is E.
    Resigned,
}

/// A receipt; once sent, the network may deliver it at any time, twice, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Receipt {
    /// Whose.
    pub from: Id,
    /// For which fence.
    pub fence: Index,
    /// What it proves.
    pub proof: Proof,
    /// How far its flushed WAL reaches.
    pub position: Position,
    /// In which boot it was sent.
    pub boot: u8,
}

/// The one role change that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operation {
    /// Its fence.
    pub fence: Index,
    /// The planned operation's fence that a failover took over: its Resign stays valid.
    pub taken_over: Option<Index>,
    /// A switchover whose standbys keep their upstream until the Cut.
    pub uncut: bool,
}

/// What the coordinators have committed about the service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Log {
    /// Index of the last entry that matters.
    pub index: Index,
    /// Of the last grant.
    pub epoch: u8,
    /// Its holder.
    pub holder: Id,
    /// Whether a renewal of this epoch was committed (C8).
    pub confirmed: bool,
    /// What the holder is to use.
    pub set: SyncSet,
    /// Sets under which the holder may be able to acknowledge, in the order of their commits.
    pub a: Vec<SyncSet>,
    /// Sets whose acknowledgements may not be covered yet.
    pub c: Vec<SyncSet>,
    /// The open role change.
    pub op: Option<Operation>,
    /// Its receipts.
    pub receipts: [Option<Receipt>; INSTANCES],
    /// The boot counter of each instance.
    pub boots: [u8; INSTANCES],
    /// The last fence for which a receipt of each instance was committed.
    pub pledged: [Index; INSTANCES],
    /// Instances whose disk went back.
    pub quarantined: Members,
    /// Everything ever ordered.
    pub directives: Vec<Directive>,
}

/// What stands on disk about an instance's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Config {
    /// May be started as primary of an epoch, by its agent only.
    Lead(u8),
    /// A standby with an upstream.
    Follow(Id),
    /// A standby without one.
    Detached,
    /// Nothing may be started.
    Closed,
}

/// What survives a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Disk {
    /// The WAL; every record is flushed as it is written.
    pub wal: Wal,
    /// The role.
    pub config: Config,
    /// The sync set, as far as the names are on disk.
    pub names: SyncSet,
    /// Highest directive revision obeyed.
    pub seen: Index,
    /// The last fence it was detached under.
    pub pledge: Index,
    /// Last epoch it was promoted in.
    pub promoted: u8,
    /// Starts of the agent that the log accepted.
    pub boot: u8,
}

/// What runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Run {
    /// Nothing.
    Down,
    /// The agent, whose boot counter nobody has judged yet.
    Unjudged,
    /// The agent, without PostgreSQL.
    Idle,
    /// A standby.
    Standby,
    /// A primary in its orderly shutdown: no sessions, its walsenders still send.
    Stopping,
    /// A primary.
    Primary,
}

/// An instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Instance {
    /// What survives.
    pub disk: Disk,
    /// What runs.
    pub run: Run,
    /// To whom its walreceiver is connected.
    pub upstream: Option<Id>,
    /// Highest directive revision this process knows of; equal to the disk's, unless a rule is off.
    pub seen: Index,
    /// Names that every backend and walsender of the primary uses.
    pub names: SyncSet,
    /// Names of a reload that some of them have read and others not.
    pub reloading: Option<SyncSet>,
    /// Whether a renewal of its epoch was acknowledged, since its last crash.
    pub renewed: bool,
}

/// One write of a client, from its WAL record on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    /// Its primary.
    pub by: Id,
    /// Under which epoch.
    pub epoch: u8,
    /// Begun after a newer epoch was granted.
    pub late: bool,
    /// The names when it began, if there was no reload under way.
    pub under: Option<SyncSet>,
    /// Who told its primary to have flushed it.
    pub flushed: Members,
    /// The client was told that it is committed.
    pub acked: bool,
    /// The client lost its connection before.
    pub aborted: bool,
    /// An approval named its loss.
    pub given_up: bool,
}

/// How often what has happened; the bounds are in [`Bounds`](super::Bounds).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Used {
    /// Role changes opened.
    pub operations: u8,
    /// Planned ones among them.
    pub planned: u8,
    /// Set changes.
    pub sets: u8,
    /// Crashes.
    pub crashes: u8,
    /// Disks that went back.
    pub disks: u8,
    /// Fetches.
    pub fetches: u8,
    /// Fences closed without a grant.
    pub closed: u8,
    /// Approvals.
    pub approvals: u8,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The coordinators.
    pub log: Log,
    /// The instances.
    pub instances: [Instance; INSTANCES],
    /// Receipts on their way.
    pub sent: Vec<Receipt>,
    /// Writes, by their number.
    pub writes: Vec<Write>,
    /// The WAL of each epoch's primary when it was promoted.
    pub base: [Option<Wal>; EPOCHS],
    /// Epochs whose grant the law would not have allowed.
    pub unproven: u8,
    /// Epochs that are covered.
    pub covered: u8,
    /// What has happened.
    pub used: Used,
}

impl State {
    /// An instance.
    pub fn instance(&self, id: Id) -> &Instance {
        &self.instances[usize::from(id)]
    }

    /// An instance, to change it.
    pub fn instance_mut(&mut self, id: Id) -> &mut Instance {
        &mut self.instances[usize::from(id)]
    }

    /// A write.
    pub fn write(&self, id: WriteId) -> &Write {
        &self.writes[usize::from(id)]
    }

    /// Whether the sets of an epoch were covered.
    pub fn is_covered(&self, epoch: u8) -> bool {
        self.covered & 1 << epoch != 0
    }
}
