//! Conversions: round trips, and damaged or hostile bytes.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use proptest::prelude::*;
use prost::Message;
use regent_core::command::{Command, Expect, FullRenewal, Renewal, Request};
use regent_core::id::*;
use regent_core::lease::holder::Answer;
use regent_core::reply::{Rejection, RenewalOutcome};
use regent_core::role::{
    Armed, HolderInstant, HolderReport, Lsn, MachineBoot, Position, Watermark,
};
use regent_core::spec::*;
use regent_core::state::partition::Partition;
use regent_core::state::service::{Life, Quarantine, Service};
use regent_core::timing::Timing;
use tonic::Code;

use super::status::{Leader, Refused, not_leader, rejected, rule};
use super::{audit, cluster, common, election, topology};
use crate::pb::{raft, v1};

fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9._/-]{0,20}"
}

fn locality() -> impl Strategy<Value = Locality> {
    ("[a-z0-9-]{0,8}", "[a-z0-9-]{0,8}", "[a-z0-9-]{0,8}")
        .prop_map(|(region, zone, host)| Locality { region, zone, host })
}

fn policy() -> impl Strategy<Value = Policy> {
    use proptest::sample::select;
    let choices = (
        select(vec![Mode::Lease, Mode::Quorum]),
        select(vec![TooFewSync::Block, TooFewSync::Degrade]),
        select(vec![CoordinatorLoss::Stop, CoordinatorLoss::Hold]),
        select(vec![OnViolation::Refuse, OnViolation::Ask, OnViolation::Accept]),
        select(vec![Scope::Zone, Scope::Region, Scope::Any]),
        select(vec![Survive::Instance, Survive::Zone, Survive::Region]),
        select(vec![LoweredSync::Report, LoweredSync::Strict]),
    );
    let numbers = (any::<[u64; 6]>(), any::<[u32; 3]>());
    (choices, numbers).prop_map(|(c, (n, k))| Policy {
        mode: c.0,
        ttl_ms: n[0],
        sync_standbys: k[0],
        min_sync_standbys: k[1],
        on_too_few_sync: c.1,
        on_lowered_sync: c.6,
        on_coordinator_loss: c.2,
        loss_bound: LossBound { max_bytes: n[1], max_ms: n[2], on_violation: c.3 },
        max_failover_scope: c.4,
        survive: c.5,
        restart_grace_ms: n[3],
        failover_cooldown_ms: n[4],
        await_routers: AwaitRouters { percent: k[2], within_ms: n[5] },
    })
}

pub(super) fn spec() -> impl Strategy<Value = ServiceSpec> {
    use proptest::sample::select;
    let instance = (name(), locality(), "[a-z0-9.]{1,10}:[1-9][0-9]{0,3}", any::<u32>()).prop_map(
        |(name, locality, address, priority)| InstanceSpec {
            name: InstanceName::parse(&name).unwrap(),
            locality,
            address,
            priority,
        },
    );
    let partition = name().prop_map(|name| PartitionName::parse(&name).unwrap());
    (
        (name(), "[ -~]{0,40}"),
        select(vec![Engine::Postgres, Engine::Exec]),
        select(vec![TopologyKind::ActivePassive, TopologyKind::ActiveActive]),
        prop::collection::vec(instance, 0..5),
        prop::collection::vec(partition, 0..5),
        policy(),
    )
        .prop_map(|((name, description), engine, topology, instances, partitions, policy)| {
            let name = ServiceName::parse(&name).unwrap();
            ServiceSpec { name, description, engine, topology, instances, partitions, policy }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_declaration_survives_the_wire(spec in spec()) {
        let bytes = topology::spec_out(&spec).encode_to_vec();
        let wire = v1::ServiceSpec::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(topology::spec_in(wire).unwrap(), spec);
    }

    #[test]
    fn a_service_row_survives_the_wire(spec in spec(), at in any::<[u64; 3]>(), q in any::<bool>()) {
        let quarantine = q.then(|| Quarantine { since: Revision(at[2]), why: "broken".to_owned() });
        let row = Service {
            spec,
            life: if q { Life::Unadopted } else { Life::Declared },
            created: Revision(at[0]),
            changed: Revision(at[1]),
            quarantine,
        };
        let owner = InstanceName::parse("pg1").unwrap();
        let epoch = Epoch { incarnation: at[0], revision: Revision(at[1]) };
        let part = Partition { epoch, owner: Some(owner), changed: Revision(at[2]) };
        let mut wire = topology::service_out(&row, [("p1", &part)]);
        let back = topology::partition_in(wire.partitions.remove(0)).unwrap();
        prop_assert_eq!(back, (PartitionName::parse("p1").unwrap(), part));
        prop_assert_eq!(topology::service_in(wire).unwrap(), row);
    }

    /// Whatever a stranger sends, a node answers or refuses; it never panics.
    #[test]
    fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        convert_everything(&bytes);
    }

    /// The same for messages that are nearly right, which get further than noise does.
    #[test]
    fn damaged_messages_never_panic(
        spec in spec(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let request = v1::ApplyServiceRequest {
            request: Some(v1::RequestId { client: 1, serial: 2 }),
            spec: Some(topology::spec_out(&spec)),
            expect: common::expect_out(Expect::Absent),
            dry_run: false,
        };
        let mut bytes = request.encode_to_vec();
        let place = at.index(bytes.len());
        bytes[place] = byte;
        convert_everything(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        convert_everything(&bytes);
        if let Ok(request) = v1::ApplyServiceRequest::decode(bytes.as_slice()) {
            let _ = topology::applied_spec(request.spec);
            let _ = common::expect("expect", request.expect);
        }
    }

    #[test]
    fn renewals_and_their_answers_survive_the_wire(n in any::<[u64; 10]>(), kind in 0..5_u8) {
        let n = n.map(|n| n.max(1));
        let epoch = regent_core::id::Epoch { incarnation: n[8], revision: Revision(n[9]) };
        let at = Position { epoch, end: Lsn(n[5]), timeline: 3 };
        let report = HolderReport {
            armed: if kind == 0 { Armed::Weak } else { Armed::Armed },
            boot: MachineBoot(n[0]),
            sent: HolderInstant(n[1]),
            watermark: (kind != 1).then_some(Watermark { at, sampled: HolderInstant(n[2]) }),
            pause: (kind == 2).then_some(Revision(n[3])),
            policy: Revision(n[6]),
            set: (kind == 3).then_some(Revision(n[7])),
        };
        let renewal = Renewal {
            session: SessionId(n[0]),
            nonce: Nonce(n[1]),
            number: RenewalNumber(n[2]),
            acked: RenewalNumber(n[3]),
            known_grant: Revision(n[4]),
        };
        let full = FullRenewal { renewal, report: (kind < 4).then(|| Box::new(report)) };
        let wire = v1::KeepAliveRequest { renewals: vec![election::renewal_out(&full)], probe: 0 };
        prop_assert_eq!(election::renewals(&wire).unwrap(), vec![full]);
        let answer = match kind {
            0 => Answer::Resend,
            1 => Answer::Outcome(RenewalOutcome::SessionGone),
            2 => Answer::Outcome(RenewalOutcome::NonceStale),
            3 => Answer::Outcome(RenewalOutcome::NumberStale { have: RenewalNumber(n[3]) }),
            _ => Answer::Outcome(RenewalOutcome::Extended {
                number: renewal.number,
                grant: Revision(n[4]),
            }),
        };
        let wire = election::renewed_out(renewal.session, renewal.number, answer);
        let back = election::renewed_in(&wire).unwrap();
        prop_assert_eq!(back, (renewal.session, renewal.number, answer));
    }
}

fn convert_everything(bytes: &[u8]) {
    fn read<M: Message + Default>(bytes: &[u8]) -> Option<M> {
        M::decode(bytes).ok()
    }
    if let Some(m) = read::<v1::ServiceSpec>(bytes) {
        let _ = topology::spec_in(m);
    }
    if let Some(m) = read::<v1::Service>(bytes) {
        let _ = topology::service_in(m);
    }
    if let Some(m) = read::<v1::Policy>(bytes) {
        let _ = topology::policy_in(&m);
    }
    if let Some(m) = read::<v1::OpenSessionRequest>(bytes) {
        let _ = election::open_session(&m);
        let _ = common::request("request", m.request);
    }
    if let Some(m) = read::<v1::CampaignRequest>(bytes) {
        let _ = election::campaign(&m);
    }
    if let Some(m) = read::<v1::ProclaimRequest>(bytes) {
        let _ = election::proclaim(&m);
    }
    if let Some(m) = read::<v1::KeepAliveRequest>(bytes) {
        let _ = election::renewals(&m);
    }
    if let Some(m) = read::<v1::KeepAliveResponse>(bytes) {
        let _: Vec<_> = m.renewed.iter().map(election::renewed_in).collect();
    }
    if let Some(m) = read::<v1::ObserveRequest>(bytes) {
        let _ = election::ObserveScope::of(&m);
        let _ = common::watch_from("from", m.from);
    }
    if let Some(m) = read::<v1::PutElectionRequest>(bytes) {
        let _ = election::put_election(&m);
    }
    if let Some(m) = read::<v1::AddMemberRequest>(bytes) {
        let _ = cluster::new_member(&m);
    }
    if let Some(m) = read::<v1::Timing>(bytes) {
        let _ = cluster::timing_in(m);
    }
    if let Some(m) = read::<v1::AuditRecord>(bytes) {
        let _ = audit::record_in(m);
    }
    let _ = read::<raft::RaftCall>(bytes);
    let _ = read::<raft::CompareRequest>(bytes);
    let _ = Refused::from_status(&tonic::Status::with_details(
        Code::Aborted,
        "",
        bytes::Bytes::copy_from_slice(bytes),
    ));
}

fn quorum() -> v1::Policy {
    v1::Policy {
        mode: v1::policy::Mode::Quorum.into(),
        ttl_ms: Some(10_000),
        ..v1::Policy::default()
    }
}

#[test]
fn what_a_policy_does_not_say_takes_the_default_of_its_mode() {
    let quorum = topology::policy_in(&quorum()).unwrap();
    // The same as who writes a file gets from the CLI.
    assert_eq!(quorum, Policy { ttl_ms: 10_000, ..Policy::default_for(Mode::Quorum) });
    assert_eq!((quorum.sync_standbys, quorum.min_sync_standbys), (1, 1));
    assert_eq!(quorum.on_coordinator_loss, CoordinatorLoss::Hold);
    assert_eq!(quorum.on_too_few_sync, TooFewSync::Block);
    let none = LossBound { max_bytes: 0, max_ms: 0, on_violation: OnViolation::Ask };
    assert_eq!(quorum.loss_bound, none);
    assert_eq!(quorum.restart_grace_ms, 10_000);

    let mut lease = self::quorum();
    lease.mode = v1::policy::Mode::Lease.into();
    let lease_policy = topology::policy_in(&lease).unwrap();
    assert_eq!(lease_policy.on_coordinator_loss, CoordinatorLoss::Stop);
    assert_eq!(lease_policy.loss_bound.max_ms, 11_000);
    // A number that is said is meant, 0 too.
    lease.loss_max_ms = Some(0);
    assert_eq!(topology::policy_in(&lease).unwrap().loss_bound.max_ms, 0);
}

#[test]
fn a_wrong_field_is_named_as_the_request_names_it() {
    let instance = v1::InstanceSpec { name: "pg 1".to_owned(), ..v1::InstanceSpec::default() };
    let spec = v1::ServiceSpec {
        name: "orders".to_owned(),
        instances: vec![
            v1::InstanceSpec { name: "pg0".to_owned(), ..v1::InstanceSpec::default() },
            instance,
        ],
        policy: Some(quorum()),
        ..v1::ServiceSpec::default()
    };
    let problem = topology::applied_spec(Some(spec.clone())).unwrap_err();
    assert_eq!(problem.field, "spec.instances[1].name");
    let status = tonic::Status::from(problem);
    assert_eq!(status.code(), Code::InvalidArgument);
    let refused = Refused::from_status(&status).unwrap();
    assert_eq!(refused.field, "spec.instances[1].name");
    assert!(!refused.hint.is_empty());

    let mut unknown = spec;
    unknown.instances.clear();
    unknown.policy.as_mut().unwrap().mode = 77;
    assert_eq!(topology::applied_spec(Some(unknown)).unwrap_err().field, "spec.policy.mode");
    assert_eq!(topology::applied_spec(None).unwrap_err().field, "spec");
    let renewals = vec![v1::Renewal::default()];
    let problem = election::renewals(&v1::KeepAliveRequest { renewals, probe: 0 }).unwrap_err();
    assert_eq!(problem.field, "renewals[0].session");
    let half = v1::RequestId { client: 1, serial: 0 };
    assert_eq!(common::request("request", Some(half)).unwrap_err().field, "request.serial");
}

#[test]
fn conditions_requests_and_places_survive_the_wire() {
    for expect in [Expect::Any, Expect::Absent, Expect::Revision(Revision(7))] {
        assert_eq!(common::expect("expect", common::expect_out(expect)), Ok(expect));
    }
    let request = Request { client: ClientId(3), serial: Serial(4) };
    let wire = common::request_out(request);
    assert_eq!(common::request("request", Some(wire)), Ok(Some(request)));
    let here = common::From::After(Incarnation { counter: 2, id: 9 }, Revision(5));
    for from in [common::From::Snapshot, here] {
        assert_eq!(common::watch_from("from", common::watch_from_out(from)), Ok(from));
    }
    let bare = v1::WatchFrom { revision: 5, ..v1::WatchFrom::default() };
    assert_eq!(common::watch_from("from", Some(bare)).unwrap_err().field, "from.incarnation");
    for timing in [Timing::LAN, Timing::FAST, Timing::WAN] {
        assert_eq!(cluster::timing_in(cluster::timing_out(&timing)), Ok(timing));
    }
}

#[test]
fn a_resignation_that_names_an_epoch_is_of_that_epoch_only() {
    let mut request = v1::ResignRequest {
        election: "orders".into(),
        session: 3,
        nonce: 4,
        ..v1::ResignRequest::default()
    };
    let (name, session, nonce) = ("orders".parse().unwrap(), SessionId(3), Nonce(4));
    let plain = Command::Resign { election: name, session, nonce };
    assert_eq!(election::resign(&request).unwrap(), plain);
    let epoch = Epoch { incarnation: 2, revision: Revision(9) };
    request.epoch = Some(common::epoch_out(epoch));
    let election = "orders".parse().unwrap();
    let under = Command::ResignEpoch { election, session, nonce, epoch };
    assert_eq!(self::election::resign(&request).unwrap(), under);
}

#[test]
fn each_class_of_rejection_has_its_code_and_names_its_rule() {
    let what = || "service".to_owned();
    let cases = [
        (Rejection::NotFound { what: what(), name: what() }, Code::NotFound),
        (
            Rejection::Conflict {
                what: what(),
                name: what(),
                expected: Revision(1),
                found: Revision(2),
            },
            Code::Aborted,
        ),
        (Rejection::SessionGone { session: SessionId(1) }, Code::FailedPrecondition),
        (Rejection::Quota { what: what(), limit: 3 }, Code::ResourceExhausted),
        (
            Rejection::TtlTooShort { ttl_ms: 1, least_ms: 2, terms: String::new() },
            Code::InvalidArgument,
        ),
    ];
    for (rejection, code) in cases {
        let status = rejected(&rejection);
        assert_eq!(status.code(), code, "{rejection}");
        let refused = Refused::from_status(&status).unwrap();
        assert_eq!(refused.rule, rejection.rule());
    }
}

#[test]
fn a_leader_hint_survives_the_wire() {
    let leader = Leader { node: NodeId(2), address: "b:7".to_owned() };
    let status = not_leader(Some(leader.clone()), Duration::from_millis(40));
    assert_eq!(status.code(), Code::Unavailable);
    let refused = Refused::from_status(&status).unwrap();
    assert_eq!(refused.rule, rule::NOT_LEADER);
    assert_eq!(refused.leader, Some(leader));
    assert_eq!(refused.retry_after, None);
    let status = not_leader(None, Duration::from_millis(40));
    let refused = Refused::from_status(&status).unwrap();
    assert_eq!(refused.retry_after, Some(Duration::from_millis(40)));
    assert_eq!(Refused::from_status(&tonic::Status::unavailable("x")), None);
}
