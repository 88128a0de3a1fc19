//! What the facts say of a primary, in one named verdict (DESIGN.md 5). A table of conditions, tried
//! in order; pure, so that each row has a test.
//!
//! It must never take the silence of one observer for the death of a primary: "gone" is said by more
//! than half of those who could see it, and not from one place alone. The coordinators are one
//! observer (its agent's stream reaches a majority of them or none counts), each other instance with
//! fresh facts is another.

use std::fmt;

use crate::decide::facts::{Fact, Facts};
use crate::id::{InstanceName, ServiceName};
use crate::role::observe::{Observation, Probe, Run};
use crate::spec::ServiceSpec;
use crate::time::{Micros, Reading};

/// After this long without a word an agent is silent: three reports missed. Goal of the whole
/// failover of a silent host: 0.9 s.
pub const SILENT_AFTER: Micros = Micros::from_ms(600);
/// A connection that broke is not reopened within this long: its agent is gone, not reconnecting.
const LOST_AFTER: Micros = Micros::from_ms(60);
/// A walreceiver that heard nothing for this long does not stream, whatever it says: a dead host
/// sends no FIN, a live sender answers at least every half of its timeout.
const RECEIVER_SILENT_MS: u64 = 900;
/// A neighbour that did not answer for this long does not see us either. Neighbours are tried each
/// 200 ms and what was seen is told each 200 ms: a living one looks 400 ms old, and a little more on
/// a busy machine.
const SIGHT_SILENT_MS: u64 = 600;
/// A primary that answers no fresh connection for this long is stalled: longer than any fast
/// checkpoint's hiccup on a sound disk.
const STALLED_AFTER_MS: u64 = 700;
/// With commits that return meanwhile it may be a storm of logins, for so long.
const CROWDED_FOR_MS: u64 = 4_000;
/// Own commits are begun each 300 ms.
const COMMITTED_WITHIN_MS: u64 = 1_000;

/// What is the matter with a primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It serves.
    Healthy,
    /// Its agent lives and says that no process is left.
    PrimaryProcessDead,
    /// Its agent lives and says that it was stopped in order.
    PrimaryStopped,
    /// Neither its agent nor its database is heard of by more than half of the observers.
    PrimaryHostSilent,
    /// The same, and so it is with all other instances of its zone.
    ZoneDown,
    /// The same, and so it is with all other instances of its region.
    RegionDown,
    /// Its agent is silent, but it streams to standbys: no failover.
    PrimaryUnreachableButReplicating,
    /// Its agent's stream broke, and its database answers: no failover.
    AgentDead,
    /// Its agent reports, but its standbys do not reach it, so that no commit returns.
    PrimaryIsolated,
    /// It runs and answers nobody.
    PrimaryStalled,
    /// It comes up or goes down, within the time that is left to it: no failover yet.
    PrimaryRestarting,
    /// It serves, and somebody lowered what its commits wait for: nothing is promised of those.
    SyncSetTampered,
    /// It serves, and a standby whose agent reports does not stream from it.
    ReplicationBroken,
    /// It serves, and a standby that streams is far behind it.
    StandbyLagging,
    /// Too few fresh facts to say anything: no failover.
    NotEnoughObservers,
}

impl Verdict {
    /// All of them, in the order in which metrics show them.
    pub const ALL: [Self; 15] = [
        Self::Healthy,
        Self::PrimaryProcessDead,
        Self::PrimaryStopped,
        Self::PrimaryHostSilent,
        Self::ZoneDown,
        Self::RegionDown,
        Self::PrimaryUnreachableButReplicating,
        Self::AgentDead,
        Self::PrimaryIsolated,
        Self::PrimaryStalled,
        Self::PrimaryRestarting,
        Self::SyncSetTampered,
        Self::ReplicationBroken,
        Self::StandbyLagging,
        Self::NotEnoughObservers,
    ];

    /// Its name, as DESIGN.md has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "Healthy",
            Self::PrimaryProcessDead => "PrimaryProcessDead",
            Self::PrimaryStopped => "PrimaryStopped",
            Self::PrimaryHostSilent => "PrimaryHostSilent",
            Self::ZoneDown => "ZoneDown",
            Self::RegionDown => "RegionDown",
            Self::PrimaryUnreachableButReplicating => "PrimaryUnreachableButReplicating",
            Self::AgentDead => "AgentDead",
            Self::PrimaryIsolated => "PrimaryIsolated",
            Self::PrimaryStalled => "PrimaryStalled",
            Self::PrimaryRestarting => "PrimaryRestarting",
            Self::SyncSetTampered => "SyncSetTampered",
            Self::ReplicationBroken => "ReplicationBroken",
            Self::StandbyLagging => "StandbyLagging",
            Self::NotEnoughObservers => "NotEnoughObservers",
        }
    }

    /// Whether the primary is to be replaced, as far as facts alone say.
    pub const fn calls_for_failover(self) -> bool {
        self.is_silence()
            || matches!(
                self,
                Self::PrimaryProcessDead | Self::PrimaryStalled | Self::PrimaryIsolated
            )
    }

    /// Whether nothing is heard of the primary's host.
    pub const fn is_silence(self) -> bool {
        matches!(self, Self::PrimaryHostSilent | Self::ZoneDown | Self::RegionDown)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A verdict and what it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The verdict.
    pub verdict: Verdict,
    /// One sentence with the facts.
    pub why: String,
}

impl Finding {
    pub(super) fn new(verdict: Verdict, why: impl Into<String>) -> Self {
        Self { verdict, why: why.into() }
    }
}

/// Whether an agent has been heard lately enough for its words to count.
pub fn is_fresh(fact: &Fact, now: Reading) -> bool {
    fact.lost.is_none() && fact.age(now) <= SILENT_AFTER
}

fn is_gone(fact: &Fact, now: Reading) -> bool {
    fact.age(now) > SILENT_AFTER || fact.lost.is_some_and(|at| now.since(at) >= LOST_AFTER)
}

/// What the facts say of `primary`.
pub fn of(
    spec: &ServiceSpec,
    service: &ServiceName,
    primary: &InstanceName,
    facts: &Facts,
    now: Reading,
) -> Finding {
    let Some(fact) = facts.of(service, primary) else {
        return absent(spec, service, primary, facts, now);
    };
    if is_gone(fact, now) {
        return absent(spec, service, primary, facts, now);
    }
    if fact.lost.is_some() {
        return Finding::new(Verdict::NotEnoughObservers, "its agent's stream broke this moment");
    }
    let seen = &fact.observation;
    match (seen.run, &seen.probe) {
        (Run::Down, _) if seen.stopped_in_order => {
            Finding::new(Verdict::PrimaryStopped, "it was shut down in order")
        }
        (Run::Down, _) => {
            Finding::new(Verdict::PrimaryProcessDead, "its agent sees no process of it")
        }
        (Run::Primary, Probe::Failed { since_ms, why })
            if *since_ms >= STALLED_AFTER_MS && !is_crowded(seen, *since_ms) =>
        {
            let text = format!("no fresh connection was answered for {since_ms} ms ({why})");
            Finding::new(Verdict::PrimaryStalled, text)
        }
        _ => Finding::new(Verdict::Healthy, "its agent reports, and it answers"),
    }
}

/// What the other instances with fresh reports say of a primary.
#[derive(Clone, Debug, Default)]
pub struct Others<'a> {
    /// Who sees it.
    pub sees: Vec<&'a str>,
    /// Who tried and does not.
    pub misses: Vec<&'a str>,
}

/// Asks all others about `primary`.
pub fn others<'a>(
    spec: &'a ServiceSpec,
    service: &ServiceName,
    primary: &InstanceName,
    facts: &Facts,
    now: Reading,
) -> Others<'a> {
    let mut others = Others::default();
    for other in spec.instances.iter().filter(|other| other.name != *primary) {
        let fact = facts.of(service, &other.name).filter(|fact| is_fresh(fact, now));
        match fact.map_or(Vote::Abstains, |fact| vote(fact, primary, now)) {
            Vote::Sees => others.sees.push(other.name.as_str()),
            Vote::Misses => others.misses.push(other.name.as_str()),
            Vote::Abstains => {}
        }
    }
    others
}

/// Logins are slow, and a session that was in before has committed since they are: a storm of them,
/// which would only follow the role to the next host. A server that stands commits nothing, and one
/// whose first process alone stands makes no sessions: that one must do something meanwhile. Believed
/// for a while only: who can never get in is not served, whatever the cause.
fn is_crowded(seen: &Observation, since_ms: u64) -> bool {
    let commits = seen.canary.as_ref().is_some_and(|canary| {
        canary.returned == Some(true) && canary.age_ms < since_ms.min(COMMITTED_WITHIN_MS)
    });
    seen.works && commits && since_ms < CROWDED_FOR_MS
}

/// Nothing is heard of its agent: what do the others see?
fn absent(
    spec: &ServiceSpec,
    service: &ServiceName,
    primary: &InstanceName,
    facts: &Facts,
    now: Reading,
) -> Finding {
    let Others { sees, misses } = others(spec, service, primary, facts, now);
    let observers = misses.len() + sees.len();
    if observers == 0 {
        let why = "its agent is silent, and no other instance says anything of it";
        return Finding::new(Verdict::NotEnoughObservers, why);
    }
    // The coordinators' own vote is one of them: nobody hears the agent.
    let votes = misses.len() + 1;
    let text = format!(
        "its agent is silent; seen by [{}], not seen by [{}]",
        sees.join(", "),
        misses.join(", ")
    );
    if !misses.is_empty() && votes * 2 > observers + 1 {
        return Finding::new(Verdict::PrimaryHostSilent, text);
    }
    // A host that is gone, or cut off, sends no end of a stream.
    let broke = facts.of(service, primary).is_some_and(|fact| fact.lost.is_some());
    let verdict = match broke {
        true => Verdict::AgentDead,
        false => Verdict::PrimaryUnreachableButReplicating,
    };
    Finding::new(verdict, text)
}

/// What one observer's fresh report says of `primary`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vote {
    /// WAL arrives from it, or its address answers.
    Sees,
    /// It was tried and failed, or its WAL ceased to come.
    Misses,
    /// Nothing: it was never tried, or what was seen then is too old by now. A report that grew old
    /// on its way, or whose next one is lost with a coordinator, must not pass for a failed attempt.
    Abstains,
}

fn vote(fact: &Fact, primary: &InstanceName, now: Reading) -> Vote {
    let age_ms = fact.age(now).as_ms();
    let seen = &fact.observation;
    let receiver = seen.receiver.as_ref().filter(|one| one.from.as_ref() == Some(primary));
    let streams = receiver.map_or(Vote::Abstains, |receiver| {
        if !receiver.streams || receiver.silent_ms >= RECEIVER_SILENT_MS {
            Vote::Misses
        } else if receiver.silent_ms.saturating_add(age_ms) < RECEIVER_SILENT_MS {
            Vote::Sees
        } else {
            Vote::Abstains
        }
    });
    let Some(sight) = seen.sights.iter().find(|sight| sight.instance == *primary) else {
        return streams;
    };
    // A refused connection is an answer of the host, and says that no database listens there.
    if sight.refused {
        return Vote::Misses;
    }
    match sight.answered_ms {
        // Never yet: WAL that arrives says more than an address that may be wrong.
        None if streams == Vote::Sees => Vote::Sees,
        None => Vote::Misses,
        Some(ms) if ms.saturating_add(age_ms) < SIGHT_SILENT_MS => Vote::Sees,
        // Tried and not answered weighs more than a walreceiver that has not noticed yet.
        Some(ms) if sight.tried_ms < ms => Vote::Misses,
        Some(_) => streams,
    }
}
