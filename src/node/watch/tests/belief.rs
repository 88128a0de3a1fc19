//! C3: nobody is named whom this node's clocks do not believe live.

use super::*;

async fn led(world: &mut World, elections: &[&str]) -> SessionId {
    let session = world.open();
    for election in elections {
        world.campaign(election, session);
    }
    session
}

#[tokio::test]
async fn a_holder_that_is_not_believed_any_more_is_told_as_none_and_back_when_it_is() {
    let mut world = World::new(quick(1));
    let session = led(&mut world, &["a", "b"]).await;
    let mut single = world.observe(one("a")).unwrap();
    let mut everything = world.observe(all()).unwrap();
    let (rows, _) = single.snapshot().await;
    assert_eq!(holder(&rows[0]), Some(session.0));
    everything.snapshot().await;

    world.doubts.0.lock().insert(session);
    let change = single.change().await;
    assert_eq!((change.name.as_str(), holder(&change)), ("a", None));
    assert!(change.election.is_some(), "the election is still there");
    assert_eq!(change.revision, world.revision().0);
    for _ in 0..2 {
        assert_eq!(holder(&everything.change().await), None);
    }

    world.doubts.0.lock().clear();
    assert_eq!(holder(&single.change().await), Some(session.0));
    for _ in 0..2 {
        assert_eq!(holder(&everything.change().await), Some(session.0));
    }
}

#[tokio::test]
async fn a_snapshot_and_a_change_leave_out_a_holder_that_is_not_believed() {
    let mut world = World::new(quick(1));
    let session = led(&mut world, &["a"]).await;
    world.doubts.0.lock().insert(session);
    let mut seen = world.observe(one("a")).unwrap();
    let (rows, _) = seen.snapshot().await;
    assert_eq!(holder(&rows[0]), None);
    world.proclaim("a", session, b"cut off");
    assert_eq!(holder(&seen.change().await), None);
    world.doubts.0.lock().clear();
    let change = seen.change().await;
    assert_eq!(holder(&change), Some(session.0));
    assert_eq!(change.election.unwrap().holder.unwrap().value.as_ref(), b"cut off");
}

#[tokio::test]
async fn a_resumed_watch_is_told_what_this_node_believes_and_not_what_another_did() {
    let mut world = World::new(quick(1));
    let session = led(&mut world, &["a"]).await;
    let at = world.revision().0;
    // Whatever the node before said, this one believes the holder live ...
    let mut seen = world.observe(after(one("a"), at)).unwrap();
    assert_eq!(holder(&seen.change().await), Some(session.0));
    // ... and after belief ended a resumed watch hears "none".
    world.doubts.0.lock().insert(session);
    let mut late = world.observe(after(one("a"), at)).unwrap();
    assert_eq!(holder(&late.change().await), None);
}

#[tokio::test]
async fn whoever_joins_while_belief_changes_ends_up_with_what_the_node_believes() {
    let mut world = World::new(quick(1));
    let session = led(&mut world, &["a"]).await;
    let mut first = world.observe(one("a")).unwrap();
    first.snapshot().await;
    // Joined with the holder left out, but belief returned before the hub ever looked.
    world.doubts.0.lock().insert(session);
    let mut joined = world.observe(one("a")).unwrap();
    world.doubts.0.lock().clear();
    let (rows, _) = joined.snapshot().await;
    assert_eq!(holder(&rows[0]), None);
    assert_eq!(holder(&joined.change().await), Some(session.0));
    assert!(first.ready().is_none(), "nothing changed for the one that was there before");
}

#[tokio::test]
async fn a_sweep_over_many_watched_elections_goes_on_until_the_last_one() {
    // More than two goes, and so long between sweeps that nothing but going on finds the last.
    const ELECTIONS: usize = 20_500;
    let mut world = World::new(HubConfig {
        belief_interval: Duration::from_secs(3_600),
        mailbox_messages: usize::MAX,
        mailbox_bytes: usize::MAX,
        ..quick(1)
    });
    let mut sessions = Vec::new();
    for at in 0..ELECTIONS {
        if at % 4_000 == 0 {
            sessions.push(world.open());
        }
        world.campaign(&format!("e{at:05}"), sessions[at / 4_000]);
    }
    let mut seen = world.observe(all()).unwrap();
    assert_eq!(seen.snapshot().await.0.len(), ELECTIONS);
    world.doubts.0.lock().extend(sessions);
    world.hub.beliefs_changed();
    for at in 0..ELECTIONS {
        let change = seen.change().await;
        assert_eq!((change.name, change.election.unwrap().holder), (format!("e{at:05}"), None));
    }
}

#[tokio::test]
async fn an_election_that_nobody_watches_is_not_looked_at() {
    let mut world = World::new(quick(1));
    let session = led(&mut world, &["a"]).await;
    let seen = world.observe(one("a")).unwrap();
    drop(seen);
    world.proclaim("a", session, b"1");
    world.hub.beliefs_changed();
    eventually("the hub is idle", || world.hub.is_belief_idle()).await;
}
