//! What the leader proposes, against a real state.

use super::*;
use crate::authz::{Principal, Role};
use crate::command::{Entry, Renewal};
use crate::id::{Incarnation, Locality, Nonce, RenewalNumber, Revision};
use crate::lease::Rules;
use crate::limits::MAX_GRANTS_PER_ENTRY;
use crate::reply::Reply;
use crate::time::WallMs;
use crate::timing::Timing;

const TTL_MS: u64 = 10_000;
/// `(ttl + margin)·(1+rho)`, rounded up to milliseconds.
const LONG_MS: u64 = 10_353;

fn at(ms: u64) -> Reading {
    Reading::at_us(ms * 1_000)
}

/// A leader: state, clocks and memory fed alike.
struct Leader {
    state: State,
    clock: NodeClock,
    expiry: Expiry,
    term: Option<u64>,
    skew: SkewVerdict,
}

impl Leader {
    fn new() -> Self {
        let mut leader = Self {
            state: State::default(),
            clock: NodeClock::new(Rules::LAW),
            expiry: Expiry::new(),
            term: Some(3),
            skew: SkewVerdict::Agrees,
        };
        leader.run(
            0,
            &Command::Bootstrap {
                incarnation: Incarnation { counter: 1, id: 9 },
                cluster: "lab".into(),
                timing: Timing::LAN,
            },
        );
        assert!(!leader.decide(0).report.is_empty());
        leader
    }

    fn run(&mut self, now_ms: u64, command: &Command) -> Reply {
        self.run_as(&Principal::new(Role::Client, "ann"), now_ms, command)
    }

    fn run_as(&mut self, by: &Principal, now_ms: u64, command: &Command) -> Reply {
        let by = by.clone();
        let entry = Entry::new(WallMs(0), by, None, command).encode();
        let applied = self.state.apply(self.state.revision().next(), &entry);
        let sessions = self.state.sessions();
        let now = at(now_ms);
        self.clock.apply(applied.revision, &applied.clocks, now, |id| {
            sessions.get(&id).map(|row| row.ttl_ms)
        });
        self.expiry.observe(&applied, now);
        applied.reply
    }

    fn decide(&mut self, now_ms: u64) -> Decision {
        let view = View { state: &self.state, term: self.term, skew: self.skew, now: at(now_ms) };
        self.expiry.decide(&view, &mut self.clock)
    }

    /// Decides, and runs what was decided.
    fn tick(&mut self, now_ms: u64) -> Vec<Reply> {
        let commands = self.decide(now_ms).commands;
        commands.iter().map(|command| self.run(now_ms, command)).collect()
    }

    fn open(&mut self, now_ms: u64, renew_interval_ms: u64) -> SessionId {
        let reply = self.run(
            now_ms,
            &Command::OpenSession {
                ttl_ms: TTL_MS,
                renew_interval_ms,
                fence_budget_ms: 250,
                nonce: Nonce(1),
                label: String::new(),
            },
        );
        let Reply::SessionOpened { session, .. } = reply else { panic!("{reply:?}") };
        session
    }

    fn campaign(&mut self, now_ms: u64, election: &str, session: SessionId) -> Reply {
        self.run(
            now_ms,
            &Command::Campaign {
                election: election.parse().expect("a name"),
                session,
                nonce: Nonce(1),
                priority: 0,
                locality: Locality::default(),
                value: Vec::new(),
            },
        )
    }

    fn renew(&mut self, now_ms: u64, session: SessionId, number: u64, known_grant: Revision) {
        let renewal = Renewal {
            session,
            nonce: Nonce(1),
            number: RenewalNumber(number),
            acked: RenewalNumber(0),
            known_grant,
        };
        self.run(now_ms, &Command::RenewSessions { renewals: vec![renewal] });
    }

    fn holder(&self, election: &str) -> Option<SessionId> {
        let name: ElectionName = election.parse().expect("a name");
        Some(self.state.elections().get(&name)?.holder.as_ref()?.session)
    }
}

fn granted(reply: &Reply) -> Epoch {
    let Reply::Granted { epoch, .. } = reply else { panic!("{reply:?}") };
    *epoch
}

#[test]
fn a_session_that_lapsed_is_expired_by_the_renewal_that_was_seen() {
    let mut leader = Leader::new();
    let session = leader.open(0, 500);
    leader.renew(1_000, session, 4, Revision(0));
    assert_eq!(leader.decide(1_000 + LONG_MS - 1).commands, []);
    let decision = leader.decide(1_000 + LONG_MS);
    let lapsed = vec![Lapsed { session, seen: RenewalNumber(4) }];
    assert_eq!(decision.commands, [Command::ExpireSessions { lapsed }]);
    assert!(decision.report[0].acted, "{:?}", decision.report);
}

#[test]
fn a_renewal_that_was_committed_first_wins() {
    let mut leader = Leader::new();
    let session = leader.open(0, 500);
    let decided = leader.decide(LONG_MS).commands;
    leader.renew(LONG_MS + 1, session, 1, Revision(0));
    let reply = leader.run(LONG_MS + 2, &decided[0]);
    assert!(matches!(reply, Reply::Expired { count: 0, .. }), "{reply:?}");
    assert!(leader.state.sessions().contains_key(&session));
    assert_eq!(leader.decide(LONG_MS + 600).commands, []);
}

#[test]
fn nothing_is_proposed_without_a_term_or_in_one_whose_clocks_lag_behind_the_state() {
    let mut leader = Leader::new();
    leader.open(0, 500);
    leader.term = None;
    let decision = leader.decide(LONG_MS);
    assert_eq!((decision.commands.len(), decision.report.len()), (0, 1));
    assert_eq!(leader.decide(LONG_MS + 20), Decision::default(), "said once");
    leader.term = Some(5);
    leader.state.apply_blank(leader.state.revision().next());
    let decision = leader.decide(LONG_MS + 40);
    assert_eq!(decision.commands, []);
    assert!(decision.report.iter().any(|line| line.text.contains("clocks are at")));
    leader.clock.apply(leader.state.revision(), &[], at(LONG_MS + 60), |_| None);
    assert_eq!(leader.decide(LONG_MS + 60).commands.len(), 1);
}

#[test]
fn a_node_that_a_majority_contradicts_abstains_and_then_starts_its_timers_anew() {
    let mut leader = Leader::new();
    let session = leader.open(0, 500);
    leader.skew = SkewVerdict::Differs { against: 2, peers: 2 };
    let decision = leader.decide(LONG_MS);
    assert_eq!(decision.commands, []);
    assert!(decision.report[0].text.contains("2 of 2 peers"), "{:?}", decision.report);
    assert_eq!(leader.decide(LONG_MS + 20), Decision::default(), "said once");
    leader.skew = SkewVerdict::Agrees;
    assert_eq!(leader.decide(LONG_MS + 40).commands, []);
    assert_eq!(leader.decide(2 * LONG_MS).commands, []);
    let decision = leader.decide(2 * LONG_MS + 40);
    let lapsed = vec![Lapsed { session, seen: RenewalNumber(0) }];
    assert_eq!(decision.commands, [Command::ExpireSessions { lapsed }]);
}

#[test]
fn a_grant_that_nobody_confirms_goes_to_the_next_after_the_timeout() {
    let mut leader = Leader::new();
    let (first, second) = (leader.open(0, 500), leader.open(0, 500));
    let epoch = granted(&leader.campaign(100, "e", first));
    leader.campaign(100, "e", second);
    leader.renew(1_000, first, 1, Revision(0));
    assert_eq!(leader.decide(2_000).commands, []);
    let decision = leader.decide(2_100);
    let election: ElectionName = "e".parse().expect("a name");
    assert_eq!(
        decision.commands,
        [Command::ExpireGrants { unused: vec![UnusedGrant { election, epoch }] }]
    );
    leader.run(2_110, &decision.commands[0]);
    assert_eq!(leader.holder("e"), Some(second));
    // The second gets the whole timeout, from its own grant.
    assert_eq!(leader.decide(4_050).commands, []);
    assert_eq!(leader.decide(4_150).commands.len(), 1);
}

#[test]
fn a_confirmed_grant_is_left_alone() {
    let mut leader = Leader::new();
    let session = leader.open(0, 500);
    let epoch = granted(&leader.campaign(100, "e", session));
    leader.renew(200, session, 1, epoch.revision);
    for now in (200..9_000).step_by(100) {
        assert_eq!(leader.decide(now).commands, []);
    }
}

#[test]
fn one_that_leads_on_a_confirmed_grant_is_left_to_its_ttl_until_it_resigns() {
    let mut leader = Leader::new();
    let session = leader.open(0, 500);
    let epoch = granted(&leader.campaign(100, "a", session));
    leader.renew(200, session, 1, epoch.revision);
    granted(&leader.campaign(300, "b", session));
    let decision = leader.decide(2_400);
    assert_eq!(decision.commands, []);
    assert!(decision.report[0].text.contains("left to its ttl"), "{:?}", decision.report);
    leader.run(
        2_500,
        &Command::Resign { election: "a".parse().expect("a name"), session, nonce: Nonce(1) },
    );
    assert_eq!(leader.tick(4_500).len(), 1);
    assert_eq!(leader.state.sessions().len(), 0);
}

#[test]
fn a_client_that_renews_seldom_gets_time_to_hear_of_its_grant() {
    let mut leader = Leader::new();
    let session = leader.open(0, 1_000);
    leader.campaign(100, "e", session);
    assert_eq!(leader.decide(3_000).commands, []);
    assert_eq!(leader.decide(3_200).commands.len(), 1);
}

#[test]
fn a_new_leader_finds_the_unconfirmed_grants_in_the_state() {
    let mut leader = Leader::new();
    let session = leader.open(0, 500);
    leader.campaign(100, "e", session);
    leader.expiry = Expiry::new();
    leader.term = Some(4);
    assert_eq!(leader.decide(5_000).commands, [], "it gets the timeout again");
    assert_eq!(leader.decide(7_000).commands.len(), 1);
}

#[test]
fn a_lost_proposal_is_made_again() {
    let mut leader = Leader::new();
    let session = leader.open(0, 500);
    leader.campaign(0, "e", session);
    assert_eq!(leader.decide(2_000).commands.len(), 1);
    assert_eq!(leader.decide(2_100).commands.len(), 0);
    assert_eq!(leader.decide(4_000).commands.len(), 1);
    assert_eq!(leader.decide(LONG_MS).commands.len(), 2);
    assert_eq!(leader.decide(LONG_MS + 500).commands.len(), 1);
}

#[test]
fn the_death_of_all_clients_is_worked_off_in_bounded_entries() {
    let mut leader = Leader::new();
    for _ in 0..2_500 {
        leader.open(0, 500);
    }
    let mut sizes = Vec::new();
    for tick in 0..4 {
        for command in leader.decide(LONG_MS + 20 * tick).commands {
            let Command::ExpireSessions { lapsed } = &command else { panic!("{command:?}") };
            sizes.push(lapsed.len());
            leader.run(LONG_MS + 20 * tick, &command);
        }
    }
    assert_eq!(sizes, [1_000, 1_000, 500]);
    assert_eq!(leader.state.sessions().len(), 0);
}

/// A leader whose cluster has just begun another life.
fn reborn() -> (Leader, Incarnation) {
    let mut leader = Leader::new();
    leader.open(0, 500);
    let incarnation = Incarnation { counter: 2, id: 4 };
    let reason = "restored".to_owned();
    leader.run(0, &Command::BeginIncarnation { incarnation, reason, hold_ms: Some(TTL_MS) });
    (leader, incarnation)
}

#[test]
fn a_new_life_grants_once_nobody_can_believe_in_a_lease_of_the_life_before() {
    let (mut leader, incarnation) = reborn();
    let session = leader.open(0, 500);
    assert!(matches!(leader.campaign(0, "db", session), Reply::Queued { ahead: 0, .. }));
    // Counted from this leader's first look, not from whenever the life began.
    let said = leader.decide(5_000);
    assert!(said.commands.is_empty() && said.report[0].text.contains("nothing is granted"));
    leader.renew(5_000, session, 1, Revision(0));
    assert_eq!(leader.decide(5_000 + LONG_MS - 1).commands, []);
    let due = leader.decide(5_000 + LONG_MS).commands;
    assert_eq!(due[0], Command::OpenGrants { incarnation });
    assert_eq!(leader.holder("db"), None);
    leader.run(5_000 + LONG_MS, &due[0]);
    assert_eq!(leader.holder("db"), Some(session));
    let after = leader.decide(5_001 + LONG_MS).commands;
    assert!(!after.contains(&due[0]), "{after:?}");
}

#[test]
fn a_clock_that_was_doubted_and_one_that_runs_away_open_nothing_early() {
    let (mut leader, incarnation) = reborn();
    let open = Command::OpenGrants { incarnation };
    leader.decide(0);
    leader.skew = SkewVerdict::Differs { against: 2, peers: 2 };
    assert_eq!(leader.decide(LONG_MS).commands, []);
    leader.skew = SkewVerdict::Agrees;
    leader.decide(LONG_MS + 1_000);
    assert!(!leader.decide(2 * LONG_MS).commands.contains(&open), "counted anew (C9)");
    // A host that was moved: one of its clocks jumps, and no peer is there to doubt it.
    let jumped = Reading { boottime_us: 9_000_000_000, ..at(2 * LONG_MS) };
    let view = View { state: &leader.state, term: Some(3), skew: leader.skew, now: jumped };
    let decided = leader.expiry.decide(&view, &mut leader.clock).commands;
    assert!(!decided.contains(&open), "the shorter of the two clocks counts: {decided:?}");
    assert!(leader.decide(2 * LONG_MS + 1_000).commands.contains(&open));
}

#[test]
fn many_who_wait_are_granted_in_several_entries() {
    let (mut leader, _) = reborn();
    let session = leader.open(0, 500);
    for at in 0..MAX_GRANTS_PER_ENTRY + 1 {
        leader.campaign(0, &format!("db/{at}"), session);
    }
    leader.decide(0);
    let held = |leader: &Leader| {
        let rows = leader.state.elections().values();
        rows.filter(|row| row.holder.is_some()).count()
    };
    leader.renew(LONG_MS - 1_000, session, 1, Revision(0));
    let first = leader.decide(LONG_MS).commands[0].clone();
    leader.run(LONG_MS, &first);
    assert_eq!(held(&leader), MAX_GRANTS_PER_ENTRY);
    assert!(leader.state.grants_held_ms() > 0, "one still waits");
    assert_eq!(leader.decide(LONG_MS + 1).commands[0], first);
    leader.run(LONG_MS + 1, &first);
    assert_eq!(held(&leader), MAX_GRANTS_PER_ENTRY + 1);
    assert_eq!(leader.state.grants_held_ms(), 0);
}

/// The agent of the only instance starts over a new session with this ttl, or says so again.
fn agent_starts(leader: &mut Leader, now_ms: u64, ttl_ms: u64, boot: u64) -> SessionId {
    let by = Principal::new(Role::Agent, "s/a");
    let open = Command::OpenSession {
        ttl_ms,
        renew_interval_ms: 300,
        fence_budget_ms: 250,
        nonce: Nonce(1),
        label: String::new(),
    };
    let Reply::SessionOpened { session, .. } = leader.run_as(&by, now_ms, &open) else { panic!() };
    let start = Box::new(crate::role::AgentStart {
        session,
        nonce: Nonce(5),
        boot,
        disk: 7,
        seen: Default::default(),
        data: Some(crate::role::DataIdentity {
            system: 1,
            generation: 1,
            epoch: Epoch::NONE,
            position: Some(Default::default()),
            out_of_recovery: true,
        }),
        fencer: crate::role::Armed::Armed,
        run: Nonce(1),
    });
    let (service, instance) = (name("s"), name("a"));
    let reply = leader.run_as(&by, now_ms, &Command::AcceptStart { service, instance, start });
    assert!(matches!(reply, Reply::StartAccepted { .. }), "{reply:?}");
    session
}

fn name<T: std::str::FromStr>(text: &str) -> T {
    text.parse().ok().expect("a name")
}

fn role_renews(leader: &mut Leader, now_ms: u64, session: SessionId) {
    let lease = leader.state.roles().values().next().and_then(|role| role.lease.clone());
    let renewal = Renewal {
        session,
        nonce: Nonce(1),
        number: RenewalNumber(1),
        acked: RenewalNumber(0),
        known_grant: lease.expect("a lease").mark,
    };
    let report = crate::role::HolderReport {
        armed: crate::role::Armed::Armed,
        boot: Default::default(),
        sent: crate::role::HolderInstant(now_ms * 1_000),
        watermark: None,
        pause: None,
        policy: Revision(1),
        set: None,
    };
    let reports = vec![(0, report)];
    let reply = leader.run(now_ms, &Command::RenewHolders { renewals: vec![renewal], reports });
    let Reply::Renewed { outcomes, .. } = reply else { panic!("{reply:?}") };
    assert!(matches!(outcomes[0], crate::reply::RenewalOutcome::Extended { .. }));
}

#[test]
fn a_role_is_waited_for_as_long_as_the_longest_ttl_that_its_holder_was_promised() {
    use crate::spec::{Engine, InstanceSpec, Mode, Policy, ServiceSpec, TopologyKind};
    let mut leader = Leader::new();
    leader.run(0, &Command::RaiseFeatureLevel { to: 3 });
    let instance = InstanceSpec {
        name: name("a"),
        locality: Locality::default(),
        address: "a:5432".into(),
        priority: 1,
    };
    let spec = Box::new(ServiceSpec {
        name: name("s"),
        description: String::new(),
        engine: Engine::Postgres,
        topology: TopologyKind::ActivePassive,
        instances: vec![instance],
        partitions: Vec::new(),
        policy: Policy { ttl_ms: TTL_MS, ..Policy::default_for(Mode::Lease) },
    });
    let declared =
        leader.run(0, &Command::PutService { spec, expect: crate::command::Expect::Any });
    assert!(matches!(declared, Reply::Done { .. }), "{declared:?}");
    let first = agent_starts(&mut leader, 0, TTL_MS, 0);
    let first_grant = Command::GrantFirst { service: name("s"), candidate: name("a") };
    granted(&leader.run(0, &first_grant));
    role_renews(&mut leader, 0, first);
    // The policy was shortened: the same start renews under 3 s, and its fencer still has 10 s.
    let second = agent_starts(&mut leader, 1_000, 3_000, 1);
    for renewed in [false, true] {
        if renewed {
            role_renews(&mut leader, 1_000, second);
        }
        assert_eq!(leader.decide(1_000 + LONG_MS - 1).commands, [], "renewed: {renewed}");
    }
    let seen = RenewalNumber(1);
    let lapsed = vec![Lapsed { session: second, seen }];
    let late = 1_000 + LONG_MS + 600;
    assert_eq!(leader.decide(late).commands, [Command::ExpireSessions { lapsed }]);
}
