//! The tables of the services that somebody follows on this node.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use regent_core::decide::facts::Fact;
use regent_core::effect::{Applied, Change};
use regent_core::id::{Incarnation, InstanceName, Revision, ServiceName, SessionId};
use regent_core::route::fitness::Judge;
use regent_core::route::table::{Belief, Closed, Fitnesses, Heard, Routes, Write};
use regent_core::state::State;
use regent_core::state::role::row::{Operation, ServiceRole};
use regent_core::state::service::Service;
use regent_core::time::Reading;
use regent_rpc::convert::status::{quota, rule, unavailable};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tonic::Status;

use super::encoded::Audiences;
use super::fits::{Early, Fits, Row};
use crate::watch::Believes;

/// How often belief is looked at: a table names nobody for longer than belief lasts and this.
const SWEEP_EVERY: Duration = Duration::from_millis(20);
/// How long a lease that was never believed live here may take to be: two renewal intervals at most.
pub const LOOK_FIRST: Duration = Duration::from_secs(1);
/// Followers of all services on one node at most.
pub(super) const MAX_FOLLOWERS: usize = 65_536;

/// The newest table; `None`: there is no such service.
pub type Told = Option<Arc<Routes>>;

/// Tables of followed services.
pub struct RouteHub {
    believes: Arc<dyn Believes>,
    /// Those who are told the same.
    pub audiences: Audiences,
    pub(super) look_first: Duration,
    inner: Mutex<Inner>,
    /// Somebody follows something.
    followed: Notify,
    /// Number of the newest change of what the leader says.
    said: watch::Sender<u64>,
    /// Told whenever the set of declared services may have changed.
    declared: watch::Sender<()>,
}

#[derive(Default)]
struct Inner {
    followed: HashMap<ServiceName, Followed>,
    fits: Fits,
    early: Early,
    /// While this node leads.
    judges: HashMap<ServiceName, HashMap<InstanceName, Judge>>,
    closed: bool,
    /// Followers of all services: counted by each look at belief, and upwards in between.
    followers: usize,
}

/// How many followed services have which write route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writable {
    /// Somebody takes writes.
    pub open: u64,
    /// Nobody does.
    pub closed: u64,
    /// This node cannot say, and takes nothing back.
    pub held: u64,
}

struct Followed {
    at: (Incarnation, Revision),
    service: Option<Arc<Service>>,
    role: Option<Arc<ServiceRole>>,
    /// The newest operation.
    newest: Option<(Revision, Arc<Operation>)>,
    /// What was believed of the session of the role's lease when the table was made.
    believed: Option<(SessionId, Belief)>,
    /// Until when a lease that was never believed live here may yet be.
    looks_until: Option<Instant>,
    sender: watch::Sender<Told>,
    /// When the table last changed.
    changed: Instant,
}

/// The service whose routes a change may change.
fn of_routes(change: &Change) -> Option<&ServiceName> {
    match change {
        Change::Service(name, _) | Change::Role(name, _) | Change::Operation(name, _, _) => {
            Some(name)
        }
        _ => None,
    }
}

impl RouteHub {
    /// Nobody follows anything yet.
    pub fn new(believes: Arc<dyn Believes>) -> Self {
        let (inner, followed) = (Mutex::default(), Notify::new());
        let said = watch::Sender::new(0);
        let declared = watch::Sender::new(());
        let (audiences, look_first) = (Audiences::default(), LOOK_FIRST);
        Self { believes, audiences, look_first, inner, followed, said, declared }
    }

    /// Follows the routes of `service`, from those of `state` on.
    ///
    /// # Errors
    /// UNAVAILABLE while the node stops, RESOURCE_EXHAUSTED for too many followers.
    pub fn follow(
        &self,
        state: &State,
        service: &ServiceName,
    ) -> Result<watch::Receiver<Told>, Status> {
        let mut inner = self.inner.lock();
        if inner.closed {
            let why = "this node is stopping";
            return Err(unavailable(rule::NOT_READY, why, crate::refuse::RETRY_AFTER));
        }
        if inner.followers >= MAX_FOLLOWERS {
            let text = format!("this node has {MAX_FOLLOWERS} followers of routes already");
            return Err(quota("max_followers", text));
        }
        inner.followers += 1;
        let Inner { followed, fits, .. } = &mut *inner;
        // A table that is here is as new as the state, even if its last follower has gone.
        let it = followed.entry(service.clone()).or_insert_with(|| {
            let mut it = Followed::of(state, service);
            it.looks_until = Some(Instant::now() + self.look_first);
            it.make(service, fits, self.believes.as_ref());
            it
        });
        let receiver = it.sender.subscribe();
        drop(inner);
        self.followed.notify_one();
        Ok(receiver)
    }

    /// The routes of `service` as of `state`.
    pub fn resolve(&self, state: &State, service: &ServiceName) -> Told {
        let inner = self.inner.lock();
        let mut it = Followed::of(state, service);
        it.make(service, &inner.fits, self.believes.as_ref());
        it.sender.borrow().clone()
    }

    /// The table of a followed service, with what is believed at this very moment: for those who ask
    /// again and again rather than wait for changes. `None`: it is not followed, or the node stops.
    pub fn current(&self, service: &ServiceName) -> Option<Told> {
        let mut inner = self.inner.lock();
        let Inner { followed, fits, .. } = &mut *inner;
        let it = followed.get_mut(service)?;
        it.look(service, fits, self.believes.as_ref());
        Some(it.sender.borrow().clone())
    }

    /// Told whenever the set of declared services may have changed.
    pub fn declared(&self) -> watch::Receiver<()> {
        self.declared.subscribe()
    }

    /// An entry was applied; `state` is the state after it, and the clocks have heard of it.
    pub fn applied(&self, state: &State, applied: &Applied) {
        if applied.changes.contains(&Change::Incarnation) {
            return self.installed(state);
        }
        let mut inner = self.inner.lock();
        for change in &applied.changes {
            let Some(name) = of_routes(change) else { continue };
            if let Change::Service(_, row) = change {
                inner.declared(name, row.as_deref());
                self.declared.send_replace(());
            }
            let Inner { followed, fits, .. } = &mut *inner;
            let Some(it) = followed.get_mut(name) else { continue };
            match change {
                Change::Service(_, row) => it.service.clone_from(row),
                Change::Role(_, row) => it.role.clone_from(row),
                Change::Operation(_, id, row) => it.operation(*id, row.as_ref()),
                _ => {}
            }
            it.at = (state.incarnation(), it.changed_at());
            // Made once, when all of the entry is in: nobody must see half of it.
            let last = applied.changes.iter().rfind(|it| of_routes(it) == Some(name));
            if last.is_some_and(|last| std::ptr::eq(last, change)) {
                it.make(name, fits, self.believes.as_ref());
            }
        }
    }

    /// The whole state was replaced.
    pub fn installed(&self, state: &State) {
        self.declared.send_replace(());
        let mut inner = self.inner.lock();
        for name in inner.fits.services().into_iter().chain(inner.early.services()) {
            inner.declared(&name, state.services().get(&name).map(AsRef::as_ref));
        }
        let Inner { followed, fits, .. } = &mut *inner;
        for (name, it) in followed {
            it.take(state, name);
            it.make(name, fits, self.believes.as_ref());
        }
    }

    /// This node leads, and an agent has said something: what it means for routes.
    pub fn judge(
        &self,
        (service, instance): (&ServiceName, &InstanceName),
        fact: Option<&Fact>,
        now: Reading,
    ) {
        let mut inner = self.inner.lock();
        inner.fits.listens();
        let Inner { fits, judges, .. } = &mut *inner;
        let judges = judges.entry(service.clone()).or_default();
        let known = || fits.one(service, instance).cloned();
        let judge = judges.entry(instance.clone()).or_insert_with(|| Judge::resume(known()));
        if let (true, Some(fitness)) = (judge.look(fact, now), judge.fitness().cloned())
            && inner.fits.set((service.clone(), instance.clone(), fitness))
        {
            self.make_said(&mut inner, [service]);
        }
    }

    /// This node leads, or hears the leader: from now on silence means something.
    pub fn listens(&self) {
        self.inner.lock().fits.listens();
    }

    /// Another node leads, and says this.
    pub fn told(&self, state: &State, rows: Vec<Row>) {
        let mut inner = self.inner.lock();
        inner.fits.listens();
        inner.judges.clear();
        let mut changed = BTreeSet::new();
        for row in rows {
            let service = row.0.clone();
            if !is_declared(state.services().get(&service).map(AsRef::as_ref), &row.1) {
                // This node may only be late.
                inner.early.keep(row);
            } else if inner.fits.set(row) {
                changed.insert(service);
            }
        }
        // Once all of them are in: nobody must see some of the standbys alone.
        if !changed.is_empty() {
            self.make_said(&mut inner, &changed);
        }
    }

    /// Something else is said of instances of these services.
    fn make_said<'a>(
        &self,
        inner: &mut Inner,
        services: impl IntoIterator<Item = &'a ServiceName>,
    ) {
        self.said.send_replace(inner.fits.last());
        let Inner { followed, fits, .. } = inner;
        for service in services {
            if let Some(it) = followed.get_mut(service) {
                it.make(service, fits, self.believes.as_ref());
            }
        }
    }

    #[cfg(test)]
    pub(super) fn early(&self) -> usize {
        self.inner.lock().early.count()
    }

    #[cfg(test)]
    pub(super) fn settle_after(&self, settle: Duration) {
        self.inner.lock().fits.settle = settle;
    }

    /// Up to `most` rows of what was said after change `after`, and the number to go on from.
    pub fn since(&self, after: u64, most: usize) -> (Vec<Row>, u64) {
        self.inner.lock().fits.since(after, most)
    }

    /// Number of the newest change of what is said.
    pub fn said(&self) -> watch::Receiver<u64> {
        self.said.subscribe()
    }

    /// Looks at belief for as long as the node runs: it begins and ends by the clock alone.
    pub async fn sweep_forever(self: Arc<Self>) {
        loop {
            if self.sweep() {
                tokio::time::sleep(SWEEP_EVERY).await;
            } else {
                self.followed.notified().await;
            }
        }
    }

    /// Whether anything is followed.
    pub(super) fn sweep(&self) -> bool {
        let mut inner = self.inner.lock();
        let settles = inner.fits.settles();
        let Inner { followed, fits, followers, .. } = &mut *inner;
        followed.retain(|_, it| it.sender.receiver_count() > 0);
        *followers = followed.values().map(|it| it.sender.receiver_count()).sum();
        for (name, it) in followed.iter_mut() {
            if settles {
                it.make(name, fits, self.believes.as_ref());
            }
            it.look(name, fits, self.believes.as_ref());
        }
        !followed.is_empty()
    }

    /// How long ago the table of a followed service last changed.
    pub fn changed_ago(&self, service: &ServiceName) -> Option<Duration> {
        Some(self.inner.lock().followed.get(service)?.changed.elapsed())
    }

    /// How many followed services take writes.
    pub fn writable(&self) -> Writable {
        let mut count = Writable::default();
        for it in self.inner.lock().followed.values() {
            match it.sender.borrow().as_deref().map(|table| &table.write) {
                Some(Write::To(_)) => count.open += 1,
                Some(Write::Nobody(Closed::Unproven { holds: true })) => count.held += 1,
                Some(Write::Nobody(_)) => count.closed += 1,
                // There is no such service.
                None => {}
            }
        }
        count
    }

    /// The node stops: every follower is told by the end of its table.
    pub fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        inner.followed.clear();
    }
}

/// Where writes go is told in the log, once for each change: whoever only asks changes nothing.
fn say(before: Option<&Routes>, now: Option<&Routes>) {
    let (Some(before), Some(now)) = (before, now) else { return };
    if before.write == now.write {
        return;
    }
    let Routes { service, epoch, at, write, .. } = now;
    match write {
        Write::To(to) => {
            tracing::info!(%service, %epoch, revision = at.1.0, to = %to.instance, "writes are routed");
        }
        Write::Nobody(why) => {
            tracing::info!(%service, %epoch, revision = at.1.0, %why, "writes are routed nowhere");
        }
    }
}

fn is_declared(service: Option<&Service>, instance: &InstanceName) -> bool {
    service.is_some_and(|row| row.spec.instances.iter().any(|one| one.name == *instance))
}

impl Inner {
    /// A service is declared so, or no more.
    fn declared(&mut self, name: &ServiceName, service: Option<&Service>) {
        for row in self.fits.keep(name, |instance| is_declared(service, instance)) {
            // What takes it away may be older than what was said of it.
            self.early.keep(row);
        }
        for row in self.early.take(name, |instance| is_declared(service, instance)) {
            self.fits.set(row);
        }
        if let Some(judges) = self.judges.get_mut(name) {
            judges.retain(|instance, _| is_declared(service, instance));
        }
    }
}

impl Followed {
    fn of(state: &State, name: &ServiceName) -> Self {
        let at = (state.incarnation(), Revision::default());
        let sender = watch::Sender::new(None);
        let (service, role, newest, believed) = (None, None, None, None);
        let (looks_until, changed) = (None, Instant::now());
        let mut it = Self { at, service, role, newest, believed, looks_until, sender, changed };
        it.take(state, name);
        it
    }

    fn take(&mut self, state: &State, name: &ServiceName) {
        self.service = state.services().get(name).cloned();
        self.role = state.roles().get(name).cloned();
        self.newest = self
            .role
            .as_ref()
            .and_then(|role| role.operation)
            .and_then(|id| Some((id, state.operations().get(&(name.clone(), id))?.clone())));
        self.at = (state.incarnation(), self.changed_at());
    }

    /// The revision of the newest change of what the table is made from. All nodes that have applied
    /// it say the same, whenever they began to look: routers compare tables of different nodes by it.
    fn changed_at(&self) -> Revision {
        let service = self.service.as_ref().map(|row| row.changed);
        let role = self.role.as_ref().map(|row| row.changed);
        let newest = self.newest.as_ref().and_then(|(_, row)| Some(row.history.last()?.1));
        service.max(role).max(newest).unwrap_or_default()
    }

    fn belief(&self, session: SessionId, believes: &dyn Believes) -> Belief {
        match self.looks_until {
            _ if believes.believed_live(session) => Belief::Live,
            Some(until) if Instant::now() < until => Belief::NotYet,
            _ => Belief::Over,
        }
    }

    fn operation(&mut self, id: Revision, row: Option<&Arc<Operation>>) {
        let newest = self.newest.as_ref().map(|(newest, _)| *newest);
        match row {
            Some(row) if newest <= Some(id) => self.newest = Some((id, row.clone())),
            None if newest == Some(id) => self.newest = None,
            Some(_) | None => {}
        }
    }

    /// Makes the table anew if belief is another one than when it was made.
    fn look(&mut self, name: &ServiceName, fits: &Fits, believes: &dyn Believes) {
        let Some((session, told)) = self.believed else { return };
        if self.belief(session, believes) != told {
            self.make(name, fits, believes);
        }
    }

    /// Makes the table anew, and tells followers if it says something else.
    fn make(&mut self, name: &ServiceName, fits: &Fits, believes: &dyn Believes) {
        let lease = self.role.as_ref().and_then(|role| role.lease.as_ref());
        self.believed = lease.map(|lease| (lease.session, self.belief(lease.session, believes)));
        let believed = self.believed.map_or(Belief::Over, |(_, believed)| believed);
        if believed == Belief::Live {
            self.looks_until = None;
        }
        let none = Fitnesses::new();
        let rows = fits.of(name).unwrap_or(&none);
        let heard = Heard { rows, settled: fits.is_settled() };
        let table = self.service.as_ref().map(|service| {
            let newest = self.newest.as_ref().map(|(_, row)| row.as_ref());
            Arc::new(Routes::of(self.at, service, self.role.as_deref(), newest, heard, |_| {
                believed
            }))
        });
        self.sender.send_if_modified(|told| {
            let same = match (told.as_ref(), table.as_ref()) {
                (Some(told), Some(table)) => table.says_the_same(told),
                (None, None) => true,
                _ => false,
            };
            if !same {
                say(told.as_deref(), table.as_deref());
                (*told, self.changed) = (table, Instant::now());
            }
            !same
        });
    }
}
