//! Leases against fake nodes and a fake clock: held exactly as long as C1 allows.

use std::time::Duration;

use regent_core::id::ElectionName;
use regent_core::lease::holder::VoidReason;

use super::fake::{Fake, Mode};
use crate::client::{CampaignOptions, ClientOptions, Lease, LeaseError, Session, SessionOptions};
use crate::clock::Clock;
use crate::testing::eventually;

const TTL: Duration = Duration::from_secs(10);
/// `ttl·(1-rho) - fence budget` of [`TTL`].
const LENGTH_US: u64 = 10_000_000 - 100_000 - 250_000;

fn orders() -> ElectionName {
    "orders".parse().unwrap()
}

async fn open(fake: &Fake) -> Session {
    let options = SessionOptions { ttl: TTL, ..SessionOptions::default() };
    Session::open(&fake.any(), options).await.unwrap()
}

async fn win(session: &Session) -> Lease {
    session.campaign(&orders(), b"me", CampaignOptions::default()).await.unwrap()
}

fn holder(fake: &Fake) -> Option<(u64, u64)> {
    fake.state().holders.get("orders").copied()
}

/// Stops the clock and every acknowledgement; waits until none is under way.
async fn cut(fake: &Fake, mode: Mode, lease: &Lease) {
    fake.clock.stop();
    fake.all(&mode);
    let mut last = Duration::ZERO;
    let mut same = 0;
    eventually("acknowledgements have stopped", || {
        let held = lease.held_for();
        same = if held == last { same + 1 } else { 0 };
        last = held;
        same > 20
    })
    .await;
}

#[tokio::test]
async fn a_session_that_is_abandoned_is_neither_renewed_nor_closed() {
    let fake = Fake::start(3).await;
    let (first, second) = (open(&fake).await, open(&fake).await);
    first.abandon();
    drop(first);
    second.close().await.unwrap();
    let closed = || fake.state().seen.iter().filter(|seen| seen.1 == "close_session").count();
    eventually("the other one is closed", || closed() > 0).await;
    assert_eq!((closed(), fake.state().sessions.len()), (1, 1));
}

#[tokio::test]
async fn nodes_that_all_refuse_at_once_are_not_asked_without_a_pause() {
    let fake = Fake::start(3).await;
    let session = open(&fake).await;
    let lease = win(&session).await;
    fake.all(&Mode::Refuses);
    // The time itself is what is tried.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let refused = fake.state().streams_refused;
    assert!((3..60).contains(&refused), "{refused} in a second");
    fake.all(&Mode::Sound);
    let before = fake.state().renewed.len();
    eventually("renewals go on", || fake.state().renewed.len() > before + 2).await;
    assert!(lease.is_held());
}

#[tokio::test]
async fn a_lease_is_granted_only_once_a_renewal_that_names_it_is_acknowledged() {
    let fake = Fake::start(3).await;
    let session = open(&fake).await;
    fake.all(&Mode::LosesAcks);
    let early = session
        .campaign(
            &orders(),
            b"me",
            CampaignOptions {
                wait: Some(Duration::from_millis(400)),
                ..CampaignOptions::default()
            },
        )
        .await;
    assert!(matches!(early, Err(LeaseError::NotWon { .. })), "{early:?}");
    // A place that nobody will use is given up.
    eventually("the place was left", || holder(&fake).is_none()).await;
    fake.all(&Mode::Sound);
    let lease = win(&session).await;
    assert!(lease.is_held());
    assert_eq!(holder(&fake), Some((session.id().0, lease.epoch().revision.0)));
    lease.proclaim(b"here").await.unwrap();
}

#[tokio::test]
async fn a_grant_that_was_taken_back_before_it_was_confirmed_is_no_lease() {
    let fake = Fake::start(1).await;
    let session = open(&fake).await;
    fake.state().take_back = 2;
    let lease = win(&session).await;
    assert_eq!(holder(&fake), Some((session.id().0, lease.epoch().revision.0)));
    assert!(lease.is_held());
}

#[tokio::test]
async fn a_lease_ends_at_the_instant_that_its_last_acknowledged_renewal_allows() {
    let fake = Fake::start(3).await;
    let session = open(&fake).await;
    let lease = win(&session).await;
    // The cluster extends, the holder does not hear of it: only what was heard counts.
    cut(&fake, Mode::LosesAcks, &lease).await;
    let left = u64::try_from(lease.held_for().as_micros()).unwrap();
    let now = fake.clock.now();
    // Counted from before the newest renewal was received by anybody.
    let received = fake.state().renewed.last().unwrap().1;
    assert!(now.boottime_us + left <= received.boottime_us + LENGTH_US);
    assert!(left > LENGTH_US - 2_000_000, "{left}");
    fake.clock.advance(left - 1);
    assert!(lease.is_held());
    fake.clock.advance(1);
    assert!(!lease.is_held());
    assert_eq!(lease.held_for(), Duration::ZERO);
    // Acknowledgements that come now revive nothing.
    fake.all(&Mode::Sound);
    let renewed = fake.state().renewed.len();
    fake.clock.advance(600_000);
    eventually("renewals are heard again", || {
        fake.state().renewed.len() > renewed + 2 || {
            fake.clock.advance(600_000);
            false
        }
    })
    .await;
    assert!(!lease.is_held());
    assert!(matches!(lease.proclaim(b"x").await, Err(LeaseError::Over { .. })));
}

#[tokio::test]
async fn a_holder_that_was_frozen_knows_it_at_once_and_leaves_the_lead() {
    let fake = Fake::start(3).await;
    let session = open(&fake).await;
    let lease = win(&session).await;
    let first = lease.epoch();
    let lost = lease.lost();
    fake.clock.advance(LENGTH_US + 1);
    assert!(!lease.is_held());
    tokio::time::timeout(Duration::from_secs(5), lost).await.unwrap();
    // The session may live on; the lead must not hang on it.
    eventually("the lead was left", || holder(&fake).is_none_or(|h| h.1 != first.revision.0)).await;
    let lease = win(&session).await;
    assert!(lease.epoch() > first);
    assert!(lease.is_held());
}

#[tokio::test]
async fn a_silent_or_cut_off_node_is_left_before_the_lease_is_in_danger() {
    for mode in [Mode::Frozen, Mode::CutOff, Mode::LosesAcks] {
        let fake = Fake::start(3).await;
        let options = ClientOptions { spares: 1, ..ClientOptions::default() };
        let client = fake.client(&fake.addresses, options);
        let ask = SessionOptions { ttl: Duration::from_secs(2), ..SessionOptions::default() };
        let session = Session::open(&client, ask).await.unwrap();
        let lease = session.campaign(&orders(), b"", CampaignOptions::default()).await.unwrap();
        for sick in 0..3 {
            {
                let mut state = fake.state();
                state.modes.iter_mut().for_each(|m| *m = Mode::Sound);
                state.modes[sick] = mode.clone();
            }
            let begun = std::time::Instant::now();
            while begun.elapsed() < Duration::from_millis(900) {
                assert!(lease.is_held(), "{mode:?} of node {sick}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        fake.all(&Mode::Sound);
    }
}

#[tokio::test]
async fn a_session_that_the_cluster_ended_takes_its_leases_with_it() {
    let fake = Fake::start(2).await;
    let session = open(&fake).await;
    let lease = win(&session).await;
    fake.state().sessions.clear();
    tokio::time::timeout(Duration::from_secs(5), lease.lost()).await.unwrap();
    assert!(!lease.is_held());
    assert!(session.over().is_some());
    drop(lease);
    let again = session.campaign(&orders(), b"", CampaignOptions::default()).await;
    assert!(matches!(again, Err(LeaseError::SessionOver(_))), "{again:?}");
}

#[tokio::test]
async fn what_is_resigned_or_dropped_is_over_here_before_the_cluster_hears_of_it() {
    let fake = Fake::start(2).await;
    let session = open(&fake).await;
    let lease = win(&session).await;
    let second = session.campaign(&orders(), b"", CampaignOptions::default()).await;
    assert!(matches!(second, Err(LeaseError::SeatTaken(_))), "{second:?}");
    lease.resign().await.unwrap();
    assert_eq!(holder(&fake), None);
    let lease = win(&session).await;
    drop(lease);
    eventually("the dropped lease was resigned", || holder(&fake).is_none()).await;
    drop(session);
    eventually("the dropped session was closed", || fake.state().sessions.is_empty()).await;
}

#[tokio::test]
async fn a_resignation_on_its_way_never_ends_the_lease_that_comes_after_it() {
    let fake = Fake::start(2).await;
    let session = open(&fake).await;
    for _ in 0..20 {
        drop(win(&session).await);
        // Won again at once: the resignation in the background and this campaign race.
        let lease = win(&session).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(holder(&fake), Some((session.id().0, lease.epoch().revision.0)));
        assert!(lease.is_held());
        lease.resign().await.unwrap();
    }
}

#[tokio::test]
async fn a_lease_is_resigned_under_its_epoch_and_a_place_in_the_queue_as_it_is() {
    let fake = Fake::start(1).await;
    let (first, second) = (open(&fake).await, open(&fake).await);
    let lease = win(&first).await;
    let wait = Some(Duration::from_millis(50));
    let options = CampaignOptions { wait, ..CampaignOptions::default() };
    let waited = second.campaign(&orders(), b"", options).await;
    assert!(matches!(waited, Err(LeaseError::NotWon { .. })), "{waited:?}");
    eventually("the place in the queue was left", || fake.state().resigned == [None]).await;
    let epoch = lease.epoch().revision.0;
    lease.resign().await.unwrap();
    assert_eq!(fake.state().resigned, [None, Some(epoch)]);
}

#[tokio::test]
async fn a_session_is_not_begun_under_the_stamp_of_a_node_that_knows_no_incarnation() {
    let fake = Fake::start(2).await;
    fake.state().modes[0] = Mode::Behind;
    let session = open(&fake).await;
    assert_eq!(fake.state().sessions.len(), 1, "asked again, not opened again");
    assert!(win(&session).await.is_held());
    fake.all(&Mode::Behind);
    let client = fake.any().with_timeout(Duration::from_millis(100));
    let refused = Session::open(&client, SessionOptions::default()).await;
    assert!(refused.is_err_and(|error| error.is_transient()));
}

#[tokio::test]
async fn a_place_given_up_while_nobody_answers_is_resigned_once_somebody_does() {
    for dropped in [true, false] {
        let fake = Fake::start(2).await;
        let options =
            ClientOptions { timeout: Duration::from_millis(500), ..ClientOptions::default() };
        let client = fake.client(&fake.addresses, options);
        let ask = SessionOptions { ttl: TTL, ..SessionOptions::default() };
        let session = Session::open(&client, ask).await.unwrap();
        let lease = win(&session).await;
        fake.all(&Mode::NoLeader);
        if dropped {
            drop(lease);
        } else {
            let told = lease.resign().await;
            assert!(told.is_err_and(|error| error.is_transient()), "nobody could be told");
        }
        // The first call is over without success when another one has begun.
        let serials = || {
            let state = fake.state();
            let resigned = state.seen.iter().filter(|seen| seen.1 == "resign");
            resigned.map(|seen| seen.3).collect::<std::collections::BTreeSet<_>>().len()
        };
        eventually("the cluster is told again", || serials() > 1).await;
        fake.all(&Mode::Sound);
        eventually("the place was resigned", || holder(&fake).is_none()).await;
        assert!(session.over().is_none(), "the session lives on");
    }
}

#[tokio::test]
async fn one_who_waits_is_told_when_it_is_its_turn() {
    let fake = Fake::start(2).await;
    let (first, second) = (open(&fake).await, open(&fake).await);
    let lease = win(&first).await;
    let waiter = second.clone();
    let waiting = tokio::spawn(async move {
        waiter.campaign(&orders(), b"", CampaignOptions::default()).await.map(|l| (l.epoch(), l))
    });
    let asked = || fake.state().seen.iter().filter(|s| s.1 == "campaign").count() >= 3;
    eventually("the second waits", asked).await;
    // As the core does it: the lead goes to the next, whose renewals say so.
    {
        let mut state = fake.state();
        state.revision += 1;
        let grant = state.revision;
        state.holders.insert("orders".to_owned(), (second.id().0, grant));
        state.grants.insert(second.id().0, grant);
    }
    let (epoch, held) =
        tokio::time::timeout(Duration::from_secs(3), waiting).await.unwrap().unwrap().unwrap();
    assert!(held.is_held());
    assert!(epoch > lease.epoch());
}

/// A lease after two rounds of clock readings with every node; and the next round but one.
async fn compared(fake: &Fake) -> (Session, Lease, u64) {
    let options = SessionOptions { ttl: Duration::from_secs(4), ..SessionOptions::default() };
    let session = Session::open(&fake.any(), options).await.unwrap();
    let lease = win(&session).await;
    rounds(fake, 2).await;
    let next = fake.state().rounds.values().max().unwrap() + 2;
    (session, lease, next)
}

async fn rounds(fake: &Fake, round: u64) {
    eventually("clock readings of every node", || {
        let state = fake.state();
        (0..state.modes.len()).all(|at| state.rounds.get(&at).is_some_and(|r| *r >= round))
    })
    .await;
}

#[tokio::test]
async fn a_holder_whose_clock_a_majority_of_the_nodes_contradicts_is_no_holder_any_more() {
    let fake = Fake::start(3).await;
    let (session, lease, next) = compared(&fake).await;
    // One node went ahead: it is the odd one.
    fake.state().jump = Some((next, vec![0], 400_000));
    rounds(&fake, next + 1).await;
    assert!(lease.is_held(), "{:?}", session.over());
    // All of them did: it was this machine that stood still, for longer than the margin.
    let next = fake.state().rounds.values().max().unwrap() + 2;
    fake.state().jump = Some((next, vec![0, 1, 2], 800_000));
    tokio::time::timeout(Duration::from_secs(10), lease.lost()).await.unwrap();
    assert!(!lease.is_held());
    assert_eq!(session.over(), Some(VoidReason::ClockDiffers));
}

#[tokio::test]
async fn a_pause_within_the_margin_costs_no_lease() {
    let fake = Fake::start(3).await;
    let (session, lease, next) = compared(&fake).await;
    fake.state().jump = Some((next, vec![0, 1, 2], 200_000));
    rounds(&fake, next + 2).await;
    assert!(lease.is_held(), "{:?}", session.over());
}

#[tokio::test]
async fn a_process_that_went_on_in_another_boot_or_against_a_restored_cluster_holds_nothing() {
    let fake = Fake::start(3).await;
    let (session, lease, _) = compared(&fake).await;
    fake.clock.reboot();
    tokio::time::timeout(Duration::from_secs(10), lease.lost()).await.unwrap();
    assert_eq!(session.over(), Some(VoidReason::ClockChanged));
    // The cluster is told all the same: others wait for this lead.
    drop((session, lease));
    eventually("the session was closed", || fake.state().sessions.is_empty()).await;

    let (session, lease, _) = compared(&fake).await;
    fake.state().incarnation = 2;
    tokio::time::timeout(Duration::from_secs(10), lease.lost()).await.unwrap();
    assert_eq!(session.over(), Some(VoidReason::IncarnationChanged));
}
