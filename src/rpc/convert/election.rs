//! Sessions, renewals and elections.

use regent_core::command::{Command, FullRenewal, Renewal};
use regent_core::id::{ElectionName, Epoch, Nonce, RenewalNumber, Revision, SessionId};
use regent_core::lease::holder::Answer;
use regent_core::limits::MAX_TTL_MS;
use regent_core::reply::RenewalOutcome;
use regent_core::role::{Armed, HolderInstant, HolderReport, MachineBoot, Watermark};
use regent_core::state::election::{Candidate, Election, Holder};
use regent_core::timing::TtlAsk;

use super::Invalid;
use super::common::{
    election_name, epoch, epoch_in, epoch_out, expect, locality, locality_out, positive, text,
    value,
};
use super::role::{position_in, position_out};
use crate::limits::MAX_RENEWALS_PER_MESSAGE;
use crate::pb::v1;

/// Default time a client needs to stop acting (C6), in milliseconds.
pub const FENCE_BUDGET_MS: u64 = 250;

/// `OpenSession`, with its defaults filled in: renew interval `min(500, ttl/10)`, fence budget 250.
///
/// # Errors
/// [`Invalid`] names the field. Whether C6 allows the ttl is the core's to say.
pub fn open_session(request: &v1::OpenSessionRequest) -> Result<Command, Invalid> {
    let ttl_ms = positive("ttl_ms", request.ttl_ms)?;
    if ttl_ms > MAX_TTL_MS {
        let problem = format!("{ttl_ms} is more than a day");
        return Err(Invalid::new("ttl_ms", problem, format!("the most is {MAX_TTL_MS}")));
    }
    let renew_interval_ms = match request.renew_interval_ms {
        0 => TtlAsk::default_interval_ms(ttl_ms),
        given => given,
    };
    let fence_budget_ms = match request.fence_budget_ms {
        0 => FENCE_BUDGET_MS,
        given => given,
    };
    for (field, ms) in
        [("renew_interval_ms", renew_interval_ms), ("fence_budget_ms", fence_budget_ms)]
    {
        if ms >= ttl_ms {
            let problem = format!("{ms} is not below the ttl of {ttl_ms} ms");
            return Err(Invalid::new(field, problem, "lower it or raise the ttl"));
        }
    }
    Ok(Command::OpenSession {
        ttl_ms,
        renew_interval_ms,
        fence_budget_ms,
        nonce: nonce("nonce", request.nonce)?,
        label: text("label", &request.label)?,
    })
}

/// `CloseSession`.
///
/// # Errors
/// [`Invalid`] names the field.
pub fn close_session(request: &v1::CloseSessionRequest) -> Result<Command, Invalid> {
    Ok(Command::CloseSession {
        session: session("session", request.session)?,
        nonce: nonce("nonce", request.nonce)?,
    })
}

/// `Campaign`.
///
/// # Errors
/// [`Invalid`] names the field.
pub fn campaign(request: &v1::CampaignRequest) -> Result<Command, Invalid> {
    Ok(Command::Campaign {
        election: election_name("election", &request.election)?,
        session: session("session", request.session)?,
        nonce: nonce("nonce", request.nonce)?,
        priority: request.priority,
        locality: locality("locality", request.locality.clone())?,
        value: value("value", &request.value)?,
    })
}

/// `Resign`.
///
/// # Errors
/// [`Invalid`] names the field.
pub fn resign(request: &v1::ResignRequest) -> Result<Command, Invalid> {
    let election = election_name("election", &request.election)?;
    let session = session("session", request.session)?;
    let nonce = nonce("nonce", request.nonce)?;
    Ok(match request.epoch.map(epoch_in) {
        Some(epoch) => Command::ResignEpoch { election, session, nonce, epoch },
        None => Command::Resign { election, session, nonce },
    })
}

/// `Proclaim`.
///
/// # Errors
/// [`Invalid`] names the field.
pub fn proclaim(request: &v1::ProclaimRequest) -> Result<Command, Invalid> {
    Ok(Command::Proclaim {
        election: election_name("election", &request.election)?,
        session: session("session", request.session)?,
        epoch: epoch("epoch", request.epoch)?,
        value: value("value", &request.value)?,
    })
}

/// `PutElection`.
///
/// # Errors
/// [`Invalid`] names the field.
pub fn put_election(request: &v1::PutElectionRequest) -> Result<Command, Invalid> {
    Ok(Command::PutElection {
        election: election_name("election", &request.election)?,
        preferred: locality("preferred", request.preferred.clone())?,
        expect: expect("expect", request.expect)?,
    })
}

/// `DeleteElection`.
///
/// # Errors
/// [`Invalid`] names the field.
pub fn delete_election(request: &v1::DeleteElectionRequest) -> Result<Command, Invalid> {
    Ok(Command::DeleteElection {
        election: election_name("election", &request.election)?,
        expect: expect("expect", request.expect)?,
    })
}

/// What an observer wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObserveScope {
    /// One election.
    One(ElectionName),
    /// All whose names begin with this.
    Prefix(String),
    /// All.
    All,
}

impl ObserveScope {
    /// Whether an election is seen.
    pub fn covers(&self, name: &ElectionName) -> bool {
        match self {
            Self::One(one) => one == name,
            Self::Prefix(prefix) => name.as_str().starts_with(prefix.as_str()),
            Self::All => true,
        }
    }

    /// Of a request.
    ///
    /// # Errors
    /// [`Invalid`] when none or more than one of `election`, `prefix` and `all` is set.
    pub fn of(request: &v1::ObserveRequest) -> Result<Self, Invalid> {
        match (request.election.as_str(), request.prefix.as_str(), request.all) {
            ("", "", true) => Ok(Self::All),
            (one, "", false) if !one.is_empty() => election_name("election", one).map(Self::One),
            ("", prefix, false) if !prefix.is_empty() => {
                // A prefix of a name has the characters of a name.
                election_name("prefix", prefix).map(|_| Self::Prefix(prefix.to_owned()))
            }
            ("", "", false) => Err(Invalid::new(
                "election",
                "it is not set",
                "name an election, give a prefix, or set all",
            )),
            _ => Err(Invalid::new(
                "election",
                "more than one of election, prefix and all is set",
                "set one",
            )),
        }
    }

    /// For the wire, without a place to go on from.
    pub fn request(&self) -> v1::ObserveRequest {
        let mut request = v1::ObserveRequest::default();
        match self {
            Self::One(name) => request.election = name.to_string(),
            Self::Prefix(prefix) => request.prefix.clone_from(prefix),
            Self::All => request.all = true,
        }
        request
    }
}

/// The renewals of one keep-alive message.
///
/// # Errors
/// [`Invalid`] for too many, or a renewal without session or number.
pub fn renewals(request: &v1::KeepAliveRequest) -> Result<Vec<FullRenewal>, Invalid> {
    let count = request.renewals.len();
    if count > MAX_RENEWALS_PER_MESSAGE {
        let problem = format!("it has {count} entries, the most is {MAX_RENEWALS_PER_MESSAGE}");
        return Err(Invalid::new("renewals", problem, "send more messages"));
    }
    let one = |renewal: &v1::Renewal| {
        let report = renewal.report.map(|report| Box::new(report_in(report)));
        let renewal = Renewal {
            session: session("session", renewal.session)?,
            nonce: Nonce(renewal.nonce),
            number: RenewalNumber(positive("number", renewal.number)?),
            acked: RenewalNumber(renewal.acked),
            known_grant: Revision(renewal.known_grant),
        };
        Ok(FullRenewal { renewal, report })
    };
    let all = request.renewals.iter().enumerate();
    all.map(|(at, r)| one(r).map_err(|e: Invalid| e.within(&format!("renewals[{at}]")))).collect()
}

/// A renewal for the wire.
pub fn renewal_out(full: &FullRenewal) -> v1::Renewal {
    let renewal = &full.renewal;
    v1::Renewal {
        session: renewal.session.0,
        nonce: renewal.nonce.0,
        number: renewal.number.0,
        acked: renewal.acked.0,
        known_grant: renewal.known_grant.0,
        report: full.report.as_deref().map(report_out),
    }
}

/// What a holder says, for the wire.
pub(super) fn report_out(report: &HolderReport) -> v1::HolderReport {
    let watermark = report
        .watermark
        .map(|mark| v1::Watermark { at: Some(position_out(&mark.at)), sampled_us: mark.sampled.0 });
    v1::HolderReport {
        armed: report.armed == Armed::Armed,
        boot: report.boot.0,
        sent_us: report.sent.0,
        watermark,
        pause: report.pause.map_or(0, |pause| pause.0),
        policy: report.policy.0,
        set: report.set.map_or(0, |set| set.0),
    }
}

/// A watermark without its position is none.
fn report_in(report: v1::HolderReport) -> HolderReport {
    let revision = |number: u64| (number > 0).then_some(Revision(number));
    let watermark = |mark: v1::Watermark| {
        Some(Watermark { at: position_in(mark.at?), sampled: HolderInstant(mark.sampled_us) })
    };
    HolderReport {
        armed: if report.armed { Armed::Armed } else { Armed::Weak },
        boot: MachineBoot(report.boot),
        sent: HolderInstant(report.sent_us),
        watermark: report.watermark.and_then(watermark),
        pause: revision(report.pause),
        policy: Revision(report.policy),
        set: revision(report.set),
    }
}

/// The answer to renewal `number` of `session`, for the wire.
pub fn renewed_out(session: SessionId, number: RenewalNumber, answer: Answer) -> v1::Renewed {
    use v1::renewed::Outcome;
    let mut renewed =
        v1::Renewed { session: session.0, number: number.0, ..v1::Renewed::default() };
    let outcome = match answer {
        Answer::Resend => Outcome::Resend,
        Answer::Outcome(RenewalOutcome::Extended { number, grant }) => {
            renewed.number = number.0;
            renewed.grant = grant.0;
            Outcome::Extended
        }
        Answer::Outcome(RenewalOutcome::SessionGone) => Outcome::SessionGone,
        Answer::Outcome(RenewalOutcome::NonceStale) => Outcome::NonceStale,
        Answer::Outcome(RenewalOutcome::NumberStale { have }) => {
            renewed.have = have.0;
            Outcome::NumberStale
        }
    };
    renewed.outcome = outcome.into();
    renewed
}

/// An answer of the wire; `None` for an outcome this version does not know: it extends nothing.
pub fn renewed_in(renewed: &v1::Renewed) -> Option<(SessionId, RenewalNumber, Answer)> {
    use v1::renewed::Outcome;
    let number = RenewalNumber(renewed.number);
    let answer = match Outcome::try_from(renewed.outcome).ok()? {
        Outcome::Unspecified => return None,
        Outcome::Resend => Answer::Resend,
        Outcome::Extended => {
            Answer::Outcome(RenewalOutcome::Extended { number, grant: Revision(renewed.grant) })
        }
        Outcome::SessionGone => Answer::Outcome(RenewalOutcome::SessionGone),
        Outcome::NonceStale => Answer::Outcome(RenewalOutcome::NonceStale),
        Outcome::NumberStale => {
            Answer::Outcome(RenewalOutcome::NumberStale { have: RenewalNumber(renewed.have) })
        }
    };
    Some((SessionId(renewed.session), number, answer))
}

/// What only the answering node knows of a session that holds or waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionFacts {
    /// `<role>/<name>` of its owner.
    pub owner: String,
    /// As it was opened.
    pub label: String,
    /// In milliseconds.
    pub ttl_ms: u64,
    /// Highest grant a renewal of it has named (C8).
    pub known_grant: Revision,
}

/// An election for the wire. `name_holder`: whether this node may name its holder (C3).
pub fn election_out(
    name: &ElectionName,
    row: &Election,
    name_holder: bool,
    facts: impl Fn(SessionId) -> SessionFacts,
) -> v1::Election {
    v1::Election {
        name: name.to_string(),
        epoch: Some(epoch_out(row.epoch)),
        holder: match &row.holder {
            Some(holder) if name_holder => Some(holder_out(holder, facts(holder.session))),
            _ => None,
        },
        queue: row.queue.iter().map(|c| candidate_out(c, facts(c.session))).collect(),
        preferred: Some(locality_out(&row.preferred)),
        changed: row.changed.0,
    }
}

fn holder_out(holder: &Holder, facts: SessionFacts) -> v1::Holder {
    v1::Holder {
        session: holder.session.0,
        epoch: Some(epoch_out(holder.epoch)),
        value: holder.value.clone().into(),
        locality: Some(locality_out(&holder.locality)),
        priority: holder.priority,
        confirmed: facts.known_grant >= holder.epoch.revision,
        owner: facts.owner,
        label: facts.label,
        ttl_ms: facts.ttl_ms,
    }
}

fn candidate_out(candidate: &Candidate, facts: SessionFacts) -> v1::Candidate {
    v1::Candidate {
        session: candidate.session.0,
        owner: facts.owner,
        priority: candidate.priority,
        locality: Some(locality_out(&candidate.locality)),
        since: candidate.since.0,
    }
}

/// What a campaign was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Campaigned {
    /// The caller leads under this epoch, once a renewal that names it is acknowledged.
    Granted(Epoch),
    /// The caller waits; so many come first.
    Queued(u32),
}

/// The answer to a campaign.
pub fn campaigned(response: &v1::CampaignResponse) -> Campaigned {
    match response.epoch {
        Some(epoch) => Campaigned::Granted(super::common::epoch_in(epoch)),
        None => Campaigned::Queued(response.ahead),
    }
}

fn session(field: &str, id: u64) -> Result<SessionId, Invalid> {
    positive(field, id).map(SessionId)
}

fn nonce(field: &str, nonce: u64) -> Result<Nonce, Invalid> {
    if nonce == 0 {
        let fix = "draw a random number at each start of the client";
        return Err(Invalid::new(field, "it is 0 or not set", fix));
    }
    Ok(Nonce(nonce))
}
