//! Without a namespace: said aloud, and still as good as it can be.

use regent_fencer::client::await_end;
use regent_fencer::receipt::{ExitStatus, Proof, Reason};
use regent_fencer::wire::{Bound, Protection};

use crate::rig::{LONG, RUNAWAY_COUNT, RUNAWAYS, Rig, arm, in_ms, late_ms, signal, wait};

#[test]
fn without_a_namespace_the_deadline_still_ends_all_and_says_weak() {
    let mut rig = Rig::new("weak");
    rig.options.weak = Some("asked for by a test".into());
    let mut fencer = rig.launch();
    let until = in_ms(1_500);
    let status = fencer.start(&rig.script(RUNAWAYS, Bound::Until(arm(5, 1, until)))).unwrap();
    let reason = "asked for by a test".to_owned();
    assert_eq!(status.protection, Protection::Weak { reason });
    rig.wait_left(|count| count >= RUNAWAY_COUNT);
    let receipt = rig.wait_receipt(1);
    assert_eq!((receipt.reason, receipt.proof), (Reason::Deadline, Proof::Weak));
    assert_eq!(receipt.exit, Some(ExitStatus::Signal(9)));
    assert_eq!(rig.left(), Vec::<i32>::new());
    eprintln!("weak: all gone {:.1} ms after the deadline", late_ms(&receipt, until));
}

#[test]
fn a_frozen_weak_fencer_is_ended_with_its_descendants() {
    let mut rig = Rig::new("weak-frozen");
    rig.options.weak = Some("asked for by a test".into());
    let mut fencer = rig.launch();
    fencer.start(&rig.script(RUNAWAYS, Bound::Until(arm(5, 1, in_ms(60_000))))).unwrap();
    rig.wait_left(|count| count >= RUNAWAY_COUNT);
    signal("STOP", fencer.pid());
    let receipt = fencer.kill_namespace(LONG).unwrap();
    assert_eq!(receipt.proof, Proof::Weak);
    assert_eq!(rig.left(), Vec::<i32>::new());
}

#[test]
fn without_a_namespace_the_program_itself_ends_with_its_fencer() {
    let mut rig = Rig::new("weak-killed");
    rig.options.weak = Some("asked for by a test".into());
    let mut fencer = rig.launch();
    let status = fencer.start(&rig.script("exec sleep 1000", Bound::Unbound)).unwrap();
    let pid = status.running.unwrap().pid;
    assert!(crate::rig::exists(pid));
    signal("KILL", fencer.pid());
    wait(|| !crate::rig::exists(pid));
}

/// OUT (a): the receipt of an armed run says nothing of a weak one after it.
#[test]
fn a_weak_run_that_nobody_saw_end_is_not_proven_by_the_receipt_of_the_run_before() {
    let mut rig = Rig::new("weak-after-armed");
    let mut fencer = rig.launch();
    fencer.start(&rig.script("true", Bound::Unbound)).unwrap();
    let armed = rig.wait_receipt(1);
    fencer.quit().unwrap();
    await_end(&rig.options.state_dir, LONG).unwrap();

    rig.options.weak = Some("asked for by a test".into());
    let mut fencer = rig.launch();
    let mut command = rig.script("exec sleep 1000", Bound::Unbound);
    command.acknowledges = 1;
    let weak = fencer.start(&command).unwrap().fencer;
    signal("KILL", fencer.pid());
    let gone = await_end(&rig.options.state_dir, LONG).unwrap();
    let receipt = gone.receipt.unwrap();
    assert_eq!((receipt.fencer, receipt.proof, gone.proof), (weak, Proof::Weak, Proof::Weak));
    assert_ne!(armed.fencer, weak);
    let status = rig.launch().status().unwrap();
    assert_eq!(status.receipt.map(|it| it.proof), Some(Proof::Weak));
}
