//! A fencer that does not answer is ended through its pidfd, and all else with it.

use std::time::{Duration, Instant};

use regent_fencer::client::{ClientError, EndError};
use regent_fencer::clock;
use regent_fencer::receipt::Reason;
use regent_fencer::wire::Bound;

use crate::rig::{LONG, RUNAWAY_COUNT, RUNAWAYS, Rig, arm, epoch, in_ms, proof_of, signal, wait};

#[test]
fn a_frozen_init_is_noticed_and_its_end_is_the_end_of_all() {
    let rig = Rig::new("frozen-init");
    let mut fencer = rig.launch();
    let bound = Bound::Until(arm(5, 1, in_ms(60_000)));
    let status = fencer.start(&rig.script(RUNAWAYS, bound)).unwrap();
    for pid in rig.wait_left(|count| count >= RUNAWAY_COUNT) {
        signal("STOP", pid);
    }
    signal("STOP", fencer.pid());
    fencer.set_answer_within(Duration::from_millis(100));
    assert!(matches!(fencer.status(), Err(ClientError::Silent(_))));

    // A new agent, that never heard this fencer, can do it as well.
    let mut fencer = rig.attach(2);
    fencer.set_answer_within(Duration::from_millis(100));
    assert!(matches!(fencer.status(), Err(ClientError::Silent(_))));
    let began = Instant::now();
    let receipt = fencer.kill_namespace(LONG).unwrap();
    eprintln!("everything ended through the pidfd in {:?}", began.elapsed());
    assert_eq!(rig.left(), Vec::<i32>::new());
    assert_eq!(receipt.reason, Reason::NamespaceKilled);
    assert_eq!((receipt.proof, receipt.fencer), (proof_of(&status), status.fencer));
    assert_eq!(rig.last_receipt(), Some(receipt));
    rig.launch();
}

#[test]
fn the_receipt_of_the_agent_names_the_lease_it_last_heard() {
    let rig = Rig::new("frozen-lease");
    let mut fencer = rig.launch();
    fencer.start(&rig.script("sleep 1000", Bound::Until(arm(5, 4, in_ms(60_000))))).unwrap();
    let receipt = fencer.kill_namespace(LONG).unwrap();
    assert_eq!((receipt.epoch, receipt.number.0), (epoch(5), 4));
    let mut next = rig.launch();
    assert!(next.status().unwrap().lease.fired);
    // The end of a fencer that is gone already is no new end.
    next.quit().unwrap();
    assert!(matches!(
        regent_fencer::client::await_end(&rig.dir, Duration::ZERO),
        Err(EndError::NoRecord)
    ));
}

#[test]
fn a_renewal_that_lay_unread_past_the_deadline_revives_nothing() {
    let rig = Rig::new("late-renewal");
    let mut fencer = rig.launch();
    let until = in_ms(500);
    fencer.start(&rig.script("sleep 1000", Bound::Until(arm(5, 1, until)))).unwrap();
    signal("STOP", fencer.pid());
    fencer.set_answer_within(Duration::from_millis(100));
    let unread = fencer.arm(&arm(5, 2, in_ms(60_000)));
    assert!(matches!(unread, Err(ClientError::Silent(_))), "{unread:?}");
    wait(|| clock::now().boottime_us > until.boottime_us);
    signal("CONT", fencer.pid());
    let receipt = rig.wait_receipt(1);
    assert_eq!((receipt.reason, receipt.number.0), (Reason::Deadline, 1));
    assert_eq!(rig.left(), Vec::<i32>::new());
}

#[test]
fn a_frozen_init_whose_queue_is_full_is_ended_all_the_same() {
    let rig = Rig::new("full-queue");
    let mut fencer = rig.launch();
    fencer.start(&rig.script("sleep 1000", Bound::Until(arm(5, 1, in_ms(60_000))))).unwrap();
    signal("STOP", fencer.pid());
    fencer.set_answer_within(Duration::from_millis(1));
    // Each try leaves a connection behind that is never taken.
    for _ in 0..6_000 {
        assert!(matches!(fencer.status(), Err(ClientError::Silent(_))));
    }
    let receipt = rig.attach(2).kill_namespace(LONG).unwrap();
    assert_eq!(receipt.reason, Reason::NamespaceKilled);
    assert_eq!(rig.left(), Vec::<i32>::new());
}
