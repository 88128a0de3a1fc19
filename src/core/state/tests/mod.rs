//! Tests of the state machine from the outside: entries in, `Applied` and snapshots out.
#![allow(clippy::unwrap_used)]

mod model;
mod poison;
mod role_model;
mod role_words;
mod script;
mod speed;

use crate::authz::{Principal, Role};
use crate::command::{Command, Entry, Expect, Request};
use crate::effect::Applied;
use crate::id::{
    ClientId, Incarnation, InstanceName, Locality, Nonce, PartitionName, Revision, Serial,
    ServiceName, SessionId,
};
use crate::reply::{Rejection, Reply};
use crate::spec::{
    AwaitRouters, CoordinatorLoss, Engine, InstanceSpec, LossBound, LoweredSync, Mode, OnViolation,
    Policy, Scope, ServiceSpec, Survive, TooFewSync, TopologyKind,
};
use crate::state::State;
use crate::state::version::{FEATURE_LEVEL, STRICT_LEVEL};
use crate::time::WallMs;
use crate::timing::Timing;

/// A state that numbers its own entries.
struct Bench {
    state: State,
    by: Principal,
}

impl Bench {
    fn empty() -> Self {
        Self { state: State::default(), by: Principal::new(Role::Client, "ann") }
    }

    fn new() -> Self {
        let mut bench = Self::empty();
        let incarnation = Incarnation { counter: 1, id: 7 };
        let timing = Timing::LAN;
        bench.run(Command::Bootstrap { incarnation, cluster: "lab".into(), timing });
        bench
    }

    fn run(&mut self, command: Command) -> Applied {
        self.run_as(None, command)
    }

    fn run_as(&mut self, lane: Option<(u64, u64)>, command: Command) -> Applied {
        let request = lane
            .map(|(client, serial)| Request { client: ClientId(client), serial: Serial(serial) });
        let entry = Entry::new(WallMs(1_000), self.by.clone(), request, &command);
        self.raw(&entry.encode())
    }

    fn raw(&mut self, bytes: &[u8]) -> Applied {
        let revision = self.state.revision().next();
        let applied = self.state.apply(revision, bytes);
        self.state.check().unwrap();
        applied
    }

    fn open(&mut self, nonce: u64) -> SessionId {
        match self.run(open_session(5_000, nonce)).reply {
            Reply::SessionOpened { session, .. } => session,
            other => panic!("{other:?}"),
        }
    }
}

fn open_session(ttl_ms: u64, nonce: u64) -> Command {
    Command::OpenSession {
        ttl_ms,
        renew_interval_ms: 300,
        fence_budget_ms: 250,
        nonce: Nonce(nonce),
        label: "test".into(),
    }
}

fn campaign(election: &str, session: SessionId, nonce: u64, priority: i32) -> Command {
    Command::Campaign {
        election: election.parse().unwrap(),
        session,
        nonce: Nonce(nonce),
        priority,
        locality: Locality::default(),
        value: b"here".to_vec(),
    }
}

fn service(name: &str, instances: &[&str], partitions: &[&str]) -> ServiceSpec {
    let instance = |(at, name): (usize, &&str)| InstanceSpec {
        name: InstanceName::parse(name).unwrap(),
        locality: Locality { region: "r".into(), zone: format!("z{at}"), host: format!("h{at}") },
        address: format!("db{at}.example.org:5432"),
        priority: 1,
    };
    let active = !partitions.is_empty();
    ServiceSpec {
        name: ServiceName::parse(name).unwrap(),
        description: String::new(),
        engine: if active { Engine::Exec } else { Engine::Postgres },
        topology: if active { TopologyKind::ActiveActive } else { TopologyKind::ActivePassive },
        instances: instances.iter().enumerate().map(instance).collect(),
        partitions: partitions.iter().map(|name| PartitionName::parse(name).unwrap()).collect(),
        policy: Policy {
            mode: Mode::Lease,
            ttl_ms: 10_000,
            sync_standbys: 0,
            min_sync_standbys: 0,
            on_too_few_sync: TooFewSync::Block,
            on_lowered_sync: LoweredSync::Report,
            on_coordinator_loss: CoordinatorLoss::Stop,
            loss_bound: LossBound { max_bytes: 0, max_ms: 11_000, on_violation: OnViolation::Ask },
            max_failover_scope: Scope::Region,
            survive: Survive::Instance,
            restart_grace_ms: 10_000,
            failover_cooldown_ms: 60_000,
            await_routers: AwaitRouters::NONE,
        },
    }
}

fn put_service(spec: ServiceSpec) -> Command {
    Command::PutService { spec: Box::new(spec), expect: Expect::Any }
}

#[test]
fn elections_are_named_by_prefix_and_from_where_a_page_ended() {
    let mut bench = Bench::new();
    for name in ["a", "b/1", "b/2", "b/3", "b0", "c"] {
        let election = name.parse().unwrap();
        let preferred = Locality::default();
        bench.run(Command::PutElection { election, preferred, expect: Expect::Any });
    }
    let named = |prefix, after| -> Vec<_> {
        bench.state.elections_named(prefix, after).map(|(name, _)| name.as_str()).collect()
    };
    assert_eq!(named("", "").len(), 6);
    assert_eq!(named("b/", ""), ["b/1", "b/2", "b/3"]);
    assert_eq!(named("b/", "b/2"), ["b/3"]);
    assert_eq!(named("b/", "b/3"), [""; 0]);
    assert_eq!(named("b/", "a"), named("b/", ""));
    assert_eq!(named("", "b/3"), ["b0", "c"]);
    assert_eq!(named("d", ""), [""; 0]);
}

#[test]
fn a_revision_that_does_not_rise_changes_nothing() {
    let mut bench = Bench::new();
    bench.open(1);
    let before = bench.state.encode_snapshot();
    let entry = Entry::new(WallMs(0), bench.by.clone(), None, &open_session(5_000, 2)).encode();
    for revision in [0, 1, 2] {
        let applied = bench.state.apply(Revision(revision), &entry);
        assert!(matches!(applied.reply, Reply::Rejected(_)), "{applied:?}");
        bench.state.apply_blank(Revision(revision));
        bench.state.apply_membership(Revision(revision), &[], &[]);
    }
    assert_eq!(bench.state.encode_snapshot(), before);
}

#[test]
fn behind_the_barrier_nothing_is_applied_not_even_the_revision() {
    let mut bench = Bench::new();
    assert_eq!(bench.state.barrier(), None);
    bench.run(Command::RaiseFeatureLevel { to: FEATURE_LEVEL + 1 });
    assert!(bench.state.barrier().is_some());
    let before = (bench.state.revision(), bench.state.rolling_hash());
    let applied = bench.run(open_session(5_000, 1));
    assert!(matches!(applied.reply, Reply::Rejected(_)), "{applied:?}");
    bench.state.apply_blank(Revision(100));
    assert_eq!((bench.state.revision(), bench.state.rolling_hash()), before);
    let error = State::decode_snapshot(&bench.state.encode_snapshot()).unwrap_err();
    let level = format!("feature level {}", FEATURE_LEVEL + 1);
    assert!(error.to_string().contains(&level), "{error}");
}

#[test]
fn below_the_level_of_roles_a_snapshot_is_one_that_the_release_before_can_read() {
    let mut bench = Bench::new();
    bench.run(put_service(service("s", &["a"], &[])));
    let version = |state: &State| {
        let bytes = state.encode_snapshot();
        let read = State::decode_snapshot(&bytes).unwrap();
        assert_eq!(read.encode_snapshot(), bytes);
        u16::from_le_bytes([bytes[8], bytes[9]])
    };
    assert_eq!(version(&bench.state), 1);
    bench.run(Command::RaiseFeatureLevel { to: 2 });
    assert_eq!(version(&bench.state), 2);
    bench.run(Command::RaiseFeatureLevel { to: 3 });
    assert_eq!(version(&bench.state), 3);
}

#[test]
fn a_policy_that_an_older_member_cannot_read_waits_for_its_level() {
    let mut bench = Bench::new();
    let mut spec = service("s", &["a", "b"], &[]);
    spec.policy = Policy::default_for(Mode::Quorum);
    spec.policy.on_lowered_sync = LoweredSync::Strict;
    let refused = bench.run(put_service(spec.clone())).reply;
    let (need, have) = (STRICT_LEVEL, 1);
    assert_eq!(refused, Reply::Rejected(Rejection::FeatureLevel { need, have }));
    bench.run(Command::RaiseFeatureLevel { to: STRICT_LEVEL });
    assert!(bench.run(put_service(spec.clone())).reply.revision().is_some());
    let bytes = bench.state.encode_snapshot();
    let read = State::decode_snapshot(&bytes).unwrap();
    assert_eq!((&read.services()[&spec.name].spec, read.encode_snapshot()), (&spec, bytes));
    // What asks for less is written as before, and needs no more than before.
    spec.policy.on_lowered_sync = LoweredSync::Report;
    assert_eq!(put_service(spec).level(), 1);
}

#[test]
fn a_renewal_under_way_cannot_confirm_a_grant_that_was_taken_back() {
    use crate::command::{Renewal, UnusedGrant};
    use crate::id::RenewalNumber;
    use crate::reply::RenewalOutcome;
    let mut bench = Bench::new();
    let (first, second) = (bench.open(1), bench.open(2));
    let Reply::Granted { epoch, .. } = bench.run(campaign("e", first, 1, 0)).reply else {
        panic!("nobody led")
    };
    bench.run(campaign("e", second, 2, 0));
    let election: crate::id::ElectionName = "e".parse().unwrap();
    let unused = vec![UnusedGrant { election: election.clone(), epoch }];
    bench.run(Command::ExpireGrants { unused });
    let late = Renewal {
        session: first,
        nonce: Nonce(1),
        number: RenewalNumber(1),
        acked: RenewalNumber(0),
        known_grant: epoch.revision,
    };
    let applied = bench.run(Command::RenewSessions { renewals: vec![late] });
    let revision = applied.revision;
    let outcomes = vec![RenewalOutcome::SessionGone];
    assert_eq!(applied.reply, Reply::Renewed { outcomes, revision });
    let holder = bench.state.elections()[&election].holder.clone().unwrap();
    assert_eq!(holder.session, second);
    assert!(holder.epoch > epoch);
}
