//! The way of one entry: read, deduplicate, run, check, and only then let it stand.
//!
//! Total: whatever the bytes, `apply` returns, and every replica returns the same. Three things can
//! go wrong with an entry, and none of them stops a node:
//!
//! - **A rule says no.** The handler checks before it writes, so nothing was written; the refusal
//!   is a reply and, where it was an attempt to act, an audit record.
//! - **It cannot be read** (its body, or all of it).
//! - **It breaks an invariant, or its handler panics.** The journal puts every row back.
//!
//! The last two are *poison*: if the envelope names a service, that service is quarantined, and
//! nothing else; otherwise the entry is refused and recorded. It is deterministic, so all replicas
//! quarantine the same service at the same revision and go on.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::audit::Note;
use super::cluster::{self, NodeBoot};
use super::election::{self, Bid};
use super::hash::Kind;
use super::invariants;
use super::journal::{Draft, Journal};
use super::lanes::{self, Verdict};
use super::version;
use super::{State, describe, partition, refusals, role, service, session};
use crate::authz::Principal;
use crate::command::{Command, Entry, Refusal, Scope};
use crate::effect::Applied;
use crate::id::{NodeId, Revision};
use crate::limits::{MAX_ENTRY_BYTES, MAX_REFUSALS_PER_ENTRY, MAX_TEXT_BYTES};
use crate::reply::{Rejection, RejectionKind, Reply};
use crate::time::WallMs;
use crate::timing::TtlAsk;

/// What an entry came to, before it stands.
struct Outcome {
    at: WallMs,
    reply: Reply,
    journal: Journal,
}

impl State {
    /// Applies one entry. Total: whatever the bytes, it returns, and replicas return the same.
    ///
    /// Revisions must rise. One that does not, and any entry behind a [`version::Barrier`], changes
    /// nothing at all and is answered with a rejection: both mean that the shell is wrong or must
    /// stop, and neither may be taken for a state transition.
    pub fn apply(&mut self, revision: Revision, bytes: &[u8]) -> Applied {
        if let Some(refused) = self.out_of_turn(revision) {
            return unchanged(revision, refused);
        }
        let outcome = self.judge(revision, bytes);
        self.stand(Kind::Command, revision, bytes, outcome)
    }

    /// Applies a membership entry. Consensus has checked it; here it is kept and recorded.
    pub fn apply_membership(
        &mut self,
        revision: Revision,
        voters: &[NodeId],
        learners: &[NodeId],
    ) -> Applied {
        if let Some(refused) = self.out_of_turn(revision) {
            return unchanged(revision, refused);
        }
        let sorted = |nodes: &[NodeId]| {
            let mut nodes = nodes.to_vec();
            nodes.sort_unstable();
            nodes.dedup();
            nodes
        };
        let (voters, learners) = (sorted(voters), sorted(learners));
        let mut entry = Vec::new();
        for node in voters.iter().chain([&NodeId(u64::MAX)]).chain(&learners) {
            entry.extend_from_slice(&node.0.to_le_bytes());
        }
        let by = Principal::cluster();
        let mut journal = Journal::default();
        let mut draft = Draft::new(&mut self.tables, &mut journal, revision, &by, self.at);
        cluster::set_members(&mut draft, voters, learners);
        // Raft's own entries carry no wall time; the newest one known says "not before".
        let outcome = Outcome { at: self.at, reply: Reply::Done { revision }, journal };
        self.stand(Kind::Members, revision, &entry, outcome)
    }

    /// Applies an empty entry, as a new leader writes it.
    pub fn apply_blank(&mut self, revision: Revision) -> Applied {
        if let Some(refused) = self.out_of_turn(revision) {
            return unchanged(revision, refused);
        }
        let journal = Journal::default();
        let outcome = Outcome { at: self.at, reply: Reply::Done { revision }, journal };
        self.stand(Kind::Blank, revision, &[], outcome)
    }

    fn out_of_turn(&self, revision: Revision) -> Option<Rejection> {
        if let Some(barrier) = self.barrier() {
            return Some(Rejection::FeatureLevel { need: barrier.cluster, have: barrier.binary });
        }
        if revision <= self.revision {
            let why = format!("revision {revision} was applied already");
            return Some(Rejection::Poisoned { why });
        }
        None
    }

    fn judge(&mut self, revision: Revision, bytes: &[u8]) -> Outcome {
        let level = self.cluster().feature_level;
        let unreadable = Principal::cluster();
        if bytes.len() > MAX_ENTRY_BYTES {
            let what = "bytes of an entry".to_owned();
            let refused = Rejection::Quota { what, limit: MAX_ENTRY_BYTES as u64 };
            return self.refused_unread(refused);
        }
        match version::of_entry(bytes) {
            Some(version) if u32::from(version) > level => {
                let refused = Rejection::FeatureLevel { need: version.into(), have: level };
                return self.refused_unread(refused);
            }
            Some(version) if version > 0 => {}
            _ => return self.poisoned(revision, self.at, &unreadable, None, UNREADABLE_ENTRY),
        }
        let Some(entry) = read::<Entry>(bytes) else {
            return self.poisoned(revision, self.at, &unreadable, None, UNREADABLE_ENTRY);
        };
        self.at = entry.at;
        if let Some(request) = entry.request {
            match self.lanes.judge(request, &entry.by) {
                Verdict::Run => {}
                Verdict::Again(reply) => {
                    return Outcome { at: entry.at, reply, journal: Journal::default() };
                }
                Verdict::Refused(refused) => {
                    let resource = describe::scope(&entry.scope);
                    return refuse(&entry, "request", &resource, refused, Journal::default());
                }
            }
        }
        let (outcome, keep) = self.judge_body(revision, &entry);
        if let Some(request) = entry.request.filter(|_| keep) {
            self.lanes.keep(request, &entry.by, &outcome.reply, revision);
        }
        outcome
    }

    fn judge_body(&mut self, revision: Revision, entry: &Entry) -> (Outcome, bool) {
        let (at, by, scope) = (entry.at, &entry.by, Some(&entry.scope));
        let Some(command) = read::<Command>(&entry.body) else {
            return (self.poisoned(revision, at, by, scope, UNREADABLE_BODY), true);
        };
        if command.scope() != entry.scope {
            return (self.poisoned(revision, at, by, scope, WRONG_SCOPE), true);
        }
        let keep = lanes::is_kept(&command);
        let (attempt, resource) = (describe::attempt(&command), describe::resource(&command));
        let outcome = match self.attempt(revision, by, |draft| run(draft, command)) {
            Ok((Ok(reply), journal)) => Outcome { at, reply, journal },
            Ok((Err(refused), journal)) => refuse(entry, attempt, &resource, refused, journal),
            Err(why) => self.poisoned(revision, at, by, scope, &why),
        };
        (outcome, keep)
    }

    /// Runs `handler`; rolls back and says why if it left the state broken.
    pub(super) fn attempt(
        &mut self,
        revision: Revision,
        by: &Principal,
        handler: impl FnOnce(&mut Draft<'_>) -> Result<Reply, Rejection>,
    ) -> Result<(Result<Reply, Rejection>, Journal), String> {
        let mut journal = Journal::default();
        let mut draft = Draft::new(&mut self.tables, &mut journal, revision, by, self.at);
        // Sound: whatever a panic leaves half done is in the journal, and is put back below.
        let result = catch_unwind(AssertUnwindSafe(|| handler(&mut draft)));
        let broken = match &result {
            // The panic's own text is left out: another build could word it differently.
            Err(_) => Some("its handler panicked".to_owned()),
            Ok(Err(_)) if !journal.is_clean() => Some("it was refused after it wrote".to_owned()),
            Ok(_) => invariants::check_touched(&self.tables, &journal, revision)
                .err()
                .map(|broken| broken.to_string()),
        };
        match (result, broken) {
            (Ok(result), None) => Ok((result, journal)),
            (_, broken) => {
                journal.roll_back(&mut self.tables);
                Err(broken.unwrap_or_default())
            }
        }
    }

    /// An entry that could not be read or was rolled back.
    fn poisoned(
        &mut self,
        revision: Revision,
        at: WallMs,
        by: &Principal,
        scope: Option<&Scope>,
        why: &str,
    ) -> Outcome {
        let mut journal = Journal::default();
        let mut draft = Draft::new(&mut self.tables, &mut journal, revision, by, self.at);
        let quarantined = match scope {
            Some(Scope::Service(name)) => service::quarantine(&mut draft, name, why),
            _ => false,
        };
        if !quarantined {
            let resource = scope.map_or("unreadable".to_owned(), describe::scope);
            draft.note("entry.poisoned", &resource, why, "the entry was rolled back");
        }
        let reply = Reply::Rejected(Rejection::Poisoned { why: why.to_owned() });
        Outcome { at, reply, journal }
    }

    /// An entry that was refused before its envelope was read: nobody knows who sent it.
    fn refused_unread(&self, refused: Rejection) -> Outcome {
        let mut journal = Journal::default();
        let note = refusals::note("unknown", "entry", "unreadable", "", &outcome_of(&refused));
        journal.refused.push((note, refused.rule().to_owned(), 1));
        Outcome { at: self.at, reply: Reply::Rejected(refused), journal }
    }

    /// Lets an outcome stand: audit records, hash, revision, effects.
    fn stand(&mut self, kind: Kind, revision: Revision, bytes: &[u8], outcome: Outcome) -> Applied {
        let Outcome { at, reply, mut journal } = outcome;
        let mut notes = std::mem::take(&mut journal.notes);
        for (note, rule, count) in std::mem::take(&mut journal.refused) {
            notes.extend(self.refusals.take(note, &rule, count, revision));
        }
        let incarnation = self.tables.cluster().incarnation.counter;
        let audit: Vec<_> = notes
            .into_iter()
            .map(|note| self.audit.push(note, revision, incarnation, at))
            .collect();

        self.mixer.start(self.hash, kind, revision, bytes);
        self.mixer.reply(&reply);
        self.mixer.rows(&journal, &self.tables);
        if !audit.is_empty() {
            self.mixer.audit(&self.audit.head().hash);
        }
        self.hash = self.mixer.finish();
        self.revision = revision;

        let changes = journal.changes(&self.tables);
        Applied { revision, reply, changes, clocks: journal.clocks, audit }
    }
}

const UNREADABLE_ENTRY: &str = "the entry cannot be read";
const UNREADABLE_BODY: &str = "its body cannot be read";
const WRONG_SCOPE: &str = "its command does not match the scope it declares";

/// Decodes all of `bytes`; what is left over is as bad as what is missing.
fn read<'b, T: serde::Deserialize<'b>>(bytes: &'b [u8]) -> Option<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Some(value),
        _ => None,
    }
}

fn unchanged(revision: Revision, refused: Rejection) -> Applied {
    let reply = Reply::Rejected(refused);
    Applied { revision, reply, changes: vec![], clocks: vec![], audit: vec![] }
}

/// A refusal by a rule. A lost compare-and-set and a late duplicate are part of normal work; all
/// else was an attempt to act and is recorded (S14).
fn refuse(
    entry: &Entry,
    attempt: &'static str,
    resource: &str,
    refused: Rejection,
    mut journal: Journal,
) -> Outcome {
    let normal = refused.kind() == RejectionKind::Conflict
        || matches!(refused, Rejection::SerialStale { .. });
    if !normal {
        let who = entry.by.to_string();
        let note = refusals::note(&who, attempt, resource, "", &outcome_of(&refused));
        journal.refused.push((note, refused.rule().to_owned(), 1));
    }
    Outcome { at: entry.at, reply: Reply::Rejected(refused), journal }
}

fn outcome_of(refused: &Rejection) -> String {
    format!("refused: {refused}")
}

fn run(draft: &mut Draft<'_>, command: Command) -> Result<Reply, Rejection> {
    match command {
        Command::Bootstrap { incarnation, cluster, timing } => {
            cluster::bootstrap(draft, incarnation, cluster, timing)
        }
        Command::BeginIncarnation { incarnation, reason, hold_ms } => {
            cluster::begin_incarnation(draft, incarnation, &reason, hold_ms)
        }
        Command::OpenGrants { incarnation } => cluster::open_grants(draft, incarnation),
        Command::SetTiming { timing } => cluster::set_timing(draft, timing),
        Command::RaiseFeatureLevel { to } => cluster::raise_feature_level(draft, to),
        Command::RecordBoot { node, disk, boot, nonce } => {
            let recorded = draft.revision;
            cluster::record_boot(draft, node, NodeBoot { disk, boot, nonce, recorded })
        }
        Command::AllocateNode { label } => cluster::allocate_node(draft, &label),
        Command::RecordAct { verb, resource, outcome, reason } => {
            for (field, text) in
                [("resource", &resource), ("outcome", &outcome), ("reason", &reason)]
            {
                describe::check_text(field, text, MAX_TEXT_BYTES)?;
            }
            draft.note(verb.as_str(), &resource, &reason, &outcome);
            Ok(Reply::Done { revision: draft.revision })
        }
        Command::RecordRefusals { refusals } => record_refusals(draft, &refusals),
        Command::PutService { spec, expect } => service::put(draft, *spec, expect),
        Command::DeleteService { service, expect } => service::delete(draft, &service, expect),
        Command::ReleaseQuarantine { service, reason } => {
            service::release(draft, &service, &reason)
        }
        Command::AssignPartition { service, partition, to, seen } => {
            partition::assign(draft, &service, &partition, to, seen)
        }
        Command::OpenSession { ttl_ms, renew_interval_ms, fence_budget_ms, nonce, label } => {
            let ask = TtlAsk { ttl_ms, renew_interval_ms, fence_budget_ms };
            session::open(draft, ask, nonce, label)
        }
        Command::RenewSessions { renewals } => session::renew(draft, &renewals, &[]),
        Command::RenewHolders { renewals, reports } => session::renew(draft, &renewals, &reports),
        Command::CloseSession { session, nonce } => session::close(draft, session, nonce),
        Command::ExpireSessions { lapsed } => session::expire(draft, &lapsed),
        Command::ExpireGrants { unused } => election::expire_grants(draft, &unused),
        Command::Campaign { election, session, nonce, priority, locality, value } => {
            let bid = Bid { session, nonce, priority, locality, value };
            election::campaign(draft, &election, bid)
        }
        Command::Resign { election, session, nonce } => {
            election::resign(draft, &election, session, nonce)
        }
        Command::ResignEpoch { election, session, nonce, epoch } => {
            election::resign_epoch(draft, &election, session, nonce, epoch)
        }
        Command::Proclaim { election, session, epoch, value } => {
            election::proclaim(draft, &election, session, epoch, value)
        }
        Command::PutElection { election, preferred, expect } => {
            election::put(draft, &election, preferred, expect)
        }
        Command::DeleteElection { election, expect } => election::delete(draft, &election, expect),
        Command::AcceptStart { .. }
        | Command::GrantFirst { .. }
        | Command::OpenFence { .. }
        | Command::CutStandbys { .. }
        | Command::TakeOverFence { .. }
        | Command::RecordReceipt { .. }
        | Command::OrderFetch { .. }
        | Command::GrantRole { .. }
        | Command::CloseFence { .. }
        | Command::ChangeSet { .. }
        | Command::ConfirmCovered { .. }
        | Command::RecordPromotion { .. }
        | Command::AdvanceOperation { .. }
        | Command::OpenApproval { .. }
        | Command::AnswerApproval { .. }
        | Command::SetPause { .. }
        | Command::RecordStop { .. }
        | Command::PlanSwitchover { .. }
        | Command::CloseRoutes { .. } => role::run(draft, command),
    }
}

fn record_refusals(draft: &mut Draft<'_>, refusals: &[Refusal]) -> Result<Reply, Rejection> {
    if refusals.len() > MAX_REFUSALS_PER_ENTRY {
        let what = "refusals in one entry".to_owned();
        return Err(Rejection::Quota { what, limit: MAX_REFUSALS_PER_ENTRY as u64 });
    }
    for Refusal { by, verb, resource, reason, count } in refusals {
        let outcome = format!("refused {count} times");
        let note: Note = refusals::note(by, verb.as_str(), resource, reason, &outcome);
        let rule = note.why.clone();
        draft.refuse(note, rule, u64::from(*count));
    }
    Ok(Reply::Done { revision: draft.revision })
}
