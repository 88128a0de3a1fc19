//! Who has applied what, over all nodes; and the leader's look at it while an operation waits for
//! routers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use regent_core::decide::facts::Routers;
use regent_core::id::{NodeId, Revision, ServiceName};
use regent_core::role::Phase;
use regent_core::state::State;
use regent_rpc::pb::raft::RoutersRequest;
use regent_rpc::pb::v1;

use crate::shell::Shell;

/// How long another node may take to say who follows routes there.
const PEER_TIMEOUT: Duration = Duration::from_millis(500);
/// Between two looks while a switchover stands still for routers.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// And while nobody stands still: an operation is not called done yet.
const LOOK_SELDOM: Duration = Duration::from_millis(100);

/// The services whose operation waits for routers, and whether it stands still.
fn awaited(state: &State) -> BTreeMap<ServiceName, bool> {
    let waits = |name: &ServiceName| {
        let id = state.roles().get(name)?.operation?;
        let row = state.operations().get(&(name.clone(), id))?;
        let awaits = state.services().get(name)?.spec.policy.await_routers.percent > 0;
        let waits = awaits && matches!(row.phase, Phase::Drain | Phase::Repair);
        waits.then_some(row.phase == Phase::Drain)
    };
    state.roles().keys().filter_map(|name| Some((name.clone(), waits(name)?))).collect()
}

impl Shell {
    /// Who follows `service` at every node, and the nodes that do not say.
    pub async fn list_routers(&self, service: &ServiceName) -> (Vec<v1::Router>, Vec<u64>) {
        let members = self.leadership.status().members.clone();
        let others = members.iter().filter(|(id, _, _)| *id != self.node);
        let asked = others.map(|(id, member, _)| self.ask_routers(*id, &member.address, service));
        let answers = join_all(asked).await;
        let mut routers = self.routers.of(service, self.node.0);
        let mut silent_nodes = Vec::new();
        for (node, answer) in answers {
            match answer {
                Some(there) => routers.extend(there),
                None => silent_nodes.push(node.0),
            }
        }
        (routers, silent_nodes)
    }

    /// `None`: it does not answer.
    async fn ask_routers(
        &self,
        node: NodeId,
        address: &str,
        service: &ServiceName,
    ) -> (NodeId, Option<Vec<v1::Router>>) {
        let answer = async {
            let mut peer = self.peers.peer(node, address).ok()?;
            let message = RoutersRequest { service: service.to_string() };
            let request = self.peers.request(message, PEER_TIMEOUT);
            let answer = tokio::time::timeout(PEER_TIMEOUT, peer.routers(request)).await;
            Some(answer.ok()?.ok()?.into_inner().routers)
        };
        (node, answer.await)
    }

    /// Tells the leader's decider how far routers are that it waits for, until the node stops.
    pub async fn await_routers_forever(self: Arc<Self>) {
        loop {
            let term = self.leadership.status();
            let term = term.is_leader.then_some(term.term);
            let waits = match term {
                Some(_) => awaited(&self.state.read()),
                None => BTreeMap::new(),
            };
            self.desk.followed_only(|service| waits.contains_key(service));
            let asked = waits.keys().map(|service| self.follow_up(service));
            futures::future::join_all(asked).await;
            let stands_still = waits.values().any(|stands_still| *stands_still);
            let rest = if stands_still { LOOK_EVERY } else { LOOK_SELDOM };
            tokio::select! {
                () = tokio::time::sleep(rest), if !waits.is_empty() => {}
                () = self.board.awaited_changed() => {}
                () = self.leadership.other_than_term(term) => {}
            }
        }
    }

    async fn follow_up(&self, service: &ServiceName) {
        let (routers, silent) = self.list_routers(service).await;
        let applied = routers.iter().map(|router| Revision(router.revision)).collect();
        self.desk.followed(service, Routers { applied, silent_nodes: silent.len() });
    }
}
