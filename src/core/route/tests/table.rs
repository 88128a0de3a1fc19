//! The table in each state of a role, as kept in `testdata/routes.golden`.
#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::*;
use crate::id::Nonce;
use crate::role::{Armed, FenceKind, Loss, Lsn, Phase};
use crate::spec::{Engine, Policy, ServiceSpec};
use crate::state::role::row::{Fence, Promotion, RoleLease};
use crate::state::service::Life;

fn service(policy: Policy) -> Service {
    let instance = |name: &str, zone: &str| InstanceSpec {
        name: name.parse().unwrap(),
        locality: Locality { region: "eu".into(), zone: zone.into(), host: String::new() },
        address: format!("{name}.example.org:5432"),
        priority: 100,
    };
    let spec = ServiceSpec {
        name: "orders".parse().unwrap(),
        description: String::new(),
        engine: Engine::Postgres,
        topology: TopologyKind::ActivePassive,
        instances: vec![instance("pg1", "a"), instance("pg2", "b"), instance("pg3", "c")],
        partitions: Vec::new(),
        policy,
    };
    let (created, changed) = (Revision(1), Revision(1));
    Service { spec, life: Life::Established, created, changed, quarantine: None }
}

/// pg1 serves under its first epoch.
fn role() -> ServiceRole {
    ServiceRole {
        epoch: Epoch { incarnation: 1, revision: Revision(10) },
        holder: Some("pg1".parse().unwrap()),
        lease: Some(RoleLease {
            session: SessionId(5),
            mark: Revision(10),
            fencer: Armed::Armed,
            run: Nonce(1),
        }),
        lapsed: None,
        confirmed: true,
        set: None,
        a: Vec::new(),
        c: Vec::new(),
        fence: None,
        promoted: Some(Promotion { timeline: 2, switch: Lsn(1), revision: Revision(12) }),
        timeline: 2,
        routes_open: true,
        paused: None,
        instances: BTreeMap::new(),
        operation: None,
        failovers: Vec::new(),
        changed: Revision(12),
    }
}

fn fence(kind: FenceKind) -> Fence {
    Fence {
        fence: Revision(20),
        operation: Revision(20),
        kind,
        uncut: true,
        taken_over: None,
        receipts: BTreeMap::new(),
    }
}

/// pg2 has taken over from pg1, which is not back yet.
fn repair() -> Operation {
    Operation {
        kind: FenceKind::Switchover { to: None },
        by: "operator/a".into(),
        reason: "a test".into(),
        from: Some("pg1".parse().unwrap()),
        to: Some("pg2".parse().unwrap()),
        epoch: None,
        out: None,
        complete: None,
        loss: Loss::default(),
        phase: Phase::Repair,
        history: Vec::new(),
        approval: None,
    }
}

fn fit() -> Fitnesses {
    let one = |reads, lag_bytes, check: &str| Fitness { reads, lag_bytes, check: check.into() };
    [
        ("pg1", one(false, 0, ":8008")),
        ("pg2", one(true, 4 << 20, ":8008")),
        ("pg3", one(true, 0, "10.0.3.1:8008")),
    ]
    .map(|(name, fit)| (name.parse().unwrap(), fit))
    .into()
}

/// Of a node that has listened for long enough.
fn heard(rows: &Fitnesses) -> Heard<'_> {
    Heard { rows, settled: true }
}

fn shown(routes: &Routes) -> String {
    let one = |it: &Endpoint| {
        let check = if it.check.is_empty() { "nowhere" } else { &it.check };
        format!(
            "{} {} checked at {check}, {} behind, weight {}",
            it.instance, it.address, it.lag_bytes, it.weight
        )
    };
    let mut text = match &routes.write {
        Write::To(it) => format!("  write {}\n", one(it)),
        Write::Nobody(why) => format!("  write nobody: {why}\n"),
    };
    if let Some(it) = &routes.former {
        writeln!(text, "  former {}", it.instance).unwrap();
    }
    for it in &routes.reads {
        writeln!(text, "  read {}", one(it)).unwrap();
    }
    text
}

#[test]
fn the_table_follows_the_log_and_this_nodes_belief() {
    let quorum = service(Policy::default_for(Mode::Quorum));
    let lease = service(Policy::default_for(Mode::Lease));
    let with = |change: &dyn Fn(&mut ServiceRole)| {
        let mut role = role();
        change(&mut role);
        Some(role)
    };
    let closed = |kind: FenceKind| {
        with(&move |role| {
            role.fence = Some(fence(kind.clone()));
            role.routes_open = false;
        })
    };
    let switchover = FenceKind::Switchover { to: None };
    let failover = FenceKind::Failover { verdict: "PrimaryHostSilent".into(), to: None };
    let promoting = with(&|role| {
        role.holder = Some("pg2".parse().unwrap());
        (role.promoted, role.routes_open) = (None, false);
    });
    let second = with(&|role| role.holder = Some("pg2".parse().unwrap()));
    let lapsed = with(&|role| (role.lease, role.lapsed) = (None, Some(Armed::Armed)));
    let stranger = with(&|role| role.holder = Some("pg9".parse().unwrap()));
    let unheard = || Fitnesses::new();
    let cases: [(&str, &Service, Option<ServiceRole>, Fitnesses, Belief); 14] = [
        ("nobody ever", &quorum, None, unheard(), Belief::Live),
        ("pg1 serves", &quorum, with(&|_| {}), fit(), Belief::Live),
        ("and nothing was ever said of anybody", &quorum, with(&|_| {}), unheard(), Belief::Live),
        (
            "a switchover is drained",
            &quorum,
            with(&|it| it.routes_open = false),
            fit(),
            Belief::Live,
        ),
        ("a switchover is fenced", &quorum, closed(switchover), fit(), Belief::Live),
        ("a failover is fenced", &quorum, closed(failover), fit(), Belief::Live),
        ("pg2 is granted", &quorum, promoting, fit(), Belief::Live),
        ("pg2 serves", &quorum, second, fit(), Belief::Live),
        ("the lease lapsed", &quorum, lapsed, fit(), Belief::Live),
        ("a primary that is declared no more", &quorum, stranger, fit(), Belief::Live),
        ("not believed, policy holds", &quorum, with(&|_| {}), fit(), Belief::Over),
        ("not believed, lease mode", &lease, with(&|_| {}), fit(), Belief::Over),
        ("not believed yet, lease mode", &lease, with(&|_| {}), fit(), Belief::NotYet),
        ("lease mode", &lease, with(&|_| {}), fit(), Belief::Live),
    ];
    let mut text = String::new();
    for (what, service, role, fit, believed) in cases {
        let drain = || Operation { phase: Phase::Drain, ..repair() };
        let operation = match what {
            "pg2 serves" => Some(repair()),
            "a switchover is drained" => Some(drain()),
            _ => None,
        };
        let asked = std::cell::Cell::new(None);
        let routes = Routes::of(
            (Incarnation::default(), Revision(30)),
            service,
            role.as_ref(),
            operation.as_ref(),
            heard(&fit),
            |s| {
                asked.set(Some(s));
                believed
            },
        );
        assert!(asked.get().is_none_or(|session| session == SessionId(5)), "{what}");
        writeln!(text, "{what}\n{}", shown(&routes)).unwrap();
        if let Write::Nobody(Closed::Unproven { holds }) = routes.write {
            let quorum = service.spec.policy.mode == Mode::Quorum;
            assert_eq!(holds, quorum || believed == Belief::NotYet, "{what}");
        }
    }
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/routes.golden");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(golden, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(golden).unwrap());
}

#[test]
fn who_takes_reads_is_unknown_only_while_nobody_is_known_and_somebody_may_yet_be() {
    let service = service(Policy::default_for(Mode::Quorum));
    let unknown = |rows: &Fitnesses, settled| {
        let (at, heard) = ((Incarnation::default(), Revision(1)), Heard { rows, settled });
        Routes::of(at, &service, Some(&role()), None, heard, |_| Belief::Live).reads_unknown
    };
    let without = |names: &[&str]| {
        let mut rows = fit();
        rows.retain(|name, _| !names.contains(&name.as_str()));
        rows
    };
    assert!(unknown(&Fitnesses::new(), false) && !unknown(&Fitnesses::new(), true));
    // The primary's own row says nothing of reads, and is not waited for.
    assert!(unknown(&without(&["pg2", "pg3"]), false));
    assert!(!unknown(&without(&["pg1"]), false));
    assert!(!unknown(&without(&["pg2"]), false), "pg3 takes them");
    let mut out = fit();
    out.values_mut().for_each(|row| row.reads = false);
    assert!(!unknown(&out, false), "all are known, and none takes them");
    out.remove("pg3");
    assert!(unknown(&out, false));
}

#[test]
fn a_table_that_only_has_another_revision_says_the_same() {
    let service = service(Policy::default_for(Mode::Quorum));
    let at = |revision| {
        let at = (Incarnation::default(), Revision(revision));
        Routes::of(at, &service, Some(&role()), None, heard(&fit()), |_| Belief::Live)
    };
    let masked =
        Routes::of(at(1).at, &service, Some(&role()), None, heard(&fit()), |_| Belief::Over);
    assert!(at(1).says_the_same(&at(2)) && at(1) != at(2));
    assert!(!at(1).says_the_same(&masked));
}
