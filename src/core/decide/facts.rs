//! The leader's memory of hot facts: the newest observation of each instance, and whether its agent
//! is connected. A new leader starts with none and decides nothing until fresh ones have come.

use std::collections::BTreeMap;

use crate::id::{InstanceName, Revision, ServiceName};
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
    routers: BTreeMap<ServiceName, Routers>,
}

/// Who follows the routes of a service, at any node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routers {
    /// The newest revision that each of them has applied.
    pub applied: Vec<Revision>,
    /// Nodes that did not answer: who follows there is not known.
    pub silent_nodes: usize,
}

impl Routers {
    /// How many have applied what was decided at `revision`.
    pub fn have(&self, revision: Revision) -> usize {
        self.applied.iter().filter(|applied| **applied >= revision).count()
    }

    /// Whether that share of them has, in percent.
    pub fn share_has(&self, revision: Revision, percent: u32) -> bool {
        let (all, have) = (self.applied.len() as u64, self.have(revision) as u64);
        self.silent_nodes == 0 && have * 100 >= all * u64::from(percent)
    }
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
            Some(fact) => {
                // What a relay still had from before the break does not undo it.
                let lost = fact.lost.filter(|at| at.since(heard) > Micros(0));
                *fact = Fact { observation, heard, lost };
            }
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

    /// Who follows the routes of a service now.
    pub fn followed(&mut self, service: &ServiceName, routers: Routers) {
        self.routers.insert(service.clone(), routers);
    }

    /// Who follows the routes of a service; `None`: nobody has asked for them.
    pub fn routers(&self, service: &ServiceName) -> Option<&Routers> {
        self.routers.get(service)
    }

    /// Nobody waits for routers of others than these any more.
    pub fn followed_only(&mut self, is_awaited: impl Fn(&ServiceName) -> bool) {
        self.routers.retain(|service, _| is_awaited(service));
    }

    /// Another node leads: what is known here is forgotten.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.routers.clear();
    }

    /// A service is gone.
    pub fn forget(&mut self, service: &ServiceName) {
        self.rows.remove(service);
        self.routers.remove(service);
    }
}

impl Fact {
    /// How long ago it was heard.
    pub fn age(&self, now: Reading) -> Micros {
        now.since(self.heard)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::role::observe::Run;

    const MS: fn(u64) -> Micros = Micros::from_ms;

    fn at(ms: u64) -> Reading {
        Reading::at_us(ms * 1_000)
    }

    fn seen(run: Run) -> Observation {
        Observation { run, ..Observation::default() }
    }

    #[test]
    fn a_report_that_was_delayed_on_its_way_replaces_no_newer_one() {
        let (service, a) = ("s".parse().unwrap(), "a".parse().unwrap());
        let mut facts = Facts::default();
        facts.observed(&service, &a, seen(Run::Primary), MS(0), at(1_000));
        facts.observed(&service, &a, seen(Run::Down), MS(300), at(1_100));
        assert_eq!(facts.of(&service, &a).unwrap().observation.run, Run::Primary);
        facts.observed(&service, &a, seen(Run::Down), MS(50), at(1_100));
        let fact = facts.of(&service, &a).unwrap();
        assert_eq!((fact.observation.run, fact.age(at(1_200))), (Run::Down, MS(150)));
    }

    #[test]
    fn a_lost_stream_is_back_only_with_a_report_of_after_the_loss() {
        let (service, a) = ("s".parse().unwrap(), "a".parse().unwrap());
        let mut facts = Facts::default();
        facts.lost(&service, &a, at(900));
        assert_eq!(facts.of(&service, &a), None, "nothing was ever heard of it");
        facts.observed(&service, &a, seen(Run::Primary), MS(0), at(1_000));
        facts.lost(&service, &a, at(1_100));
        facts.lost(&service, &a, at(1_200));
        let lost = |facts: &Facts| facts.of(&service, &a).unwrap().lost;
        assert_eq!(lost(&facts), Some(at(1_100)), "since the first word of it");
        facts.observed(&service, &a, seen(Run::Primary), MS(100), at(1_150));
        assert_eq!(lost(&facts), Some(at(1_100)), "a relay had it from before");
        facts.observed(&service, &a, seen(Run::Primary), MS(0), at(1_250));
        assert_eq!(lost(&facts), None);
    }
}
