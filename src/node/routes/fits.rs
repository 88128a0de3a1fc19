//! What the leader said last of each instance as a target of routes, in the order of its changes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use regent_core::id::{InstanceName, ServiceName};
use regent_core::route::fitness::Fitness;
use regent_core::route::table::Fitnesses;
use tokio::time::Instant;

/// A node that has heard the leader, or leads and has heard an agent, has heard of all who say anything
/// after so long: some intervals of an agent's reports.
const SETTLE: Duration = Duration::from_secs(3);
/// Rows that are kept for instances that are not declared yet.
const MAX_EARLY: usize = 1_024;

/// One instance's.
pub type Row = (ServiceName, InstanceName, Fitness);

/// The rows of all services.
#[derive(Debug)]
pub struct Fits {
    rows: HashMap<ServiceName, Fitnesses>,
    /// Which change each row was last touched by, both ways.
    order: BTreeMap<u64, (ServiceName, InstanceName)>,
    places: HashMap<(ServiceName, InstanceName), u64>,
    last: u64,
    pub(super) settle: Duration,
    /// When it began to listen.
    since: Option<Instant>,
    /// That is long enough ago, and was said.
    settled: bool,
}

/// What was said of instances that are not declared, as far as this node has applied the log: it may be
/// late, and nothing is said twice. The newest of them.
#[derive(Debug, Default)]
pub struct Early(VecDeque<Row>);

impl Early {
    /// Said of one that is not declared here.
    pub fn keep(&mut self, row: Row) {
        self.0.retain(|kept| (&kept.0, &kept.1) != (&row.0, &row.1));
        if self.0.len() == MAX_EARLY {
            self.0.pop_front();
        }
        self.0.push_back(row);
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Services of which something is kept.
    pub fn services(&self) -> Vec<ServiceName> {
        self.0.iter().map(|row| row.0.clone()).collect()
    }

    /// What was said of those of a service that are declared now.
    pub fn take(&mut self, service: &ServiceName, now: impl Fn(&InstanceName) -> bool) -> Vec<Row> {
        let is_now = |row: &Row| row.0 == *service && now(&row.1);
        if !self.0.iter().any(is_now) {
            return Vec::new();
        }
        let (taken, kept) = std::mem::take(&mut self.0).into_iter().partition(is_now);
        self.0 = kept;
        Vec::from(taken)
    }
}

impl Default for Fits {
    fn default() -> Self {
        let (rows, order, places) = Default::default();
        Self { rows, order, places, last: 0, settle: SETTLE, since: None, settled: false }
    }
}

impl Fits {
    /// Whoever says something of instances was heard, whatever it says.
    pub fn listens(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// Whether whoever was not heard of by now says nothing: until then reads may be unknown.
    pub fn is_settled(&self) -> bool {
        self.settled || self.since.is_some_and(|since| since.elapsed() >= self.settle)
    }

    /// Whether that has become so since it was asked last.
    pub fn settles(&mut self) -> bool {
        self.is_settled() && !std::mem::replace(&mut self.settled, true)
    }

    /// Of one service.
    pub fn of(&self, service: &ServiceName) -> Option<&Fitnesses> {
        self.rows.get(service)
    }

    /// Of one instance.
    pub fn one(&self, service: &ServiceName, instance: &InstanceName) -> Option<&Fitness> {
        self.rows.get(service)?.get(instance)
    }

    /// Number of the newest change.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Whether that is news.
    pub fn set(&mut self, (service, instance, fitness): Row) -> bool {
        let rows = self.rows.entry(service.clone()).or_default();
        if rows.get(&instance) == Some(&fitness) {
            return false;
        }
        rows.insert(instance.clone(), fitness);
        self.last += 1;
        let key = (service, instance);
        if let Some(place) = self.places.insert(key.clone(), self.last) {
            self.order.remove(&place);
        }
        self.order.insert(self.last, key);
        true
    }

    /// Keeps only what `wanted` wants of a service, and gives back the rest.
    pub fn keep(
        &mut self,
        service: &ServiceName,
        wanted: impl Fn(&InstanceName) -> bool,
    ) -> Vec<Row> {
        let Some(rows) = self.rows.get_mut(service) else { return Vec::new() };
        let gone: Vec<InstanceName> = rows.keys().filter(|name| !wanted(name)).cloned().collect();
        let mut taken = Vec::new();
        for instance in gone {
            let fitness = rows.remove(&instance);
            if let Some(place) = self.places.remove(&(service.clone(), instance.clone())) {
                self.order.remove(&place);
            }
            taken.extend(fitness.map(|fitness| (service.clone(), instance, fitness)));
        }
        if rows.is_empty() {
            self.rows.remove(service);
        }
        taken
    }

    /// Up to `most` rows that changed after change `after`, and the number to go on from.
    pub fn since(&self, after: u64, most: usize) -> (Vec<Row>, u64) {
        let mut at = after;
        let changed = self.order.range(after + 1..).take(most).filter_map(|(number, key)| {
            at = *number;
            let fitness = self.one(&key.0, &key.1)?.clone();
            Some((key.0.clone(), key.1.clone(), fitness))
        });
        (changed.collect(), at)
    }

    /// Services of which something is known.
    pub fn services(&self) -> Vec<ServiceName> {
        self.rows.keys().cloned().collect()
    }
}
