//! Who follows the routes of which service on this node, and how far each has applied them.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use regent_core::id::{Epoch, Revision, ServiceName};
use regent_rpc::convert::common::epoch_out;
use regent_rpc::pb::v1;
use tokio::time::Instant;

/// The routers of this node.
#[derive(Debug, Default)]
pub struct Routers {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    rows: BTreeMap<(ServiceName, u64), Row>,
    last: u64,
}

#[derive(Debug)]
struct Row {
    principal: String,
    name: String,
    protocol: &'static str,
    applied: Option<(Epoch, Revision, Instant)>,
    /// What it refused last of each kind, until it takes one.
    refused: BTreeMap<&'static str, String>,
}

/// One router's stream; it is forgotten when this is dropped.
#[derive(Debug)]
pub struct Following {
    routers: Arc<Routers>,
    key: (ServiceName, u64),
}

impl Routers {
    /// A router follows `service`.
    pub fn follow(
        self: &Arc<Self>,
        service: &ServiceName,
        principal: String,
        name: String,
        protocol: &'static str,
    ) -> Following {
        let mut inner = self.inner.lock();
        inner.last += 1;
        let key = (service.clone(), inner.last);
        let row = Row { principal, name, protocol, applied: None, refused: BTreeMap::new() };
        inner.rows.insert(key.clone(), row);
        Following { routers: self.clone(), key }
    }

    /// The router of that certificate and name says what it has applied. Whether it follows here.
    pub fn applied(
        &self,
        service: &ServiceName,
        (principal, name): (&str, &str),
        applied: (Epoch, Revision),
    ) -> bool {
        let mut inner = self.inner.lock();
        let rows = inner.rows.range_mut((service.clone(), 0)..=(service.clone(), u64::MAX));
        let mut found = false;
        for (_, row) in rows.filter(|(_, row)| row.principal == principal && row.name == name) {
            row.apply(applied);
            found = true;
        }
        found
    }

    /// Those of one service.
    pub fn of(&self, service: &ServiceName, node: u64) -> Vec<v1::Router> {
        let inner = self.inner.lock();
        let rows = inner.rows.range((service.clone(), 0)..=(service.clone(), u64::MAX));
        rows.map(|(_, row)| v1::Router {
            principal: row.principal.clone(),
            name: row.name.clone(),
            node,
            protocol: row.protocol.to_owned(),
            epoch: row.applied.map(|(epoch, _, _)| epoch_out(epoch)),
            revision: row.applied.map_or(0, |(_, revision, _)| revision.0),
            applied_ms: row.applied.map_or(0, |(_, _, at)| at.elapsed().as_millis() as u64),
            refused: row.refused.values().map(String::as_str).collect::<Vec<_>>().join("; "),
        })
        .collect()
    }
}

/// How many routers there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// That follow by this protocol.
    pub all: u64,
    /// Of those, that have not applied the newest epoch of their service.
    pub behind: u64,
}

impl Routers {
    /// How many follow by each protocol; `newest`: the epoch of a service.
    pub fn count(&self, newest: impl Fn(&ServiceName) -> Epoch) -> BTreeMap<&'static str, Count> {
        let mut counts: BTreeMap<_, Count> = BTreeMap::new();
        for ((service, _), row) in &self.inner.lock().rows {
            let count = counts.entry(row.protocol).or_default();
            count.all += 1;
            let applied = row.applied.map(|(epoch, _, _)| epoch);
            count.behind += u64::from(applied.is_none_or(|applied| applied < newest(service)));
        }
        counts
    }
}

impl Row {
    /// What was applied before may be said late.
    fn apply(&mut self, (epoch, revision): (Epoch, Revision)) {
        if self.applied.is_none_or(|(e, r, _)| (e, r) < (epoch, revision)) {
            self.applied = Some((epoch, revision, Instant::now()));
        }
    }
}

impl Following {
    /// It has applied this.
    pub fn applied(&self, applied: (Epoch, Revision)) {
        if let Some(row) = self.routers.inner.lock().rows.get_mut(&self.key) {
            row.apply(applied);
        }
    }

    /// It calls itself so.
    pub fn named(&self, name: &str) {
        if let Some(row) = self.routers.inner.lock().rows.get_mut(&self.key) {
            name.clone_into(&mut row.name);
        }
    }

    /// It refused what it was sent of this kind.
    pub fn refused(&self, kind: &'static str, why: String) {
        if let Some(row) = self.routers.inner.lock().rows.get_mut(&self.key) {
            row.refused.insert(kind, why);
        }
    }

    /// It took what it was sent of this kind.
    pub fn accepted(&self, kind: &'static str) {
        if let Some(row) = self.routers.inner.lock().rows.get_mut(&self.key) {
            row.refused.remove(kind);
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.routers.inner.lock().rows.remove(&self.key);
    }
}
