//! Random histories: the invariants hold after every entry, replicas stay byte-equal, a snapshot
//! at any point plus the suffix equals the full replay, and hostile bytes never panic.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::authz::Verb;
use crate::command::{Lapsed, Refusal, Renewal, UnusedGrant};
use crate::effect::{Change, ClockEffect};
use crate::id::{ElectionName, Epoch, NodeId, RenewalNumber};
use crate::state::audit::{Anchor, verify};

/// What a step wants; which session, epoch or revision it means is looked up in the state, so that
/// most commands hit something, and some are off by one on purpose.
#[derive(Clone, Debug)]
enum Step {
    Open,
    Campaign { who: usize, on: u8, priority: i8, zone: u8, value: u8 },
    Resign { who: usize, on: u8 },
    ResignEpoch { on: u8, off: u8 },
    Proclaim { who: usize, on: u8, off: u8 },
    Renew { first: usize, count: usize, jump: u8, knows: bool },
    Close { who: usize },
    Expire { first: usize, count: usize, off: u8 },
    ExpireGrants { off: u8 },
    PutElection { on: u8, zone: u8 },
    DeleteElection { on: u8 },
    Service { name: u8, partitions: u8, about: u8 },
    DeleteService { name: u8 },
    Assign { name: u8, part: u8, to: Option<u8>, off: u8 },
    Release { name: u8 },
    Incarnation { rise: u8, hold: bool },
    OpenGrants { off: u8 },
    Boot { node: u8, rise: i8 },
    Allocate,
    Refusals { by: u8, count: u8 },
    Corrupt { name: u8 },
    Bytes(Vec<u8>),
    Blank,
    Members { voters: u8 },
}

fn steps() -> impl Strategy<Value = Step> {
    let who = || 0..6usize;
    let on = || 0..3u8;
    let off = || prop_oneof![8 => Just(0u8), 1 => Just(1u8)];
    prop_oneof![
        6 => Just(Step::Open),
        12 => (who(), on(), -1..2i8, 0..2u8, any::<u8>())
            .prop_map(|(who, on, priority, zone, value)| Step::Campaign { who, on, priority, zone, value }),
        4 => (who(), on()).prop_map(|(who, on)| Step::Resign { who, on }),
        3 => (on(), off()).prop_map(|(on, off)| Step::ResignEpoch { on, off }),
        6 => (who(), on(), off()).prop_map(|(who, on, off)| Step::Proclaim { who, on, off }),
        8 => (who(), 1..4usize, 0..3u8, any::<bool>())
            .prop_map(|(first, count, jump, knows)| Step::Renew { first, count, jump, knows }),
        2 => who().prop_map(|who| Step::Close { who }),
        4 => (who(), 1..4usize, off())
            .prop_map(|(first, count, off)| Step::Expire { first, count, off }),
        3 => off().prop_map(|off| Step::ExpireGrants { off }),
        2 => (on(), 0..2u8).prop_map(|(on, zone)| Step::PutElection { on, zone }),
        2 => on().prop_map(|on| Step::DeleteElection { on }),
        3 => (0..2u8, 0..4u8, 0..2u8)
            .prop_map(|(name, partitions, about)| Step::Service { name, partitions, about }),
        1 => (0..2u8).prop_map(|name| Step::DeleteService { name }),
        4 => (0..2u8, 0..3u8, proptest::option::of(0..3u8), off())
            .prop_map(|(name, part, to, off)| Step::Assign { name, part, to, off }),
        1 => (0..2u8).prop_map(|name| Step::Release { name }),
        1 => (0..2u8, any::<bool>()).prop_map(|(rise, hold)| Step::Incarnation { rise, hold }),
        2 => off().prop_map(|off| Step::OpenGrants { off }),
        1 => (1..4u8, -1..3i8).prop_map(|(node, rise)| Step::Boot { node, rise }),
        1 => Just(Step::Allocate),
        1 => (0..3u8, 1..5u8).prop_map(|(by, count)| Step::Refusals { by, count }),
        1 => (0..3u8).prop_map(|name| Step::Corrupt { name }),
        1 => vec(any::<u8>(), 0..40).prop_map(Step::Bytes),
        1 => Just(Step::Blank),
        1 => (1..4u8).prop_map(|voters| Step::Members { voters }),
    ]
}

/// An entry of the log, as consensus hands it over.
#[derive(Clone, Debug)]
enum Logged {
    Bytes(Vec<u8>),
    Blank,
    Members(Vec<NodeId>),
}

fn feed(state: &mut State, logged: &Logged) -> Applied {
    let revision = state.revision().next();
    match logged {
        Logged::Bytes(bytes) => state.apply(revision, bytes),
        Logged::Blank => state.apply_blank(revision),
        Logged::Members(voters) => state.apply_membership(revision, voters, &[]),
    }
}

fn election_name(on: u8) -> ElectionName {
    format!("e{on}").parse().unwrap()
}

fn service_name(name: u8) -> ServiceName {
    format!("s{name}").parse().unwrap()
}

fn command_of(state: &State, step: &Step) -> Option<Command> {
    let ids: Vec<_> = state.sessions().keys().copied().collect();
    let pick = |at: usize| ids.get(at % ids.len().max(1)).copied().unwrap_or(SessionId(99_999));
    let zone = |zone: u8| Locality { zone: format!("z{zone}"), ..Locality::default() };
    Some(match step.clone() {
        Step::Open => open_session(5_000, 1),
        Step::Campaign { who, on, priority, zone: z, value } => Command::Campaign {
            election: election_name(on),
            session: pick(who),
            nonce: Nonce(1),
            priority: priority.into(),
            locality: zone(z),
            value: vec![value],
        },
        Step::Resign { who, on } => {
            Command::Resign { election: election_name(on), session: pick(who), nonce: Nonce(1) }
        }
        Step::ResignEpoch { on, off } => {
            let row = state.elections().get(&election_name(on));
            let holder = row.and_then(|row| row.holder.as_ref());
            let session = holder.map_or(pick(0), |holder| holder.session);
            let mut epoch = row.map_or(Epoch::NONE, |row| row.epoch);
            epoch.revision.0 = epoch.revision.0.saturating_sub(off.into());
            let election = election_name(on);
            Command::ResignEpoch { election, session, nonce: Nonce(1), epoch }
        }
        Step::Proclaim { who, on, off } => {
            let row = state.elections().get(&election_name(on));
            let holder = row.and_then(|row| row.holder.as_ref());
            let session = holder.map_or(pick(who), |holder| holder.session);
            let mut epoch = row.map_or(Epoch::NONE, |row| row.epoch);
            epoch.revision.0 = epoch.revision.0.saturating_sub(off.into());
            Command::Proclaim { election: election_name(on), session, epoch, value: vec![off] }
        }
        Step::Renew { first, count, jump, knows } => Command::RenewSessions {
            renewals: (first..first + count)
                .map(|at| {
                    let session = pick(at);
                    let row = state.sessions().get(&session);
                    let number = row.map_or(0, |row| row.renewed.0) + u64::from(jump);
                    Renewal {
                        session,
                        nonce: Nonce(1),
                        number: RenewalNumber(number),
                        acked: RenewalNumber(number),
                        known_grant: if knows { Revision(u64::MAX) } else { Revision(0) },
                    }
                })
                .collect(),
        },
        Step::Close { who } => Command::CloseSession { session: pick(who), nonce: Nonce(1) },
        Step::Expire { first, count, off } => Command::ExpireSessions {
            lapsed: (first..first + count)
                .map(|at| {
                    let session = pick(at);
                    let seen = state.sessions().get(&session).map_or(0, |row| row.renewed.0);
                    Lapsed { session, seen: RenewalNumber(seen + u64::from(off)) }
                })
                .collect(),
        },
        Step::ExpireGrants { off } => Command::ExpireGrants {
            unused: state
                .unconfirmed()
                .iter()
                .map(|name| {
                    let mut epoch = state.elections()[name].epoch;
                    epoch.revision.0 += u64::from(off);
                    UnusedGrant { election: name.clone(), epoch }
                })
                .collect(),
        },
        Step::PutElection { on, zone: z } => Command::PutElection {
            election: election_name(on),
            preferred: zone(z),
            expect: Expect::Any,
        },
        Step::DeleteElection { on } => {
            Command::DeleteElection { election: election_name(on), expect: Expect::Any }
        }
        Step::Service { name, partitions, about } => {
            let parts = ["p0", "p1", "p2"];
            let parts = &parts[..usize::from(partitions).min(3)];
            let mut spec = service(service_name(name).as_str(), &["i0", "i1"], parts);
            spec.description = format!("{about}");
            put_service(spec)
        }
        Step::DeleteService { name } => {
            Command::DeleteService { service: service_name(name), expect: Expect::Any }
        }
        Step::Assign { name, part, to, off } => {
            let partition: PartitionName = format!("p{part}").parse().unwrap();
            let key = (service_name(name), partition.clone());
            let mut seen = state.partitions().get(&key).map_or(Epoch::NONE, |row| row.epoch);
            seen.revision.0 += u64::from(off);
            let to = to.map(|to| format!("i{to}").parse().unwrap());
            Command::AssignPartition { service: key.0, partition, to, seen }
        }
        Step::Release { name } => {
            Command::ReleaseQuarantine { service: service_name(name), reason: "seen".into() }
        }
        Step::Incarnation { rise, hold } => {
            let counter = state.incarnation().counter + u64::from(rise);
            let incarnation = Incarnation { counter, id: 8 };
            let hold_ms = if hold { None } else { Some(0) };
            Command::BeginIncarnation { incarnation, reason: "restore".into(), hold_ms }
        }
        Step::OpenGrants { off } => {
            let mut incarnation = state.incarnation();
            incarnation.counter += u64::from(off);
            Command::OpenGrants { incarnation }
        }
        Step::Boot { node, rise } => {
            let node = NodeId(node.into());
            let have = state.cluster().boots.get(&node).map_or(1, |start| start.boot);
            let boot = have.saturating_add_signed(rise.into());
            Command::RecordBoot { node, disk: 5, boot, nonce: Nonce(boot) }
        }
        Step::Allocate => Command::AllocateNode { label: "node".into() },
        Step::Refusals { by, count } => Command::RecordRefusals {
            refusals: vec![Refusal {
                by: format!("client/{by}"),
                verb: Verb::Backup,
                resource: "all".into(),
                reason: "no right".into(),
                count: count.into(),
            }],
        },
        Step::Corrupt { .. } | Step::Bytes(_) | Step::Blank | Step::Members { .. } => return None,
    })
}

/// The entry a step makes of the present state. `lane`: some commands are sent twice.
fn log_entry(state: &State, step: &Step, lane: Option<(u64, u64)>, owner: u8) -> Logged {
    // Two owners, so that some commands use another's session.
    let by = Principal::new(Role::Client, format!("c{}", owner / 200));
    let request =
        lane.map(|(client, serial)| Request { client: ClientId(client), serial: Serial(serial) });
    match (command_of(state, step), step) {
        (Some(command), _) => Logged::Bytes(Entry::new(WallMs(1), by, request, &command).encode()),
        (None, Step::Corrupt { name }) => {
            let spec = service(service_name(*name).as_str(), &["i0"], &[]);
            let mut entry = Entry::new(WallMs(1), by, request, &put_service(spec));
            entry.body.pop();
            Logged::Bytes(entry.encode())
        }
        (None, Step::Bytes(bytes)) => Logged::Bytes(bytes.clone()),
        (None, Step::Members { voters }) => {
            Logged::Members((1..=u64::from(*voters)).map(NodeId).collect())
        }
        (None, _) => Logged::Blank,
    }
}

/// What an outside observer remembers of a history.
#[derive(Default)]
struct Watcher {
    highest: BTreeMap<String, Epoch>,
    ended: BTreeSet<SessionId>,
}

impl Watcher {
    /// S3, one holder, and no life after the end, from the effects alone.
    fn see(&mut self, before: &State, state: &State, applied: &Applied) {
        for change in &applied.changes {
            let (key, epoch, was) = match change {
                Change::Election(name, Some(row)) => {
                    let Some(holder) = &row.holder else { continue };
                    assert!(!row.queue.iter().any(|waiting| waiting.session == holder.session));
                    let was = before.elections().get(name).and_then(|row| row.holder.as_ref());
                    (format!("e {name}"), holder.epoch, was.map(|holder| holder.epoch))
                }
                Change::Partition(name, part, Some(row)) if row.owner.is_some() => {
                    let was = before.partitions().get(&(name.clone(), part.clone()));
                    (format!("p {name}/{part}"), row.epoch, was.map(|row| row.epoch))
                }
                _ => continue,
            };
            if was == Some(epoch) {
                continue;
            }
            let highest = self.highest.insert(key.clone(), epoch).unwrap_or(Epoch::NONE);
            assert!(epoch > highest, "S3: {key} was granted {epoch} after {highest}");
            assert_eq!(epoch.revision, applied.revision, "{key}");
        }
        for clock in &applied.clocks {
            match clock {
                ClockEffect::Renewed(session) => {
                    assert!(!self.ended.contains(session), "{session} came back");
                    assert!(state.sessions().contains_key(session));
                }
                ClockEffect::Ended(session) => assert!(self.ended.insert(*session)),
                ClockEffect::Reset => self.ended.extend(before.sessions().keys()),
            }
        }
        if let Reply::Rejected(_) = applied.reply {
            let rows = |state: &State| {
                (state.sessions().clone(), state.elections().clone(), state.partitions().clone())
            };
            assert_eq!(rows(before), rows(state), "a rejected entry changed rows");
        }
    }
}

/// C4, C8: the next in line is the best of those who waited, when the holder left.
fn check_succession(before: &State, state: &State) {
    for (name, row) in state.elections() {
        let Some(was) = before.elections().get(name) else { continue };
        let Some(holder) = row
            .holder
            .as_ref()
            .filter(|holder| was.holder.as_ref().is_some_and(|was| was.epoch != holder.epoch))
        else {
            continue;
        };
        let mut waited = (**was).clone();
        waited.queue.retain(|waiting| state.sessions().contains_key(&waiting.session));
        // An entry that ends an incarnation or lets the same session campaign again has no queue.
        if let Some(next) = waited.next() {
            assert_eq!(waited.queue[next].session, holder.session, "{name}: out of turn");
        }
    }
}

fn history(steps: &[(Step, u8)]) -> Vec<Logged> {
    let mut bench = Bench::new();
    let mut log = Vec::new();
    let mut watcher = Watcher::default();
    for (at, (step, dice)) in steps.iter().enumerate() {
        let lane = (dice % 3 == 0).then_some((u64::from(dice % 4), at as u64 + 1));
        let logged = log_entry(&bench.state, step, lane, *dice);
        let twice = lane.is_some() && dice % 2 == 0;
        for _ in 0..if twice { 2 } else { 1 } {
            let before = bench.state.clone();
            let applied = feed(&mut bench.state, &logged);
            bench.state.check().unwrap();
            watcher.see(&before, &bench.state, &applied);
            check_succession(&before, &bench.state);
            log.push(logged.clone());
        }
    }
    log
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_keep_the_invariants_and_replay_to_the_same_bytes(
        steps in vec((steps(), any::<u8>()), 1..120),
        cut in any::<prop::sample::Index>(),
    ) {
        let log = history(&steps);
        let (mut one, mut two) = (Bench::new().state, Bench::new().state);
        let cut = cut.index(log.len());
        for (at, logged) in log.iter().enumerate() {
            if at == cut {
                two = State::decode_snapshot(&two.encode_snapshot()).unwrap();
            }
            let (a, b) = (feed(&mut one, logged), feed(&mut two, logged));
            prop_assert_eq!(a, b);
            prop_assert_eq!(one.rolling_hash(), two.rolling_hash());
        }
        prop_assert_eq!(one.encode_snapshot(), two.encode_snapshot());
        prop_assert_eq!(one.full_hash(), two.full_hash());
        let end = verify(one.audit().records().map(|r| &**r), Anchor::default());
        prop_assert_eq!(end, Ok(one.audit().head()));
    }

    #[test]
    fn an_entry_less_or_otherwise_changes_the_rolling_hash(
        steps in vec((steps(), any::<u8>()), 2..40),
        drop in any::<prop::sample::Index>(),
    ) {
        let mut log = history(&steps);
        let mut full = Bench::new().state;
        log.iter().for_each(|logged| std::mem::drop(feed(&mut full, logged)));
        let at = drop.index(log.len());
        if !matches!(log[at], Logged::Blank) {
            log[at] = Logged::Blank;
            let mut other = Bench::new().state;
            log.iter().for_each(|logged| std::mem::drop(feed(&mut other, logged)));
            prop_assert_ne!(full.rolling_hash(), other.rolling_hash());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn hostile_bytes_are_answered_and_never_panic(
        bytes in vec(any::<u8>(), 0..200),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        owner in any::<u8>(),
        step in steps(),
    ) {
        let mut bench = Bench::new();
        bench.open(1);
        bench.run(put_service(service("s0", &["i0", "i1"], &["p0"])));
        prop_assert!(State::decode_snapshot(&bytes).is_err());
        bench.raw(&bytes);
        if let Logged::Bytes(mut entry) = log_entry(&bench.state, &step, None, owner) {
            for (at, mask) in &flips {
                if !entry.is_empty() {
                    let at = at.index(entry.len());
                    entry[at] ^= mask;
                }
            }
            bench.raw(&entry);
        }
        // Bytes may happen to raise the level beyond this binary: then it reads no snapshot at all.
        if bench.state.barrier().is_some() {
            return Ok(());
        }
        // A body that was signed by a liar: the checksum holds, the content does not.
        let mut body = super::super::snapshot::open(&bench.state.encode_snapshot()).unwrap().1.to_vec();
        for (at, mask) in &flips {
            let at = at.index(body.len());
            body[at] ^= mask;
        }
        let _ = State::decode_snapshot(&super::super::snapshot::seal(1, &body));
    }
}
