//! The weak way of ending everything: find the descendants of a process in `/proc` and kill them by
//! number, until there are none. Complete only while that process lives and adopts orphans
//! (PR_SET_CHILD_SUBREAPER), and a process that forks faster than this reads can run away from it:
//! both are why this is [`crate::receipt::Proof::Weak`], and the namespace is the way to go.

use std::collections::BTreeMap;
use std::io;

use rustix::process::{Pid, Signal, kill_process};

use crate::disk;

/// Pids of all living descendants of `root`, as this process's `/proc` shows them. Zombies are
/// counted only if they may still have children, which they may not: so they are left out.
pub(crate) fn of(root: i32) -> io::Result<Vec<i32>> {
    let mut children: BTreeMap<i32, Vec<(i32, char)>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else {
            continue;
        };
        // Whoever is gone by now has no children any more.
        let Ok(stat) = disk::stat(pid) else { continue };
        children.entry(stat.parent).or_default().push((stat.pid, stat.state));
    }
    let (mut found, mut open) = (Vec::new(), vec![root]);
    while let Some(parent) = open.pop() {
        for (pid, state) in children.remove(&parent).unwrap_or_default() {
            open.push(pid);
            if state != 'Z' {
                found.push(pid);
            }
        }
    }
    Ok(found)
}

/// Kills every descendant found in one pass, and says which; empty when none was left.
pub(crate) fn kill_once(root: i32) -> io::Result<Vec<i32>> {
    let found = of(root)?;
    for pid in &found {
        if let Some(pid) = Pid::from_raw(*pid) {
            // ESRCH: gone by itself. EPERM: the next pass finds it again and the caller gives up.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    Ok(found)
}
