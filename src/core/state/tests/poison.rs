//! Poison entries: unreadable, invariant-breaking, panicking. One service stands still, on all
//! replicas alike, and everything else goes on.

use super::*;
use crate::command::Scope as Touches;
use crate::effect::Change;
use crate::id::Epoch;
use crate::reply::Rejection;
use crate::role::{AgentStart, Armed, DataIdentity, DirectiveNumber, Position};
use crate::state::journal::Draft;
use crate::state::role::row::ServiceRole;

/// A readable envelope for `service` around a body that is no command.
fn corrupted(service: &str) -> Vec<u8> {
    let spec = service_spec(service);
    let by = Principal::new(Role::Operator, "eve");
    let mut entry = Entry::new(WallMs(5), by, None, &put_service(spec));
    entry.body.truncate(entry.body.len() / 2);
    entry.encode()
}

fn service_spec(name: &str) -> ServiceSpec {
    service(name, &["a", "b"], &[])
}

#[test]
fn a_corrupted_entry_quarantines_one_service_alike_on_two_replicas_and_others_go_on() {
    let mut replicas = [Bench::new(), Bench::new()];
    for bench in &mut replicas {
        for name in ["orders", "bills"] {
            assert!(bench.run(put_service(service_spec(name))).reply.revision().is_some());
        }
        let applied = bench.raw(&corrupted("orders"));
        assert!(matches!(applied.reply, Reply::Rejected(Rejection::Poisoned { .. })));
        assert_eq!(applied.audit[0].what, "service.quarantined");
        assert!(matches!(&applied.changes[..], [Change::Service(..)]), "{:?}", applied.changes);

        let mut orders = service_spec("orders");
        orders.description = "changed".into();
        let refused = bench.run(put_service(orders.clone())).reply;
        assert!(matches!(refused, Reply::Rejected(Rejection::Quarantined { .. })), "{refused:?}");
        let mut bills = service_spec("bills");
        bills.description = "changed".into();
        assert!(bench.run(put_service(bills)).reply.revision().is_some());
        bench.open(1);

        let reason = "looked at it".to_owned();
        let release = Command::ReleaseQuarantine { service: orders.name.clone(), reason };
        assert!(bench.run(release).reply.revision().is_some());
        assert!(bench.run(put_service(orders)).reply.revision().is_some());
    }
    let [one, two] = replicas;
    assert_eq!(one.state.rolling_hash(), two.state.rolling_hash());
    assert_eq!(one.state.encode_snapshot(), two.state.encode_snapshot());
}

#[test]
fn poison_for_no_service_is_refused_and_recorded_and_quarantines_nothing() {
    let mut bench = Bench::new();
    bench.run(put_service(service_spec("orders")));
    let by = Principal::new(Role::Client, "eve");
    let mut entry = Entry::new(WallMs(5), by, None, &open_session(5_000, 1));
    entry.body = vec![0xff; 9];
    for bytes in [entry.encode(), vec![], vec![0], vec![1, 2, 3], corrupted("unheard-of")] {
        let applied = bench.raw(&bytes);
        assert!(matches!(applied.reply, Reply::Rejected(Rejection::Poisoned { .. })));
        assert_eq!(applied.audit[0].what, "entry.poisoned", "{bytes:?}");
        assert_eq!(applied.changes, []);
    }
    assert!(bench.state.services().values().all(|row| row.quarantine.is_none()));
}

#[test]
fn a_command_in_the_envelope_of_another_service_is_poison() {
    let mut bench = Bench::new();
    let by = bench.by.clone();
    let mut entry = Entry::new(WallMs(5), by, None, &put_service(service_spec("orders")));
    entry.scope = Touches::Service("bills".parse().unwrap());
    let applied = bench.raw(&entry.encode());
    assert!(matches!(applied.reply, Reply::Rejected(Rejection::Poisoned { .. })));
    assert!(bench.state.services().is_empty());
}

/// Runs a wrong handler on a busy state and shows that nothing of it is left.
fn rolled_back(handler: impl FnOnce(&mut Draft<'_>) -> Result<Reply, Rejection>) -> String {
    let mut bench = Bench::new();
    bench.run(put_service(service("parts", &["a", "b"], &["p", "q"])));
    let session = bench.open(1);
    bench.run(campaign("e", session, 1, 0));
    let before = bench.state.encode_snapshot();
    let revision = bench.state.revision().next();
    let by = bench.by.clone();
    let why = bench.state.attempt(revision, &by, handler).unwrap_err();
    assert_eq!(bench.state.encode_snapshot(), before);
    bench.state.check().unwrap();
    why
}

fn first_election(
    draft: &Draft<'_>,
) -> (crate::id::ElectionName, crate::state::election::Election) {
    let (name, row) = draft.rows().elections().iter().next().unwrap();
    (name.clone(), (**row).clone())
}

#[test]
fn a_handler_that_panics_half_way_leaves_nothing_behind() {
    let why = rolled_back(|draft| {
        let (name, _) = first_election(draft);
        let (id, row) =
            draft.rows().sessions().iter().next().map(|(i, r)| (*i, r.clone())).unwrap();
        draft.open_session(SessionId(900), row);
        draft.end_session(id);
        draft.set_election(&name, None);
        draft.void_sessions();
        panic!("a wrong handler (this message in the output of the test is expected)");
    });
    assert_eq!(why, "its handler panicked");
}

/// A service with a primary, by the commands that make one.
fn with_primary(bench: &mut Bench) -> ServiceName {
    bench.run(Command::RaiseFeatureLevel { to: 2 });
    let spec = service_spec("orders");
    let name = spec.name.clone();
    bench.run(put_service(spec));
    for instance in ["a", "b"] {
        bench.by = Principal::new(Role::Agent, format!("orders/{instance}"));
        let session = bench.open(1);
        let data = DataIdentity {
            system: 1,
            generation: 1,
            epoch: Epoch::NONE,
            position: Some(Position::default()),
            out_of_recovery: false,
        };
        let start = Box::new(AgentStart {
            session,
            nonce: Nonce(1),
            boot: 0,
            disk: session.0,
            seen: DirectiveNumber::default(),
            data: Some(data),
            fencer: Armed::Armed,
            run: Nonce(0),
        });
        let instance = InstanceName::parse(instance).unwrap();
        bench.run(Command::AcceptStart { service: name.clone(), instance, start });
    }
    bench.by = Principal::cluster();
    let candidate = InstanceName::parse("a").unwrap();
    let granted = bench.run(Command::GrantFirst { service: name.clone(), candidate }).reply;
    assert!(matches!(granted, Reply::Granted { .. }), "{granted:?}");
    name
}

#[test]
fn a_broken_rule_of_a_role_is_rolled_back_and_nothing_else_is_touched() {
    type Break = fn(&mut ServiceRole);
    let breaks: [(Break, &str); 6] = [
        (|role| role.epoch.revision.0 -= 1, "S3: a role's epoch went back"),
        (|role| role.epoch.revision.0 += 1, "S6: a grant without a fence"),
        (|role| role.holder = "b".parse().ok(), "S3: a new primary without a new epoch"),
        (|role| role.routes_open = true, "the write route is open"),
        (|role| role.lease.as_mut().unwrap().session.0 += 1, "a lease whose session is gone"),
        (|role| role.instances.clear(), "a primary that has never started"),
    ];
    for (wrong, rule) in breaks {
        let mut bench = Bench::new();
        let name = with_primary(&mut bench);
        let before = bench.state.encode_snapshot();
        let revision = bench.state.revision().next();
        let by = bench.by.clone();
        let why = bench.state.attempt(revision, &by, |draft| {
            let mut role = ServiceRole::clone(&draft.rows().roles()[&name]);
            wrong(&mut role);
            draft.set_role(&name, Some(role));
            Ok(Reply::Done { revision })
        });
        let why = why.unwrap_err();
        assert!(why.starts_with(rule), "{why}, not {rule}");
        assert_eq!(bench.state.encode_snapshot(), before);
    }
}

#[test]
fn an_unreadable_entry_of_a_role_lets_only_its_service_stand_still() {
    let mut bench = Bench::new();
    let name = with_primary(&mut bench);
    bench.run(put_service(service_spec("bills")));
    let pause = Command::SetPause { service: name.clone(), paused: true, reason: String::new() };
    let mut entry = Entry::new(WallMs(5), bench.by.clone(), None, &pause);
    entry.body.pop();
    bench.raw(&entry.encode());
    let quarantined = |bench: &Bench, name: &str| {
        bench.state.services()[&ServiceName::parse(name).unwrap()].quarantine.is_some()
    };
    assert!(quarantined(&bench, "orders") && !quarantined(&bench, "bills"));
    let refused = bench.run(pause).reply;
    assert!(matches!(refused, Reply::Rejected(Rejection::Quarantined { .. })), "{refused:?}");
    // The end of the holder's session is still written down.
    let lease = bench.state.roles()[&name].lease.clone().unwrap();
    let seen = crate::id::RenewalNumber(0);
    let lapsed = vec![crate::command::Lapsed { session: lease.session, seen }];
    bench.run(Command::ExpireSessions { lapsed });
    assert_eq!(bench.state.roles()[&name].lease, None);
}

#[test]
fn a_grant_without_a_higher_epoch_is_rolled_back() {
    let why = rolled_back(|draft| {
        let (name, mut row) = first_election(draft);
        let session = draft.rows().sessions().values().next().unwrap().clone();
        draft.open_session(SessionId(900), session);
        row.holder.as_mut().unwrap().session = SessionId(900);
        draft.set_election(&name, Some(row));
        Ok(Reply::Done { revision: draft.revision })
    });
    assert!(why.starts_with("S3: a grant without a higher epoch"), "{why}");
}

#[test]
fn a_holder_without_a_session_is_rolled_back() {
    let why = rolled_back(|draft| {
        let id = *draft.rows().sessions().keys().next().unwrap();
        draft.end_session(id);
        Ok(Reply::Done { revision: draft.revision })
    });
    assert!(why.starts_with("a place outlived its session"), "{why}");
}

#[test]
fn an_epoch_that_goes_back_is_rolled_back() {
    let why = rolled_back(|draft| {
        let (name, mut row) = first_election(draft);
        row.epoch.revision.0 -= 1;
        row.holder = None;
        draft.set_election(&name, Some(row));
        Ok(Reply::Done { revision: draft.revision })
    });
    assert!(why.starts_with("S3: an election's epoch went back"), "{why}");
}

#[test]
fn a_refusal_after_a_write_is_rolled_back() {
    let why = rolled_back(|draft| {
        let id = *draft.rows().sessions().keys().next().unwrap();
        let marks = draft.rows().sessions()[&id].marks();
        draft.mark_session(id, marks);
        Err(Rejection::SessionGone { session: id })
    });
    assert_eq!(why, "it was refused after it wrote");
}

#[test]
fn a_partition_that_nobody_declared_is_rolled_back() {
    let why = rolled_back(|draft| {
        let (key, row) = draft.rows().partitions().iter().next().unwrap();
        let (key, row) = (key.clone(), (**row).clone());
        let stray = (key.0.clone(), PartitionName::parse("stray").unwrap());
        draft.set_partition(&stray, Some(row));
        let service = draft.rows().services()[&key.0].clone();
        draft.set_service(&key.0, Some((*service).clone()));
        Ok(Reply::Done { revision: draft.revision })
    });
    assert!(why.starts_with("the partitions are not those declared"), "{why}");
}
