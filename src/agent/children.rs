//! The processes that a server has, as `/proc` shows them: some are in none of its own lists yet.

use std::io;

use regent_engine::Child;

/// Tries of the short way.
const TRIES: usize = 5;

/// Those whose parent is `postmaster`, a pid on the host; each with the pid that the server itself
/// knows it by. None is missing that was there before this was called.
pub fn of(postmaster: i32) -> io::Result<Vec<Child>> {
    let pids = match (0..TRIES).find_map(|_| listed_twice(postmaster)) {
        Some(pids) => pids,
        None => everybody()?,
    };
    // Whoever is gone by now does nothing any more.
    Ok(pids.into_iter().filter_map(|pid| child(postmaster, pid)).collect())
}

/// The kernel's own list, which may pass over one where another ends while it is read: one that it
/// has listed already, so that the next list is a different one. Two that are equal miss nobody.
fn listed_twice(postmaster: i32) -> Option<Vec<i32>> {
    let list = || {
        let threads = std::fs::read_dir(format!("/proc/{postmaster}/task")).ok()?;
        let of = |thread: io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(thread.ok()?.path().join("children")).ok()
        };
        threads.map(of).collect::<Option<Vec<String>>>().map(|lists| lists.join(" "))
    };
    let (first, second) = (list()?, list()?);
    (first == second).then(|| first.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

fn everybody() -> io::Result<Vec<i32>> {
    let names = std::fs::read_dir("/proc")?.map(|entry| entry.map(|entry| entry.file_name()));
    let pids = names.map(|name| Ok(name?.to_str().and_then(|name| name.parse().ok())));
    pids.filter_map(Result::transpose).collect()
}

fn child(postmaster: i32, pid: i32) -> Option<Child> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
    let parent = field("PPid:").and_then(|text| text.trim().parse::<i32>().ok());
    let is_dead = field("State:").is_some_and(|state| state.trim().starts_with('Z'));
    if parent != Some(postmaster) || is_dead {
        return None;
    }
    // The last of these is the one of its own namespace.
    let inside = field("NSpid:").and_then(|pids| pids.split_whitespace().last()?.parse().ok());
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let title = String::from_utf8_lossy(&words).replace('\0', " ").trim_end().to_owned();
    Some(Child { pid: inside.unwrap_or(pid), title })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_child_is_found_by_its_parent_and_with_its_title() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let me = std::process::id().cast_signed();
        let pid = child.id().cast_signed();
        // It has its name a moment after its parent goes on.
        let title = format!("/proc/{pid}/cmdline");
        while std::fs::read(&title).unwrap().is_empty() {
            std::thread::yield_now();
        }
        let found = of(me).unwrap();
        let slowly = everybody().unwrap().into_iter().filter_map(|pid| super::child(me, pid));
        assert!(slowly.into_iter().any(|it| it.pid == pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.iter().any(|it| it.pid == pid && it.title == "sleep 60"), "{found:?}");
        assert!(of(pid).unwrap().is_empty());
    }
}
