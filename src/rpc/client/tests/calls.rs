//! Calls against fake nodes: hints followed, deadlines kept, retries that do a thing once.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::fake::{Fake, Mode};
use crate::client::{CallErrorKind, ClientOptions, Session, SessionOptions};
use crate::convert::common::Freshness;

fn requests(fake: &Fake, call: &str) -> Vec<(usize, u64, u64)> {
    let state = fake.state();
    let of = |s: &&(usize, &str, u64, u64)| s.1 == call;
    state.seen.iter().filter(of).map(|(at, _, client, serial)| (*at, *client, *serial)).collect()
}

#[tokio::test]
async fn a_leader_hint_is_followed_even_to_a_node_that_was_not_named() {
    let fake = Fake::start(2).await;
    fake.state().modes[0] = Mode::Hint(fake.addresses[1].clone());
    let client = fake.client(&fake.addresses[..1], ClientOptions::default());
    Session::open(&client, SessionOptions::default()).await.unwrap();
    let seen = requests(&fake, "open_session");
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert_eq!((seen[0].0, seen[1].0), (0, 1));
    assert_eq!((seen[0].1, seen[0].2), (seen[1].1, seen[1].2), "another request id");
    assert_eq!(client.endpoints().len(), 2);
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_happens_once() {
    let fake = Fake::start(3).await;
    fake.all(&Mode::LosesAnswers);
    let client = fake.any();
    let opening = tokio::spawn(async move {
        Session::open(&client, SessionOptions::default()).await.map(|s| s.id())
    });
    crate::testing::eventually("two attempts", || requests(&fake, "open_session").len() >= 2).await;
    fake.all(&Mode::Sound);
    let id = opening.await.unwrap().unwrap();
    let ids: HashSet<_> =
        requests(&fake, "open_session").iter().map(|(_, c, s)| (*c, *s)).collect();
    assert_eq!(ids.len(), 1, "every attempt carries the same request id");
    let state = fake.state();
    let opened = state.done.iter().filter(|(_, outcome)| **outcome == id.0).count();
    assert_eq!(opened, 1);
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_and_says_that_nobody_did_it() {
    let fake = Fake::start(2).await;
    fake.all(&Mode::NoLeader);
    let client = fake.any().with_timeout(Duration::from_millis(300));
    let begun = Instant::now();
    let error = Session::open(&client, SessionOptions::default()).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(error.kind(), CallErrorKind::Unreachable, "{error}");
    assert!(error.attempts >= 2, "{error:?}");
    assert!(error.to_string().contains("no leader"), "{error}");
}

/// A write whose first answer was lost, on a cluster that then has no leader any more.
#[tokio::test]
async fn a_refusal_after_a_lost_answer_does_not_say_that_nothing_was_done() {
    let fake = Fake::start(2).await;
    fake.all(&Mode::LosesAnswers);
    let client = fake.any().with_timeout(Duration::from_millis(600));
    let opening =
        tokio::spawn(async move { Session::open(&client, SessionOptions::default()).await });
    crate::testing::eventually("an attempt", || !requests(&fake, "open_session").is_empty()).await;
    fake.all(&Mode::NoLeader);
    let error = opening.await.unwrap().unwrap_err();
    assert!(error.attempts >= 2, "{error:?}");
    assert_eq!(error.kind(), CallErrorKind::OutcomeUnknown, "{error}");
}

#[tokio::test]
async fn a_node_that_could_not_be_reached_took_nothing() {
    let fake = Fake::start(1).await;
    fake.all(&Mode::NoLeader);
    let gone = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let endpoints = vec![gone.clone(), fake.addresses[0].clone()];
    for _ in 0..4 {
        let client = fake.client(&endpoints, ClientOptions::default());
        let client = client.with_timeout(Duration::from_millis(300));
        let error = Session::open(&client, SessionOptions::default()).await.unwrap_err();
        if error.endpoint != gone {
            assert_eq!(error.kind(), CallErrorKind::Unreachable, "{error}");
            assert!(error.attempts >= 2, "{error:?}");
        }
    }
}

#[tokio::test]
async fn a_frozen_node_costs_one_attempt_and_not_the_deadline() {
    let fake = Fake::start(3).await;
    let client = fake.any();
    let election = "orders".parse().unwrap();
    // Warm connections, so that only the freeze is measured.
    for _ in 0..3 {
        client.leader(&election, Freshness::Linearizable).await.unwrap();
    }
    fake.state().modes[0] = Mode::Frozen;
    for _ in 0..6 {
        let begun = Instant::now();
        client.leader(&election, Freshness::Linearizable).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        let nodes = &client.inner.nodes;
        nodes.leave(nodes.current().0);
    }
}

#[tokio::test]
async fn a_node_that_is_gone_is_passed_over() {
    let fake = Fake::start(1).await;
    // Nobody listens there.
    let gone = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let endpoints = vec![gone, fake.addresses[0].clone()];
    for _ in 0..4 {
        let client = fake.client(&endpoints, ClientOptions::default());
        Session::open(&client, SessionOptions::default()).await.unwrap();
    }
}

#[tokio::test]
async fn a_client_looks_at_its_certificate_files_for_as_long_as_it_lives() {
    let fake = Fake::start(1).await;
    let tls = fake.pki.tls(regent_core::authz::Role::Client, "app");
    let open = || {
        let options = ClientOptions::default();
        crate::client::Client::new(&fake.addresses, std::sync::Arc::clone(&tls), options).unwrap()
    };
    let (one, two) = (open(), open());
    let shared = std::sync::Arc::downgrade(&tls.keep_fresh());
    drop(one);
    assert!(shared.upgrade().is_some(), "the second client still needs it");
    drop(two);
    let ended = || shared.upgrade().is_none() && std::sync::Arc::strong_count(&tls) == 1;
    crate::testing::eventually("nobody looks any more", ended).await;
}
