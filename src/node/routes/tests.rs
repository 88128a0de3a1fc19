//! Tables as followers see them, and what the leader says on its way.
#![allow(clippy::unwrap_used)]
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use regent_core::decide::facts::Fact;
use regent_core::effect::{Applied, Change};
use regent_core::id::{Epoch, InstanceName, Nonce, Revision, ServiceName, SessionId};
use regent_core::reply::Reply;
use regent_core::role::observe::{Observation, Probe, Receiver, Run};
use regent_core::role::{Armed, Lsn};
use regent_core::route::fitness::Fitness;
use regent_core::route::table::{Closed, Write};
use regent_core::spec::{InstanceSpec, Mode, Policy};
use regent_core::state::State;
use regent_core::state::role::row::{Promotion, RoleLease, ServiceRole};
use regent_core::time::Reading;
use tonic::Code;

use super::*;
use crate::agents::tests::{put, state};
use crate::tests::figures::service as declared;
use crate::watch::Believes;

/// Sessions that are believed live.
#[derive(Default)]
struct Belief(Mutex<HashSet<SessionId>>);

impl Believes for Belief {
    fn believed_live(&self, session: SessionId) -> bool {
        self.0.lock().contains(&session)
    }
    fn age_ms(&self) -> u64 {
        0
    }
}

fn orders() -> ServiceName {
    "orders".parse().unwrap()
}

fn name(name: &str) -> InstanceName {
    name.parse().unwrap()
}

fn hub() -> (Arc<RouteHub>, Arc<Belief>) {
    let belief = Arc::new(Belief::default());
    (Arc::new(RouteHub::new(belief.clone())), belief)
}

/// `holder` serves under the epoch of `revision`, by session 5.
fn serves(holder: &str, revision: u64) -> Change {
    let at = Revision(revision);
    let fencer = Armed::Armed;
    let role = ServiceRole {
        epoch: Epoch { incarnation: 1, revision: at },
        holder: Some(name(holder)),
        lease: Some(RoleLease { session: SessionId(5), mark: at, fencer, run: Nonce(0) }),
        lapsed: None,
        confirmed: true,
        set: None,
        a: Vec::new(),
        c: Vec::new(),
        fence: None,
        promoted: Some(Promotion { timeline: 2, switch: Lsn(0), revision: at }),
        routes_open: true,
        timeline: 2,
        paused: None,
        instances: BTreeMap::new(),
        operation: None,
        failovers: Vec::new(),
        changed: at,
    };
    Change::Role(orders(), Some(Arc::new(role)))
}

fn apply(hub: &RouteHub, state: &State, revision: u64, changes: Vec<Change>) {
    let revision = Revision(revision);
    let (reply, clocks, audit) = (Reply::Done { revision }, Vec::new(), Vec::new());
    hub.applied(state, &Applied { revision, reply, changes, clocks, audit });
}

fn primary(told: &Told) -> Option<String> {
    Some(told.as_ref()?.write.primary()?.instance.to_string())
}

fn fact(run: Run) -> Fact {
    let receiver = Some(Receiver { from: None, streams: true, silent_ms: 0 });
    let probe = Probe::Answered(1);
    let observation = Observation { run, receiver, probe, ..Observation::default() };
    Fact { observation, heard: Reading::at_us(0), lost: None }
}

/// Standby b is well for long enough to take reads.
fn judge_b(hub: &RouteHub) {
    for ms in [0, 1_000] {
        let now = Reading::at_us(ms * 1_000);
        let fact = Fact { heard: now, ..fact(Run::Standby) };
        hub.judge((&orders(), &name("b")), Some(&fact), now);
    }
}

#[test]
fn those_who_ask_are_told_by_belief_as_it_is_then_and_nothing_once_the_node_stops() {
    let ((hub, belief), state) = (hub(), state());
    let declared = hub.declared();
    assert!(hub.current(&orders()).is_none(), "nobody follows it");
    let _following = hub.follow(&state, &orders()).unwrap();
    belief.0.lock().insert(SessionId(5));
    apply(&hub, &state, 10, vec![serves("a", 10)]);
    assert_eq!(primary(&hub.current(&orders()).unwrap()).as_deref(), Some("a"));
    // Nobody has looked at belief since it ended.
    belief.0.lock().clear();
    assert_eq!(primary(&hub.current(&orders()).unwrap()), None);
    belief.0.lock().insert(SessionId(5));
    assert_eq!(primary(&hub.current(&orders()).unwrap()).as_deref(), Some("a"));
    assert!(!declared.has_changed().unwrap());
    apply(&hub, &state, 11, vec![Change::Service(orders(), None)]);
    assert!(declared.has_changed().unwrap());
    assert_eq!(hub.current(&orders()), Some(None), "there is no such service");
    hub.close();
    assert_eq!(hub.current(&orders()), None);
}

#[test]
fn a_change_makes_a_table_for_those_who_follow_that_service_and_for_nobody_else() {
    let ((hub, belief), state) = (hub(), state());
    belief.0.lock().insert(SessionId(5));
    let mut mine = hub.follow(&state, &orders()).unwrap();
    let other = hub.follow(&state, &"other".parse().unwrap()).unwrap();
    assert!(other.borrow().is_none(), "there is no such service");
    assert_eq!(primary(&mine.borrow_and_update()), None);
    apply(&hub, &state, 10, vec![serves("a", 10)]);
    assert!(mine.has_changed().unwrap() && !other.has_changed().unwrap());
    assert_eq!(primary(&mine.borrow_and_update()).as_deref(), Some("a"));
    assert_eq!(mine.borrow().as_ref().unwrap().at.1, Revision(10));
    // What is no news to routers is not told.
    apply(&hub, &state, 11, vec![serves("a", 10)]);
    assert!(!mine.has_changed().unwrap());
    apply(&hub, &state, 12, vec![Change::Service(orders(), None)]);
    assert!(mine.borrow_and_update().is_none());
}

/// Routers compare the tables of two nodes by it.
#[test]
fn a_table_has_the_revision_of_what_it_says_and_not_of_what_else_was_applied() {
    let ((hub, belief), state) = (hub(), state());
    belief.0.lock().insert(SessionId(5));
    let mine = hub.follow(&state, &orders()).unwrap();
    apply(&hub, &state, 10, vec![serves("a", 10)]);
    // An operation of long ago is forgotten.
    apply(&hub, &state, 12, vec![Change::Operation(orders(), Revision(3), None)]);
    belief.0.lock().clear();
    hub.sweep();
    assert_eq!(primary(&mine.borrow()), None, "belief has ended");
    assert_eq!(mine.borrow().as_ref().unwrap().at.1, Revision(10));
}

/// Whether what was said before is to stand.
fn holds(told: &Told) -> bool {
    let table = told.as_ref().unwrap();
    matches!(table.write, Write::Nobody(Closed::Unproven { holds: true }))
}

#[test]
fn a_node_that_has_only_begun_to_look_takes_nothing_back_for_a_while() {
    let (belief, state) = (Arc::new(Belief::default()), state());
    let mut hub = RouteHub::new(belief.clone());
    hub.look_first = Duration::from_millis(50);
    let begun = Instant::now();
    let mut spec = declared();
    spec.policy = Policy::default_for(Mode::Lease);
    let mut told = hub.follow(&state, &orders()).unwrap();
    apply(&hub, &state, 10, vec![put(spec), serves("a", 10)]);
    while holds(&told.borrow_and_update()) {
        assert!(hub.sweep());
    }
    assert!(begun.elapsed() >= hub.look_first, "{:?}", begun.elapsed());
    // Once it believed, the end of belief is the end.
    belief.0.lock().insert(SessionId(5));
    assert!(hub.sweep() && primary(&told.borrow_and_update()).is_some());
    belief.0.lock().clear();
    assert!(hub.sweep() && !holds(&told.borrow_and_update()));
}

#[test]
fn nobody_is_named_before_this_node_believes_and_not_after() {
    let ((hub, belief), state) = (hub(), state());
    let mut told = hub.follow(&state, &orders()).unwrap();
    apply(&hub, &state, 10, vec![serves("a", 10)]);
    assert_eq!(primary(&told.borrow_and_update()), None);
    for believed in [true, false, true] {
        match believed {
            true => assert!(belief.0.lock().insert(SessionId(5))),
            false => assert!(belief.0.lock().remove(&SessionId(5))),
        }
        assert!(!told.has_changed().unwrap());
        assert!(hub.sweep() && told.has_changed().unwrap());
        assert_eq!(primary(&told.borrow_and_update()).is_some(), believed);
    }
}

#[test]
fn what_the_leader_says_of_a_standby_reaches_followers_here_and_there() {
    let ((leader, _), (there, _), state) = (hub(), hub(), state());
    let mut told = [&leader, &there].map(|hub| hub.follow(&state, &orders()).unwrap());
    judge_b(&leader);
    let (rows, at) = leader.since(0, 10);
    assert_eq!((rows.len(), at), (1, *leader.said().borrow()));
    there.told(&state, rows);
    for told in &mut told {
        let reads = told.borrow_and_update().as_ref().unwrap().reads.clone();
        assert_eq!(reads.iter().map(|one| one.instance.as_str()).collect::<Vec<_>>(), ["b"]);
    }
    assert_eq!(leader.since(at, 10), (Vec::new(), at));
    // The next leader goes on from there: one look that is well takes nothing away.
    let down = Fact { heard: Reading::at_us(9), ..fact(Run::Standby) };
    there.judge((&orders(), &name("b")), Some(&down), Reading::at_us(9));
    assert!(!told[1].has_changed().unwrap());
    there.judge((&orders(), &name("b")), Some(&fact(Run::Down)), Reading::at_us(9));
    assert!(told[1].borrow_and_update().as_ref().unwrap().reads.is_empty());
}

fn unknown(told: &Told) -> bool {
    told.as_ref().unwrap().reads_unknown
}

/// It must not send readers to the primary meanwhile, nor say so to those who know better.
#[test]
fn a_node_that_was_just_started_knows_no_standby_until_it_has_heard_and_listened() {
    let ((hub, belief), state) = (hub(), state());
    belief.0.lock().insert(SessionId(5));
    let mut told = hub.follow(&state, &orders()).unwrap();
    apply(&hub, &state, 10, vec![serves("a", 10)]);
    assert!(unknown(&told.borrow_and_update()) && unknown(&hub.resolve(&state, &orders())));
    hub.settle_after(Duration::ZERO);
    assert!(hub.sweep() && unknown(&told.borrow_and_update()), "cut off, it knows no more");
    hub.settle_after(Duration::MAX);

    // Now it leads: the primary's agent comes first, and a standby that cannot be judged yet.
    hub.judge((&orders(), &name("a")), Some(&fact(Run::Primary)), Reading::at_us(0));
    let mut alone = fact(Run::Standby);
    alone.observation.receiver = None;
    hub.judge((&orders(), &name("b")), Some(&alone), Reading::at_us(0));
    let (rows, _) = hub.since(0, 10);
    assert_eq!(rows.len(), 1, "of b it says nothing to the others");
    assert!(unknown(&told.borrow_and_update()));
    // The other standby is silent: it has listened for long enough.
    assert!(hub.sweep() && unknown(&told.borrow_and_update()));
    hub.settle_after(Duration::ZERO);
    assert!(!unknown(&hub.resolve(&state, &orders())));
    assert!(hub.sweep() && told.has_changed().unwrap() && !unknown(&told.borrow_and_update()));

    // A standby that is heard of ends it at once.
    let (young, _) = self::hub();
    let mut told = young.follow(&state, &orders()).unwrap();
    assert!(unknown(&told.borrow_and_update()));
    let fit = Fitness { reads: true, ..Fitness::default() };
    young.told(&state, vec![(orders(), name("b"), fit)]);
    assert!(!unknown(&told.borrow_and_update()));
}

#[test]
fn what_is_said_of_instances_that_are_not_declared_is_forgotten() {
    let ((hub, _), state) = (hub(), state());
    judge_b(&hub);
    let fit = |reads| Fitness { reads, ..Fitness::default() };
    hub.told(&state, vec![(orders(), name("x"), fit(true))]);
    hub.told(&state, vec![("nothing".parse().unwrap(), name("b"), fit(true))]);
    assert_eq!(hub.since(0, 10).0.len(), 1);
    let mut spec = declared();
    spec.instances.retain(|one| one.name != name("b"));
    apply(&hub, &state, 20, vec![put(spec)]);
    assert!(hub.since(0, 10).0.is_empty());
}

/// Nothing is said twice on one stream, and the node may apply late what the leader speaks of.
#[test]
fn what_is_said_of_an_instance_before_it_is_declared_here_counts_once_it_is() {
    let ((hub, _), state) = (hub(), state());
    let mut told = hub.follow(&state, &orders()).unwrap();
    let fit = |reads| Fitness { reads, ..Fitness::default() };
    hub.told(&state, vec![(orders(), name("late"), fit(true))]);
    let names = |told: &Told| -> Vec<String> {
        let reads = &told.as_ref().unwrap().reads;
        reads.iter().map(|one| one.instance.to_string()).collect()
    };
    assert!(names(&told.borrow_and_update()).is_empty());
    let mut spec = declared();
    let late = spec.instances[1].clone();
    spec.instances.push(InstanceSpec { name: name("late"), ..late });
    apply(&hub, &state, 20, vec![put(spec)]);
    assert_eq!(names(&told.borrow_and_update()), ["late"]);
    // It is taken away and declared again, which this node hears of after what is said of it now.
    apply(&hub, &state, 21, vec![put(declared())]);
    assert!(names(&told.borrow_and_update()).is_empty());
    let mut spec = declared();
    let late = spec.instances[1].clone();
    spec.instances.push(InstanceSpec { name: name("late"), ..late });
    apply(&hub, &state, 22, vec![put(spec)]);
    assert_eq!(names(&told.borrow_and_update()), ["late"]);
    // Whatever is said of those that are never declared, the newest of it alone is kept.
    for at in 0..5_000 {
        hub.told(&state, vec![(orders(), name(&format!("x{at}")), fit(true))]);
    }
    assert_eq!(hub.early(), 1_024);
}

#[test]
fn rows_are_told_once_in_the_order_of_their_last_change_and_in_parts() {
    let mut fits = fits::Fits::default();
    let row =
        |at: &str, lag_bytes| (orders(), name(at), Fitness { lag_bytes, ..Fitness::default() });
    assert!(fits.set(row("a", 1)) && fits.set(row("b", 1)) && fits.set(row("c", 1)));
    assert!(!fits.set(row("b", 1)), "no news");
    assert!(fits.set(row("a", 2)));
    let (first, at) = fits.since(0, 2);
    assert_eq!(first, [row("b", 1), row("c", 1)]);
    let (rest, end) = fits.since(at, 2);
    assert_eq!((rest, end), (vec![row("a", 2)], fits.last()));
}

#[test]
fn a_node_that_stops_ends_every_table_and_takes_no_follower() {
    let ((hub, _), state) = (hub(), state());
    let told = hub.follow(&state, &orders()).unwrap();
    hub.close();
    assert!(told.has_changed().is_err());
    assert_eq!(hub.follow(&state, &orders()).unwrap_err().code(), Code::Unavailable);
}

#[test]
fn followers_are_bounded_and_their_places_come_back() {
    let ((hub, _), state) = (hub(), state());
    let follow = || hub.follow(&state, &orders());
    let all: Vec<_> = (0..hub::MAX_FOLLOWERS).map(|_| follow().unwrap()).collect();
    assert_eq!(follow().unwrap_err().code(), Code::ResourceExhausted);
    assert!(hub.sweep());
    assert_eq!(follow().unwrap_err().code(), Code::ResourceExhausted);
    drop(all);
    assert!(!hub.sweep());
    follow().unwrap();
}

#[test]
fn what_a_router_applied_is_kept_for_as_long_as_it_follows_and_never_goes_back() {
    let routers = Arc::new(Routers::default());
    let epoch = |revision| Epoch { incarnation: 1, revision: Revision(revision) };
    let lb = || ("router/lb", "a");
    let first = routers.follow(&orders(), "router/lb".into(), "a".into(), "watch");
    let other = routers.follow(&orders(), "router/lb".into(), "b".into(), "ads");
    assert!(routers.applied(&orders(), lb(), (epoch(10), Revision(12))));
    assert!(routers.applied(&orders(), lb(), (epoch(7), Revision(9))), "late, and no harm");
    assert!(!routers.applied(&orders(), ("router/eve", "a"), (epoch(99), Revision(99))));
    assert!(!routers.applied(&"other".parse().unwrap(), lb(), (epoch(10), Revision(12))));
    other.refused("lds", "no such address".into());
    other.refused("cds", "a cluster without a name".into());
    // What is said of endpoints does not take back what is said of the others.
    other.accepted("lds");
    other.applied((epoch(10), Revision(12)));
    let rows = routers.of(&orders(), 3);
    assert_eq!(rows.len(), 2);
    let of = |name: &str| rows.iter().find(|row| row.name == name).unwrap();
    assert_eq!((of("a").epoch.unwrap().revision, of("a").revision, of("a").node), (10, 12, 3));
    assert_eq!((of("b").revision, of("b").refused.as_str()), (12, "a cluster without a name"));
    let count = |newest| routers.count(|_| epoch(newest));
    assert_eq!(count(10)["watch"], Count { all: 1, behind: 0 });
    assert_eq!(count(11)["ads"], Count { all: 1, behind: 1 });
    drop((first, other));
    assert!(routers.of(&orders(), 3).is_empty());
}
