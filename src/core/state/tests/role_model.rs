//! Random role changes of two services by several agents: the invariants hold after every entry, a
//! snapshot at any point plus the suffix equals the full replay, epochs rise, and no grant lacks what
//! the law asks of it, looked at from the outside.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::command::{FullRenewal, Lapsed, Renewal};
use crate::id::{Epoch, RenewalNumber};
use crate::role::{
    AgentStart, Armed, CompleteProof, DataIdentity, DirectiveNumber, FenceKind, HolderInstant,
    HolderReport, Loss, Lsn, MachineBoot, Order, OutProof, Phase, Position, Proof, Receipt,
    StopInstant, Watermark,
};
use crate::spec::Mode;
use crate::state::role::judge::Case;
use crate::state::role::row::ServiceRole;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// What a step wants; numbers are looked up in the state, and some are off by one on purpose.
#[derive(Clone, Debug)]
enum Step {
    Open { who: u8 },
    Start { who: u8, nonce: u8, off: u8, old_disk: bool, seen: bool, primary: bool },
    First { who: u8 },
    Fence { planned: bool, off: u8 },
    Plan { to: u8, off: u8 },
    Drain,
    Cut,
    TakeOver,
    Receipt { who: u8, proof: u8, end: u8, off: u8 },
    Fetch { to: u8, from: u8 },
    Grant { who: u8, loss: bool, approved: bool },
    Close,
    Set { members: u8, k: u8 },
    Covered,
    Promoted,
    Advance { phase: bool },
    Ask { who: u8, without_out: bool },
    Answer { granted: bool },
    Pause { on: bool },
    Renew { who: u8, knows: bool, says: u8 },
    End { who: u8, close: bool },
    Put { instances: u8, quorum: bool },
    Delete,
    Incarnation,
}

fn steps() -> impl Strategy<Value = Step> {
    let who = || 0..3u8;
    let off = || prop_oneof![9 => Just(0u8), 1 => Just(1u8)];
    prop_oneof![
        6 => who().prop_map(|who| Step::Open { who }),
        12 => (who(), 1..3u8, off(), prop::bool::weighted(0.1), prop::bool::weighted(0.9), any::<bool>())
            .prop_map(|(who, nonce, off, old_disk, seen, primary)| Step::Start {
                who, nonce, off, old_disk, seen, primary,
            }),
        6 => who().prop_map(|who| Step::First { who }),
        8 => (any::<bool>(), off()).prop_map(|(planned, off)| Step::Fence { planned, off }),
        4 => (0..4u8, off()).prop_map(|(to, off)| Step::Plan { to, off }),
        2 => Just(Step::Drain),
        3 => Just(Step::Cut),
        2 => Just(Step::TakeOver),
        24 => (who(), 0..4u8, 0..3u8, off())
            .prop_map(|(who, proof, end, off)| Step::Receipt { who, proof, end, off }),
        2 => (who(), who()).prop_map(|(to, from)| Step::Fetch { to, from }),
        12 => (who(), any::<bool>(), any::<bool>())
            .prop_map(|(who, loss, approved)| Step::Grant { who, loss, approved }),
        2 => Just(Step::Close),
        4 => (0..8u8, 0..3u8).prop_map(|(members, k)| Step::Set { members, k }),
        4 => Just(Step::Covered),
        4 => Just(Step::Promoted),
        2 => any::<bool>().prop_map(|phase| Step::Advance { phase }),
        3 => (who(), any::<bool>()).prop_map(|(who, without_out)| Step::Ask { who, without_out }),
        3 => any::<bool>().prop_map(|granted| Step::Answer { granted }),
        1 => any::<bool>().prop_map(|on| Step::Pause { on }),
        16 => (who(), prop::bool::weighted(0.8), 0..6u8)
            .prop_map(|(who, knows, says)| Step::Renew { who, knows, says }),
        3 => (who(), any::<bool>()).prop_map(|(who, close)| Step::End { who, close }),
        2 => (1..8u8, any::<bool>()).prop_map(|(instances, quorum)| Step::Put { instances, quorum }),
        1 => Just(Step::Delete),
        1 => Just(Step::Incarnation),
    ]
}

fn instance(who: u8) -> InstanceName {
    NAMES[usize::from(who) % 3].parse().unwrap()
}

fn agent(who: u8) -> Principal {
    Principal::new(Role::Agent, format!("s/{}", instance(who)))
}

fn declare(instances: u8, quorum: bool) -> Command {
    let names: Vec<_> =
        (0..3).filter(|at| instances & (1 << at) != 0).map(|at| NAMES[at]).collect();
    let mut spec = service("s", &names, &[]);
    if quorum {
        spec.policy = Policy { ttl_ms: 10_000, ..Policy::default_for(Mode::Quorum) };
        spec.policy.on_too_few_sync = TooFewSync::Degrade;
    }
    put_service(spec)
}

/// The command of a step in a state, and who sends it.
fn command_of(state: &State, step: &Step) -> (Principal, Command) {
    let name: ServiceName = "s".parse().unwrap();
    let none = ServiceRole::new(Revision(0));
    let role = state.roles().get(&name).map_or(&none, |row| &**row);
    let fence = role.fence.as_ref().map_or(Revision(1), |fence| fence.fence);
    let operation = role.operation.unwrap_or_default();
    let set = role.set.as_ref().map_or(Revision(1), |set| set.revision);
    let newest = |who: u8| {
        let owner = agent(who);
        let own = state.sessions().iter().filter(|(_, row)| row.owner == owner);
        own.map(|(id, _)| *id).max().unwrap_or(SessionId(1))
    };
    let row = |who: u8| role.instances.get(&instance(who));
    let at = |end: u8| Position { epoch: Epoch::NONE, end: Lsn(u64::from(end)), timeline: 1 };
    let (service, cluster, reason) = (name.clone(), Principal::cluster(), "because".to_owned());
    let holder = (0..3).find(|who| role.holder == Some(instance(*who))).unwrap_or(0);
    let command = match step.clone() {
        Step::Open { who } => return (agent(who), open_session(5_000, 1)),
        Step::Start { who, nonce, off, old_disk, seen, primary } => {
            let boot = row(who).map_or(0, |row| row.boot);
            let data = DataIdentity {
                system: 1,
                generation: 1 + u64::from(old_disk),
                epoch: Epoch::NONE,
                position: Some(at(1)),
                out_of_recovery: primary && role.holder.as_ref().is_none_or(|_| who == holder),
            };
            let number = row(who).map_or(DirectiveNumber::default(), |row| row.directive.number());
            let start = AgentStart {
                session: newest(who),
                nonce: Nonce(nonce.into()),
                boot: if old_disk { 0 } else { boot.saturating_sub(off.into()) },
                disk: if old_disk {
                    state.revision().0
                } else {
                    row(who).map_or(9, |row| row.disk)
                },
                seen: if seen { number } else { DirectiveNumber::default() },
                data: Some(data),
                fencer: if nonce == 1 { Armed::Armed } else { Armed::Weak },
                run: Nonce(off.into()),
            };
            let start = Box::new(start);
            return (agent(who), Command::AcceptStart { service, instance: instance(who), start });
        }
        Step::Receipt { who, proof, end, off } => {
            let kinds = [Proof::Detached, Proof::Recruited, Proof::Stopped, Proof::Resigned];
            let kind = if who == holder { proof | 2 } else { proof & 1 };
            let level = state.cluster().feature_level;
            let receipt = Receipt {
                instance: instance(who),
                fence: Revision(fence.0 - u64::from(off)),
                proof: kinds[usize::from(kind) & 3],
                position: (proof != 0).then(|| at(end)),
                boot: row(who).map_or(0, |row| row.boot),
                nonce: row(who).map_or(Nonce(0), |row| row.nonce),
                generation: 1,
                is_proven: end != 0,
            };
            let receipt = Box::new(receipt);
            let at = HolderInstant(state.revision().0 * 1_000);
            let stopped = StopInstant { boot: MachineBoot(1), at };
            return (
                agent(who),
                match level {
                    2 => Command::RecordReceipt { service, receipt },
                    _ => Command::RecordStop { service, receipt, stopped },
                },
            );
        }
        Step::First { who } => Command::GrantFirst { service, candidate: instance(who) },
        Step::Fence { planned, off } => {
            let row = state.operations().get(&(name, operation));
            let announced = row.filter(|row| row.phase.is_before_fence() && off == 0);
            let kind = if planned {
                announced.map_or(FenceKind::Switchover { to: None }, |row| row.kind.clone())
            } else {
                FenceKind::Failover { verdict: "gone".into(), to: None }
            };
            let mut seen = role.epoch;
            seen.revision.0 += u64::from(off);
            Command::OpenFence { service, kind, seen, reason }
        }
        Step::Plan { to, off } => {
            let mut seen = role.epoch;
            seen.revision.0 += u64::from(off);
            let to = (to < 3).then(|| instance(to));
            Command::PlanSwitchover { service, to, seen, reason }
        }
        Step::Drain => Command::CloseRoutes { service, operation },
        Step::Cut => Command::CutStandbys { service, fence },
        Step::TakeOver => Command::TakeOverFence { service, fence, verdict: "gone".into(), reason },
        Step::Fetch { to, from } => {
            Command::OrderFetch { service, fence, to: instance(to), from: instance(from) }
        }
        Step::Grant { who, loss, approved } => {
            let case = Case::of(state, &name, None).filter(|case| case.said.is_some());
            let zero = Loss { ms: Some(0), bytes: Some(0) };
            let named = case.map_or(zero, |case| case.loss(&instance(who)));
            let row = state.operations().get(&(name, operation));
            let asked = row.and_then(|row| row.approval.as_ref()).map(|asked| asked.id);
            Command::GrantRole {
                service,
                fence,
                candidate: instance(who),
                loss: if loss { named } else { Loss::default() },
                approval: asked.filter(|_| approved),
            }
        }
        Step::Close => {
            let fence = if role.fence.is_some() { fence } else { operation };
            Command::CloseFence { service, fence, reason }
        }
        Step::Set { members, k } => {
            let members = (0..3).filter(|at| members & (1 << at) != 0).map(instance).collect();
            Command::ChangeSet { service, seen: set, members, k: k.into() }
        }
        Step::Covered => Command::ConfirmCovered { service, epoch: role.epoch, set },
        Step::Promoted => {
            let (timeline, switch) = (2, Lsn(1));
            Command::RecordPromotion { service, epoch: role.epoch, timeline, switch }
        }
        Step::Advance { phase } => {
            let phase = if phase { Phase::Repair } else { Phase::Done };
            Command::AdvanceOperation { service, operation, phase }
        }
        Step::Ask { who, without_out } => {
            let (candidate, loss) = (instance(who), Loss::default());
            Command::OpenApproval { service, fence, candidate, loss, without_out, question: reason }
        }
        Step::Answer { granted } => {
            let row = state.operations().get(&(name, operation));
            let asked = row.and_then(|row| row.approval.as_ref());
            let approval = asked.map_or(Revision(1), |asked| asked.id);
            Command::AnswerApproval { service, approval, granted, reason }
        }
        Step::Pause { on } => Command::SetPause { service, paused: on, reason },
        Step::Renew { who, knows, says } => {
            let session = newest(who);
            let number = state.sessions().get(&session).map_or(1, |row| row.renewed.0 + 1);
            let known_grant = if knows { Revision(u64::MAX) } else { Revision(0) };
            let (nonce, number, acked) = (Nonce(1), RenewalNumber(number), RenewalNumber(0));
            let renewal = Renewal { session, nonce, number, acked, known_grant };
            let report = (says > 0).then(|| Box::new(report(state, says)));
            let level = state.cluster().feature_level;
            Command::renew(&[FullRenewal { renewal, report }], level)
        }
        Step::End { who, close } => {
            let session = newest(who);
            let seen = state.sessions().get(&session).map_or(RenewalNumber(0), |row| row.renewed);
            if close {
                return (agent(who), Command::CloseSession { session, nonce: Nonce(1) });
            }
            Command::ExpireSessions { lapsed: vec![Lapsed { session, seen }] }
        }
        Step::Put { instances, quorum } => declare(instances, quorum),
        Step::Delete => Command::DeleteService { service, expect: Expect::Any },
        Step::Incarnation => {
            let incarnation = Incarnation { counter: state.incarnation().counter + 1, id: 8 };
            Command::BeginIncarnation { incarnation, reason, hold_ms: Some(0) }
        }
    };
    (cluster, command)
}

/// What an agent says with a renewal; time is the revision, in milliseconds.
fn report(state: &State, says: u8) -> HolderReport {
    let sent = HolderInstant(state.revision().0 * 1_000);
    let at = Position { epoch: Epoch::NONE, end: Lsn(u64::from(says % 3)), timeline: 1 };
    HolderReport {
        armed: if says == 2 { Armed::Weak } else { Armed::Armed },
        boot: MachineBoot(u64::from(says == 5) + 1),
        sent,
        watermark: (says != 4).then_some(Watermark { at, sampled: sent }),
        pause: (says == 3).then_some(Revision(1)),
        policy: if says == 1 { Revision(1) } else { state.revision() },
        set: None,
    }
}

fn ready(level: u32, quorum: bool) -> Bench {
    let mut bench = Bench::new();
    bench.run(Command::RaiseFeatureLevel { to: level });
    bench.run(declare(7, quorum));
    for who in 0..3 {
        let start =
            Step::Start { who, nonce: 1, off: 0, old_disk: false, seen: true, primary: who == 0 };
        for step in [Step::Open { who }, start] {
            let (by, command) = command_of(&bench.state, &step);
            bench.by = by;
            bench.run(command);
        }
    }
    bench
}

/// A grant, as an outsider sees it: the old holder's end and the candidate's receipt are in the log.
fn check_grants(before: &State, after: &State, highest: &mut BTreeMap<ServiceName, Epoch>) {
    for (name, role) in after.roles() {
        let was = before.roles().get(name);
        if was.is_none_or(|was| was.epoch == role.epoch) {
            continue;
        }
        let last = highest.insert(name.clone(), role.epoch).unwrap_or(Epoch::NONE);
        assert!(role.epoch > last, "S3: {} after {last}", role.epoch);
        let Some(fence) = was.and_then(|was| was.fence.as_ref()) else { continue };
        let candidate = role.holder.as_ref().unwrap();
        assert!(fence.receipts.contains_key(candidate), "a primary without a receipt");
        let operation = &after.operations()[&(name.clone(), fence.operation)];
        let was = was.unwrap();
        if operation.out == Some(OutProof::QuorumRevoked) {
            let met = was.a.iter().all(|set| set.is_met_by(fence.receipts.keys()));
            assert!(met && !was.a.is_empty(), "S1: the old primary still has a quorum");
        }
        let quorum = !was.a.is_empty() && was.a.iter().all(|set| !set.is_degraded());
        assert!(!quorum || operation.out != Some(OutProof::Lapsed), "a lapse in quorum mode");
        let said = before.holders().get(name).and_then(|row| row.renewal.as_ref());
        if before.cluster().feature_level >= 3 && operation.out == Some(OutProof::Lapsed) {
            let last = said.unwrap();
            assert_eq!((last.epoch, last.report.pause), (was.epoch, None), "E5");
            assert_eq!(last.report.armed, Armed::Armed, "C4");
        }
        if before.cluster().feature_level >= 3
            && operation.complete == Some(CompleteProof::WithinBound)
        {
            let must = Case::of(before, name, None).unwrap().loss(candidate);
            assert!(operation.loss.ms >= must.ms, "S7: {:?} {must:?}", operation.loss);
        }
        let told = &role.instances[candidate].directive.order;
        assert!(matches!(told, Order::Lead { .. }), "{told}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn random_role_changes_keep_the_invariants_and_replay_to_the_same_bytes(
        steps in vec(steps(), 1..160),
        cut in any::<prop::sample::Index>(),
        level in 2..=4u32,
        quorum: bool,
    ) {
        let mut bench = ready(level, quorum);
        let mut log = Vec::new();
        let mut highest = BTreeMap::new();
        for step in &steps {
            let (by, command) = command_of(&bench.state, step);
            let entry = Entry::new(WallMs(7), by, None, &command).encode();
            let before = bench.state.clone();
            let applied = bench.raw(&entry);
            let poisoned = matches!(
                applied.reply, Reply::Rejected(crate::reply::Rejection::Poisoned { .. })
            );
            prop_assert!(!poisoned, "{:?}: {:?}", command, applied.reply);
            if matches!(applied.reply, Reply::Rejected(_)) {
                prop_assert_eq!(before.roles(), bench.state.roles());
                prop_assert_eq!(before.operations(), bench.state.operations());
                prop_assert_eq!(before.holders(), bench.state.holders());
            }
            check_grants(&before, &bench.state, &mut highest);
            log.push(entry);
        }
        let (mut one, mut two) = (ready(level, quorum).state, ready(level, quorum).state);
        let cut = cut.index(log.len());
        for (at, entry) in log.iter().enumerate() {
            if at == cut {
                two = State::decode_snapshot(&two.encode_snapshot()).unwrap();
            }
            let revision = one.revision().next();
            prop_assert_eq!(one.apply(revision, entry), two.apply(revision, entry));
            prop_assert_eq!(one.rolling_hash(), two.rolling_hash());
        }
        prop_assert_eq!(one.encode_snapshot(), two.encode_snapshot());
    }
}
