//! What agents and nodes say to each other: round trips, and what is refused.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use prost::Message;
use regent_core::command::Request;
use regent_core::id::*;
use regent_core::limits::{MAX_INSTANCES, MAX_TEXT_BYTES};
use regent_core::reply::{Rejection, RoleRule};
use regent_core::role::observe::{
    Canary, Guarded, Observation, Probe, Receiver, Run, Sender, Sight,
};
use regent_core::role::{
    AgentStart, Armed, DataIdentity, Directive, DirectiveNumber, HolderInstant, Lsn, MachineBoot,
    Order, Position, Proof, Receipt, StopInstant, SyncSet,
};

use super::agent::{
    Ask, FromAgent, FromCoordinator, Hello, Instruction, Outcome, RefusedAsk, agent_in, agent_out,
    answer_out, coordinator_in, instruction_out,
};
use super::observe::{observation_in, observation_out};
use super::status::{not_leader, outcome_unknown, overloaded, rejected};
use super::tests::spec;
use crate::limits::MAX_AGENT_MESSAGE_BYTES;
use crate::pb::v1;

fn instance() -> impl Strategy<Value = InstanceName> {
    "[a-z][a-z0-9-]{0,9}".prop_map(|name| name.parse().unwrap())
}

fn epoch() -> impl Strategy<Value = Epoch> {
    any::<[u64; 2]>().prop_map(|n| Epoch { incarnation: n[0], revision: Revision(n[1]) })
}

fn number() -> impl Strategy<Value = DirectiveNumber> {
    (epoch(), any::<u64>()).prop_map(|(epoch, n)| DirectiveNumber { epoch, revision: Revision(n) })
}

fn position() -> impl Strategy<Value = Position> {
    (epoch(), any::<u64>(), any::<u32>()).prop_map(|(epoch, end, timeline)| Position {
        epoch,
        end: Lsn(end),
        timeline,
    })
}

fn set() -> impl Strategy<Value = SyncSet> {
    let members = prop::collection::btree_set(instance(), 0..4);
    (epoch(), any::<u64>(), members, 0..4_u32).prop_map(|(epoch, revision, members, k)| SyncSet {
        epoch,
        revision: Revision(revision),
        members,
        k,
    })
}

fn order() -> impl Strategy<Value = Order> {
    let fence = || any::<u64>().prop_map(Revision);
    prop_oneof![
        Just(Order::Wait),
        Just(Order::Quarantined),
        set().prop_map(|set| Order::Lead { set }),
        instance().prop_map(|upstream| Order::Follow { upstream }),
        fence().prop_map(|fence| Order::Detach { fence }),
        (fence(), instance(), position()).prop_map(|(fence, from, upto)| Order::Fetch {
            fence,
            from,
            upto
        }),
        fence().prop_map(|fence| Order::Stop { fence }),
        fence().prop_map(|fence| Order::Resign { fence }),
    ]
}

fn start() -> impl Strategy<Value = AgentStart> {
    let data = (any::<[u64; 2]>(), epoch(), prop::option::of(position()), any::<bool>());
    let data = data.prop_map(|(n, epoch, position, out_of_recovery)| DataIdentity {
        system: n[0],
        generation: n[1],
        epoch,
        position,
        out_of_recovery,
    });
    let armed = any::<bool>().prop_map(|armed| if armed { Armed::Armed } else { Armed::Weak });
    let ids = (1..=u64::MAX, 1..=u64::MAX, any::<u64>(), 1..=u64::MAX, any::<u64>());
    (ids, number(), prop::option::of(data), armed).prop_map(|(n, seen, data, fencer)| AgentStart {
        session: SessionId(n.0),
        nonce: Nonce(n.1),
        boot: n.2,
        disk: n.3,
        seen,
        data,
        fencer,
        run: Nonce(n.4),
    })
}

fn receipt() -> impl Strategy<Value = Receipt> {
    let proof = prop::sample::select(vec![
        Proof::Detached,
        Proof::Recruited,
        Proof::Stopped,
        Proof::Resigned,
    ]);
    let ids = (1..=u64::MAX, 1..=u64::MAX, 1..=u64::MAX, any::<u64>());
    (proof, ids, prop::option::of(position()), any::<bool>()).prop_map(
        |(proof, n, position, is_proven)| Receipt {
            instance: "pg1".parse().unwrap(),
            fence: Revision(n.0),
            proof,
            position,
            boot: n.1,
            nonce: Nonce(n.2),
            generation: n.3,
            is_proven,
        },
    )
}

fn observation() -> impl Strategy<Value = Observation> {
    let run = prop::sample::select(vec![
        Run::Down,
        Run::Starting,
        Run::Standby,
        Run::Primary,
        Run::Stopping,
        Run::Rebuilding,
    ]);
    let receiver = (prop::option::of(instance()), any::<bool>(), any::<u64>());
    let receiver =
        receiver.prop_map(|(from, streams, silent_ms)| Receiver { from, streams, silent_ms });
    let sender = (instance(), any::<bool>(), any::<bool>(), any::<u64>());
    let sender = sender.prop_map(|(to, streams, is_sync, flushed)| Sender {
        to,
        streams,
        is_sync,
        flushed: Lsn(flushed),
    });
    let sight = (instance(), prop::option::of(any::<u64>()), any::<bool>(), any::<u64>());
    let sight = sight.prop_map(|(instance, answered_ms, refused, tried_ms)| Sight {
        instance,
        answered_ms,
        refused,
        tried_ms,
    });
    let probe = prop_oneof![
        Just(Probe::Unknown),
        any::<u64>().prop_map(Probe::Answered),
        (any::<u64>(), "[ -~\n]{0,30}").prop_map(|(since_ms, why)| Probe::Failed { since_ms, why }),
    ];
    let canary = (any::<u64>(), prop::option::of(any::<bool>()));
    let canary = canary.prop_map(|(age_ms, returned)| Canary { age_ms, returned });
    let set = || prop::option::of((1..=u64::MAX).prop_map(Revision));
    let what = (run, prop::option::of(position()), prop::option::of(receiver), probe);
    let lists = (prop::collection::vec(sender, 0..4), prop::collection::vec(sight, 0..4));
    let sets = (prop::option::of(canary), set(), set(), epoch(), number());
    let texts = ("[ -~]{0,30}", "[ -~]{0,30}", "[ -~]{0,30}", any::<[u64; 5]>());
    (what, lists, sets, texts).prop_map(|(what, lists, sets, texts)| Observation {
        stopped_in_order: texts.0.len() % 2 == 1,
        works: texts.1.len() % 2 == 1,
        run: what.0,
        position: what.1,
        receiver: what.2,
        probe: what.3,
        senders: lists.0,
        sights: lists.1,
        canary: sets.0,
        set_in_force: sets.1,
        covered: sets.2,
        prepared: sets.1,
        serving: sets.3,
        seen: sets.4,
        doing: texts.0,
        problem: texts.1,
        tampered: texts.2,
        replay_lag_bytes: texts.3[0],
        disk_free_bytes: texts.3[1],
        guard: Guarded {
            slowest_fence_ms: texts.3[2],
            fence_budget_ms: texts.3[3],
            watchdog_ms: texts.3[4],
        },
        check: ["", ":8008", "db1.example.org:8008"][(texts.3[0] % 3) as usize].into(),
    })
}

fn from_agent() -> impl Strategy<Value = FromAgent> {
    let request = || {
        let id = (1..=u64::MAX, 1..=u64::MAX);
        prop::option::of(id.prop_map(|(c, s)| Request { client: ClientId(c), serial: Serial(s) }))
    };
    let hello = start().prop_map(|start| {
        let (service, instance) = ("orders".parse().unwrap(), "pg1".parse().unwrap());
        Box::new(Hello { service, instance, start })
    });
    let ask = prop_oneof![
        start().prop_map(|start| Ask::Start(Box::new(start))),
        (receipt(), prop::option::of(any::<(u64, u64)>())).prop_map(|(receipt, stopped)| {
            let stopped = stopped
                .map(|(boot, at)| StopInstant { boot: MachineBoot(boot), at: HolderInstant(at) });
            Ask::Receipt(Box::new(receipt), stopped)
        }),
        (epoch(), 1..=u64::MAX).prop_map(|(epoch, set)| Ask::Covered { epoch, set: Revision(set) }),
        (epoch(), any::<u32>(), any::<u64>()).prop_map(|(epoch, timeline, switch)| {
            Ask::Promoted { epoch, timeline, switch: Lsn(switch) }
        }),
    ];
    prop_oneof![
        (hello, request()).prop_map(|(hello, request)| FromAgent::Hello(hello, request)),
        (1..=u64::MAX, ask, request()).prop_map(|(n, ask, id)| FromAgent::Ask(n, ask, id)),
        observation().prop_map(|seen| FromAgent::Observation(Box::new(seen))),
    ]
}

fn at() -> impl Strategy<Value = (Incarnation, Revision)> {
    any::<[u64; 3]>().prop_map(|n| (Incarnation { counter: n[0], id: n[1] }, Revision(n[2])))
}

fn from_coordinator() -> impl Strategy<Value = FromCoordinator> {
    let accepted = (1..=u64::MAX, any::<u64>(), at());
    let accepted =
        accepted.prop_map(|(boot, mark, at)| Outcome::Accepted { boot, mark: Revision(mark), at });
    let committed = (any::<u64>(), prop::option::of(receipt()));
    let committed = committed.prop_map(|(revision, receipt)| Outcome::Committed {
        revision: Revision(revision),
        receipt: receipt.map(|receipt| (receipt.fence, receipt.proof)),
    });
    let refused = ("[a-z_]{0,9}", "[ -~]{0,30}", any::<bool>(), any::<bool>()).prop_map(
        |(rule, why, unknown, transient)| {
            Outcome::Refused(RefusedAsk { rule, why, unknown, transient })
        },
    );
    let answer = (any::<u64>(), prop_oneof![accepted, committed, refused])
        .prop_map(|(number, outcome)| FromCoordinator::Answer(number, outcome));
    let revision = || prop::option::of((1..=u64::MAX).prop_map(Revision));
    let directive = (number(), order());
    let role = (epoch(), prop::option::of(instance()), prop::option::of(set()), any::<u64>());
    let flags = (any::<[bool; 4]>(), revision(), revision());
    let told = (at(), directive, role, flags, spec());
    let told = told.prop_map(|(at, (number, order), role, (flags, paused, fence), spec)| {
        let DirectiveNumber { epoch, revision } = number;
        let told = Instruction {
            at,
            directive: Directive { epoch, revision, order },
            epoch: role.0,
            holder: role.1,
            set: role.2,
            mark: Revision(role.3),
            covered: flags[0],
            promoted: flags[1],
            routes_open: flags[2],
            timeline: 7,
            paused,
            fence,
            spec,
            policy: Revision(role.3 / 2),
            prepare: flags[0].then_some(Revision(9)),
            expected: flags[3],
        };
        FromCoordinator::Instruction(Box::new(told))
    });
    prop_oneof![answer, told]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_an_agent_says_survives_the_wire(said in from_agent()) {
        let bytes = agent_out(&said).encode_to_vec();
        let wire = v1::AgentMessage::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(agent_in(&"pg1".parse().unwrap(), wire).unwrap(), said);
    }

    #[test]
    fn what_a_node_says_survives_the_wire(said in from_coordinator()) {
        let wire = match &said {
            FromCoordinator::Answer(number, outcome) => answer_out(*number, outcome, 3),
            FromCoordinator::Instruction(told) => instruction_out(told, 3),
        };
        let wire = v1::CoordinatorMessage::decode(wire.encode_to_vec().as_slice()).unwrap();
        prop_assert_eq!(coordinator_in(wire).unwrap(), said);
    }

    /// Whatever PostgreSQL says, an agent's observation is taken.
    #[test]
    fn words_that_cannot_be_sent_are_made_fit(why in "\\PC{0,600}|(.|\n){0,3000}") {
        let seen = Observation {
            probe: Probe::Failed { since_ms: 1, why: why.clone() },
            doing: why.clone(),
            problem: why.clone(),
            tampered: why,
            ..Observation::default()
        };
        let back = observation_in(observation_out(&seen)).unwrap();
        prop_assert!(back.problem.len() <= MAX_TEXT_BYTES);
        prop_assert_eq!(back.problem.is_empty(), seen.problem.is_empty());
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(said) = v1::AgentMessage::decode(bytes.as_slice()) {
            let _ = agent_in(&"pg1".parse().unwrap(), said);
        }
        if let Ok(said) = v1::CoordinatorMessage::decode(bytes.as_slice()) {
            let _ = coordinator_in(said);
        }
    }
}

#[test]
fn the_largest_observation_fits_a_message_and_a_larger_one_is_cut_or_refused() {
    let long: InstanceName = "x".repeat(128).parse().unwrap();
    let sight = Sight {
        instance: long.clone(),
        answered_ms: Some(u64::MAX),
        refused: true,
        tried_ms: u64::MAX,
    };
    let sender = Sender { to: long, streams: true, is_sync: true, flushed: Lsn(u64::MAX) };
    let text = "x".repeat(MAX_TEXT_BYTES * 2);
    let seen = Observation {
        senders: vec![sender; MAX_INSTANCES + 1],
        sights: vec![sight; MAX_INSTANCES + 1],
        probe: Probe::Failed { since_ms: u64::MAX, why: text.clone() },
        doing: text.clone(),
        problem: text.clone(),
        tampered: text,
        ..Observation::default()
    };
    let mut wire = observation_out(&seen);
    assert!(wire.encoded_len() < MAX_AGENT_MESSAGE_BYTES / 2, "{}", wire.encoded_len());
    assert_eq!(observation_in(wire.clone()).unwrap().sights.len(), MAX_INSTANCES);
    wire.sights.push(wire.sights[0].clone());
    assert_eq!(observation_in(wire).unwrap_err().field, "sights");
}

#[test]
fn where_health_checks_are_answered_is_an_address_and_nothing_else() {
    let check = |said: &str| {
        let seen = Observation { check: said.into(), ..Observation::default() };
        observation_in(observation_out(&seen)).map(|seen| seen.check).map_err(|e| e.field)
    };
    for good in ["", ":8008", "10.0.0.1:8008", "[2001:db8::1]:80"] {
        assert_eq!(check(good).unwrap(), good);
    }
    for bad in [":", ":0", "8008", "host", "a:b", "h:1\n    server evil", "h h:1", ":1 x"] {
        assert_eq!(check(bad).unwrap_err(), "check", "{bad:?}");
    }
}

#[test]
fn an_order_that_is_not_known_is_never_guessed() {
    let told = v1::Instruction {
        directive: Some(v1::Directive::default()),
        spec: Some(v1::ServiceSpec {
            name: "orders".into(),
            policy: Some(v1::Policy {
                mode: v1::policy::Mode::Quorum.into(),
                ..v1::Policy::default()
            }),
            ..v1::ServiceSpec::default()
        }),
        ..v1::Instruction::default()
    };
    let message = Some(v1::coordinator_message::Message::Instruction(told));
    let unknown = coordinator_in(v1::CoordinatorMessage { message }).unwrap_err();
    assert_eq!(unknown.field, "instruction.directive.order");
}

#[test]
fn a_refusal_tells_a_judgement_from_an_answer_that_is_missing() {
    let rule = RoleRule::ReceiptVoid;
    let judged = RefusedAsk::of(&rejected(&Rejection::RoleRule { rule, why: "old".into() }));
    assert_eq!((judged.rule.as_str(), judged.transient), ("receipt_void", false));
    let unknown = RefusedAsk::of(&outcome_unknown("no answer"));
    assert!(unknown.unknown && unknown.transient);
    let pause = std::time::Duration::from_millis(5);
    for later in [not_leader(None, pause), overloaded("full", pause)] {
        let later = RefusedAsk::of(&later);
        assert!(later.transient && !later.unknown, "{later:?}");
    }
}
