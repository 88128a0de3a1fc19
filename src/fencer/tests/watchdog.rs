//! The watchdog is fed until its timeout before the deadline, and closed at an orderly end.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use regent_fencer::clock;
use regent_fencer::options::WatchdogOptions;
use regent_fencer::wire::{Bound, Phase};

use crate::rig::{Rig, arm, in_ms, wait};

#[test]
fn the_last_feeding_before_a_deadline_leaves_room_for_its_timeout() {
    let mut rig = Rig::new("watchdog");
    let path = rig.dir.join("watchdog");
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
    let mut fifo =
        OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path).unwrap();
    let timeout_ms = 400;
    rig.options.watchdog = Some(WatchdogOptions { path, timeout_ms });
    let mut fencer = rig.launch();
    let mut read = || {
        let mut bytes = [0; 64];
        fifo.read(&mut bytes).map_or(0, |count| bytes[..count].iter().filter(|b| **b == 0).count())
    };
    let until = in_ms(1_500);
    fencer.start(&rig.script("sleep 1000", Bound::Until(arm(5, 1, until)))).unwrap();
    let (mut count, mut last) = (0, clock::now());
    let fed = |until: u64| until - timeout_ms * 1000;
    // Reading comes a little after feeding: hence the slack.
    let slack_us = 150_000;
    while clock::now().boottime_us < until.boottime_us {
        let fresh = read();
        if fresh > 0 {
            (count, last) = (count + fresh, clock::now());
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(count >= 5, "fed {count} times");
    assert!(last.boottime_us <= fed(until.boottime_us) + slack_us, "fed too long");
    // Nothing runs any more: it is fed again, and then told that this end is meant.
    rig.wait_receipt(1);
    wait(|| read() > 0);
    wait(|| fencer.status().unwrap().phase == Phase::Idle);
    fencer.quit().unwrap();
    wait(|| fencer.has_ended());
    let mut rest = Vec::new();
    let _ = fifo.read_to_end(&mut rest);
    assert_eq!(rest.last(), Some(&b'V'));
}
