//! The leader's hot facts: the newest observation of each declared instance, whoever relays it.
//!
//! Nothing here outlives leadership. It must never hold more than the declared instances of the
//! existing services, whatever nodes and agents send.

use std::collections::BTreeMap;

use parking_lot::{Mutex, MutexGuard};
use regent_core::decide::Facts;
use regent_core::decide::facts::Routers;
use regent_core::id::{InstanceName, NodeId, ServiceName};
use regent_core::role::observe::Observation;
use regent_core::state::State;
use regent_core::time::{Micros, Reading};
use tokio::sync::Notify;

/// Something an agent said, or that its stream is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Of which service.
    pub service: ServiceName,
    /// Which instance.
    pub instance: InstanceName,
    /// The stream of the relaying node over which it was said; rises there.
    pub stream: u64,
    /// How long relays had it.
    pub age: Micros,
    /// What it saw; `None`: nothing was said on this stream.
    pub observation: Option<Observation>,
    /// Whether the stream is gone.
    pub lost: bool,
}

/// Which stream of which node said the newest.
type Source = (NodeId, u64);

/// The facts and where they came from.
#[derive(Debug, Default)]
pub struct Desk {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    facts: Facts,
    sources: BTreeMap<ServiceName, BTreeMap<InstanceName, Source>>,
    /// Whether this node leads: else nothing is kept.
    open: bool,
}

/// The facts, locked.
pub struct Held<'a>(MutexGuard<'a, Inner>);

impl std::ops::Deref for Held<'_> {
    type Target = Facts;
    fn deref(&self) -> &Facts {
        &self.0.facts
    }
}

fn is_declared(state: &State, service: &ServiceName, instance: &InstanceName) -> bool {
    let row = state.services().get(service);
    row.is_some_and(|row| row.spec.instances.iter().any(|one| one.name == *instance))
}

impl Desk {
    /// This node leads: facts are taken from now on. Whether it does so anew.
    pub fn open(&self) -> bool {
        !std::mem::replace(&mut self.inner.lock().open, true)
    }

    /// This node does not lead (any more): what was known is forgotten.
    pub fn close(&self) {
        let mut inner = self.inner.lock();
        if inner.open {
            *inner = Inner::default();
        }
    }

    /// Takes what node `from` relays. `false`: this node does not lead, nothing was taken.
    pub fn take(&self, state: &State, from: NodeId, told: Vec<Told>, now: Reading) -> bool {
        let mut inner = self.inner.lock();
        if !inner.open {
            return false;
        }
        for one in told {
            if is_declared(state, &one.service, &one.instance) {
                inner.take(from, one, now);
            }
        }
        drop(inner);
        self.changed.notify_one();
        true
    }

    /// A service was changed or is gone: what is held of instances that are declared no more goes.
    pub fn service_changed(&self, state: &State, service: &ServiceName) {
        let mut inner = self.inner.lock();
        let Some(sources) = inner.sources.get(service) else { return };
        if !sources.keys().all(|instance| is_declared(state, service, instance)) {
            // All of the service: those that are left are heard of again within one interval.
            inner.sources.remove(service);
            inner.facts.forget(service);
        }
    }

    /// Who follows the routes of a service that is waited for. Nothing is kept unless this node leads.
    pub fn followed(&self, service: &ServiceName, routers: Routers) {
        let mut inner = self.inner.lock();
        if inner.open && inner.facts.routers(service) != Some(&routers) {
            inner.facts.followed(service, routers);
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// Others than these are waited for no more.
    pub fn followed_only(&self, is_awaited: impl Fn(&ServiceName) -> bool) {
        self.inner.lock().facts.followed_only(is_awaited);
    }

    /// The facts. Locked after the state, if both are.
    pub fn facts(&self) -> Held<'_> {
        Held(self.inner.lock())
    }

    /// Returns when facts changed since the last return.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Inner {
    fn take(&mut self, from: NodeId, told: Told, now: Reading) {
        let Told { service, instance, stream, age, observation, lost } = told;
        let source = (from, stream);
        if let Some(observation) = observation {
            let before = self.facts.of(&service, &instance).map(|fact| fact.heard);
            // A relay may repeat what it has; what another one said since then is newer.
            let is_older = before.is_some_and(|heard| heard.since(now.minus(age)) > Micros(0));
            if !is_older {
                self.facts.observed(&service, &instance, observation, age, now);
                let sources = self.sources.entry(service.clone()).or_default();
                sources.insert(instance.clone(), source);
            }
        }
        let newest = self.sources.get(&service).and_then(|sources| sources.get(&instance));
        // The agent may speak over another stream by now.
        if lost && newest == Some(&source) {
            self.facts.lost(&service, &instance, now);
        }
    }
}
