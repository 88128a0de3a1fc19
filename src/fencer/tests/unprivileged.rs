//! The agent as it is in the field: the owner of the data directory, with one ambient capability or
//! with none. Needs root, to become such a user.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use nix::unistd::{User, geteuid};
use regent_fencer::client::await_end;
use regent_fencer::receipt::{Proof, Reason};
use regent_fencer::wire::{Bound, Protection};

use crate::rig::{LONG, RUNAWAY_COUNT, RUNAWAYS, Rig, arm, in_ms, wait};

/// A rig whose fencer is launched by the user `nobody` with `capabilities`.
fn rig(name: &str, capabilities: &str) -> Option<Rig> {
    let setpriv = Path::new("/usr/bin/setpriv");
    if !geteuid().is_root() || !setpriv.exists() {
        eprintln!("SKIPPED: needs root and setpriv");
        return None;
    }
    let mut rig = Rig::new(name);
    let user = User::from_name("nobody").unwrap().unwrap();
    for dir in [rig.dir.clone(), rig.dir.join("work")] {
        chown(dir, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
    let wrap = rig.dir.join("launch");
    let script = format!(
        "#!/bin/sh\nexec {} --reuid=nobody --clear-groups {capabilities} {} \"$@\"\n",
        setpriv.display(),
        rig.program.display(),
    );
    std::fs::write(&wrap, script).unwrap();
    std::fs::set_permissions(&wrap, std::fs::Permissions::from_mode(0o755)).unwrap();
    rig.program = wrap;
    Some(rig)
}

const AMBIENT: &str = "--inh-caps=-all,+sys_admin --ambient-caps=-all,+sys_admin";

#[test]
fn one_ambient_capability_arms_and_is_gone_before_the_program_starts() {
    let Some(rig) = rig("ambient", AMBIENT) else { return };
    let mut fencer = rig.launch();
    let until = in_ms(1_500);
    let script = format!("cat /proc/self/status > status; {RUNAWAYS}");
    let status = fencer.start(&rig.script(&script, Bound::Until(arm(5, 1, until)))).unwrap();
    assert_eq!(status.protection, Protection::Namespace);
    rig.wait_left(|count| count >= RUNAWAY_COUNT);
    let program = std::fs::read_to_string(rig.dir.join("work/status")).unwrap();
    let init = std::fs::read_to_string(format!("/proc/{}/status", fencer.pid())).unwrap();
    for (who, text) in [("program", program), ("init", init)] {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            let none = format!("{set}:\t0000000000000000");
            assert!(text.contains(&none), "{who} has {set}: {text}");
        }
    }
    let receipt = rig.wait_receipt(1);
    assert_eq!((receipt.reason, receipt.proof), (Reason::Deadline, Proof::Namespace));
    assert_eq!(rig.left(), Vec::<i32>::new());
}

/// Whether the real user of `pid` is root, whom only root may kill.
fn is_root(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .is_ok_and(|status| status.contains("\nUid:\t0\t"))
}

#[test]
fn whom_the_init_may_not_kill_ends_with_the_init() {
    let Some(rig) = rig("unkillable", AMBIENT) else { return };
    // A set-uid program that becomes root for good, as sudo in an archive command does.
    let root = rig.dir.join("work/root");
    std::fs::copy("/usr/bin/setpriv", &root).unwrap();
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o4755)).unwrap();
    let mut fencer = rig.launch();
    let script = "setsid ./root --reuid=0 sleep 1000 & exec sleep 1001";
    fencer.start(&rig.script(script, Bound::Until(arm(5, 1, in_ms(800))))).unwrap();
    rig.wait_left(|count| count == 2);
    wait(|| rig.left().iter().any(|pid| is_root(*pid)));
    let receipt = rig.wait_receipt(1);
    assert_eq!((receipt.reason, receipt.proof), (Reason::Deadline, Proof::EndOfInit));
    let gone = await_end(&rig.options.state_dir, LONG).unwrap();
    assert_eq!((gone.proof, gone.fencer), (Proof::Namespace, receipt.fencer));
    assert_eq!(rig.left(), Vec::<i32>::new());
    assert!(fencer.has_ended());
}

#[test]
fn without_the_capability_it_is_weak_and_says_why() {
    let Some(rig) = rig("no-capability", "--inh-caps=-all --ambient-caps=-all") else { return };
    let mut fencer = rig.launch();
    let status = fencer.start(&rig.script(RUNAWAYS, Bound::Until(arm(5, 1, in_ms(700)))));
    let Protection::Weak { reason } = status.unwrap().protection else { panic!("it is armed") };
    assert!(reason.contains("not permitted"), "{reason}");
    assert_eq!(rig.wait_receipt(1).proof, Proof::Weak);
    assert_eq!(rig.left(), Vec::<i32>::new());
}
