//! What hears every applied entry, and hands it on: clocks first, then whoever tells others.
//!
//! Called with the state locked for writing, so nothing here may wait or take long.

use std::sync::Arc;

use parking_lot::Mutex;
use regent_core::decide::Expiry;
use regent_core::effect::{Applied, Change};
use regent_core::state::State;
use regent_raft::api::Sink;
use regent_rpc::clock::Clock;

use crate::admission::Admission;
use crate::agents::{Board, Desk};
use crate::clocks::NodeClocks;
use crate::compare::Comparison;
use crate::history::History;
use crate::peers::Peers;
use crate::routes::RouteHub;
use crate::watch::Hub;

/// Hands on what was applied.
pub struct FanOut {
    /// The only source of time.
    pub clock: Arc<dyn Clock>,
    /// Lease clocks (C2, C3).
    pub clocks: Arc<NodeClocks>,
    /// The leader's memory of unconfirmed grants.
    pub expiry: Arc<Mutex<Expiry>>,
    /// State hashes.
    pub comparison: Arc<Comparison>,
    /// Watches.
    pub hub: Hub,
    /// Rows of services for agents.
    pub board: Arc<Board>,
    /// Routes.
    pub routes: Arc<RouteHub>,
    /// The leader's hot facts.
    pub desk: Arc<Desk>,
    /// Audit records.
    pub history: History,
    /// Told which life of the cluster the state belongs to.
    pub peers: Arc<Peers>,
    /// Told who may speak for which node.
    pub admission: Arc<Admission>,
}

impl Sink for FanOut {
    fn applied(&self, state: &State, applied: &Applied) {
        // The clocks come first: a watcher must not be told of a holder that they do not know.
        self.clocks.applied(state, applied.revision, &applied.clocks);
        self.expiry.lock().observe(applied, self.clock.now());
        self.comparison.applied(state);
        self.hub.publish(state, applied);
        self.routes.applied(state, applied);
        self.board.applied(state, applied);
        for change in &applied.changes {
            if let Change::Service(name, _) = change {
                self.desk.service_changed(state, name);
            }
        }
        self.history.record(&applied.audit);
        if applied.changes.iter().any(|c| matches!(c, Change::Cluster | Change::Incarnation)) {
            self.peers.set_life(state.incarnation());
            self.admission.noticed(state);
        }
    }

    fn installed(&self, state: &State) {
        self.clocks.installed(state);
        self.comparison.installed(state);
        self.hub.installed(state);
        self.routes.installed(state);
        self.board.installed(state);
        self.history.set_head(state.audit().head().number);
        self.peers.set_life(state.incarnation());
        self.admission.noticed(state);
    }
}
