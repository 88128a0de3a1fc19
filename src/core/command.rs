//! What can be asked of the replicated state: one closed enum, the only way to change it.
//!
//! A command names what it saw (a revision, a renewal number, an epoch), so that `apply` can judge
//! it from the log alone. None carries a local clock; wall time is for people.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::authz::{Principal, Verb};
use crate::id::{
    ClientId, ElectionName, Epoch, Incarnation, InstanceName, Locality, NodeId, Nonce,
    PartitionName, RenewalNumber, Revision, Serial, ServiceName, SessionId,
};
use crate::role::{AgentStart, FenceKind, HolderReport, Loss, Lsn, Phase, Receipt, StopInstant};
use crate::spec::ServiceSpec;
use crate::state::version::REPORTS_LEVEL;
use crate::time::WallMs;
use crate::timing::Timing;

/// Highest version of [`Entry`] and everything in it; an entry carries the one its command needs
/// ([`Command::level`]), so that a cluster of two releases goes on with what both can read. Lower
/// ones stay readable (N and N-1 run together); a higher one than the replicated feature level is
/// refused by every binary alike, and a binary that is too old for the level stops before it
/// misreads anything (see [`crate::state::version`]).
pub const ENTRY_VERSION: u16 = 7;

/// One log entry's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it takes to read it: at most [`ENTRY_VERSION`] of the proposer. It must stay the first
    /// field in every release: it is read before anything else is believed.
    pub version: u16,
    /// The proposer's wall clock, for people only.
    pub at: WallMs,
    /// Who asked; the node that took the request vouches for it.
    pub by: Principal,
    /// For deduplication: a command sent again is answered with the first one's reply.
    pub request: Option<Request>,
    /// What the command touches. It stands outside `body` so that an entry whose body cannot be
    /// read quarantines that one service and nothing else.
    pub scope: Scope,
    /// A [`Command`], encoded by [`Entry::new`].
    pub body: Vec<u8>,
}

/// Which attempt of which client lane a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The lane.
    pub client: ClientId,
    /// Its number in the lane.
    pub serial: Serial,
}

/// What an entry may touch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// Cluster-wide tables.
    Cluster,
    /// One service and its partitions.
    Service(ServiceName),
    /// One election.
    Election(ElectionName),
    /// Sessions, and through them the leases they hold.
    Sessions,
}

/// A condition on the row a command changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// Any state will do.
    #[default]
    Any,
    /// The row must not exist.
    Absent,
    /// The row must exist and was last changed by this revision.
    Revision(Revision),
}

/// Everything that can change the state. A command's place here is its number in the log, so a new
/// one goes to the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// First entry of a cluster's life: who it is and which timing it promises.
    Bootstrap { incarnation: Incarnation, cluster: String, timing: Timing },
    /// After a restore or a quorum-loss recovery: all sessions and leases are void, and nothing is
    /// granted while a lease of before with a ttl of `hold_ms` may be believed in (`None`: as long as
    /// the longest ttl known). Never in a log: an offline verb applies it before the new life's first
    /// snapshot.
    BeginIncarnation { incarnation: Incarnation, reason: String, hold_ms: Option<u64> },
    /// Changes the Raft profile's promises; refused while a session's ttl would break C6.
    SetTiming { timing: Timing },
    /// Every member can read this level's commands; it only rises.
    RaiseFeatureLevel { to: u32 },
    /// A node started: its disk, its boot counter (PROTOCOL.md B).
    RecordBoot { node: NodeId, disk: u64, boot: u64, nonce: Nonce },
    /// A member was asked to be added: its id is this entry's revision.
    AllocateNode { label: String },
    /// Something people must be able to find later that no table holds (membership, backup, ...).
    RecordAct { verb: Verb, resource: String, outcome: String, reason: String },
    /// Attempts that were refused before they became commands (S14).
    RecordRefusals { refusals: Vec<Refusal> },

    /// Declares or changes a service.
    PutService { spec: Box<ServiceSpec>, expect: Expect },
    /// Removes a service.
    DeleteService { service: ServiceName, expect: Expect },
    /// A human looked at a quarantined service and lets it go on.
    ReleaseQuarantine { service: ServiceName, reason: String },
    /// Gives a partition to an instance (or to nobody) under a new epoch.
    AssignPartition {
        service: ServiceName,
        partition: PartitionName,
        to: Option<InstanceName>,
        seen: Epoch,
    },

    /// Opens a session; its id is this entry's revision.
    OpenSession {
        ttl_ms: u64,
        renew_interval_ms: u64,
        fence_budget_ms: u64,
        nonce: Nonce,
        label: String,
    },
    /// Extends sessions; one entry per tick for all that renewed (C4).
    RenewSessions { renewals: Vec<Renewal> },
    /// The client ends its session; its leases go to the next at once.
    CloseSession { session: SessionId, nonce: Nonce },
    /// The leader saw these sessions lapse; each names the renewal it saw (C4).
    ExpireSessions { lapsed: Vec<Lapsed> },
    /// The leader saw these grants unused for the grant timeout (C8); ends their sessions, unless
    /// they confirmed another grant that is in force.
    ExpireGrants { unused: Vec<UnusedGrant> },

    /// Asks for the leadership of an election, or for a place in its queue.
    Campaign {
        election: ElectionName,
        session: SessionId,
        nonce: Nonce,
        priority: i32,
        locality: Locality,
        value: Vec<u8>,
    },
    /// Gives up the leadership or the place in the queue, whichever the session has. Who leads
    /// names its epoch instead: [`Command::ResignEpoch`].
    Resign { election: ElectionName, session: SessionId, nonce: Nonce },
    /// The holder publishes a value under its epoch.
    Proclaim { election: ElectionName, session: SessionId, epoch: Epoch, value: Vec<u8> },
    /// Sets where the leader of an election should rather be.
    PutElection { election: ElectionName, preferred: Locality, expect: Expect },
    /// Removes an election that nobody holds and nobody waits for.
    DeleteElection { election: ElectionName, expect: Expect },
    /// Gives up the leadership under `epoch` and nothing else: one that was delayed on its way ends
    /// no later lease of the session that the holder believes in (S5).
    ResignEpoch { election: ElectionName, session: SessionId, nonce: Nonce, epoch: Epoch },
    /// The leader waited until no holder of the life before `incarnation` can believe in its lease:
    /// elections are granted again.
    OpenGrants { incarnation: Incarnation },

    /// A start of an instance's agent, or a new session of the same start (B, E2).
    AcceptStart { service: ServiceName, instance: InstanceName, start: Box<AgentStart> },
    /// The first grant of a service (G): to an instance that reported, when all have.
    GrantFirst { service: ServiceName, candidate: InstanceName },
    /// Opens a role change (D): from here on the holder is fenced.
    OpenFence { service: ServiceName, kind: FenceKind, seen: Epoch, reason: String },
    /// A switchover's standbys are detached, once the holder has resigned.
    CutStandbys { service: ServiceName, fence: Revision },
    /// A failover takes over the switchover that is open.
    TakeOverFence { service: ServiceName, fence: Revision, verdict: String, reason: String },
    /// What instances have proved; sent by their agents.
    RecordReceipt { service: ServiceName, receipt: Box<Receipt> },
    /// A recruit fetches from another one of the same fence.
    OrderFetch { service: ServiceName, fence: Revision, to: InstanceName, from: InstanceName },
    /// The next epoch (D): refused unless OUT, COMPLETE and FREE are in the log.
    GrantRole {
        service: ServiceName,
        fence: Revision,
        candidate: InstanceName,
        loss: Loss,
        approval: Option<Revision>,
    },
    /// Gives a role change up before its grant.
    CloseFence { service: ServiceName, fence: Revision, reason: String },
    /// The sync set changes under one holder; `seen` is the revision of the set before.
    ChangeSet { service: ServiceName, seen: Revision, members: BTreeSet<InstanceName>, k: u32 },
    /// The holder saw a transaction, begun after the names of this set were in force, return under
    /// it: what went before is covered (D).
    ConfirmCovered { service: ServiceName, epoch: Epoch, set: Revision },
    /// The candidate is primary: verified by a canary.
    RecordPromotion { service: ServiceName, epoch: Epoch, timeline: u32, switch: Lsn },
    /// An operation enters a phase that no other command begins.
    AdvanceOperation { service: ServiceName, operation: Revision, phase: Phase },
    /// Asks people.
    OpenApproval {
        service: ServiceName,
        fence: Revision,
        candidate: InstanceName,
        loss: Loss,
        without_out: bool,
        question: String,
    },
    /// People answer.
    AnswerApproval { service: ServiceName, approval: Revision, granted: bool, reason: String },
    /// People keep Regent's hands off a service, or no longer (E5).
    SetPause { service: ServiceName, paused: bool, reason: String },

    /// [`Command::RenewSessions`], with what those of them say that renew the lease of a role. Each
    /// report names the place of its renewal; places rise. So the many that hold no role cost nothing.
    RenewHolders { renewals: Vec<Renewal>, reports: PlacedReports },
    /// [`Command::RecordReceipt`] of a holder that knows when its last process had ended.
    RecordStop { service: ServiceName, receipt: Box<Receipt>, stopped: StopInstant },
    /// Announces a switchover: the primary goes on and prepares for it. Its fence comes when it has.
    PlanSwitchover { service: ServiceName, to: Option<InstanceName>, seen: Epoch, reason: String },
    /// Takes the primary out of the routes before the fence of an announced switchover (S8).
    CloseRoutes { service: ServiceName, operation: Revision },
}

/// One session's renewal (C4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// Which session.
    pub session: SessionId,
    /// Which start of the client; another one is refused.
    pub nonce: Nonce,
    /// Rises by at least one each time it is sent anew.
    pub number: RenewalNumber,
    /// The newest number whose acknowledgement the client has seen.
    pub acked: RenewalNumber,
    /// The highest grant (revision of its epoch) the client knows it holds; a lease is confirmed
    /// when a renewal, or a proclamation under its epoch, names its grant or a later one (C8).
    pub known_grant: Revision,
}

/// A renewal on its way to the log, with what it says of the role that its session holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FullRenewal {
    /// As every session sends it.
    pub renewal: Renewal,
    /// Of the holder of a role. Boxed: a batch holds thousands that have none.
    pub report: Option<Box<HolderReport>>,
}

/// Reports beside renewals, each with the place of its renewal; places rise.
pub type PlacedReports = Vec<(u32, HolderReport)>;

impl FullRenewal {
    /// The two lists that a batch travels as.
    pub fn split(batch: &[Self]) -> (Vec<Renewal>, PlacedReports) {
        let report = |(full, place): (&Self, u32)| Some((place, *full.report.as_deref()?));
        let reports = batch.iter().zip(0u32..).filter_map(report).collect();
        (batch.iter().map(|full| full.renewal).collect(), reports)
    }

    /// The batch of two lists; a report of a place that is not there is dropped.
    pub fn join(renewals: Vec<Renewal>, reports: PlacedReports) -> Vec<Self> {
        let mut batch: Vec<Self> = renewals.into_iter().map(Self::from).collect();
        for (place, report) in reports {
            if let Some(full) = batch.get_mut(place as usize) {
                full.report = Some(Box::new(report));
            }
        }
        batch
    }
}

impl From<Renewal> for FullRenewal {
    fn from(renewal: Renewal) -> Self {
        Self { renewal, report: None }
    }
}

/// A session the leader believes lapsed, and the renewal it saw last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lapsed {
    /// Which session.
    pub session: SessionId,
    /// Compare-and-set: a renewal committed first wins.
    pub seen: RenewalNumber,
}

/// A grant the leader believes was never acted on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnusedGrant {
    /// Which election.
    pub election: ElectionName,
    /// Its epoch; compare-and-set together with "not confirmed".
    pub epoch: Epoch,
}

/// One refused attempt, for the audit chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Who tried, as its certificate said.
    pub by: String,
    /// What was tried.
    pub verb: Verb,
    /// On what.
    pub resource: String,
    /// Why it was refused.
    pub reason: String,
    /// How often since the last record of the same kind.
    pub count: u32,
}

impl Entry {
    /// Encodes `command` for the log.
    pub fn new(at: WallMs, by: Principal, request: Option<Request>, command: &Command) -> Self {
        let body = postcard::to_stdvec(command).expect("a command has no type postcard refuses");
        Self { version: command.level(), at, by, request, scope: command.scope(), body }
    }

    /// The bytes that go into the log.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("an entry has no type postcard refuses")
    }

    /// Reads an entry back.
    ///
    /// # Errors
    /// The decoder's own error; the caller decides what a poison entry means.
    pub fn decode(bytes: &[u8]) -> Result<Self, postcard::Error> {
        postcard::from_bytes(bytes)
    }

    /// The command inside.
    ///
    /// # Errors
    /// The decoder's own error.
    pub fn command(&self) -> Result<Command, postcard::Error> {
        postcard::from_bytes(&self.body)
    }
}

impl Command {
    /// The entry for a batch of renewals in a cluster at this feature level: reports travel only where
    /// every member can read them.
    pub fn renew(batch: &[FullRenewal], feature_level: u32) -> Self {
        let (renewals, reports) = FullRenewal::split(batch);
        if feature_level < REPORTS_LEVEL || reports.is_empty() {
            return Self::RenewSessions { renewals };
        }
        Self::RenewHolders { renewals, reports }
    }

    /// The feature level that every member must have before this command may be in the log: it goes
    /// into [`Entry::version`].
    pub fn level(&self) -> u16 {
        match self {
            Self::AcceptStart { .. }
            | Self::GrantFirst { .. }
            | Self::OpenFence { .. }
            | Self::CutStandbys { .. }
            | Self::TakeOverFence { .. }
            | Self::RecordReceipt { .. }
            | Self::OrderFetch { .. }
            | Self::GrantRole { .. }
            | Self::CloseFence { .. }
            | Self::ChangeSet { .. }
            | Self::ConfirmCovered { .. }
            | Self::RecordPromotion { .. }
            | Self::AdvanceOperation { .. }
            | Self::OpenApproval { .. }
            | Self::AnswerApproval { .. }
            | Self::SetPause { .. } => 2,
            Self::RenewHolders { .. } | Self::RecordStop { .. } => 3,
            Self::PlanSwitchover { .. } => 4,
            Self::CloseRoutes { .. } => 7,
            Self::PutService { spec, .. } => spec.policy.level() as u16,
            _ => 1,
        }
    }

    /// What this command may touch.
    pub fn scope(&self) -> Scope {
        match self {
            Self::PutService { spec, .. } => Scope::Service(spec.name.clone()),
            Self::DeleteService { service, .. }
            | Self::ReleaseQuarantine { service, .. }
            | Self::AssignPartition { service, .. }
            | Self::AcceptStart { service, .. }
            | Self::GrantFirst { service, .. }
            | Self::OpenFence { service, .. }
            | Self::CutStandbys { service, .. }
            | Self::TakeOverFence { service, .. }
            | Self::RecordReceipt { service, .. }
            | Self::OrderFetch { service, .. }
            | Self::GrantRole { service, .. }
            | Self::CloseFence { service, .. }
            | Self::ChangeSet { service, .. }
            | Self::ConfirmCovered { service, .. }
            | Self::RecordPromotion { service, .. }
            | Self::AdvanceOperation { service, .. }
            | Self::OpenApproval { service, .. }
            | Self::AnswerApproval { service, .. }
            | Self::SetPause { service, .. }
            | Self::RecordStop { service, .. }
            | Self::PlanSwitchover { service, .. }
            | Self::CloseRoutes { service, .. } => Scope::Service(service.clone()),
            Self::Campaign { election, .. }
            | Self::Resign { election, .. }
            | Self::ResignEpoch { election, .. }
            | Self::Proclaim { election, .. }
            | Self::PutElection { election, .. }
            | Self::DeleteElection { election, .. } => Scope::Election(election.clone()),
            Self::OpenSession { .. }
            | Self::RenewSessions { .. }
            | Self::RenewHolders { .. }
            | Self::CloseSession { .. }
            | Self::ExpireSessions { .. }
            | Self::ExpireGrants { .. } => Scope::Sessions,
            Self::Bootstrap { .. }
            | Self::BeginIncarnation { .. }
            | Self::OpenGrants { .. }
            | Self::SetTiming { .. }
            | Self::RaiseFeatureLevel { .. }
            | Self::RecordBoot { .. }
            | Self::AllocateNode { .. }
            | Self::RecordAct { .. }
            | Self::RecordRefusals { .. } => Scope::Cluster,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renewal() -> Renewal {
        Renewal {
            session: SessionId(3),
            nonce: Nonce(4),
            number: RenewalNumber(5),
            acked: RenewalNumber(4),
            known_grant: Revision(2),
        }
    }

    fn report() -> HolderReport {
        HolderReport {
            armed: crate::role::Armed::Armed,
            boot: crate::role::MachineBoot(u64::MAX),
            sent: crate::role::HolderInstant(3_600_000_000),
            watermark: None,
            pause: None,
            policy: Revision(9),
            set: None,
        }
    }

    #[test]
    fn renewals_without_a_report_cost_what_they_always_did_and_one_with_it_a_few_bytes() {
        let size = |batch: &[FullRenewal], level| {
            let command = Command::renew(batch, level);
            (postcard::to_stdvec(&command).expect("it encodes").len(), command.level())
        };
        let plain: Vec<FullRenewal> = (0..1_000).map(|_| renewal().into()).collect();
        let mut one = plain.clone();
        one[700].report = Some(Box::new(report()));
        assert_eq!(size(&plain, REPORTS_LEVEL), size(&plain, 1));
        let (renewals, reports) = FullRenewal::split(&one);
        assert_eq!(FullRenewal::join(renewals, reports), one);
        let ((many, level), (more, new)) = (size(&plain, 1), size(&one, REPORTS_LEVEL));
        assert_eq!((level, new), (1, 3));
        assert!(more - many < 30, "{more} {many}");
        assert_eq!(size(&one, REPORTS_LEVEL - 1), (many, 1), "a member could not read it");
    }

    #[test]
    fn a_command_keeps_the_number_under_which_it_is_in_old_logs() {
        let election = || "a".parse().expect("a name");
        let (session, nonce, expect) = (SessionId(3), Nonce(4), Expect::Any);
        let epoch = Epoch { incarnation: 1, revision: Revision(2) };
        let number = |command: &Command| postcard::to_stdvec(command).expect("it encodes")[0];
        let resign = Command::Resign { election: election(), session, nonce };
        assert_eq!(postcard::to_stdvec(&resign), Ok(vec![18, 1, b'a', 3, 4]));
        assert_eq!(number(&Command::DeleteElection { election: election(), expect }), 21);
        let under = Command::ResignEpoch { election: election(), session, nonce, epoch };
        assert_eq!(number(&under), 22);
        let service = || "s".parse().expect("a name");
        let pause = Command::SetPause { service: service(), paused: true, reason: String::new() };
        assert_eq!((number(&pause), pause.level()), (39, 2));
        let full = FullRenewal { renewal: renewal(), report: Some(Box::new(report())) };
        let holders = Command::renew(&[renewal().into(), full], REPORTS_LEVEL);
        assert_eq!((number(&holders), holders.level()), (40, 3));
        let (seen, reason) = (epoch, String::new());
        let plan = Command::PlanSwitchover { service: service(), to: None, seen, reason };
        assert_eq!((number(&plan), plan.level()), (42, 4));
        let candidate = "i".parse().expect("a name");
        assert_eq!(number(&Command::GrantFirst { service: service(), candidate }), 25);
        let by = Principal::cluster();
        assert_eq!(Entry::new(WallMs(0), by.clone(), None, &pause).version, 2);
        assert_eq!(Entry::new(WallMs(0), by, None, &resign).version, 1);
        let incarnation = Incarnation { counter: 1, id: 7 };
        assert_eq!(number(&Command::OpenGrants { incarnation }), 23);
    }
}
