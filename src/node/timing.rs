//! C6 on this node and in its cluster: no node may be slower than what the leases were promised.
//!
//! The replicated timing decides which ttls are let in; what a node is configured with decides how
//! long it really takes. A slower node would let leases of the shortest ttl die at the next change
//! of leader. So it stops as soon as it knows both, and the replicated timing is not made faster
//! than a member is configured. Must never judge a member that did not say how it is configured:
//! silence is a refusal.

use futures::future::join_all;
use regent_core::authz::Verb;
use regent_core::command::Command;
use regent_core::reply::Reply;
use regent_core::timing::Timing;
use regent_rpc::convert::cluster::timing_in;
use regent_rpc::convert::status;
use regent_rpc::pb::v1::{RequestId, StatusRequest};
use tonic::Status;

use crate::come_up::HELLO_TIMEOUT;
use crate::rpc::guard::Caller;
use crate::shell::Shell;

impl Shell {
    /// Why this node must not run in this cluster; `None`: it keeps what was promised, or there is
    /// no promise yet.
    pub fn too_slow(&self) -> Option<String> {
        let promised = {
            let state = self.state.read();
            let cluster = state.cluster();
            cluster.is_bootstrapped().then_some(cluster.timing)?
        };
        let slow = self.config.timing().slower_than(&promised)?;
        Some(format!(
            "its profile is slower than the cluster's timing, so leases would not survive a change \
             of leader: {slow}; raise the cluster's timing first (`regent members set-timing`), or \
             configure this node with the cluster's profile"
        ))
    }

    /// Changes the replicated timing, unless a member is configured slower.
    ///
    /// # Errors
    /// FAILED_PRECONDITION names the member; else as [`Shell::write`].
    pub async fn set_timing(
        &self,
        caller: Caller,
        id: Option<RequestId>,
        timing: Timing,
    ) -> Result<Reply, Status> {
        if let Some(why) = self.member_slower_than(&timing).await {
            let outcome = format!("refused: {why}");
            self.record(&caller.principal, Verb::MembersWrite, "timing", "set", outcome).await;
            return Err(status::refused(
                "member_too_slow",
                why,
                "restart every member with the faster profile first, then change the timing",
            ));
        }
        self.write(caller, id, &Command::SetTiming { timing }).await
    }

    /// Which member is slower than `timing`, or did not say. Nobody is asked when no figure gets
    /// faster than what every member keeps already.
    async fn member_slower_than(&self, timing: &Timing) -> Option<String> {
        self.state.read().cluster().timing.slower_than(timing)?;
        if let Some(slow) = self.config.timing().slower_than(timing) {
            return Some(format!("node {}: {slow}", self.node));
        }
        let status = self.leadership.status();
        let others = status.members.iter().filter(|(id, _, _)| *id != self.node);
        let asked = others.map(|(id, member, _)| async move {
            let silent = || format!("node {id} did not say what its profile is");
            let Ok(mut client) = self.peers.cluster(*id, &member.address) else {
                return Some(silent());
            };
            let ask = client.status(self.peers.request(StatusRequest {}, HELLO_TIMEOUT));
            let Ok(Ok(answer)) = tokio::time::timeout(HELLO_TIMEOUT, ask).await else {
                return Some(silent());
            };
            let theirs = answer.into_inner().node.and_then(|node| node.timing);
            match theirs.and_then(|theirs| timing_in(theirs).ok()) {
                Some(theirs) => theirs.slower_than(timing).map(|slow| format!("node {id}: {slow}")),
                None => Some(silent()),
            }
        });
        join_all(asked).await.into_iter().flatten().next()
    }
}
