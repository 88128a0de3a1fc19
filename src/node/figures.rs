//! Figures that are read rather than counted: filled in before each scrape.

use std::sync::{Arc, Weak};

use crate::http::Metrics;
use crate::shell::Shell;

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Makes every scrape show what `shell` knows at that moment.
pub fn show(shell: &Arc<Shell>) {
    let weak = Arc::downgrade(shell);
    shell.metrics.before_scrape(move |metrics| fill(metrics, &weak));
}

fn fill(metrics: &Metrics, shell: &Weak<Shell>) {
    let Some(shell) = shell.upgrade() else { return };
    let status = shell.leadership.status();
    metrics.raft_term.set(gauge(status.term));
    metrics.raft_leader.set(status.leader.map_or(0, |id| gauge(id.0)));
    metrics.raft_is_leader.set(i64::from(status.is_leader));
    metrics.raft_last_log.set(gauge(status.last_log.0));
    metrics.raft_applied.set(gauge(status.applied.0));
    metrics.raft_snapshot.set(gauge(status.snapshot.0));
    metrics.raft_apply_lag.set(gauge(status.last_log.0.saturating_sub(status.applied.0)));
    let voters = status.members.iter().filter(|(_, _, voter)| *voter).count();
    metrics.raft_voters.set(gauge(voters as u64));
    metrics.raft_learners.set(gauge((status.members.len() - voters) as u64));
    let slowest = status.matched.iter().filter(|(id, _)| *id != shell.node).map(|(_, at)| at.0);
    let lag = slowest.min().map_or(0, |at| status.last_log.0.saturating_sub(at));
    metrics.raft_member_lag.set(gauge(lag));
    metrics.raft_quorum_age.set(status.quorum_ack_age_ms.unwrap_or(0) as f64 / 1000.0);
    metrics.storage_problem.set(i64::from(!status.storage_problem.is_empty()));
    let expiry = shell.tls.expires_in();
    metrics.certificate_leaf.set(expiry.leaf.as_secs_f64());
    metrics.certificate_ca.set(expiry.ca.as_secs_f64());
    metrics.clock_skew.set(shell.comparison.worst_ppm() as f64);
    let state = shell.state.read();
    metrics.sessions.set(gauge(state.sessions().len() as u64));
    metrics.elections.set(gauge(state.elections().len() as u64));
    metrics.services.set(gauge(state.services().len() as u64));
    let quarantined = state.services().values().filter(|s| s.quarantine.is_some()).count();
    metrics.services_quarantined.set(gauge(quarantined as u64));
    metrics.audit_records.set(gauge(state.audit().head().number));
}
