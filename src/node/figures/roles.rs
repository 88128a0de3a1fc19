//! Figures of roles and agents: how many services and instances are how. Which ones they are,
//! `regent status` and `regent explain` say: names that people choose are no labels here.

use std::collections::BTreeMap;

use prometheus_client::metrics::family::Family;
use regent_core::decide::roles::verdict::{self, Verdict};
use regent_core::role::{Armed, SyncSet};
use regent_core::state::State;
use regent_core::state::role::row::ServiceRole;

use super::gauge;
use crate::http::Metrics;
use crate::http::metrics::{Gauge, Kind};
use crate::shell::Shell;

const ROLES: [&str; 6] =
    ["with_primary", "without_primary", "held", "fenced", "paused", "unprotected"];
const AGENTS: [&str; 5] = ["heard", "silent", "armed", "weak", "quarantined"];
/// A service of which nobody is primary yet.
const NOBODY: &str = "NoPrimary";
/// How many of each kind.
#[derive(Default)]
struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    fn add(&mut self, kind: &'static str, counts: bool) {
        *self.0.entry(kind).or_default() += u64::from(counts);
    }

    /// All kinds, so that what fell to zero is shown as zero.
    fn show(&self, family: &Family<Kind, Gauge>, kinds: &[&'static str]) {
        for kind in kinds {
            let count = self.0.get(kind).copied().unwrap_or(0);
            family.get_or_create(&Kind { kind }).set(gauge(count));
        }
    }
}

/// Facts are the leader's alone: elsewhere what rests on them is zero.
pub(super) fn fill(metrics: &Metrics, shell: &Shell, state: &State) {
    let (mut roles, mut agents) = (Counts::default(), Counts::default());
    let (mut without, mut lag) = (0, 0);
    let leads = shell.leadership.is_here();
    let (facts, now) = (shell.desk.facts(), shell.clock.now());
    for (name, role) in state.roles() {
        if !state.services().contains_key(name) {
            continue;
        }
        let live = |role: &ServiceRole| {
            role.lease.as_ref().is_some_and(|lease| shell.clocks.believed_live(lease.session))
        };
        count_role(&mut roles, role, live(role));
        if !leads {
            continue;
        }
        without += u64::from(role.holder.is_none());
        for (instance, row) in &role.instances {
            let fact = facts.of(name, instance);
            let heard = fact.is_some_and(|fact| verdict::is_fresh(fact, now));
            agents.add("heard", heard);
            agents.add("silent", !heard);
            agents.add("armed", row.fencer == Armed::Armed);
            agents.add("weak", row.fencer != Armed::Armed);
            agents.add("quarantined", row.quarantined.is_some());
            lag = lag.max(fact.map_or(0, |fact| fact.observation.replay_lag_bytes));
        }
    }
    roles.show(&metrics.roles, &ROLES);
    metrics.verdicts.get_or_create(&Kind { kind: NOBODY }).set(gauge(without));
    let found = shell.reports.verdicts();
    for verdict in Verdict::ALL {
        let count = found.get(&verdict).copied().unwrap_or(0);
        metrics.verdicts.get_or_create(&Kind { kind: verdict.as_str() }).set(gauge(count));
    }
    agents.show(&metrics.agents, &AGENTS);
    metrics.agent_lag.set(gauge(lag));
}

fn count_role(roles: &mut Counts, role: &ServiceRole, live: bool) {
    let has_primary = role.holder.is_some() && role.fence.is_none();
    let protected = role.set.as_ref().is_some_and(|set| !SyncSet::is_degraded(set));
    roles.add("with_primary", has_primary);
    roles.add("without_primary", role.holder.is_none());
    // PROTOCOL.md F: its commits may go on by what its standbys acknowledge.
    roles.add("held", has_primary && !live && protected);
    roles.add("fenced", role.fence.is_some());
    roles.add("paused", role.paused.is_some());
    roles.add("unprotected", role.set.as_ref().is_some_and(SyncSet::is_degraded));
}
