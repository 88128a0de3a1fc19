//! Each order in each world: what comes next, and what never does.
#![allow(clippy::unwrap_used)]

use super::notebook::Taken;
use super::*;
use crate::id::{Epoch, InstanceName, Nonce, Revision};
use crate::lease::Rules;
use crate::role::observe::Run;
use crate::role::{Directive, Lsn, Order, Position, Proof, SyncSet};
use crate::spec::{Mode, Policy};
use crate::time::Reading;

fn name(text: &str) -> InstanceName {
    text.parse().unwrap()
}

fn epoch(revision: u64) -> Epoch {
    Epoch { incarnation: 1, revision: Revision(revision) }
}

fn at(revision: u64, end: u64) -> Position {
    Position { epoch: epoch(revision), end: Lsn(end), timeline: 1 }
}

fn set() -> SyncSet {
    let members = [name("b"), name("c")].into();
    SyncSet { epoch: epoch(5), revision: Revision(5), members, k: 1 }
}

pub(crate) fn standby() -> World {
    World {
        me: name("a"),
        accepted: true,
        may_serve: false,
        holds_lease: false,
        data: Data::Present(OnDisk::Standby(Some(name("p")))),
        run: Run::Standby,
        answers: true,
        has_receiver: true,
        streams: true,
        starved: false,
        replayed: true,
        position: Some(at(2, 100)),
        received: Some(at(2, 100)),
        has_slots: true,
        names: None,
        in_force: None,
        written: epoch(2),
        open: false,
        strange: false,
        lowered: false,
        shut: true,
        expected: false,
        diverged: None,
        timeline: 2,
        promoted: Epoch::NONE,
        unrouted: false,
        covered: None,
        committed: None,
        shut_down: false,
        proven: true,
    }
}

fn primary() -> World {
    World {
        may_serve: true,
        holds_lease: true,
        data: Data::Present(OnDisk::Primary),
        run: Run::Primary,
        has_receiver: false,
        names: Some(Revision(5)),
        in_force: Some(Revision(5)),
        written: epoch(5),
        open: true,
        shut: false,
        expected: false,
        promoted: epoch(5),
        covered: Some(Revision(5)),
        ..standby()
    }
}

fn told(epoch_revision: u64, revision: u64, order: Order) -> Notebook {
    let directive = Directive { epoch: epoch(epoch_revision), revision: Revision(revision), order };
    let mut notebook = Notebook { led: epoch(5), ..Notebook::default() };
    assert_eq!(notebook.take(&directive), Taken::New);
    notebook
}

fn lead() -> Notebook {
    told(5, 5, Order::Lead { set: set() })
}

/// Does what the step says to notebook and world, as a shell would.
pub(crate) fn does(step: &Step, notebook: &mut Notebook, world: &mut World) {
    match step {
        Step::Kill => {
            (world.run, world.has_receiver, world.answers) = (Run::Down, false, false);
            (world.open, world.shut) = (false, true);
        }
        Step::ShutDown => {
            (world.run, world.answers, world.shut_down) = (Run::Down, false, true);
            (world.open, world.shut) = (false, true);
        }
        Step::FindEnd => world.position = Some(at(5, 900)),
        Step::CloseOnDisk => world.data = Data::Present(OnDisk::Standby(None)),
        Step::Pledge(pledge) => drop(notebook.pledge(pledge.clone())),
        Step::SendReceipt => {
            let pledge = notebook.pledge.as_ref().unwrap();
            world.committed = Some((pledge.fence, pledge.proof, pledge.position));
        }
        Step::Detach => {
            world.data = Data::Present(OnDisk::Standby(None));
            (world.has_receiver, world.replayed) = (false, false);
        }
        Step::Replay => world.replayed = true,
        Step::StartStandby(upstream) => {
            world.data = Data::Present(OnDisk::Standby(upstream.clone()));
            (world.run, world.answers) = (Run::Standby, true);
            world.has_receiver = upstream.is_some();
        }
        Step::Follow(upstream) => {
            world.data = Data::Present(OnDisk::Standby(Some(upstream.clone())));
            world.has_receiver = true;
        }
        Step::Compare(_) => world.diverged = Some(false),
        Step::Rewind(_) | Step::Clone(_) => {
            (world.data, world.diverged) = (Data::Present(OnDisk::Standby(None)), Some(false));
        }
        Step::NoteLead(epoch) => notebook.led = *epoch,
        Step::EnsureSlots => world.has_slots = true,
        Step::SetNames(set) => world.names = Some(set.revision),
        Step::StartPrimary | Step::Promote(_) => {
            (world.run, world.answers) = (Run::Primary, true);
            world.data = Data::Present(OnDisk::Primary);
            world.open = false;
        }
        Step::WriteEpoch(epoch) => world.written = *epoch,
        Step::ConfirmSet(set) => world.in_force = Some(*set),
        Step::ReportCovered(set) => world.covered = Some(*set),
        Step::ReportPromoted(epoch) => world.promoted = *epoch,
        Step::Open => (world.open, world.shut) = (true, false),
        Step::Close | Step::ShutReaders => (world.open, world.shut) = (false, true),
        Step::ShutOut => world.lowered = false,
        Step::Rest | Step::Stuck(_) => {}
    }
}

/// The steps until it rests.
fn run(mut notebook: Notebook, mut world: World) -> Vec<String> {
    let mut steps = Vec::new();
    for _ in 0..20 {
        let step = next(&notebook, &world);
        if matches!(step, Step::Rest | Step::Stuck(_)) {
            return steps;
        }
        let text = format!("{step:?}");
        steps.push(text.split([' ', '(', '{']).next().unwrap().to_owned());
        does(&step, &mut notebook, &mut world);
    }
    panic!("it never rests: {steps:?}");
}

#[test]
fn a_standby_that_streams_lets_readers_in_and_shuts_them_out_before_it_is_promoted() {
    let follow = told(2, 3, Order::Follow { upstream: name("p") });
    let promoted = follow.directive.as_ref().unwrap().epoch;
    let streams = World { promoted, ..standby() };
    assert_eq!(next(&follow, &streams), Step::Open);
    assert_eq!(next(&follow, &World { streams: false, ..streams.clone() }), Step::Rest);
    assert_eq!(next(&follow, &World { promoted: Epoch::NONE, ..streams.clone() }), Step::Rest);
    let reads = World { open: true, shut: false, ..streams };
    assert_eq!(next(&follow, &reads), Step::Rest);

    // Whoever is in stays in while the fence is open: it is not known yet who is promoted.
    let detach = told(2, 9, Order::Detach { fence: Revision(9) });
    assert!(!run(detach, reads.clone()).iter().any(|step| step == "ShutReaders"));
    // Who is likely to be promoted shuts them out while others are waited for: after its own receipt.
    let detach = told(2, 9, Order::Detach { fence: Revision(9) });
    let expected = World { expected: true, ..reads.clone() };
    let steps = run(detach, expected.clone());
    assert_eq!(steps, ["Detach", "Pledge", "Replay", "Pledge", "ShutReaders", "SendReceipt"]);
    assert_eq!(run(follow.clone(), expected), ["ShutReaders"]);
    assert_eq!(
        run(follow, World { open: false, shut: true, ..reads.clone() }),
        ["Open"],
        "a wrong guess"
    );
    let told = World { has_receiver: false, ..reads };
    // What the right to lead is not needed for goes on while it is asked for.
    assert_eq!(run(lead(), told.clone()), ["ShutReaders", "SetNames"]);
    let granted = World { holds_lease: true, ..told };
    assert_eq!(next(&lead(), &granted), Step::ShutReaders);
    let steps = run(lead(), World { may_serve: true, ..granted.clone() });
    let at = |wanted: &str| steps.iter().position(|step| step == wanted).unwrap();
    assert!(at("ShutReaders") < at("Promote") && at("WriteEpoch") < at("Open"), "{steps:?}");
    // An agent that was restarted does not know who is in.
    let taken_over = World { open: false, ..granted };
    assert_eq!(next(&lead(), &taken_over), Step::ShutReaders);
}

#[test]
fn what_starts_as_a_standby_of_nobody_is_given_an_upstream_by_another_start() {
    let mut notebook = Notebook::default();
    let order = Order::Follow { upstream: name("p") };
    notebook.take(&Directive { epoch: epoch(5), revision: Revision(6), order });
    let data = |of: Option<&str>| Data::Present(OnDisk::Standby(of.map(name)));
    let starting = |of| World { run: Run::Starting, data: data(of), ..standby() };
    // After a rewind or a clone it is no database before it has streamed, and answers nobody.
    assert_eq!(next(&notebook, &starting(None)), Step::Kill);
    assert_eq!(next(&notebook, &starting(Some("p"))), Step::Rest);
    assert_eq!(next(&notebook, &starting(Some("a"))), Step::Rest, "who it follows is in doubt");
}

#[test]
fn a_standby_is_detached_first_and_recruited_then() {
    let notebook = told(2, 9, Order::Detach { fence: Revision(9) });
    let steps = run(notebook, standby());
    assert_eq!(steps, ["Detach", "Pledge", "Replay", "Pledge", "SendReceipt"]);
}

#[test]
fn one_receipt_says_both_where_all_was_replayed_when_it_was_detached() {
    let notebook = told(2, 9, Order::Detach { fence: Revision(9) });
    let done = World {
        data: Data::Present(OnDisk::Standby(None)),
        has_receiver: false,
        replayed: true,
        position: Some(at(2, 100)),
        ..standby()
    };
    let Step::Pledge(pledge) = next(&notebook, &done) else { panic!("no pledge") };
    assert_eq!((pledge.proof, pledge.position), (Proof::Recruited, Some(at(2, 100))));
    assert_eq!(run(notebook.clone(), done.clone()), ["Pledge", "SendReceipt"]);
    let behind = World { replayed: false, position: None, ..done };
    let Step::Pledge(pledge) = next(&notebook, &behind) else { panic!("no pledge") };
    assert_eq!((pledge.proof, pledge.position), (Proof::Detached, None));
}

#[test]
fn a_standby_that_is_down_is_detached_by_its_disk_alone() {
    let notebook = told(2, 9, Order::Detach { fence: Revision(9) });
    let down = World { run: Run::Down, answers: false, has_receiver: false, ..standby() };
    let steps = run(notebook, down);
    assert_eq!(steps, ["CloseOnDisk", "Pledge", "StartStandby", "Pledge", "SendReceipt"]);
}

#[test]
fn a_candidate_promotes_after_its_lease_is_confirmed_with_the_names_set_and_opens_last() {
    let detached =
        World { data: Data::Present(OnDisk::Standby(None)), has_receiver: false, ..standby() };
    let mut notebook = lead();
    notebook.led = epoch(2);
    assert_eq!(run(notebook.clone(), detached.clone()), ["SetNames"], "C8");
    let held = World { holds_lease: true, may_serve: true, ..detached };
    assert_eq!(
        run(notebook, held),
        [
            "SetNames",
            "NoteLead",
            "Promote",
            "WriteEpoch",
            "ConfirmSet",
            "Open",
            "ReportPromoted",
            "ReportCovered"
        ]
    );
}

#[test]
fn a_crashed_primary_starts_closed_and_only_with_a_lease_of_after_the_crash() {
    let crashed = World {
        run: Run::Down,
        answers: false,
        open: false,
        holds_lease: false,
        in_force: None,
        ..primary()
    };
    assert!(matches!(next(&lead(), &crashed), Step::Stuck(_)), "E4");
    let renewed = World { holds_lease: true, ..crashed };
    assert_eq!(run(lead(), renewed), ["StartPrimary", "ConfirmSet", "Open"]);
}

#[test]
fn a_primary_that_crashed_before_its_epoch_writes_that_under_the_names_of_its_set() {
    let now = Reading::at_us(1);
    let told = Told { accepted: true, may_serve: true, holds_lease: true, ..Told::default() };
    let mut local = Local::new(name("a"));
    local.promoted(3);
    local.ended(true, false);
    // It comes up with names that nobody matches.
    let mut seen = Seen {
        in_recovery: false,
        position: at(2, 100),
        replay_lag_bytes: 0,
        receiver: None,
        senders: Vec::new(),
        sync_names: "nobody".into(),
        overrides: Vec::new(),
        disk_free_bytes: 0,
    };
    for _ in 0..10 {
        match next(&lead(), &local.world(&told, now)) {
            Step::SetNames(set) if !local.running => local.will_have_names(set.revision),
            Step::SetNames(set) => {
                seen.sync_names = "the set".into();
                local.has_names(set.revision, seen.sync_names.clone());
            }
            Step::StartPrimary => {
                local.started_primary(0);
                local.observed(now, seen.clone(), now);
            }
            Step::EnsureSlots => local.has_slots = true,
            // What returns under them is taken for covered by the set.
            Step::WriteEpoch(_) => return assert_eq!(seen.sync_names, "the set"),
            step => panic!("{step:?}"),
        }
    }
    panic!("it never writes its epoch");
}

#[test]
fn a_primary_told_to_stop_ends_every_process_and_lies_closed_before_its_receipt() {
    let notebook = told(5, 9, Order::Stop { fence: Revision(9) });
    let mut killed = primary();
    killed.position = None;
    let steps = run(notebook, killed);
    let found = ["FindEnd", "Pledge", "SendReceipt"];
    assert_eq!(steps, [&["Kill", "CloseOnDisk", "Pledge", "SendReceipt"][..], &found].concat());
}

#[test]
fn a_resignation_names_the_end_of_the_shutdown_record() {
    let mut notebook = told(5, 9, Order::Resign { fence: Revision(9) });
    let mut world = primary();
    for _ in 0..4 {
        let step = next(&notebook, &world);
        does(&step, &mut notebook, &mut world);
    }
    let pledge = notebook.pledge.unwrap();
    assert_eq!((pledge.proof, pledge.position), (Proof::Resigned, Some(at(2, 100))));
}

#[test]
fn a_crash_in_the_middle_of_a_resignation_is_a_stop_and_no_resignation() {
    let mut notebook = told(5, 9, Order::Resign { fence: Revision(9) });
    let mut world = World { run: Run::Down, answers: false, shut_down: false, ..primary() };
    for _ in 0..3 {
        let step = next(&notebook, &world);
        does(&step, &mut notebook, &mut world);
    }
    assert_eq!(notebook.pledge.unwrap().proof, Proof::Stopped);
}

/// A fence that is given up leaves the routes closed until the primary says that it serves.
#[test]
fn a_primary_to_whom_nobody_is_sent_says_again_that_it_serves() {
    let set = SyncSet { epoch: epoch(5), revision: Revision(5), members: [name("b")].into(), k: 1 };
    let lead = told(5, 5, Order::Lead { set });
    assert_eq!(next(&lead, &primary()), Step::Rest);
    let unrouted = World { unrouted: true, ..primary() };
    assert_eq!(next(&lead, &unrouted), Step::ReportPromoted(epoch(5)));
    // Not before it takes writes again.
    let shut = World { open: false, ..unrouted };
    assert_eq!(next(&lead, &shut), Step::Open);
}

#[test]
fn an_old_primary_follows_after_a_rewind_if_it_diverged() {
    let notebook = told(9, 9, Order::Follow { upstream: name("b") });
    assert_eq!(
        run(notebook.clone(), primary()),
        ["Kill", "CloseOnDisk", "Compare", "StartStandby"]
    );
    let promoted = World { promoted: epoch(9), ..primary() };
    assert_eq!(run(notebook.clone(), promoted).last().unwrap(), "Open");
    let diverged = World {
        run: Run::Down,
        data: Data::Present(OnDisk::Standby(None)),
        diverged: Some(true),
        ..primary()
    };
    assert_eq!(run(notebook.clone(), diverged), ["Rewind", "StartStandby"]);
    let broken = World { run: Run::Down, data: Data::Broken, ..primary() };
    assert_eq!(run(notebook, broken), ["Clone", "StartStandby"]);
}

#[test]
fn nothing_starts_before_the_log_has_accepted_this_boot() {
    for order in [
        Order::Lead { set: set() },
        Order::Follow { upstream: name("b") },
        Order::Detach { fence: Revision(9) },
    ] {
        let down = World {
            accepted: false,
            run: Run::Down,
            holds_lease: true,
            may_serve: true,
            ..standby()
        };
        assert_eq!(next(&told(9, 9, order), &down), Step::Rest);
    }
}

#[test]
fn names_that_are_not_the_sets_shut_clients_out_until_they_are_in_force_again() {
    let strange = World { strange: true, ..primary() };
    assert_eq!(next(&lead(), &strange), Step::Close);
    let closed = World { open: false, ..strange };
    assert_eq!(next(&lead(), &closed), Step::Rest);
    // The shell forgets what it had in force; then it is done as for a new set.
    let forgot = World { names: None, in_force: None, open: false, ..primary() };
    assert_eq!(run(lead(), forgot), ["SetNames", "ConfirmSet", "Open"]);
}

#[test]
fn lowered_commits_are_shut_out_once_and_only_where_clients_are_let_in() {
    let lowered = World { lowered: true, ..primary() };
    assert_eq!(run(lead(), lowered.clone()), ["ShutOut"]);
    // The set comes first: it is what everybody else's commits wait for.
    let behind = World { in_force: None, ..lowered.clone() };
    assert_eq!(run(lead(), behind), ["ConfirmSet", "ShutOut"]);
    assert_eq!(run(lead(), World { open: false, ..lowered }), ["Open", "ShutOut"]);
}

#[test]
fn without_a_right_clients_are_shut_out_and_come_back_with_it() {
    let world = World { may_serve: false, ..primary() };
    assert_eq!(next(&lead(), &world), Step::Close);
    let closed = World { open: false, ..primary() };
    assert_eq!(next(&lead(), &closed), Step::Open);
}

#[test]
fn a_shut_primary_runs_without_a_deadline_only_where_its_commits_wait_for_standbys() {
    let quorum = Policy::default_for(Mode::Quorum);
    assert!(may_stay_shut(&quorum, true));
    assert!(!may_stay_shut(&quorum, false), "a set that waits for nobody, or a fence");
    assert!(!may_stay_shut(&Policy::default_for(Mode::Lease), true), "S1");
    let stop = Policy { on_coordinator_loss: crate::spec::CoordinatorLoss::Stop, ..quorum };
    assert!(!may_stay_shut(&stop, true));
}

#[test]
fn an_attempt_whose_answer_was_lost_is_made_again_under_its_nonce() {
    let mut book = Notebook::default();
    assert_eq!(book.begin(Nonce(7)), Nonce(7));
    // The agent dies before it has noted the answer: the log may have accepted this very start.
    assert_eq!(book.begin(Nonce(8)), Nonce(7));
    book.accepted(Nonce(7), 1);
    assert_eq!(book.begin(Nonce(9)), Nonce(9), "a start that was accepted is over");
    assert_eq!((book.boot, book.starts), (1, 3));
}

#[test]
fn a_lower_directive_is_refused_and_a_higher_one_frees_a_pledge() {
    let mut notebook = told(5, 9, Order::Stop { fence: Revision(9) });
    let pledge =
        Pledge { fence: Revision(9), proof: Proof::Stopped, position: None, is_proven: true };
    assert!(notebook.pledge(pledge.clone()));
    assert!(!notebook.pledge(pledge), "nothing new");
    let old =
        Directive { epoch: epoch(5), revision: Revision(8), order: Order::Lead { set: set() } };
    assert_eq!(notebook.take(&old), Taken::Stale { have: notebook.seen() });
    assert!(notebook.pledge.is_some() && notebook.latched);
    let next = Directive { epoch: epoch(12), revision: Revision(12), ..old };
    assert_eq!(notebook.take(&next), Taken::New);
    assert!(notebook.pledge.is_none() && !notebook.latched);
}

#[test]
fn a_certificate_counts_from_before_it_was_sent_under_its_set_and_never_after_a_fence() {
    let policy = Policy::default_for(Mode::Quorum);
    let mut right = Right::default();
    let sent = Reading::at_us(1_000_000);
    right.certified(sent, Revision(5), false);
    let until = |right: &Right, set, unprotected, now| {
        right.until(&policy, Some(Revision(set)), unprotected, 250, Reading::at_us(now))
    };
    let lasts = Rules::LAW.short(policy.ttl_ms).0 - 250_000;
    let end = Reading::at_us(1_000_000 + lasts);
    assert_eq!(until(&right, 5, false, 1_100_000), Some(end));
    assert_eq!(until(&right, 5, false, 1_000_000 + lasts), None);
    assert_eq!(until(&right, 6, false, 1_100_000), None);
    assert_eq!(until(&right, 5, true, 1_100_000), None);
    let lease = Policy::default_for(Mode::Lease);
    assert_eq!(right.until(&lease, Some(Revision(5)), false, 250, sent), None);
    right.lease = Some(Reading::at_us(1_200_000));
    assert_eq!(until(&right, 6, true, 1_100_000), Some(Reading::at_us(1_200_000)));
    // Begun before the refusal was known, or after: it lasts no longer than the one before.
    right.lease = None;
    right.certified(Reading::at_us(1_500_000), Revision(5), true);
    assert_eq!(until(&right, 5, false, 1_600_000), Some(end));
}

#[test]
fn a_refusal_latches_over_restarts_until_a_renewal_of_the_same_grant_is_in_the_log() {
    let mut notebook = lead();
    notebook.refused();
    let again = notebook.directive.clone().unwrap();
    assert_eq!((notebook.take(&again), notebook.latched), (Taken::Same, true));
    assert!(!notebook.may_hold());
    notebook.renewed();
    assert!(notebook.may_hold(), "no fence was open there");
    let mut fenced = told(5, 9, Order::Stop { fence: Revision(9) });
    fenced.renewed();
    assert!(fenced.latched, "a fence is over when it is told to lead again");
}

#[test]
fn no_certificate_holds_from_a_degraded_set_on_until_another_is_covered() {
    let set_of = |revision, members: &[&str]| {
        let k = u32::from(!members.is_empty());
        let members = members.iter().map(|text| name(text)).collect();
        SyncSet { epoch: epoch(5), revision: Revision(revision), members, k }
    };
    let mut notebook = lead();
    assert!(notebook.may_hold());
    let tell = |notebook: &mut Notebook, at: u64, revision, members: &[&str]| {
        let order = Order::Lead { set: set_of(revision, members) };
        let directive = Directive { epoch: epoch(at), revision: Revision(revision), order };
        assert_eq!(notebook.take(&directive), Taken::New);
    };
    tell(&mut notebook, 5, 6, &[]);
    assert!(!notebook.may_hold(), "commits wait for nobody");
    notebook.covered(Revision(6));
    tell(&mut notebook, 5, 7, &["c"]);
    assert!(!notebook.may_hold(), "the log still counts a lapse");
    notebook.covered(Revision(6));
    assert!(!notebook.may_hold());
    notebook.covered(Revision(7));
    assert!(notebook.may_hold());
    tell(&mut notebook, 5, 8, &[]);
    tell(&mut notebook, 9, 9, &["b"]);
    assert!(notebook.may_hold(), "an epoch of its own");
}

#[test]
fn a_lease_of_an_earlier_grant_gives_no_right_under_a_later_one() {
    let mut notebook = Notebook::default();
    assert!(!notebook.is_of_grant(Revision(9)), "nobody told it to lead");
    let order = Order::Lead { set: set() };
    notebook.take(&Directive { epoch: epoch(7), revision: Revision(8), order });
    let held = [6, 7, 9].map(|mark| notebook.is_of_grant(Revision(mark)));
    assert_eq!(held, [false, true, true], "before the grant, by it, by a later start");
    let order = Order::Stop { fence: Revision(10) };
    notebook.take(&Directive { epoch: epoch(7), revision: Revision(10), order });
    assert!(!notebook.is_of_grant(Revision(9)));
}

/// A standby that was started anew had five records of an old primary that was cut off, and let readers in
/// to them in the moment in which it was told to follow the new one (simulator, cuts, seed 40285).
#[test]
fn a_stream_that_a_standby_was_just_told_to_leave_lets_no_readers_in() {
    let now = Reading::at_us(1);
    let addresses = [("a:1", "a"), ("b:1", "b")];
    let addresses = addresses.map(|(at, who)| (at.to_owned(), name(who))).into();
    let told = Told { addresses, ..Told::default() };
    let mut local = Local::new(name("e"));
    local.started(0);
    local.data = Data::Present(OnDisk::Standby(Some(name("a"))));
    let from =
        |address: &str| SeenReceiver { address: address.into(), streams: true, silent_ms: 0 };
    for (address, streams) in [("b:1", false), ("a:1", true), ("elsewhere:1", false)] {
        let seen = Seen {
            in_recovery: true,
            position: at(2, 100),
            replay_lag_bytes: 0,
            receiver: Some(from(address)),
            senders: Vec::new(),
            sync_names: "nobody".into(),
            overrides: Vec::new(),
            disk_free_bytes: 0,
        };
        local.observed(now, seen, now);
        assert_eq!(local.world(&told, now).streams, streams, "{address}");
    }
}
