//! The leader's memory of hot facts: the newest observation of each instance, and whether its agent
//! is connected. A new leader starts with none and decides nothing until fresh ones have come.

use std::collections::BTreeMap;

use crate::id::{InstanceName, ServiceName};
use crate::role::observe::Observation;
use crate::time::{Micros, Reading};

/// What is known of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What its agent said last.
    pub observation: Observation,
    /// When that reached a node, on this leader's clock: a relay's delay is subtracted.
    pub heard: Reading,
    /// Since when its agent's stream is gone; `None`: it is there.
    pub lost: Option<Reading>,
}

/// What is known of all.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    rows: BTreeMap<ServiceName, BTreeMap<InstanceName, Fact>>,
}

impl Facts {
    /// An observation arrived; `age` is how long relays had it.
    pub fn observed(
        &mut self,
        service: &ServiceName,
        instance: &InstanceName,
        observation: Observation,
        age: Micros,
        now: Reading,
    ) {
        let heard = now.minus(age);
        let rows = self.rows.entry(service.clone()).or_default();
        match rows.get_mut(instance) {
            Some(fact) if fact.heard.since(heard) > Micros(0) => {}
            Some(fact) => *fact = Fact { observation, heard, lost: None },
            None => drop(rows.insert(instance.clone(), Fact { observation, heard, lost: None })),
        }
    }

    /// The agent's stream ended or broke.
    pub fn lost(&mut self, service: &ServiceName, instance: &InstanceName, now: Reading) {
        let fact = self.rows.get_mut(service).and_then(|rows| rows.get_mut(instance));
        if let Some(fact) = fact {
            fact.lost.get_or_insert(now);
        }
    }

    /// What is known of one instance.
    pub fn of(&self, service: &ServiceName, instance: &InstanceName) -> Option<&Fact> {
        self.rows.get(service)?.get(instance)
    }

    /// Another node leads: what is known here is forgotten.
    pub fn clear(&mut self) {
        self.rows.clear();
    }

    /// A service is gone.
    pub fn forget(&mut self, service: &ServiceName) {
        self.rows.remove(service);
    }
}

impl Fact {
    /// How long ago it was heard.
    pub fn age(&self, now: Reading) -> Micros {
        now.since(self.heard)
    }
}
