//! Starting, stopping, signalling, and what the receipts say.

use std::time::Duration;

use regent_fencer::client::ClientError;
use regent_fencer::receipt::{ExitStatus, Reason};
use regent_fencer::wire::{Bound, Event, Notice, Phase, Refusal, StopMode, Target};

use crate::rig::{LONG, RUNAWAY_COUNT, RUNAWAYS, Rig, arm, in_ms, wait};

#[test]
fn a_second_start_is_refused_while_one_runs() {
    let rig = Rig::new("second");
    let mut fencer = rig.launch();
    let command = rig.script("sleep 1000", Bound::Unbound);
    fencer.start(&command).unwrap();
    let refused = fencer.start(&command);
    assert!(matches!(refused, Err(ClientError::Refused(Refusal::Running))), "{refused:?}");
    let quit = fencer.quit();
    assert!(matches!(quit, Err(ClientError::Refused(Refusal::Running))), "{quit:?}");
}

#[test]
fn a_second_fencer_on_the_same_directory_is_refused() {
    let rig = Rig::new("second-fencer");
    let mut fencer = rig.launch();
    assert!(matches!(rig.try_launch(), Err(ClientError::AlreadyRunning)));
    fencer.quit().unwrap();
    wait(|| fencer.has_ended());
    rig.launch();
}

#[test]
fn an_exit_is_told_at_once_and_takes_the_rest_with_it() {
    let rig = Rig::new("exit");
    let mut fencer = rig.launch();
    let mut events = fencer.watch().unwrap();
    let script = "(trap '' TERM HUP; setsid sleep 1000 &) ; sleep 0.2; exit 7";
    fencer.start(&rig.script(script, Bound::Until(arm(5, 1, in_ms(60_000))))).unwrap();
    let exited = events.next(LONG).unwrap().unwrap();
    assert!(matches!(exited, Event::Exited { exit: ExitStatus::Code(7), .. }), "{exited:?}");
    let Event::Stopped { receipt } = events.next(LONG).unwrap().unwrap() else { panic!() };
    assert_eq!((receipt.reason, receipt.exit), (Reason::PostmasterExit, Some(ExitStatus::Code(7))));
    assert_eq!(rig.left(), Vec::<i32>::new());
    // Nothing is left to bound, and an end that was not a firing may go on in the same lease.
    assert_eq!(fencer.status().unwrap().lease.until, None);
    let mut again = rig.script("sleep 1000", Bound::Until(arm(5, 1, in_ms(60_000))));
    again.acknowledges = receipt.sequence;
    fencer.start(&again).unwrap();
}

#[test]
fn a_stop_is_a_signal_first_and_a_kill_when_its_time_is_over() {
    let rig = Rig::new("stop");
    let mut fencer = rig.launch();
    let script = "trap 'exit 3' INT; echo > ready; while :; do sleep 0.02; done";
    fencer.start(&rig.script(script, Bound::Unbound)).unwrap();
    wait(|| rig.dir.join("work/ready").exists());
    let receipt = fencer.stop(StopMode::Fast, LONG).unwrap();
    assert_eq!(receipt.reason, Reason::Stop(StopMode::Fast));
    assert_eq!(receipt.exit, Some(ExitStatus::Code(3)));

    let mut stubborn = rig.script(RUNAWAYS, Bound::Unbound);
    stubborn.acknowledges = 1;
    fencer.start(&stubborn).unwrap();
    rig.wait_left(|count| count >= RUNAWAY_COUNT);
    let receipt = fencer.stop(StopMode::Immediate, Duration::from_millis(200)).unwrap();
    assert_eq!(receipt.exit, Some(ExitStatus::Signal(9)));
    assert_eq!(rig.left(), Vec::<i32>::new());

    stubborn.acknowledges = 2;
    fencer.start(&stubborn).unwrap();
    rig.wait_left(|count| count >= RUNAWAY_COUNT);
    let receipt = fencer.stop(StopMode::Kill, LONG).unwrap();
    assert_eq!((receipt.sequence, receipt.reason), (3, Reason::Stop(StopMode::Kill)));
    assert_eq!(rig.left(), Vec::<i32>::new());
}

#[test]
fn signals_reach_the_program_and_its_children_and_nobody_else() {
    let rig = Rig::new("signals");
    let mut fencer = rig.launch();
    let script = "trap 'echo reloaded' HUP; trap 'echo promoted' USR1
        sleep 1000 & echo $! > child; echo $$ > self
        while :; do sleep 0.02; done";
    let status = fencer.start(&rig.script(script, Bound::Unbound)).unwrap();
    let file = |name| std::fs::read_to_string(rig.dir.join("work").join(name)).unwrap_or_default();
    wait(|| file("self").ends_with('\n'));
    assert_eq!(file("self").trim(), status.running.unwrap().pid.to_string());
    fencer.signal(Target::Postmaster, Notice::Reload).unwrap();
    wait(|| file("log").contains("reloaded"));
    fencer.signal(Target::Postmaster, Notice::Promote).unwrap();
    wait(|| file("log").contains("promoted"));
    let child: i32 = file("child").trim().parse().unwrap();
    let host = fencer.host_pid(child).unwrap().unwrap();
    fencer.signal(Target::Inside(child), Notice::Terminate).unwrap();
    wait(|| !crate::rig::exists(host));
    for (target, notice) in [
        (Target::Inside(-1), Notice::Terminate),
        (Target::Inside(0), Notice::Terminate),
        (Target::Inside(1), Notice::Terminate),
        (Target::Inside(999_999), Notice::Terminate),
        (Target::Postmaster, Notice::Terminate),
    ] {
        let refused = fencer.signal(target, notice);
        let right = matches!(refused, Err(ClientError::Refused(Refusal::CannotSignal(_))));
        assert!(right, "{target:?}: {refused:?}");
    }
    assert_eq!(fencer.status().unwrap().phase, Phase::Running);
}

#[test]
fn a_program_that_is_not_there_is_refused_with_the_reason() {
    let rig = Rig::new("absent");
    let mut fencer = rig.launch();
    let mut command = rig.script("true", Bound::Unbound);
    command.program = "/nowhere/postgres".into();
    let refused = fencer.start(&command);
    let Err(ClientError::Refused(Refusal::CannotStart(why))) = refused else {
        panic!("{refused:?}")
    };
    assert!(why.contains("exec"), "{why}");
    assert_eq!(fencer.status().unwrap().phase, Phase::Idle);
    fencer.start(&rig.script("sleep 1000", Bound::Unbound)).unwrap();
}

#[test]
fn the_program_gets_no_rights_no_blocked_signals_and_no_environment_of_the_fencer() {
    let rig = Rig::new("rights");
    let mut fencer = rig.launch();
    let mut command = rig.script("cat /proc/self/status > status; env > env", Bound::Unbound);
    command.env.push(("GIVEN".into(), "yes".into()));
    fencer.start(&command).unwrap();
    rig.wait_receipt(1);
    let status = std::fs::read_to_string(rig.dir.join("work/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    assert_eq!(field("SigBlk:"), 0);
    // 32 and 33 are the C library's own, which its posix_spawn leaves ignored.
    assert_eq!(field("SigIgn:") & !(0b11 << 31), 0);
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(set), 0, "{set}");
    }
    let env = std::fs::read_to_string(rig.dir.join("work/env")).unwrap();
    assert!(env.contains("GIVEN=yes") && !env.contains("CARGO"), "{env}");
}

#[test]
fn a_receipt_that_cannot_be_written_is_not_told_and_nothing_starts() {
    let rig = Rig::new("disk");
    let mut fencer = rig.launch();
    let mut events = fencer.watch().unwrap();
    fencer.start(&rig.script("sleep 1000", Bound::Until(arm(5, 1, in_ms(200))))).unwrap();
    // What the receipt is written to first is in the way.
    let way = rig.options.state_dir.join("receipt.new");
    std::fs::create_dir(&way).unwrap();
    wait(|| fencer.status().unwrap().receipt_error.is_some());
    assert_eq!(rig.left(), Vec::<i32>::new());
    let status = fencer.status().unwrap();
    assert_eq!((status.phase, status.receipt), (Phase::Receipt, None));
    let mut command = rig.script("sleep 1000", Bound::Until(arm(6, 1, in_ms(60_000))));
    for acknowledges in [0, 1] {
        command.acknowledges = acknowledges;
        let refused = fencer.start(&command);
        assert!(matches!(refused, Err(ClientError::Refused(Refusal::Running))), "{refused:?}");
    }
    for _ in 0..2 {
        assert!(!matches!(events.next(LONG).unwrap().unwrap(), Event::Stopped { .. }));
    }
    assert_eq!(events.next(Duration::from_millis(50)).unwrap(), None);
    std::fs::remove_dir(&way).unwrap();
    assert!(matches!(events.next(LONG).unwrap().unwrap(), Event::Stopped { .. }));
    fencer.start(&command).unwrap();
}

/// `nohup` and shells that start something in the background have it ignore signals, and that outlives
/// every exec: the database would miss them.
#[test]
fn what_the_agent_was_started_to_ignore_the_program_hears() {
    let mut rig = Rig::new("nohup");
    let deaf = rig.dir.join("deaf");
    let text = format!("#!/bin/sh\ntrap '' HUP INT QUIT\nexec {:?} \"$@\"\n", rig.program);
    std::fs::write(&deaf, text).unwrap();
    std::fs::set_permissions(&deaf, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    rig.program = deaf;
    let mut fencer = rig.launch();
    let script = "trap 'exit 3' INT; echo > ready; while :; do sleep 0.02; done";
    fencer.start(&rig.script(script, Bound::Unbound)).unwrap();
    wait(|| rig.dir.join("work/ready").exists());
    let receipt = fencer.stop(StopMode::Fast, Duration::from_secs(3)).unwrap();
    assert_eq!(receipt.exit, Some(ExitStatus::Code(3)));
}

/// The cgroup of a process in the second version's hierarchy.
fn cgroup(pid: i32) -> String {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
}

#[test]
fn fencer_and_program_have_a_cgroup_each_which_is_gone_after_them() {
    let rig = Rig::new("cgroup");
    let mut fencer = rig.launch();
    let log = std::fs::read_to_string(rig.options.state_dir.join("fencer.log")).unwrap_or_default();
    if let Some(why) = log.lines().find(|line| line.starts_with("no cgroup of its own")) {
        eprintln!("NOT RUN: {why}");
        return;
    }
    let own = cgroup(fencer.pid());
    assert!(own.contains("/regent-fencer-") && own.ends_with("/fencer"), "{own}");
    assert!(!cgroup(std::process::id().cast_signed()).contains("regent-fencer-"));
    fencer.start(&rig.script("echo > ready; sleep 1000", Bound::Unbound)).unwrap();
    wait(|| rig.dir.join("work/ready").exists());
    let left = rig.left();
    assert!(!left.is_empty());
    for pid in left {
        assert_eq!(cgroup(pid), format!("{}database", own.strip_suffix("fencer").unwrap()));
    }
    fencer.stop(StopMode::Kill, LONG).unwrap();
    fencer.quit().unwrap();
    wait(|| fencer.has_ended());
    // The next one, whoever launches it, sweeps.
    let other = Rig::new("cgroup-next");
    let next = other.launch();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).unwrap();
    let dir = format!("{}{}", mount.split(' ').nth(1).unwrap(), own);
    assert!(!std::path::Path::new(&dir).exists(), "{dir}");
    assert_ne!(cgroup(next.pid()), own);
}
