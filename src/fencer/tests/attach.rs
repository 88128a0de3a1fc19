//! Agents come and go; the fencer stays, and obeys the newest.

use std::time::Duration;

use regent_fencer::client::{ClientError, await_end};
use regent_fencer::receipt::Reason;
use regent_fencer::wire::{Bound, Phase, Refusal};

use crate::rig::{Rig, arm, in_ms, proof_of, signal, wait};

#[test]
fn a_new_agent_finds_everything_and_takes_over() {
    let rig = Rig::new("takeover");
    let mut old = rig.launch();
    let started =
        old.start(&rig.script("sleep 1000", Bound::Until(arm(5, 1, in_ms(3_000))))).unwrap();
    let mut events = old.watch().unwrap();

    let mut new = rig.attach(2);
    let status = new.status().unwrap();
    assert_eq!(status.fencer, started.fencer);
    assert_eq!(status.lease, started.lease);
    assert_eq!(status.running, started.running);
    assert_eq!(status.agent, Some(Rig::agent(2)));

    let refused = old.arm(&arm(5, 9, in_ms(60_000)));
    let Err(ClientError::Refused(Refusal::Superseded { have })) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(have, Rig::agent(2));
    assert!(old.status().is_err());

    let later = in_ms(60_000);
    assert_eq!(new.arm(&arm(5, 2, later)).unwrap().lease.until, Some(later));
    // The old deadline passes, and nothing happens.
    let first = started.lease.until.unwrap();
    wait(|| regent_fencer::clock::now().boottime_us > first.boottime_us + 50_000);
    assert_eq!(new.status().unwrap().phase, Phase::Running);
    // Who was superseded hears nothing any more.
    assert!(!matches!(events.next(Duration::from_millis(10)), Ok(Some(_))));

    // An older boot, and the same boot with another nonce, are not heard either.
    assert!(rig.attach(1).status().is_err());
    let mut twin = Rig::agent(2);
    twin.nonce.0 += 1;
    let mut twin = regent_fencer::Fencer::attach(&rig.options.state_dir, twin).unwrap();
    assert!(matches!(twin.status(), Err(ClientError::Refused(Refusal::Superseded { .. }))));
}

#[test]
fn the_end_of_the_init_is_the_end_of_all() {
    let rig = Rig::new("init-killed");
    let mut fencer = rig.launch();
    let status = fencer.start(&rig.script(crate::rig::RUNAWAYS, Bound::Unbound)).unwrap();
    if proof_of(&status) == regent_fencer::receipt::Proof::Weak {
        eprintln!("SKIPPED: without a namespace the end of the init ends the program only");
        return;
    }
    rig.wait_left(|count| count >= crate::rig::RUNAWAY_COUNT);
    signal("KILL", fencer.pid());
    let gone = await_end(&rig.options.state_dir, crate::rig::LONG).unwrap();
    assert_eq!(rig.left(), Vec::<i32>::new());
    assert_eq!((gone.fencer, gone.proof), (status.fencer, proof_of(&status)));
    let receipt = gone.receipt.unwrap();
    assert_eq!((receipt.fencer, receipt.proof), (status.fencer, gone.proof), "written for it");
    assert_eq!(rig.last_receipt(), Some(receipt));
    // Once.
    let again = await_end(&rig.options.state_dir, crate::rig::LONG).unwrap();
    assert_eq!(again.receipt, rig.last_receipt());
    assert!(fencer.has_ended() && fencer.status().is_err());
    rig.launch();
}

#[test]
fn the_receipt_and_its_latch_outlive_the_fencer() {
    let rig = Rig::new("receipt");
    let mut fencer = rig.launch();
    fencer.start(&rig.script("sleep 1000", Bound::Until(arm(5, 3, in_ms(200))))).unwrap();
    let receipt = rig.wait_receipt(1);
    wait(|| fencer.status().unwrap().phase == Phase::Idle);
    signal("KILL", fencer.pid());
    let gone = await_end(&rig.options.state_dir, crate::rig::LONG).unwrap();
    assert_eq!(gone.receipt.as_ref(), Some(&receipt));
    assert_eq!(receipt.reason, Reason::Deadline);

    let mut next = rig.launch();
    let status = next.status().unwrap();
    assert_ne!(status.fencer, receipt.fencer);
    assert!(status.lease.fired && status.receipt == Some(receipt));
    let mut command = rig.script("sleep 1000", Bound::Until(arm(5, 3, in_ms(60_000))));
    command.acknowledges = 1;
    let stale = next.start(&command);
    assert!(matches!(stale, Err(ClientError::Refused(Refusal::Stale { .. }))), "{stale:?}");
    command.bound = Bound::Until(arm(6, 0, in_ms(60_000)));
    next.start(&command).unwrap();
}

#[test]
fn signals_that_end_others_do_not_end_the_init() {
    let rig = Rig::new("immune");
    let mut fencer = rig.launch();
    fencer.start(&rig.script("sleep 1000", Bound::Unbound)).unwrap();
    for name in ["TERM", "INT", "HUP", "QUIT", "USR1", "PIPE", "ALRM"] {
        signal(name, fencer.pid());
    }
    assert_eq!(fencer.status().unwrap().phase, Phase::Running);
}

#[test]
fn a_damaged_receipt_is_no_receipt_and_nothing_is_launched_over_it() {
    let rig = Rig::new("damaged");
    std::fs::create_dir_all(&rig.options.state_dir).unwrap();
    std::fs::write(rig.options.state_dir.join("receipt"), b"{\"sequence\":1").unwrap();
    assert!(regent_fencer::last_receipt(&rig.options.state_dir).is_err());
    let refused = rig.try_launch();
    let right = matches!(&refused, Err(ClientError::NotLaunched(why)) if why.contains("receipt"));
    assert!(right, "{refused:?}");
}

#[test]
fn a_heartbeat_is_cheap() {
    let rig = Rig::new("heartbeat");
    let mut fencer = rig.launch();
    fencer.start(&rig.script("sleep 1000", Bound::Unbound)).unwrap();
    let began = std::time::Instant::now();
    for _ in 0..1_000 {
        fencer.status().unwrap();
    }
    let one = began.elapsed() / 1_000;
    eprintln!("a heartbeat takes {one:?}");
    assert!(one < Duration::from_millis(20), "{one:?}");
}
