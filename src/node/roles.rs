//! The leader's duty for roles: looks at state and hot facts, proposes what the core decides.
//!
//! It must never keep anything that matters: what it proposes is judged by `apply` again, and a new
//! leader decides anew from the same rows. The proposals of one service go one after the other, those
//! of different services side by side, so that one that waits for a quorum holds up no other service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use regent_core::command::{Command, Scope};
use regent_core::decide::Roles;
use regent_core::decide::roles::View;
use regent_core::id::ServiceName;
use regent_core::reply::Reply;
use tokio::time::Instant;

use crate::shell::Shell;

/// Between two looks while there are roles: time alone decides some things (a silence, a deadline).
const LOOK: Duration = Duration::from_millis(20);
/// A service whose proposal was rejected or lost rests for this long: the same one again would fare
/// no better, and must not fill the log.
const REST: Duration = Duration::from_millis(100);
/// How often a leader that has not caught up tries again.
const CATCH_UP_AGAIN: Duration = Duration::from_millis(20);

/// Proposals under way, by service.
#[derive(Default)]
struct UnderWay {
    work: FuturesUnordered<BoxFuture<'static, (ServiceName, bool)>>,
    busy: BTreeSet<ServiceName>,
    resting: BTreeMap<ServiceName, Instant>,
}

impl UnderWay {
    fn is_free(&mut self, service: &ServiceName) -> bool {
        let now = Instant::now();
        self.resting.retain(|_, until| *until > now);
        !self.busy.contains(service) && !self.resting.contains_key(service)
    }

    /// A service's proposals are done; whether all took effect.
    fn done(&mut self, service: ServiceName, well: bool) {
        self.busy.remove(&service);
        if !well {
            self.resting.insert(service, Instant::now() + REST);
        }
    }
}

impl Shell {
    /// Runs the duty until the node stops.
    pub async fn lead_roles_forever(self: Arc<Self>) {
        let mut roles = Roles::default();
        loop {
            self.desk.close();
            self.reports.clear();
            // Told that it does not lead, the decider forgets what it remembered.
            self.look(&mut roles, None);
            self.leadership.other_than_term(None).await;
            let term = self.leadership.status().term;
            if !self.may_lead_roles(term).await {
                tokio::time::sleep(CATCH_UP_AGAIN).await;
                continue;
            }
            self.desk.open();
            tokio::select! {
                () = self.clone().lead_roles(term, &mut roles) => {}
                () = self.leadership.other_than_term(Some(term)) => {}
            }
        }
    }

    async fn may_lead_roles(&self, term: u64) -> bool {
        self.catch_up(term).await && self.state.read().cluster().is_bootstrapped()
    }

    async fn lead_roles(self: Arc<Self>, term: u64, roles: &mut Roles) {
        let mut under_way = UnderWay::default();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // No agent of any service was ever started: nothing can be due.
            let idle = self.state.read().roles().is_empty() && under_way.busy.is_empty();
            if !idle {
                let commands = self.look(roles, Some(term));
                self.begin(&mut under_way, commands);
            }
            tokio::select! {
                () = self.board.roles_changed() => {
                    let state = self.state.read();
                    self.reports.keep_only(|service| state.services().contains_key(service));
                }
                () = self.desk.changed(), if !idle => {}
                Some((service, well)) = under_way.work.next() => under_way.done(service, well),
                _ = looks.tick(), if !idle => {}
            }
        }
    }

    /// One look; what it says is logged once and kept for whoever asks.
    fn look(&self, roles: &mut Roles, term: Option<u64>) -> Vec<Command> {
        let wall = self.clock.wall();
        let decision = {
            // State before facts: the order in which everybody takes them.
            let state = self.state.read();
            let facts = self.desk.facts();
            let (skew, now) = (self.comparison.skew(), self.clock.now());
            roles.decide(&View { state: &state, facts: &facts, term, skew, now, wall })
        };
        self.reports.count(roles.verdicts());
        for line in self.reports.take(decision.report, wall) {
            tracing::info!(acted = line.acted, "{line}");
        }
        decision.commands
    }

    fn begin(self: &Arc<Self>, under_way: &mut UnderWay, commands: Vec<Command>) {
        let mut by_service: BTreeMap<ServiceName, Vec<Command>> = BTreeMap::new();
        for command in commands {
            let Scope::Service(service) = command.scope() else {
                tracing::error!(?command, "a decision about roles is about no service");
                continue;
            };
            by_service.entry(service).or_default().push(command);
        }
        for (service, commands) in by_service {
            // What is left out is decided again once this service's turn has come.
            if !under_way.is_free(&service) {
                continue;
            }
            under_way.busy.insert(service.clone());
            let shell = self.clone();
            under_way.work.push(Box::pin(async move {
                let well = shell.propose_role(&service, commands).await;
                (service, well)
            }));
        }
    }

    /// Proposes one after the other; stops at the first that does not take effect, because what
    /// follows was decided in the belief that it does.
    async fn propose_role(&self, service: &ServiceName, commands: Vec<Command>) -> bool {
        for command in commands {
            match self.propose_as_cluster(&command).await {
                Some(Reply::Rejected(why)) => {
                    tracing::info!(%service, %why, "a proposal of the leader was rejected");
                    return false;
                }
                Some(_) => {}
                None => return false,
            }
        }
        true
    }
}
