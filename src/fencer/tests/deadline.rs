//! The deadline ends everything, on time, whatever it is and whoever is gone.

use std::process::{Command, Stdio};
use std::time::Duration;

use regent_core::id::Revision;
use regent_core::time::Micros;
use regent_fencer::client::ClientError;
use regent_fencer::clock;
use regent_fencer::receipt::{ExitStatus, Reason};
use regent_fencer::wire::{Bound, Event, Phase, Refusal};

use crate::rig::{
    LONG, RUNAWAY_COUNT, RUNAWAYS, Rig, arm, epoch, in_ms, late_ms, proof_of, signal, wait,
};

/// Far above what is measured; the machine of the tests is shared.
const LATE_MS: f64 = 1_000.0;

#[test]
fn runaways_are_all_gone_after_the_deadline() {
    let rig = Rig::new("runaways");
    let mut fencer = rig.launch();
    let mut events = fencer.watch().unwrap();
    let until = in_ms(1_500);
    let command = rig.script(RUNAWAYS, Bound::Until(arm(5, 1, until)));
    let status = fencer.start(&command).unwrap();
    assert_eq!(status.phase, Phase::Running);
    rig.wait_left(|count| count >= RUNAWAY_COUNT);

    let fired = events.next(LONG).unwrap().unwrap();
    assert!(matches!(fired, Event::Fired { epoch: e, .. } if e == epoch(5)), "{fired:?}");
    let exited = events.next(LONG).unwrap().unwrap();
    assert!(matches!(exited, Event::Exited { exit: ExitStatus::Signal(9), .. }), "{exited:?}");
    let Event::Stopped { receipt } = events.next(LONG).unwrap().unwrap() else { panic!() };
    // Told only after it is on disk, and only when nobody is left.
    assert_eq!(rig.last_receipt().as_ref(), Some(&receipt));
    assert_eq!(rig.left(), Vec::<i32>::new());
    assert_eq!(receipt.reason, Reason::Deadline);
    assert_eq!((receipt.sequence, receipt.epoch), (1, epoch(5)));
    assert_eq!(receipt.exit, Some(ExitStatus::Signal(9)));
    assert_eq!(receipt.proof, proof_of(&status));
    assert_eq!(receipt.started_at, status.running.map(|running| running.since));
    assert!(receipt.ended_at.boottime_us >= receipt.killed_at.boottime_us);
    let late = late_ms(&receipt, until);
    eprintln!("all runaways gone {late:.1} ms after the deadline");
    assert!(late < LATE_MS, "{late} ms");
}

#[test]
fn frozen_runaways_are_gone_too() {
    let rig = Rig::new("frozen-runaways");
    let mut fencer = rig.launch();
    let until = in_ms(1_500);
    fencer.start(&rig.script(RUNAWAYS, Bound::Until(arm(5, 1, until)))).unwrap();
    for pid in rig.wait_left(|count| count >= RUNAWAY_COUNT) {
        signal("STOP", pid);
    }
    let receipt = rig.wait_receipt(1);
    assert_eq!(rig.left(), Vec::<i32>::new());
    let late = late_ms(&receipt, until);
    eprintln!("all frozen runaways gone {late:.1} ms after the deadline");
    assert!(late < LATE_MS, "{late} ms");
}

/// Run by the next test as a process of its own; by itself it does nothing.
#[test]
fn agent_that_waits_to_be_killed() {
    let Ok(dir) = std::env::var("REGENT_TEST_AGENT") else { return };
    let mut rig = Rig::new("agent");
    rig.options.state_dir = format!("{dir}/state").into();
    std::fs::remove_dir_all(&rig.dir).unwrap();
    rig.dir = dir.into();
    let mut fencer = rig.launch();
    let command = rig.script(RUNAWAYS, Bound::Until(arm(5, 1, in_ms(2_500))));
    fencer.start(&command).unwrap();
    loop {
        std::thread::sleep(LONG);
    }
}

#[test]
fn a_killed_agent_changes_nothing_for_the_deadline() {
    let rig = Rig::new("killed-agent");
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "deadline::agent_that_waits_to_be_killed"])
        .env("REGENT_TEST_AGENT", &rig.dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    rig.wait_left(|count| count >= RUNAWAY_COUNT);
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert!(rig.left().len() >= RUNAWAY_COUNT, "it ended with its agent");
    let receipt = rig.wait_receipt(1);
    assert_eq!(receipt.reason, Reason::Deadline);
    assert_eq!(rig.left(), Vec::<i32>::new());
}

#[test]
fn a_lower_deadline_is_ignored_and_a_higher_one_is_kept() {
    let rig = Rig::new("rises");
    let mut fencer = rig.launch();
    let first = in_ms(60_000);
    fencer.start(&rig.script("sleep 1000", Bound::Until(arm(5, 1, first)))).unwrap();
    let status = fencer.arm(&arm(5, 2, in_ms(10))).unwrap();
    assert_eq!(status.lease.until, Some(first));
    let second = first.plus(Micros::from_ms(1_000));
    assert_eq!(fencer.arm(&arm(5, 2, second)).unwrap().lease.until, Some(second));
    let stale = fencer.arm(&arm(5, 1, second.plus(Micros(1))));
    assert!(matches!(stale, Err(ClientError::Refused(Refusal::Stale { .. }))), "{stale:?}");
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(fencer.status().unwrap().phase, Phase::Running);
}

#[test]
fn a_deadline_in_the_past_fires_at_once() {
    let rig = Rig::new("past");
    let mut fencer = rig.launch();
    fencer.start(&rig.script("sleep 1000", Bound::Unbound)).unwrap();
    fencer.arm(&arm(5, 1, clock::now())).unwrap();
    assert_eq!(rig.wait_receipt(1).reason, Reason::Deadline);
    assert_eq!(rig.left(), Vec::<i32>::new());
}

#[test]
fn it_fires_on_the_clock_that_comes_first() {
    let rig = Rig::new("clocks");
    let mut fencer = rig.launch();
    fencer.start(&rig.script("sleep 1000", Bound::Unbound)).unwrap();
    let mut until = in_ms(200);
    until.boottime_us += 3_600_000_000;
    fencer.arm(&arm(5, 1, until)).unwrap();
    assert!(rig.wait_receipt(1).killed_at.raw_us >= until.raw_us);
}

#[test]
fn what_fired_goes_on_only_with_a_higher_lease_that_names_the_receipt() {
    let rig = Rig::new("latch");
    let mut fencer = rig.launch();
    fencer.start(&rig.script("sleep 1000", Bound::Until(arm(5, 3, in_ms(200))))).unwrap();
    assert_eq!(rig.wait_receipt(1).sequence, 1);
    wait(|| fencer.status().unwrap().phase == Phase::Idle);
    assert!(fencer.status().unwrap().lease.fired);
    let refused = |answer: Result<_, ClientError>| match answer {
        Err(ClientError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    assert!(matches!(refused(fencer.arm(&arm(6, 1, in_ms(900)))), Refusal::Fired { .. }));
    assert!(matches!(refused(fencer.disarm(Revision(7))), Refusal::Fired { .. }));
    let mut command = rig.script("sleep 1000", Bound::Until(arm(5, 4, in_ms(60_000))));
    assert_eq!(refused(fencer.start(&command)), Refusal::Unacknowledged { last: 1 });
    command.acknowledges = 1;
    command.bound = Bound::Until(arm(5, 3, in_ms(60_000)));
    assert!(matches!(refused(fencer.start(&command)), Refusal::Stale { .. }));
    command.bound = Bound::Until(arm(5, 4, clock::now()));
    assert_eq!(refused(fencer.start(&command)), Refusal::DeadlinePast);
    command.bound = Bound::Until(arm(5, 4, in_ms(60_000)));
    let status = fencer.start(&command).unwrap();
    assert!(!status.lease.fired && status.phase == Phase::Running);
}

#[test]
fn a_pause_takes_the_deadline_away_until_the_next_arm() {
    let rig = Rig::new("pause");
    let mut fencer = rig.launch();
    fencer.start(&rig.script("sleep 1000", Bound::Until(arm(5, 1, in_ms(700))))).unwrap();
    let status = fencer.disarm(Revision(7)).unwrap();
    assert_eq!((status.lease.until, status.lease.pause), (None, Revision(7)));
    std::thread::sleep(Duration::from_millis(900));
    assert_eq!(fencer.status().unwrap().phase, Phase::Running);
    fencer.arm(&arm(5, 2, in_ms(100))).unwrap();
    assert_eq!(rig.wait_receipt(1).reason, Reason::Deadline);
}
