//! Figures that are read rather than counted: filled in before each scrape, or, where that would
//! take long, kept by a task of their own.

mod roles;

use std::ops::Bound;
use std::sync::{Arc, Weak};
use std::time::Duration;

use regent_core::id::{ElectionName, Epoch, ServiceName};
use regent_core::state::State;
use tokio::time::MissedTickBehavior;

use crate::http::Metrics;
use crate::http::metrics::{Kind, show as show_count};
use crate::routes::{Count, Writable};
use crate::shell::Shell;

/// Elections looked at in one step of [`count_held`]: a fraction of a millisecond with the state
/// locked, so that applying does not notice.
const STEP: usize = 1_000;
/// Between two steps: all elections a cluster may have take twenty seconds, and few a tenth.
const STEP_INTERVAL: Duration = Duration::from_millis(100);
/// Between two counts.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);

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
    fill_raft(metrics, &shell);
    fill_tls(metrics, &shell);
    metrics.clock_skew.set(shell.comparison.worst_ppm() as f64);
    let state = shell.state.read();
    metrics.sessions.set(gauge(state.sessions().len() as u64));
    metrics.elections.set(gauge(state.elections().len() as u64));
    metrics.services.set(gauge(state.services().len() as u64));
    let quarantined = state.services().values().filter(|s| s.quarantine.is_some()).count();
    metrics.services_quarantined.set(gauge(quarantined as u64));
    roles::fill(metrics, &shell, &state);
    fill_routes(metrics, &shell, &state);
    metrics.audit_records.set(gauge(state.audit().head().number));
}

fn fill_routes(metrics: &Metrics, shell: &Shell, state: &State) {
    let Writable { open, closed, held } = shell.routes.writable();
    for (kind, count) in [("open", open), ("closed", closed), ("held", held)] {
        metrics.routes.get_or_create(&Kind { kind }).set(gauge(count));
    }
    let newest = |name: &ServiceName| state.roles().get(name).map_or(Epoch::NONE, |it| it.epoch);
    let counts = shell.routers.count(newest);
    for kind in ["watch", "ads"] {
        let Count { all, behind } = counts.get(kind).copied().unwrap_or_default();
        metrics.routers.get_or_create(&Kind { kind }).set(gauge(all));
        metrics.routers_behind.get_or_create(&Kind { kind }).set(gauge(behind));
    }
}

fn fill_raft(metrics: &Metrics, shell: &Shell) {
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
    metrics.raft_quorum_age.set(shell.consensus.quorum_ack_age_ms().unwrap_or(0) as f64 / 1000.0);
    metrics.storage_problem.set(i64::from(!status.notice().is_empty()));
    let log = shell.consensus.log_figures();
    show_count(&metrics.wal_appends, log.appends);
    show_count(&metrics.wal_bytes, log.bytes);
    metrics.wal_fsync_seconds.show(log);
}

fn fill_tls(metrics: &Metrics, shell: &Shell) {
    let expiry = shell.tls.expires_in();
    metrics.certificate_leaf.set(expiry.leaf.as_secs_f64());
    metrics.certificate_ca.set(expiry.ca.as_secs_f64());
    let stats = shell.tls.stats();
    metrics.connections.get_or_create(&Kind { kind: "grpc" }).set(gauge(stats.open()));
    let failed = metrics.tls_handshakes_failed.get_or_create_owned(&Kind { kind: "grpc" });
    show_count(&failed, stats.failed());
    for (kind, value) in [("done", stats.reloads()), ("failed", stats.failed_reloads())] {
        show_count(&metrics.tls_reloads.get_or_create_owned(&Kind { kind }), value);
    }
}

/// Counts the leaderships that this node sees begin, until consensus ends.
pub async fn watch_leaders(shell: Arc<Shell>) {
    let mut status = shell.leadership.watch();
    let mut last = None;
    loop {
        let now = {
            let status = status.borrow_and_update();
            status.leader.map(|leader| (status.term, leader))
        };
        // Nobody leading is the gap between two leaderships, not one of them.
        if now.is_some() && now != last {
            shell.metrics.raft_leader_changes.inc();
            last = now;
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// Counts the elections with a live holder, over and over, a few at a time: whoever waits for the
/// state must not wait for a walk through all of it.
pub async fn count_held(shell: Arc<Shell>) {
    let mut ticks = tokio::time::interval(STEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut held = 0;
    let mut after: Option<ElectionName> = None;
    loop {
        ticks.tick().await;
        let (more, last) = held_after(&shell, after.as_ref());
        held += more;
        after = last;
        if after.is_none() {
            shell.metrics.elections_held.set(gauge(held));
            held = 0;
            tokio::time::sleep(COUNT_INTERVAL).await;
        }
    }
}

/// How many of the next [`STEP`] elections behind `after` have a live holder, and the name of the
/// last one; `None` when there are no more.
fn held_after(shell: &Shell, after: Option<&ElectionName>) -> (u64, Option<ElectionName>) {
    let state = shell.state.read();
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let rows = state.elections().range::<ElectionName, _>((from, Bound::Unbounded)).take(STEP);
    let mut seen = 0;
    let mut held = 0;
    let mut last = None;
    shell.clocks.with(|clock, now| {
        for (name, row) in rows {
            seen += 1;
            last = Some(name);
            let holder = row.holder.as_ref();
            held +=
                u64::from(holder.is_some_and(|holder| clock.believed_live(holder.session, now)));
        }
    });
    (held, last.filter(|_| seen == STEP).cloned())
}
