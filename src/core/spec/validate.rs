//! The rules for a declaration. Every problem is reported at once, each with the path of its field
//! as in the TOML file, what is wrong, and what would be right.
//!
//! It must give the same answer on every replica: only the declaration and the replicated timing
//! go in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use super::{
    AwaitRouters, CoordinatorLoss, Engine, InstanceSpec, LossBound, LoweredSync, Mode, OnViolation,
    Policy, Problem, ServiceSpec, TooFewSync, TopologyKind,
};
use crate::limits::{MAX_INSTANCES, MAX_NAME_BYTES, MAX_PARTITIONS, MAX_TEXT_BYTES, MAX_TTL_MS};
use crate::timing::{Timing, TtlAsk};

/// What an agent needs to stop PostgreSQL, until its own measurements say more (C6).
const FENCE_BUDGET_MS: u64 = 250;
/// Longest wait for an orderly restart: beyond an hour the service is plainly down.
const MAX_RESTART_GRACE_MS: u64 = 3_600_000;
/// Longest pause between automatic failovers: a week; who wants none says `pause`.
const MAX_COOLDOWN_MS: u64 = 604_800_000;
/// Longest wait for routers: a change that people have asked for must not hang by one that is gone.
const MAX_AWAIT_ROUTERS_MS: u64 = 60_000;
/// A host name of DNS.
const MAX_HOST_BYTES: usize = 253;

/// Collects what is wrong.
#[derive(Default)]
pub(super) struct Problems(Vec<Problem>);

impl Problems {
    pub(super) fn add(
        &mut self,
        field: impl Into<String>,
        problem: impl Display,
        fix: impl Display,
    ) {
        self.0.push(Problem {
            field: field.into(),
            problem: problem.to_string(),
            fix: fix.to_string(),
        });
    }

    fn text(&mut self, field: impl Into<String>, text: &str, most: usize) {
        if text.len() > most {
            self.add(field, format!("it has {} bytes", text.len()), format!("use at most {most}"));
        } else if text.chars().any(char::is_control) {
            self.add(field, "it has a control character", "use printable text on one line");
        }
    }
}

impl ServiceSpec {
    /// Everything that forbids this declaration in a cluster with this timing; empty: it is fine.
    pub fn validate(&self, timing: &Timing) -> Vec<Problem> {
        let mut problems = Problems::default();
        problems.text("description", &self.description, MAX_TEXT_BYTES);
        self.check_instances(&mut problems);
        self.check_partitions(&mut problems);
        self.check_engine(&mut problems);
        self.check_sync(&mut problems);
        self.check_times(timing, &mut problems);
        // With too many or doubled instances the arithmetic would only add noise.
        if problems.0.iter().all(|problem| !problem.field.starts_with("instances")) {
            self.check_survival(&mut problems);
        }
        problems.0
    }

    /// What is allowed, but probably not meant; in the same form.
    pub fn warnings(&self) -> Vec<Problem> {
        let mut warnings = Problems::default();
        let bound = &self.policy.loss_bound;
        match self.policy.mode {
            Mode::Quorum if bound.max_ms > 0 || bound.max_bytes > 0 => warnings.add(
                "policy.loss_bound",
                "a service in quorum mode loses nothing unless it may",
                "use max_ms = 0 and max_bytes = 0",
            ),
            Mode::Lease if bound.max_ms < LossBound::usual_ms(self.policy.ttl_ms) => warnings.add(
                "policy.loss_bound.max_ms",
                format!("a failover after a lapsed lease can lose more than {}", bound.max_ms),
                format!(
                    "with less than {} every such failover will {}",
                    LossBound::usual_ms(self.policy.ttl_ms),
                    if bound.on_violation == OnViolation::Refuse { "be refused" } else { "wait" },
                ),
            ),
            _ => {}
        }
        if bound.on_violation == OnViolation::Accept {
            warnings.add(
                "policy.loss_bound.on_violation",
                "with \"accept\" an automatic failover may lose any amount of acknowledged writes",
                "use \"ask\"",
            );
        }
        if self.policy.mode == Mode::Quorum && self.instances.len() == 2 {
            warnings.add(
                "instances",
                "when the only standby is lost, writes block until it returns",
                "declare a third instance, or on_too_few_sync = \"degrade\"",
            );
        }
        warnings.0
    }

    fn check_instances(&self, problems: &mut Problems) {
        if self.instances.is_empty() {
            problems.add("instances", "there is none", "declare at least one");
            return;
        }
        if self.instances.len() > MAX_INSTANCES {
            problems.add(
                "instances",
                format!("there are {}", self.instances.len()),
                format!("declare at most {MAX_INSTANCES}"),
            );
            return;
        }
        let (mut names, mut addresses) = (BTreeMap::new(), BTreeMap::new());
        for (at, instance) in self.instances.iter().enumerate() {
            if let Some(first) = names.insert(&instance.name, at) {
                problems.add(
                    format!("instances[{at}].name"),
                    format!("{:?} is the name of instances[{first}] too", instance.name.as_str()),
                    "give each instance its own name",
                );
            }
            if let Err(problem) = check_address(&instance.address) {
                problems.add(
                    format!("instances[{at}].address"),
                    format!("{:?}: {problem}", shorten(&instance.address)),
                    "write it as host:port, for example db1.example.org:5432 or [2001:db8::1]:5432",
                );
            } else if let Some(first) = addresses.insert(&instance.address, at) {
                problems.add(
                    format!("instances[{at}].address"),
                    format!("{:?} is the address of instances[{first}] too", instance.address),
                    "give each instance its own address",
                );
            }
            let parts = [
                ("region", &instance.locality.region),
                ("zone", &instance.locality.zone),
                ("host", &instance.locality.host),
            ];
            for (part, text) in parts {
                problems.text(format!("instances[{at}].locality.{part}"), text, MAX_NAME_BYTES);
            }
        }
        if self.instances.iter().all(|instance| !instance.electable()) {
            problems.add(
                "instances",
                "no instance may become primary: every priority is 0",
                "give at least one a priority above 0",
            );
        }
    }

    fn check_partitions(&self, problems: &mut Problems) {
        let count = self.partitions.len();
        match self.topology {
            TopologyKind::ActivePassive if count > 0 => problems.add(
                "partitions",
                format!("an active-passive service has none, but {count} are declared"),
                "remove them, or use topology = \"active-active\"",
            ),
            TopologyKind::ActiveActive if count == 0 => problems.add(
                "partitions",
                "an active-active service needs at least one",
                "declare them, or use topology = \"active-passive\"",
            ),
            _ => {}
        }
        if count > MAX_PARTITIONS {
            problems.add(
                "partitions",
                format!("there are {count}"),
                format!("declare at most {MAX_PARTITIONS}"),
            );
            return;
        }
        let mut seen = BTreeSet::new();
        for (at, partition) in self.partitions.iter().enumerate() {
            if !seen.insert(partition) {
                problems.add(
                    format!("partitions[{at}]"),
                    format!("{:?} is declared twice", partition.as_str()),
                    "remove one",
                );
            }
        }
    }

    fn check_engine(&self, problems: &mut Problems) {
        if self.engine != Engine::Exec {
            return;
        }
        if self.policy.mode == Mode::Quorum {
            problems.add(
                "policy.mode",
                "commands of an operator cannot prove which standby acknowledged a write",
                "use mode = \"lease\" with engine = \"exec\"",
            );
        }
    }

    fn check_sync(&self, problems: &mut Problems) {
        let Policy { mode, sync_standbys, min_sync_standbys, on_too_few_sync, .. } = self.policy;
        if mode == Mode::Lease {
            if sync_standbys > 0 || min_sync_standbys > 0 {
                let field = if sync_standbys > 0 { "sync_standbys" } else { "min_sync_standbys" };
                problems.add(
                    format!("policy.{field}"),
                    "in lease mode replication is asynchronous: no commit waits for a standby",
                    "leave it out, or use mode = \"quorum\"",
                );
            }
            if self.policy.on_coordinator_loss == CoordinatorLoss::Hold {
                problems.add(
                    "policy.on_coordinator_loss",
                    "in lease mode commits wait for nobody, so none proves that no other has taken over",
                    "use \"stop\", or mode = \"quorum\"",
                );
            }
            if self.policy.on_lowered_sync == LoweredSync::Strict {
                problems.add(
                    "policy.on_lowered_sync",
                    "in lease mode no commit waits for a standby, so none can wait for less",
                    "leave it out, or use mode = \"quorum\"",
                );
            }
            if on_too_few_sync == TooFewSync::Degrade {
                problems.add(
                    "policy.on_too_few_sync",
                    "it means nothing in lease mode",
                    "leave it out, or use mode = \"quorum\"",
                );
            }
            return;
        }
        let standbys = self.instances.len().saturating_sub(1);
        if sync_standbys == 0 {
            problems.add(
                "policy.sync_standbys",
                "in quorum mode each commit waits for at least one standby, but it is 0",
                "use at least 1, or mode = \"lease\"",
            );
        } else if sync_standbys as usize > standbys {
            problems.add(
                "policy.sync_standbys",
                format!("{sync_standbys} acknowledgements from {standbys} standbys cannot be"),
                format!("declare {} instances, or lower it", u64::from(sync_standbys) + 1),
            );
        }
        if min_sync_standbys == 0 {
            problems.add(
                "policy.min_sync_standbys",
                "it is 0, which is no quorum",
                "use at least 1, and on_too_few_sync to say what happens below it",
            );
        } else if min_sync_standbys > sync_standbys {
            problems.add(
                "policy.min_sync_standbys",
                format!("{min_sync_standbys} is above sync_standbys {sync_standbys}"),
                "lower it, or raise sync_standbys",
            );
        }
    }

    fn check_times(&self, timing: &Timing, problems: &mut Problems) {
        let Policy { ttl_ms, restart_grace_ms, failover_cooldown_ms, .. } = self.policy;
        if ttl_ms > MAX_TTL_MS {
            problems.add(
                "policy.ttl_ms",
                format!("{ttl_ms} is more than a day"),
                format!("use at most {MAX_TTL_MS}"),
            );
        } else {
            let ask = TtlAsk::with_default_interval(ttl_ms, FENCE_BUDGET_MS);
            if !timing.allows(&ask) {
                problems.add(
                    "policy.ttl_ms",
                    format!(
                        "{ttl_ms} does not outlast a change of the coordinators' leader (C6): {}",
                        timing.terms(&ask)
                    ),
                    format!("use at least {}", timing.least_ttl_ms(FENCE_BUDGET_MS)),
                );
            }
        }
        let AwaitRouters { percent, within_ms } = self.policy.await_routers;
        for (field, value, most) in [
            ("policy.await_routers.percent", u64::from(percent), 100),
            ("policy.await_routers.within_ms", within_ms, MAX_AWAIT_ROUTERS_MS),
            ("policy.restart_grace_ms", restart_grace_ms, MAX_RESTART_GRACE_MS),
            ("policy.failover_cooldown_ms", failover_cooldown_ms, MAX_COOLDOWN_MS),
            ("policy.loss_bound.max_ms", self.policy.loss_bound.max_ms, LossBound::ANY_BYTES),
            ("policy.loss_bound.max_bytes", self.policy.loss_bound.max_bytes, LossBound::ANY_BYTES),
        ] {
            if value > most {
                problems.add(field, format!("{value} is too large"), format!("use at most {most}"));
            }
        }
    }
}

impl InstanceSpec {
    /// Whether it may ever become primary.
    pub fn electable(&self) -> bool {
        self.priority > 0
    }
}

/// Checks `host:port`; an IPv6 address stands in brackets.
fn check_address(address: &str) -> Result<(), String> {
    let Some((host, port)) = address.rsplit_once(':') else {
        return Err("there is no port".into());
    };
    let number = port.bytes().all(|b| b.is_ascii_digit()).then(|| port.parse::<u16>());
    if !matches!(number, Some(Ok(1..))) {
        return Err("the port is not a number from 1 to 65535".into());
    }
    if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return match inner.parse::<std::net::Ipv6Addr>() {
            Ok(_) => Ok(()),
            Err(_) => Err("what stands in brackets is not an IPv6 address".into()),
        };
    }
    if host.is_empty() {
        return Err("there is no host".into());
    }
    if host.len() > MAX_HOST_BYTES {
        return Err(format!("the host has {} bytes, the most is {MAX_HOST_BYTES}", host.len()));
    }
    let label = |part: &str| {
        !part.is_empty()
            && part.len() <= 63
            && !part.starts_with('-')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    // A trailing dot marks a fully qualified name.
    if !host.strip_suffix('.').unwrap_or(host).split('.').all(label) {
        return Err("the host is neither a name nor an IP address".into());
    }
    Ok(())
}

/// So that a hostile address does not fill a terminal.
fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
