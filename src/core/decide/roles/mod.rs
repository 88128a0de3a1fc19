//! What the leader does about the roles of services: first grants, failovers, switchovers, sync
//! sets. `decide(view) -> Decision`, by state and hot facts.
//!
//! Every command it proposes is judged again by `apply` from the log alone: what is decided here by
//! facts is only *when* to try (S6 and S7 do not rest on it). What it keeps between looks is manners:
//! not to propose the same thing at each tick, and how long something has lasted.
//!
//! ```text
//! no holder ── all reported ──> GrantFirst
//! holder, no fence ── verdict, candidates, policy ──> OpenFence(failover)
//!                  └─ who streams ──> ChangeSet
//! announced ── the primary has checkpointed ──> OpenFence(switchover); or CloseFence
//!           └─ the policy awaits routers ──> CloseRoutes ── they have left, or time is up ──> the same
//! fence open ── receipts ──> Cut, Fetch, OpenApproval, GrantRole; or CloseFence, TakeOver
//! granted ── promoted, standbys back ──> AdvanceOperation
//! ```

mod candidates;
mod fence;
mod fetch;
mod first;
mod flaps;
mod plan;
mod routers;
mod sets;
mod standbys;
#[cfg(test)]
mod tests;
pub mod verdict;
mod watch;
mod zone;

pub use candidates::expected;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Decision;
use super::facts::Facts;
use crate::command::Command;
use crate::id::{Revision, ServiceName};
use crate::lease::skew::SkewVerdict;
use crate::role::observe::Run;
use crate::spec::{ServiceSpec, TopologyKind};
use crate::state::State;
use crate::state::role::row::ServiceRole;
use crate::time::{Micros, Reading, WallMs};

/// A command that was proposed and has not changed the row is proposed again after this long.
const PROPOSE_AGAIN: Micros = Micros::from_ms(500);
/// A leader looks at facts only after it has collected them for this long: relays repeat theirs at
/// once, an agent reports each 200 ms, and one whose node went with the old leader has had the whole
/// election to come back. Silence means something by then; and it is never enough by itself, another
/// instance has to miss the primary as well.
pub const FACTS_AFTER: Micros = Micros::from_ms(300);

/// What the leader sees at one look.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The state, locked for reading.
    pub state: &'a State,
    /// Hot facts.
    pub facts: &'a Facts,
    /// The term in which this node leads and whose first entry it has applied; `None` otherwise.
    pub term: Option<u64>,
    /// What C9 says of this node's clock.
    pub skew: SkewVerdict,
    /// This node's clock.
    pub now: Reading,
    /// For flap control and people.
    pub wall: WallMs,
}

/// The leader's memory between looks; nothing of it matters for safety.
#[derive(Clone, Debug, Default)]
pub struct Roles {
    term: Option<u64>,
    since: Reading,
    services: BTreeMap<ServiceName, Memory>,
}

/// What is remembered of one service.
#[derive(Clone, Debug, Default)]
struct Memory {
    /// The row's revision and instant of the last proposal.
    proposed: Option<(Revision, Reading)>,
    /// Since when the row has been as it is.
    row: Option<(Revision, Reading)>,
    /// The shape of the last thing said, so that it is said once.
    said: String,
    /// Members that do not stream, and since when.
    absent: BTreeMap<crate::id::InstanceName, Reading>,
    /// When this leader first saw the fence that is open.
    fence: Option<(Revision, Reading)>,
    /// When this leader first saw its standbys told to detach: at once, or after a resignation.
    cut: Option<(Revision, Reading)>,
    /// The fetch of that fence.
    fetch: Option<fetch::Progress>,
    /// Since when the primary is said to be stopped in order.
    stopped: Option<Reading>,
    /// Since when the primary is on its way up or down, and serves nobody.
    between: Option<Reading>,
    /// What the last look found of the primary.
    found: Option<verdict::Verdict>,
    /// Since when no standby reaches it.
    isolated: Option<Reading>,
    /// Standbys that run and do not stream, and since when.
    broken: BTreeMap<crate::id::InstanceName, Reading>,
    /// Since when a failover is called for, and none could be begun.
    stuck: Option<Reading>,
    /// When this leader first saw the promotion whose repair goes on.
    repair: Option<(Revision, Reading)>,
    /// When this leader first saw the switchover that is announced.
    plan: Option<(Revision, Reading)>,
    /// When this leader first saw its routes closed.
    drain: Option<(Revision, Reading)>,
}

/// One service at one look.
struct Look<'a> {
    view: &'a View<'a>,
    name: &'a ServiceName,
    spec: &'a ServiceSpec,
    role: &'a ServiceRole,
    /// Whether this leader has collected facts for long enough to read silence.
    has_facts: bool,
    /// What is silent anywhere, counted when it is asked for.
    dark: &'a OnceCell<zone::Dark>,
    memory: &'a mut Memory,
}

/// What a look comes to.
enum Verdict {
    /// Propose this.
    Do(Command, String),
    /// Nothing, and why.
    Wait(String),
    /// Nothing, as it should be.
    Fine,
}

impl Roles {
    /// What to propose now, at most one command per service.
    pub fn decide(&mut self, view: &View<'_>) -> Decision {
        let mut decision = Decision::default();
        let Some(term) = view.term else {
            self.term = None;
            self.services.clear();
            return decision;
        };
        if self.term != Some(term) {
            self.term = Some(term);
            self.since = view.now;
            self.services.clear();
        }
        let has_facts = view.now.since(self.since) >= FACTS_AFTER
            && !matches!(view.skew, SkewVerdict::Differs { .. });
        let dark = OnceCell::new();
        let roles = view.state.roles();
        self.services.retain(|name, _| roles.contains_key(name));
        for (name, role) in roles {
            let Some(service) = view.state.services().get(name) else { continue };
            if service.quarantine.is_some() || service.spec.topology != TopologyKind::ActivePassive
            {
                continue;
            }
            let memory = self.services.entry(name.clone()).or_default();
            let role: &Arc<ServiceRole> = role;
            let look =
                Look { view, name, spec: &service.spec, role, has_facts, dark: &dark, memory };
            look.take(&mut decision);
        }
        decision
    }
}

impl Roles {
    /// What the last look found of each primary.
    pub fn verdicts(&self) -> impl Iterator<Item = verdict::Verdict> + '_ {
        self.services.values().filter_map(|memory| memory.found)
    }
}

impl Look<'_> {
    fn take(mut self, decision: &mut Decision) {
        let now = self.view.now;
        if self.memory.row.is_none_or(|(revision, _)| revision != self.role.changed) {
            self.memory.row = Some((self.role.changed, now));
        }
        let verdict = self.verdict();
        let (command, text) = match verdict {
            Verdict::Do(command, text) => (Some(command), text),
            Verdict::Wait(text) => (None, text),
            Verdict::Fine => (None, String::new()),
        };
        if let Some(command) = command {
            let again = self
                .memory
                .proposed
                .is_none_or(|(row, at)| row != self.role.changed || now.since(at) >= PROPOSE_AGAIN);
            if !again {
                return;
            }
            self.memory.proposed = Some((self.role.changed, now));
            decision.say(true, format!("{}: {text}", self.name));
            decision.commands.push(command);
            self.memory.said = shape(&text);
        } else if !text.is_empty() && shape(&text) != self.memory.said {
            decision.say(false, format!("{}: {text}", self.name));
            self.memory.said = shape(&text);
        }
    }

    /// Notes since when things are as they are.
    fn note(&mut self) {
        let now = self.view.now;
        let fact = self.role.holder.as_ref().and_then(|name| self.view.facts.of(self.name, name));
        if fact.is_some_and(|fact| fact.observation.stopped_in_order) {
            self.memory.stopped.get_or_insert(now);
        } else {
            self.memory.stopped = None;
        }
        let fresh = fact.filter(|fact| verdict::is_fresh(fact, now));
        match fresh.map(|fact| fact.observation.run) {
            Some(Run::Primary | Run::Down) => self.memory.between = None,
            Some(_) => {
                self.memory.between.get_or_insert(now);
            }
            // Who is silent says nothing about that.
            None => {}
        }
        match (&self.role.promoted, self.memory.repair) {
            (Some(promoted), Some((of, _))) if promoted.revision == of => {}
            (promoted, _) => {
                self.memory.repair = promoted.map(|promoted| (promoted.revision, now));
            }
        }
    }

    fn verdict(&mut self) -> Verdict {
        self.note();
        self.memory.found = None;
        if self.role.fence.is_some() {
            self.memory.stuck = None;
            self.memory.absent.clear();
            return self.fence();
        }
        self.memory.fence = None;
        if let Some(over) = self.plan_is_over() {
            return over;
        }
        if self.role.holder.is_none() || self.is_of_another_life() {
            return self.first();
        }
        match self.watch() {
            Verdict::Fine => match self.sets() {
                Verdict::Fine => match self.tampered() {
                    Verdict::Fine => match self.standbys() {
                        Verdict::Fine => {
                            self.routers_to_come().map_or(Verdict::Fine, Verdict::Wait)
                        }
                        verdict => verdict,
                    },
                    verdict => verdict,
                },
                verdict => verdict,
            },
            verdict => verdict,
        }
    }

    /// After a restore or a recovery the epoch is of a life that is over (G).
    fn is_of_another_life(&self) -> bool {
        self.role.epoch.incarnation != self.view.state.incarnation().counter
    }

    /// How long the row has been as it is, for this leader.
    fn lasted(&self) -> Micros {
        self.memory.row.map_or(Micros(0), |(_, at)| self.view.now.since(at))
    }
}

/// A text without its numbers: two lines of one shape say the same thing, a little later. Digits in
/// a name stay, so that `db1` and `db2` are two.
fn shape(text: &str) -> String {
    let part_of_word = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let mut shape = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = match part_of_word(first) {
            true => rest.find(|c| !part_of_word(c)).unwrap_or(rest.len()),
            false => rest.find(part_of_word).unwrap_or(rest.len()),
        };
        let (word, after) = rest.split_at(end);
        shape.push_str(if first.is_ascii_digit() { "#" } else { word });
        rest = after;
    }
    shape
}
