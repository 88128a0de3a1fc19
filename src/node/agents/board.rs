//! The rows of services as applied on this node, for whoever must know of every change of a few:
//! agents' streams and people who watch operations.
//!
//! Fed with the state locked, so it only stores shared rows and wakes. Levels, not events: whoever
//! looks late sees the newest rows and misses nothing that still matters.

use std::collections::HashMap;

use parking_lot::Mutex;
use regent_core::effect::{Applied, Change};
use regent_core::id::{Incarnation, Revision, ServiceName};
use regent_core::state::State;
use regent_core::state::role::row::{Operation, ServiceRole};
use regent_core::state::service::Service;
use std::sync::Arc;
use tokio::sync::{Notify, watch};
use tonic::Status;

/// Watches of rows on one node at most: one for each instance of every service that the cluster may
/// have, were all of them attached here.
const MAX_FOLLOWERS: usize = 65_536;

/// What is known of one service.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Which life of the cluster, and the revision that last changed one of the rows.
    pub at: (Incarnation, Revision),
    /// Its declaration; `None`: there is no such service.
    pub service: Option<Arc<Service>>,
    /// Its role; `None`: no agent of it was ever started.
    pub role: Option<Arc<ServiceRole>>,
    /// The level of the cluster.
    pub feature_level: u32,
    /// Its newest operation.
    pub operation: Option<(Revision, Arc<Operation>)>,
}

/// The rows that are followed on this node.
#[derive(Debug, Default)]
pub struct Board {
    inner: Mutex<Inner>,
    /// Something changed that the leader's duty for roles looks at.
    roles_changed: Notify,
    /// The same, for the leader's look at routers that are waited for.
    awaited_changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    rows: HashMap<ServiceName, watch::Sender<Rows>>,
    closed: bool,
}

fn rows_of(state: &State, service: &ServiceName) -> Rows {
    let role = state.roles().get(service).cloned();
    let newest = role.as_ref().and_then(|role| role.operation);
    let operation = newest.and_then(|id| {
        let row = state.operations().get(&(service.clone(), id))?;
        Some((id, row.clone()))
    });
    Rows {
        at: (state.incarnation(), state.revision()),
        service: state.services().get(service).cloned(),
        role,
        feature_level: state.cluster().feature_level,
        operation,
    }
}

/// The service whose rows a change touches.
fn service_of(change: &Change) -> Option<&ServiceName> {
    match change {
        Change::Service(name, _) | Change::Role(name, _) | Change::Operation(name, _, _) => {
            Some(name)
        }
        Change::Partition(..) | Change::Election(..) | Change::Cluster | Change::Incarnation => {
            None
        }
    }
}

impl Board {
    /// An entry was applied; `state` is the state after it.
    pub fn applied(&self, state: &State, applied: &Applied) {
        // What is told of a row depends on the cluster's level.
        if [Change::Incarnation, Change::Cluster].iter().any(|it| applied.changes.contains(it)) {
            return self.installed(state);
        }
        if !applied.changes.iter().any(|change| service_of(change).is_some()) {
            return;
        }
        self.roles_changed.notify_one();
        self.awaited_changed.notify_one();
        let mut inner = self.inner.lock();
        let at = (state.incarnation(), applied.revision);
        for change in &applied.changes {
            if let Some(service) = service_of(change) {
                inner.change(service, |rows| rows.take(at, change));
            }
        }
    }

    /// The whole state was replaced.
    pub fn installed(&self, state: &State) {
        self.roles_changed.notify_one();
        self.awaited_changed.notify_one();
        let mut inner = self.inner.lock();
        let followed: Vec<ServiceName> = inner.rows.keys().cloned().collect();
        for service in &followed {
            inner.change(service, |rows| *rows = rows_of(state, service));
        }
    }

    /// Follows the rows of `service`, from those of `state` on.
    ///
    /// # Errors
    /// UNAVAILABLE while the node stops, RESOURCE_EXHAUSTED for too many.
    pub fn follow(
        &self,
        state: &State,
        service: &ServiceName,
    ) -> Result<watch::Receiver<Rows>, Status> {
        use regent_rpc::convert::status::{quota, rule, unavailable};
        let mut inner = self.inner.lock();
        if inner.closed {
            let why = "this node is stopping";
            return Err(unavailable(rule::NOT_READY, why, crate::refuse::RETRY_AFTER));
        }
        let followers: usize = inner.rows.values().map(watch::Sender::receiver_count).sum();
        if followers >= MAX_FOLLOWERS {
            let text = format!("this node follows {MAX_FOLLOWERS} services already");
            return Err(quota("max_followers", text));
        }
        let sender = inner.rows.entry(service.clone());
        // Rows that are here are as new as the state, even if their last follower has gone: the next
        // change takes them away.
        let sender = sender.or_insert_with(|| watch::Sender::new(rows_of(state, service)));
        Ok(sender.subscribe())
    }

    /// Returns when rows of some service changed since the last return.
    pub async fn roles_changed(&self) {
        self.roles_changed.notified().await;
    }

    /// The same; each has one who waits.
    pub async fn awaited_changed(&self) {
        self.awaited_changed.notified().await;
    }

    /// The node stops: every follower is told by the end of its rows.
    pub fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        inner.rows.clear();
    }
}

impl Rows {
    fn take(&mut self, at: (Incarnation, Revision), change: &Change) {
        self.at = at;
        match change {
            Change::Service(_, row) => self.service.clone_from(row),
            Change::Role(_, row) => self.role.clone_from(row),
            Change::Operation(_, id, row) => {
                let newest = self.operation.as_ref().map(|(newest, _)| *newest);
                match row {
                    Some(row) if newest <= Some(*id) => self.operation = Some((*id, row.clone())),
                    None if newest == Some(*id) => self.operation = None,
                    Some(_) | None => {}
                }
            }
            Change::Partition(..)
            | Change::Election(..)
            | Change::Cluster
            | Change::Incarnation => {}
        }
    }
}

impl Inner {
    fn change(&mut self, service: &ServiceName, change: impl FnOnce(&mut Rows)) {
        let Some(sender) = self.rows.get(service) else { return };
        // The last of its followers has gone.
        if sender.receiver_count() == 0 {
            self.rows.remove(service);
            return;
        }
        sender.send_modify(change);
    }
}
