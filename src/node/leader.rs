//! What a leader does by itself. Once per tick: begin the cluster, expire what lapsed. A few times a
//! second, beside the ticks: add nodes, finish what was interrupted, step aside when its own disk
//! fails.
//!
//! Nothing it remembers matters: each act is an entry that `apply` judges again, whose time has come
//! by the node's own clocks (C2), and a new leader finds the same things to do. `is_leader` is only a
//! hint (an isolated leader says yes): what an isolated one proposes is never committed.

use std::sync::Arc;
use std::time::Duration;

use regent_core::authz::Principal;
use regent_core::command::Command;
use regent_core::decide::expiry::View;
use regent_core::id::{Incarnation, NodeId};
use regent_core::reply::{Rejection, Reply};
use regent_raft::api::ConsensusStatus;
use tokio::time::{Instant, MissedTickBehavior};

use crate::identity::random;
use crate::members::ADDITION_INTERVAL;
use crate::refusals::FLUSH_INTERVAL;
use crate::shell::Shell;

/// How long one entry of a duty may take; what was lost is proposed again at a later tick.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the slower duties are looked at.
const SLOW_INTERVAL: Duration = ADDITION_INTERVAL;
/// A disk that is full for a moment is no reason to move; one that stays so is.
const STORAGE_PATIENCE: Duration = Duration::from_secs(1);
/// Between two tries to hand leadership over because of storage.
const TRANSFER_PAUSE: Duration = Duration::from_secs(5);
/// An interrupted membership change is left alone for this long: it may be under way.
const JOINT_PATIENCE: Duration = Duration::from_secs(2);

/// What a leader remembers between slow ticks.
#[derive(Default)]
struct Slow {
    storage_since: Option<Instant>,
    transferred: Option<Instant>,
    joint_since: Option<Instant>,
}

impl Shell {
    /// Runs the duties until the node stops.
    pub async fn lead_forever(self: Arc<Self>) {
        let tick = Duration::from_millis(self.config.timing().commit_tick_ms.max(5));
        let mut ticks = tokio::time::interval(tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut caught_up = None;
        loop {
            ticks.tick().await;
            let leads = self.leadership.is_here();
            if !leads {
                caught_up = None;
                self.expire(None).await;
                self.leadership.other_than_term(None).await;
                continue;
            }
            let status = self.leadership.status();
            if caught_up != Some(status.term) && !self.catch_up(status.term).await {
                continue;
            }
            caught_up = Some(status.term);
            if !self.begin_cluster().await {
                continue;
            }
            self.expire(caught_up).await;
            // Nothing can lapse while there are no sessions, unless grants wait to be opened.
            if self.state.read().grants_held_ms() > 0 {
                continue;
            }
            tokio::select! {
                () = self.clocks.occupied() => {}
                () = self.leadership.other_than_term(caught_up) => {}
            }
        }
    }

    /// Runs the duties that wait for other nodes, until the node stops. Apart from the ticks, which
    /// must not wait for anybody: a lease that lapsed ends within a tick or two.
    pub async fn lead_slowly_forever(self: Arc<Self>) {
        let mut looks = tokio::time::interval(SLOW_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut slow = Slow::default();
        loop {
            looks.tick().await;
            let status = self.leadership.status();
            if !status.is_leader {
                slow = Slow::default();
                self.additions.forget();
            } else if self.state.read().cluster().is_bootstrapped() {
                self.slow_duties(&status, &mut slow).await;
            }
        }
    }

    /// Whether this node leads in `term` and has applied everything from before it: a quorum round
    /// proves the one and, once its index is applied, the other.
    pub(crate) async fn catch_up(&self, term: u64) -> bool {
        let until = Instant::now() + PROPOSE_TIMEOUT;
        let proven = self.reads.linearizable(until).await.is_ok();
        let status = self.leadership.status();
        proven && status.is_leader && status.term == term
    }

    /// Makes sure that the cluster has its first entry. `false`: not yet.
    async fn begin_cluster(&self) -> bool {
        if self.state.read().cluster().is_bootstrapped() {
            return true;
        }
        let incarnation = Incarnation { counter: 1, id: random() };
        let (cluster, timing) = (self.config.cluster.clone(), self.config.timing());
        let command = Command::Bootstrap { incarnation, cluster, timing };
        match self.propose_as_cluster(&command).await {
            Some(Reply::Rejected(why)) => {
                tracing::warn!(%why, "the cluster has begun already");
                true
            }
            Some(_) => {
                tracing::info!(%incarnation, cluster = self.config.cluster, "the cluster begins");
                true
            }
            None => false,
        }
    }

    /// C4 and C8: proposes the end of what lapsed. `None`: this node does not lead.
    async fn expire(&self, term: Option<u64>) {
        let decision = {
            // State before clocks: the order in which `apply` takes them.
            let state = self.state.read();
            let skew = self.comparison.skew();
            let mut expiry = self.expiry.lock();
            self.clocks
                .with(|clock, now| expiry.decide(&View { state: &state, term, skew, now }, clock))
        };
        for line in &decision.report {
            tracing::info!(acted = line.acted, "{line}");
        }
        for command in decision.commands {
            let kind = match command {
                Command::ExpireSessions { .. } => "session",
                _ => "grant",
            };
            if let Some(Reply::Expired { count, .. }) = self.propose_as_cluster(&command).await {
                let counter =
                    self.metrics.expiries.get_or_create(&crate::http::metrics::Kind { kind });
                counter.inc_by(u64::from(count));
            }
        }
    }

    /// Proposes for the leader itself; `None`: it was not committed, as far as is known.
    pub(crate) async fn propose_as_cluster(&self, command: &Command) -> Option<Reply> {
        let until = Instant::now() + PROPOSE_TIMEOUT;
        let reply = self.propose(Principal::cluster(), None, command, until).await;
        match reply {
            Ok(reply) => Some(reply),
            Err(error) => {
                tracing::debug!(%error, "a duty of the leader was not committed");
                None
            }
        }
    }

    async fn slow_duties(&self, status: &ConsensusStatus, slow: &mut Slow) {
        self.step_aside(status, slow).await;
        self.finish_joint(status, slow).await;
        self.continue_additions(status.term).await;
        self.raise_level(status).await;
    }

    /// Hands leadership over while this node's own disk does not take writes.
    async fn step_aside(&self, status: &ConsensusStatus, slow: &mut Slow) {
        if status.storage_problem.is_empty() {
            slow.storage_since = None;
            return;
        }
        let since = *slow.storage_since.get_or_insert_with(Instant::now);
        let rested = slow.transferred.is_none_or(|at| at.elapsed() >= TRANSFER_PAUSE);
        let others = status.members.iter().any(|(id, _, voter)| *voter && *id != self.node);
        if since.elapsed() < STORAGE_PATIENCE || !rested || !others {
            return;
        }
        slow.transferred = Some(Instant::now());
        match self.consensus.transfer_leader(None).await {
            Ok(to) => tracing::warn!(
                %to, problem = status.storage_problem,
                "handed leadership over: this node's storage does not take writes"
            ),
            Err(error) => tracing::warn!(%error, "could not hand leadership over"),
        }
    }

    async fn finish_joint(&self, status: &ConsensusStatus, slow: &mut Slow) {
        if !status.joint {
            slow.joint_since = None;
            return;
        }
        let since = *slow.joint_since.get_or_insert_with(Instant::now);
        if since.elapsed() < JOINT_PATIENCE {
            return;
        }
        match self.consensus.finish_joint().await {
            Ok(()) => tracing::info!("finished an interrupted membership change"),
            Err(error) => tracing::warn!(%error, "finishing a membership change failed"),
        }
        slow.joint_since = None;
    }

    /// Raises the feature level once every member has said that it can read it.
    async fn raise_level(&self, status: &ConsensusStatus) {
        let have = self.state.read().cluster().feature_level;
        let others = status.members.iter().map(|(id, _, _)| *id);
        let others: Vec<NodeId> = others.filter(|id| *id != self.node).collect();
        let Some(to) = self.comparison.common_level(others) else { return };
        if to <= have {
            return;
        }
        match self.propose_as_cluster(&Command::RaiseFeatureLevel { to }).await {
            Some(Reply::Rejected(why)) => tracing::warn!(%why, to, "raising the feature level"),
            Some(_) => tracing::info!(to, "raised the feature level"),
            None => {}
        }
    }

    /// Puts this start into the log; returns once it is there, or once the log refuses it.
    pub async fn record_boot(&self) {
        let start = self.peers.start();
        let command = Command::RecordBoot {
            node: self.node,
            disk: start.disk,
            boot: start.boot,
            nonce: start.nonce,
        };
        let by = Principal::new(regent_core::authz::Role::Node, self.node.to_string());
        loop {
            let until = Instant::now() + PROPOSE_TIMEOUT;
            let is_begun = self.state.read().cluster().is_bootstrapped();
            if is_begun {
                match self.propose(by.clone(), None, &command, until).await {
                    Ok(Reply::Rejected(why @ Rejection::DiskWentBack { .. })) => {
                        self.admission.quarantine_self(why.to_string());
                        self.consensus.set_votes_allowed(false);
                        return;
                    }
                    Ok(Reply::Rejected(why)) => {
                        tracing::error!(%why, "this start could not be recorded");
                        return;
                    }
                    Ok(_) => return,
                    Err(error) => tracing::debug!(%error, "this start is not recorded yet"),
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Puts refused attempts into the log, once a second, on every node.
    pub async fn flush_refusals_forever(self: Arc<Self>) {
        let by = Principal::new(regent_core::authz::Role::Node, self.node.to_string());
        let mut ticks = tokio::time::interval(FLUSH_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.refusals.flush(&self, &by).await;
        }
    }

    /// Keeps the believed-live clocks fed (C3): a round at least every ttl/6 while there are
    /// sessions.
    pub async fn believe_forever(self: Arc<Self>) {
        // A session with a shorter ttl may come at any time.
        const LOOK: Duration = Duration::from_millis(50);
        loop {
            match self.clocks.next_round_in() {
                Some(wait) if wait.is_zero() => {
                    let until = Instant::now() + Duration::from_secs(1);
                    if self.reads.linearizable(until).await.is_err() {
                        tokio::time::sleep(LOOK).await;
                    }
                }
                Some(wait) => tokio::time::sleep(wait.min(LOOK)).await,
                None => self.clocks.occupied().await,
            }
        }
    }
}
